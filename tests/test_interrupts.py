"""Ctrl-C that falls where Python swallows it ends every command all the same.

Presses are real signals, in places that are found and not waited for: ``__del__`` of an object that
is dropped in the middle of a command's work.
"""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from mlx_spec import interrupts
from mlx_spec.__main__ import main as start
from mlx_spec.batching.chunk_buffer import ChunkBuffer
from mlx_spec.batching.engine import Engine
from mlx_spec.cli.main import main
from mlx_spec.cli.talk.lines import Keyboard
from mlx_spec.training import make
from tests.folders import write_folder


class Pressing:
    """Presses Ctrl-C as it is dropped, or sends another signal."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)
        raise AssertionError("a press is raised here")


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are the main thread's")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def losing(own: Callable[..., Any], at: int, number: int = signal.SIGINT) -> Callable[..., Any]:
    """The same function, in whose call number ``at`` a press is lost."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            Pressing(number)
        return own(*args, **kwargs)

    return call


# --- by itself ------------------------------------------------------------------------------


def test_a_lost_press_is_raised_at_the_next_edge(capsys: pytest.CaptureFixture[str]) -> None:
    with interrupts.listening():
        interrupts.check()
        Pressing()  # swallowed
        for _ in range(2):  # until somebody says that it was heard
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
        interrupts.answered()
        interrupts.check()
    assert capsys.readouterr().err == ""


def test_a_press_is_raised_where_it_falls_and_the_third_waits_for_nobody() -> None:
    with interrupts.listening():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupts.answered()
        assert signal.getsignal(signal.SIGINT) not in (signal.SIG_DFL, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupts.check()


def test_presses_that_end_pieces_of_work_never_add_up() -> None:
    """A chat goes on after each of them; only two of one answer end the program."""
    with interrupts.listening():
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL
            interrupts.go_on()
            interrupts.check()
    interrupts.go_on()  # where nobody listens it changes nothing
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_errors_in_finalizers_are_shown_as_ever() -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("of a finalizer")

    heard = []
    before, sys.unraisablehook = sys.unraisablehook, lambda found: heard.append(found.exc_type)
    try:
        with interrupts.listening():
            Failing()
    finally:
        sys.unraisablehook = before
    assert heard == [ValueError]


def test_sigterm_is_heard_as_a_press_and_ends_even_what_goes_on() -> None:
    with interrupts.listening():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupts.go_on()
        assert [interrupts.exit_code(code) for code in (0, 2, 130)] == [0, 2, 143]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the next one waits for nobody
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with interrupts.listening():
        assert interrupts.exit_code(130) == 130


def test_sigterm_waits_where_ctrl_c_waits() -> None:
    done = []

    def holding() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("whole")

    with interrupts.listening(), pytest.raises(KeyboardInterrupt):
        holding()
    assert done == ["whole"]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_who_handles_ctrl_c_keeps_it(handler: Any) -> None:
    """A job in the background ignores it; a program may have other plans."""
    signal.signal(signal.SIGINT, handler)
    with interrupts.listening():
        assert signal.getsignal(signal.SIGINT) is handler
        signal.raise_signal(signal.SIGINT)
        interrupts.check()


def test_another_thread_changes_nothing() -> None:
    found: list[Any] = []

    def run() -> None:
        with interrupts.listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


# --- every command that runs long -----------------------------------------------------------


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"def f{n}("}) + "\n" for n in range(40)))
    return path


def ends(command: list[str], capsys: pytest.CaptureFixture[str], code: int = 130) -> str:
    """What a command says that is interrupted."""
    assert main(command) == code
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "ignored" not in errors
    return errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_batch(
    number: int,
    code: int,
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a stream of tokens is dropped, which is where it was lost."""
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(ChunkBuffer, "cancel", losing(ChunkBuffer.cancel, 6, number))
    shown = ends(["batch", str(records), str(out), "-m", "2", "--batch-size", "4"], capsys, code)
    assert f"go on with --resume: {out} keeps what is done" in shown
    assert 4 <= out.read_bytes().count(b"\n") < 40
    monkeypatch.undo()
    assert main(["batch", str(records), str(out), "-q", "-m", "2", "--resume"]) == 0
    assert out.read_bytes().count(b"\n") == 40


def test_pipeline(
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = tmp_path / "chain.toml", tmp_path / "out.jsonl"
    stage = '[[stage]]\nkind = "generate"\nmax_tokens = 2\nprompt_field = "prompt"\n'
    config.write_text(f'input = "{records}"\noutput = "{out}"\n{stage}')
    monkeypatch.setattr(ChunkBuffer, "cancel", losing(ChunkBuffer.cancel, 6))
    shown = ends(["pipeline", "run", str(config)], capsys)
    assert "interrupted in" in shown
    assert "go on with --resume" in shown
    assert not out.exists()


def test_generate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "step", losing(Engine.step, 5))
    assert main(["generate", "-p", "def f(", "-m", "500", "--ignore-eos"]) == 130
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert 0 < int(shown.out.partition("Generation: ")[2].split()[0]) < 500


def test_train_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = write_folder(tmp_path / "tiny"), tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{word} and more\n" for word in "abcdefghijkl"))
    monkeypatch.setattr(make, "write_answers", losing(make.write_answers, 1))
    out = tmp_path / "draft"
    options = ["--max-tokens", "3", "--batch-size", "2", "--steps", "1"]
    command = ["train-draft", "--model", str(model), "--prompts", str(prompts), str(out), *options]
    shown = ends(command, capsys)
    assert f"the same command goes on: {out}.training keeps" in shown


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class PressedThen:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "mlx_spec.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "mlx_spec.cli.main")
    monkeypatch.setattr(sys, "meta_path", [PressedThen(), *sys.meta_path])
    assert start() == 130


PASTES = "\x1b[?2004"  # and h or l: an editor is there, and gone


class Screen(io.StringIO):
    """A terminal, to which SIGTERM comes as an editor begins."""

    def write(self, text: str) -> int:
        count = super().write(text)
        if PASTES + "h" in text:
            signal.raise_signal(signal.SIGTERM)
        return count


def test_sigterm_while_a_prompt_is_drawn_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stops one that is raised there, of which what is drawn is never taken back."""
    screen = Screen()
    output = Vt100_Output(screen, lambda: Size(24, 80), term="xterm", enable_cpr=False)
    monkeypatch.setattr("prompt_toolkit.output.create_output", lambda **_: output)
    with create_pipe_input() as keys, create_app_session(input=keys), interrupts.listening():
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            Keyboard((), None).ask()
        assert interrupts.exit_code(interrupts.INTERRUPTED) == interrupts.TERMINATED
        assert signal.getsignal(signal.SIGTERM) == before
    marks = re.findall(re.escape(PASTES) + "([hl])", screen.getvalue())
    assert marks == ["h", "l"]
