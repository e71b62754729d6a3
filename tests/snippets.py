"""What documents show, as code: blocks of a page, python as one script, commands as a shell's.

Every name of a model means a toy here, targets and drafts alike: the smaller one of the embedded
models, with a chat template. So all that is shown runs, except what would take minutes or wait for
somebody; of that the options are parsed.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from markdown_it import MarkdownIt

from mlx_spec.cli.main import app, main

ROOT = Path(__file__).parent.parent
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SERVED = "http://127.0.0.1:8080"
# Minutes, a conversation, or another machine: their options are parsed.
NOT_RUN = {"bench", "chat", "doctor", "models", "serve", "train-draft"}
OVER_FILES = {"align", "batch", "classify", "filter", "pipeline", "structure"}
# What a toy leaves empty is a record that failed.
MAY_FAIL = {"structure", "pipeline"}
SHELL = {"cat", "cp", "echo", "mkdir", "printf"}
OTHERS = {"curl", "git", "mkdocs", "mlx.distributed_config", "ray", "tail", "uvicorn"}
ASYNC = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class Block(NamedTuple):
    """A fenced block of a page, and the line that it begins at."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Block(token.info.split(" ")[0], token.content, (token.map or [0])[0] + 1)
        for token in tokens
        if token.type == "fence"
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, a line or a quoted text of several."""
    open_quote = ""
    text = text.replace("\\\n", " ")
    text = re.sub(r"\$\(([^)]*)\)", lambda m: "mlx-spec" if "which" in m[1] else "shown", text)
    for line in text.splitlines():
        lexer = shlex.shlex(f"{open_quote}{line}", posix=True, punctuation_chars="|>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on
            open_quote += f"{line}\n"
            continue
        open_quote = ""
        if words:
            yield words
    assert not open_quote, open_quote


def parse(arguments: list[str]) -> None:
    """What ``mlx-spec`` would be asked; an option that does not exist raises."""
    command, context = typer.main.get_command(app), None
    words, name = arguments, "mlx-spec"
    if not set(words).isdisjoint({"--help", "--version", "--install-completion"}):
        assert main(["--help"]) == 0
        return
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, words = command.resolve_command(context, rest)
        assert command is not None, arguments


@dataclass
class Page:
    """One page, run from top to bottom in a folder of its own."""

    path: Path
    given: dict[str, Any] = field(default_factory=dict)
    server: str = ""  # where one runs, in the place of SERVED
    ran: int = 0
    parsed: int = 0

    def __post_init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__", **self.given}
        self.loop = asyncio.new_event_loop()

    def run(self) -> None:
        try:
            for block in blocks(self.path):
                place = f"{self.path.relative_to(ROOT)}:{block.line}"
                runner = getattr(self, f"_{block.language}", None)
                assert runner is not None, f"{place}: {block.language!r}: python, sh, toml, text?"
                runner(block.text, place)
        finally:
            self.loop.close()

    def _text(self, text: str, place: str) -> None:
        """Output, or a picture."""

    _nginx = _text

    def _json(self, text: str, place: str) -> None:
        for part in text.splitlines() if text.count("\n{") else [text]:
            json.loads(part)

    def _yaml(self, text: str, place: str) -> None:
        yaml.safe_load(text)

    def _toml(self, text: str, place: str) -> None:
        """A file whose name is its first comment."""
        (name,) = re.findall(r"^# ([\w.]+\.toml)", text) or ["shown.toml"]
        Path(name).write_text(text, encoding="utf-8")

    def _python(self, text: str, place: str) -> None:
        code = compile(text.replace(SERVED, self.server), place, "exec", flags=ASYNC)
        if "shard=" in text:  # wants several processes; what it imports is there
            lines = [line for line in text.splitlines() if line.startswith("from mlx_spec")]
            exec("\n".join(lines), self.names)
            self.parsed += 1
            return
        with redirect_stdout(io.StringIO()):
            if code.co_flags & inspect.CO_COROUTINE:
                self.loop.run_until_complete(eval(code, self.names))
            else:
                exec(code, self.names)
        self.ran += 1

    def _sh(self, text: str, place: str) -> None:
        for words in commands(text):
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            target = None
            if ">" in words:
                target, words = words[words.index(">") + 1], words[: words.index(">")]
            stdin = ""
            if "|" in words:
                stdin = self._output(words[: words.index("|")])
                words = words[words.index("|") + 1 :]
            out = self._output(words, stdin, place)
            if target is not None:
                Path(target).write_text(out, encoding="utf-8")

    def _output(self, words: list[str], stdin: str = "", place: str = "") -> str:
        while re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):  # what is set for one command
            words = words[1:]
        name, *rest = words
        if name == "mlx-spec":
            return self._mlx_spec(rest, stdin, place)
        if "--" in words and words[words.index("--") + 1] in ("mlx-spec", "python"):
            name, *rest = words[words.index("--") + 1 :]  # behind mlx.launch: as one of several
            if name == "mlx-spec":
                parse(rest)
            self.parsed += 1
            return ""
        if name == "curl" and self.server:
            return self._curl(words, place)
        if name in SHELL:
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            return done.stdout
        self.parsed += 1
        if name == "pip":
            known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            ours = words[-1] if words[-1].startswith((".", "mlx-spec")) else ""
            for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", ours))):
                assert f"\n{extra} = [" in known, f"{place}: no extra {extra!r}"
        elif name == "python" and rest[0].endswith(".py"):
            source = (ROOT / rest[0]).read_text(encoding="utf-8")
            assert all(f'"{word}"' in source for word in rest if word.startswith("--")), words
        elif name == "python" and rest[0] == "-m":
            assert find_spec(rest[1]) is not None, f"{place}: no module {rest[1]!r}"
        else:
            there = (ROOT / name).exists() and "/" in name
            assert there or Path(name).name in OTHERS, f"{place}: what is {name!r}?"
        return ""

    def _curl(self, words: list[str], place: str) -> str:
        """Asked of the server that runs; what it refuses is a fault of the page."""
        asked = [word.replace(SERVED, self.server) for word in words]
        assert asked != words, f"{place}: curl asks somebody else: {words}"
        command = [*asked, "--silent", "--show-error", "--fail-with-body", "--max-time", "120"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{place}: {done.stdout} {done.stderr}"
        self.ran += 1
        return done.stdout

    def _mlx_spec(self, words: list[str], stdin: str, place: str) -> str:
        command = next((word for word in words if not word.startswith("-")), "")
        asked = {word.partition("=")[0] for word in words}
        missing = "-" in words and not stdin
        if (
            (command in NOT_RUN and not stdin)
            or asked & {"--help", "--ray", "--install-completion"}
            or missing
        ):
            parse(words)
            self.parsed += 1
            return ""
        parse(words)
        words = [word.replace("+head", "+model") for word in words]
        if command in ("batch", "chat", "generate"):
            words += ["--max-tokens", "8"]
        if command in OVER_FILES and "stages" not in words:
            words += ["--limit", "3"]
            goes_on = {"--resume", "--retry-failed", "--overwrite"} & set(words)
            words += [] if goes_on else ["--overwrite"]
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr("sys.stdin", io.StringIO(stdin))
            code = main(words)
        allowed = (0, 1) if command in MAY_FAIL else (0,)
        assert code in allowed, f"{place}: mlx-spec {shlex.join(words)}: {code}"
        self.ran += 1
        return out.getvalue()


def toy_folder(folder: Path) -> Path:
    """The smaller one of the embedded models, with a chat template."""
    source = ROOT / "mlx_spec" / "demo_models" / "draft"
    shutil.copytree(source, folder)
    settings = folder / "tokenizer_config.json"
    words = json.loads(settings.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    settings.write_text(json.dumps(words), encoding="utf-8")
    return folder
