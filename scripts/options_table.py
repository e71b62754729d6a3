"""Writes docs/options.md from the records that the options are written in.

python scripts/options_table.py > docs/options.md
"""

from __future__ import annotations

from typing import Any

from mlx_spec.bench.options import BenchOptions
from mlx_spec.cli.file_options import FileOptions
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import Option, options_of
from mlx_spec.pipeline.stages import STAGES
from mlx_spec.server.flags import ServeFlags
from mlx_spec.server.options import ServerOptions
from mlx_spec.training.recipe import Recipe

HEAD = """\
# Options

Made by `scripts/options_table.py` from `pipeline/flags` and the stages; `tests/test_options.py`
keeps it in step. A *key* is what a table of a config (`mlx-spec pipeline run`) and `collect(...)`
call it; an engine's option object and field are where its value goes.

## Of all commands over models
"""
COLUMNS = "| flag | key | default | goes to | what it means |\n|---|---|---|---|---|"
STAGE_COLUMNS = "| flag | key | default | what it means |\n|---|---|---|---|"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _default(one: Option) -> str:
    empty = one.default is None or one.default == () or one.default == ""
    value = list(one.default) if isinstance(one.default, tuple) else one.default
    return "" if empty else _code(str(value))


def _flags(one: Option) -> str:
    return ", ".join(map(_code, (one.flag, *one.names, *([one.off] if one.off else []))))


def _help(one: Option) -> str:
    choices = f" One of {', '.join(one.choices)}." if one.choices else ""
    return f"{one.help}{choices}".replace("|", "\\|")


def _rows(record: type[Any]) -> list[str]:
    """A table of a record's options."""
    cells = [
        (_flags(one), _code(one.name), _default(one), _help(one))
        for one in options_of(record).values()
    ]
    return [STAGE_COLUMNS, *(f"| {' | '.join(row)} |" for row in cells), ""]


def _served() -> str:
    """Which defaults are others for a server."""
    usual = options_of(Flags)
    own = [
        one for name, one in options_of(ServeFlags).items() if one.default != usual[name].default
    ]
    told = ", ".join(f"{_code(one.flag)} {_default(one)}" for one in own)
    return f"Of the options of all commands, these have other defaults here: {told}."


def document() -> str:
    """The whole page."""
    parts = [HEAD]
    options = options_of(Flags).values()
    for group in dict.fromkeys(one.group for one in options):
        parts += [f"### {group or 'Output'}\n", COLUMNS]
        for one in (one for one in options if one.group == group):
            goes = f"`{one.sets[0].__name__}.{one.sets[1]}`" if one.sets else ""
            cells = (_flags(one), _code(one.name), _default(one), goes, _help(one))
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    parts += ["## Of runs over files\n", "Not keys of a config.\n", *_rows(FileOptions)]
    parts += ["## Of `train-draft`\n", "Not keys of a config.\n", *_rows(Recipe)]
    parts += ["## Of `bench`\n", "Not keys of a config.\n", *_rows(BenchOptions)]
    parts += ["## Of `serve`\n", f"Not keys of a config. {_served()}\n", *_rows(ServerOptions)]
    for kind, stage in STAGES.items():
        about = f"{stage.about[0].upper()}{stage.about[1:]}.\n"
        parts += [f"## Of the stage `{kind}`\n", about, *_rows(stage)]
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
