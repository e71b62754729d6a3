"""``mlx-spec pipeline run CONFIG.toml``: the file, checked before anything is loaded.

    input = "records.jsonl"        # paths are relative to the config's folder
    output = "curated.jsonl"
    work = "curated.stages"        # intermediate outputs; this is the default

    [options]                      # flags of mlx-spec batch, for every stage
    model = "demo"
    batch_size = 8

    [[stage]]
    kind = "classify"              # one of `mlx-spec pipeline stages`, or module:Class, your own
    labels = ["code", "cooking"]   # the stage's own options
    batch_size = 16                # flags, for this stage

An error names file, table and key.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of
from mlx_spec.pipeline.stage import Stage
from mlx_spec.pipeline.stages import STAGES
from mlx_spec.platform import ensure_blas
from mlx_spec.text_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, before it was in the standard library
    import tomli as tomllib

T = TypeVar("T")
# What TOML has for a kind: it writes 1 for 1.0; and a truth value is no integer here.
_WRITTEN: dict[type[Any], tuple[type[Any], ...]] = {float: (float, int), tuple: (list, tuple)}
_TOP = ("input", "output", "work", "options", "stage")
_WORDS: dict[type[Any], str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    tuple: "a list of strings",
}


@dataclass(frozen=True)
class StageConfig:
    """One stage of a chain: its name in the work folder, itself, and its flags."""

    name: str
    stage: Stage
    flags: Flags


@dataclass(frozen=True)
class PipelineConfig:
    """A checked config file."""

    input: Path
    output: Path
    work: Path
    stages: tuple[StageConfig, ...]

    def find(self, name: str) -> int:
        """The place, from 0, of a stage by its name (``2-classify``), number or kind.

        Raises:
            InvalidRequest: none is meant, or several are.
        """
        names = [one.name for one in self.stages]
        found = [
            place
            for place, one in enumerate(self.stages)
            if name in (one.name, str(place + 1), one.stage.kind)
        ]
        if len(found) != 1:
            what = "means several stages" if found else "is no stage"
            raise InvalidRequest(f"[config] {name!r} {what}; the stages are {', '.join(names)}")
        return found[0]


def read_config(path: Path, given: Mapping[str, Any] | None = None) -> PipelineConfig:
    """Read and check a config.

    Args:
        path: the file.
        given: flags that go before what it says, for all stages.

    Raises:
        InvalidRequest: with file, table and key of the first mistake.
    """
    where = f"[config] {path}"
    try:
        table = tomllib.loads(read_text(path, where))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{where}: not TOML: {error}") from error
    _refuse_unknown(table, _TOP, f"{where}: top level")
    folder = path.parent
    source = _path(table, "input", folder, where)
    output = _path(table, "output", folder, where)
    default = Path(f"{output}.stages")
    work = _path(table, "work", folder, where) if "work" in table else default
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise InvalidRequest(f"{where}: options must be a table: [options]")
    _check_table(Flags, options, f"{where}: [options]")
    stages = table.get("stage", [])
    if isinstance(stages, dict):
        raise InvalidRequest(f"{where}: [stage] is one table; stages are a list: [[stage]]")
    if not isinstance(stages, list) or not stages:
        raise InvalidRequest(f"{where}: no [[stage]] in it, expected at least one")
    made = tuple(
        _stage(number, one, options, given or {}, folder, where)
        for number, one in enumerate(stages, start=1)
    )
    return PipelineConfig(source, output, work, made)


def _stage(
    number: int,
    table: Any,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    folder: Path,
    where: str,
) -> StageConfig:
    place = f"{where}: [[stage]] {number}"
    if not isinstance(table, dict):
        raise InvalidRequest(f"{place} is no table")
    kind = str(table.get("kind"))
    made = _foreign(kind, folder, place) if ":" in kind else STAGES.get(kind)
    if made is None:
        close = difflib.get_close_matches(kind, STAGES, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InvalidRequest(
            f"{place}: kind={table.get('kind')!r}{hint}, expected one of {', '.join(STAGES)}, "
            "or module:Class for a stage of your own"
        )
    place = f"{place} ({kind})"
    own, shared = options_of(made), options_of(Flags)
    values = {key: _located(key, value, folder) for key, value in table.items() if key != "kind"}
    _refuse_unknown(values, (*own, *shared), place)
    base = {key: _located(key, value, folder) for key, value in options.items()}
    flags = base | {key: value for key, value in values.items() if key in shared}
    stage = _make(made, {k: v for k, v in values.items() if k in own}, place)
    return StageConfig(f"{number}-{made.kind}", stage, _make(Flags, {**flags, **given}, place))


def _foreign(kind: str, folder: Path, place: str) -> type[Stage]:
    """The user's own stage, from a module beside the config or one that is installed."""
    module, _, name = kind.partition(":")
    ensure_blas()  # it may import mlx
    sys.path.insert(0, str(folder.resolve()))
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a foreign module raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InvalidRequest(f"{place}: kind={kind!r} cannot be imported: {reason}") from error
    finally:
        sys.path.remove(str(folder.resolve()))
    if not isinstance(found, type) or not issubclass(found, Stage):
        raise InvalidRequest(f"{place}: kind={kind!r} is no class that derives from Stage")
    if not re.fullmatch(r"[\w-]+", found.kind):
        raise InvalidRequest(f"{place}: {name}.kind={found.kind!r}, expected a word")
    return found


def _located(key: str, value: Any, folder: Path) -> Any:
    """Paths inside the config, relative to its folder."""
    if not isinstance(value, str):
        return value
    if key == "prompt_template" and value.startswith("@"):
        return f"@{folder / Path(value[1:]).expanduser()}"
    shared = options_of(Flags)
    return shared[key].located(value, folder) if key in shared else value


def _path(table: Mapping[str, Any], key: str, folder: Path, where: str) -> Path:
    value = table.get(key)
    if value is None:
        raise InvalidRequest(f'{where}: top level: no {key}, expected {key} = "PATH"')
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where}: top level: {key}={value!r}, expected a path")
    return folder / Path(value).expanduser()


def _make(record: type[T], values: Mapping[str, Any], place: str) -> T:
    """A dataclass from a table, types and ranges checked."""
    _check_table(record, values, place)
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return record(**made)
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error}") from error
    except TypeError as error:  # a user's class that lacks a method, or a value for a field
        raise InvalidRequest(f"{place}: the stage cannot be made: {error}") from error


def _check_table(record: type[Any], values: Mapping[str, Any], place: str) -> None:
    known = options_of(record)
    _refuse_unknown(values, known, place)
    for key, value in values.items():
        kinds = known[key].kinds
        good = any(type(value) in _WRITTEN.get(kind, (kind,)) for kind in kinds)
        if tuple in kinds:
            good = good and all(isinstance(one, str) for one in value)
        if not good:
            wanted = " or ".join(_WORDS[kind] for kind in kinds)
            raise InvalidRequest(f"{place}: {key} = {value!r}, expected {wanted}")


def _refuse_unknown(table: Mapping[str, Any], known: Any, place: str) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise InvalidRequest(f"{place}: unknown key {key!r}{hint}")
