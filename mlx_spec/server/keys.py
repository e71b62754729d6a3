"""``ApiKeys``: who may ask, and how urgent their requests may be."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from mlx_spec.errors import InvalidRequest
from mlx_spec.server.options import ServerOptions
from mlx_spec.text_files import read_text

VARIABLE = "MLX_SPEC_API_KEY"


@dataclass(frozen=True)
class ApiKeys:
    """The keys of a server, kept as digests; empty where everybody may ask.

    Attributes:
        priorities: digest -> the priority of its requests; None where they say it themselves.
    """

    priorities: Mapping[bytes, int | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, options: ServerOptions, environment: Mapping[str, str]) -> ApiKeys:
        """Those of the options, of their file, and of the environment.

        Raises:
            InvalidRequest: a key that cannot be one, or none where the network can ask.
        """
        found: dict[str, int | None] = dict.fromkeys(options.api_key)
        if environment.get(VARIABLE):
            found[environment[VARIABLE]] = None
        if options.api_key_file is not None:
            found |= _of_file(Path(options.api_key_file))
        for key in found:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InvalidRequest("[serve] an API key must be printable ASCII without spaces")
        if not found and not options.local and not options.insecure:
            raise InvalidRequest(
                f"[serve] --host {options.host} lets the network in: give --api-key or "
                f"{VARIABLE}, or --insecure"
            )
        return cls({_digest(key.encode()): priority for key, priority in found.items()})

    def __bool__(self) -> bool:
        return bool(self.priorities)

    def find(self, given: bytes) -> tuple[bool, int | None]:
        """Whether a key is one of them, and its priority; takes as long whatever is given."""
        digest, known, priority = _digest(given), False, None
        for own, its in self.priorities.items():
            if hmac.compare_digest(own, digest):
                known, priority = True, its
        return known, priority


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _of_file(path: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for number, line in enumerate(
        read_text(path, f"[serve] --api-key-file {path}").splitlines(), 1
    ):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key, *numbers = words
            (priority,) = map(int, numbers) if numbers else (None,)
        except ValueError:
            raise InvalidRequest(
                f"[serve] --api-key-file {path}, line {number}: expected a key, and perhaps a "
                "whole number after it"
            ) from None
        found[key] = priority
    return found
