"""Accepted draft tokens in colours: on a terminal, and nowhere else."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mlx_spec.chunks import GenerationChunk
from mlx_spec.cli.draft_colors import DraftPaint
from mlx_spec.cli.main import main
from mlx_spec.cli.streaming import OrderedPrinter
from tests.chatting import write_talker
from tests.fakes import Terminal


def chunk(text: str, drafter: str | None, index: int = 0, last: bool = False) -> GenerationChunk:
    reason = "length" if last else None
    return GenerationChunk(index, text, 0, drafter is not None, reason, 1, 1, None, drafter)


def test_each_drafter_has_its_colour_and_its_place_in_the_legend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    paint = DraftPaint(Terminal())
    assert paint.of(chunk("own", None)) == "own"
    assert paint.of(chunk("", "ngram")) == ""
    assert paint.of(chunk("a", "ngram")) == "\x1b[36ma\x1b[0m"
    assert paint.of(chunk("b", "model")) == "\x1b[32mb\x1b[0m"
    strange = {paint.of(chunk("c", name)) for name in ("mine", "yours")}
    assert len(strange) == 2
    assert (
        paint.legend()
        == (
            "Tokens proposed by: \x1b[36mngram 2\x1b[0m, \x1b[32mmodel 1\x1b[0m, "
            "\x1b[92mmine 1\x1b[0m, \x1b[95myours 1\x1b[0m; the model's own: 1"
        )
        or paint.legend()
    )  # the order of equals is nobody's affair
    monkeypatch.setenv("NO_COLOR", "1")
    plain = DraftPaint(Terminal())
    assert plain.of(chunk("a", "ngram")) == "a"
    assert plain.legend() is None


def test_texts_of_several_prompts_keep_their_colours_while_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    printer = OrderedPrinter(["p", "q"], out, framed=False, paint=DraftPaint(out))
    printer.add(chunk("two ", "ngram", 1))
    printer.add(chunk("one", None, 0, last=True))
    printer.add(chunk("more", None, 1))
    printer.finish(["one", "two more!"])
    assert out.getvalue() == "one\n\x1b[36mtwo \x1b[0mmore!\n"


def test_a_model_cannot_steer_a_terminal() -> None:
    evil = "\x1b]0;title\x07\x9b2J\rgone\tand\n"
    assert DraftPaint(Terminal()).of(chunk(evil, None)) == (
        "\\x1b]0;title\\x07\\x9b2J\\x0dgone\tand\n"
    )
    assert DraftPaint(io.StringIO()).of(chunk(evil, None)) == evil


def test_nothing_changes_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_talker(tmp_path / "talker"))
    command = ["generate", "--model", folder, "--draft-model", folder, "-p", "abc", "-m", "9"]
    shown = []
    for more in ([], ["--show-drafts"]):
        assert main([*command, "--verbose", "False", *more]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert main([*command, "--show-drafts"]) == 0
    assert "proposed by" not in capsys.readouterr().out
