"""Flags that are fields of the engine's option objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from mlx_spec.pipeline.options import option


def setting(config: type[Any], group: str, *, changes_text: bool = True) -> Callable[..., Any]:
    """Makes options that set fields of an engine's option object, whose defaults are the same."""

    known = {item.name for item in fields(config)}

    def make(name: str, help: str, *names: str, **about: Any) -> Any:
        assert name in known, f"{config.__name__} has no field {name}"
        default = about.pop("default", getattr(config, name, None))
        about = {"group": group, "sets": (config, name), "changes_text": changes_text, **about}
        return option(default, help, *names, **about)

    return make
