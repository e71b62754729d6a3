"""``mlx-spec chat`` and coloured drafts in a real terminal: keys, Ctrl-C, Ctrl-D, history."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.chatting import write_talker

LONG = 120  # seconds; only so that a hang ends
PROMPT = re.escape("\x1b[?2004h")  # from now on what is pasted is marked: the editor is ready


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talker(tmp_path_factory.mktemp("models") / "talker", context=200_000)


def spawn(tmp_path: Path, *arguments: str, **environment: str) -> Any:
    own = {
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "XDG_STATE_HOME": str(tmp_path),
        "MLX_SPEC_BLAS": "off",
        **environment,
    }
    known = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    command = ["-m", "mlx_spec", *arguments]
    return pexpect.spawn(
        sys.executable,
        command,
        env={**known, **own},
        encoding="utf-8",
        timeout=LONG,
        codec_errors="replace",
        dimensions=(24, 100),
    )


def test_ctrl_c_stops_the_answer_and_not_the_program(talker: Path, tmp_path: Path) -> None:
    """An answer without an end, twice; what was said of it stays; Ctrl-D leaves with 0."""
    child = spawn(tmp_path, "chat", "--model", str(talker), "--ignore-eos", "--draft", "ngram")
    child.expect("Ctrl-D leaves")
    child.expect(PROMPT)
    for _ in range(3):  # more than a command bears that ends with the second press
        child.send("go on\r")
        child.expect(r"go on.*\n.{40}")
        child.sendintr()
        child.expect(re.escape("(stopped)"))
        child.expect(PROMPT)
    child.send("/stats\r")
    child.expect("3 exchanges")
    child.expect(PROMPT)
    child.sendintr()  # at the prompt it is no answer's
    child.expect(re.escape("(Ctrl-D or /exit leaves)"))
    child.expect(PROMPT)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    history = tmp_path / "mlx-spec" / "chat_history"
    assert "+go on" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


@pytest.mark.parametrize("when", ["at the prompt", "in an answer"])
def test_sigterm_ends_it_and_leaves_the_terminal_as_it_was(
    talker: Path, tmp_path: Path, when: str
) -> None:
    """Stops a prompt whose loop, once it has ended, leaves SIGTERM to the system."""
    words = ("--ignore-eos", "--draft", "ngram", "--no-history")
    child = spawn(tmp_path, "chat", "--model", str(talker), *words)
    child.expect(PROMPT)
    if when == "in an answer":
        child.send("go on\r")
        child.expect(r"go on.*\n.{40}")
    child.kill(signal.SIGTERM)
    if when == "at the prompt":
        child.expect(re.escape("\x1b[?2004l"))
    shown = child.read()
    child.close()
    assert "Traceback" not in shown
    assert child.exitstatus == 143


def test_enter_sends_and_alt_enter_does_not(talker: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    child = spawn(tmp_path, "chat", "--model", str(talker), "-m", "3", "--no-history")
    child.expect(PROMPT)
    child.send("one\x1b\rtwo\r")
    child.expect(re.escape("cut at --max-tokens 3"))
    child.expect(PROMPT)
    child.send('"""three\rfour"""\r')
    child.expect(re.escape("cut at --max-tokens 3"))
    child.expect(PROMPT)
    child.send(f"/save {path}\r")
    child.expect("4 messages saved")
    child.send("/exit\r")
    child.expect(pexpect.EOF)
    assert '"one\\ntwo"' in path.read_text()
    assert '"three\\nfour"' in path.read_text()
    assert not (tmp_path / "mlx-spec").exists()


def test_drafts_are_coloured_in_a_terminal(talker: Path, tmp_path: Path) -> None:
    child = spawn(
        tmp_path,
        *("generate", "--model", str(talker), "--draft-model", str(talker), "--show-drafts"),
        *("-p", "abc", "-m", "20", "--no-adaptive"),
    )
    shown = child.read()
    assert "\x1b[32m" in shown
    assert "Tokens proposed by: \x1b[32mmodel " in shown
