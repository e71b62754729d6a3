"""``mlx-spec chat``: turns, commands, full contexts; answers are those of the model alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlx_spec import generate, load
from mlx_spec.cli.draft_colors import DraftPaint
from mlx_spec.cli.main import main
from mlx_spec.cli.talk.dialogue import Dialogue
from mlx_spec.cli.talk.flags import ChatFlags
from mlx_spec.cli.talk.lines import PipedLines
from mlx_spec.cli.talk.loop import Talk
from mlx_spec.cli.talk.slash import COMMANDS, obey
from mlx_spec.cli.talk.speaker import Speaker
from tests.chatting import write_talker

SAID = ("Name a river, please.", "And another one, further north.", "Is that all?")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a context that is soon full."""
    return write_talker(tmp_path_factory.mktemp("models") / "small", context=160)


class Heard:
    """A talk of which all lines are kept."""

    def __init__(self, folder: Path, **flags: Any) -> None:
        self.told: list[str] = []
        drop_old = flags.pop("drop_old", False)
        options = {"max_tokens": 24, "model": str(folder), "adaptive": False, **flags}
        options.setdefault("draft_model", str(folder))
        self.speaker = Speaker(ChatFlags(**options), quiet=True)
        paint = DraftPaint(io.StringIO())
        self.talk = Talk(
            self.speaker, Dialogue(), self.told.append, paint, do=obey, drop_old=drop_old
        )

    def say(self, *lines: str) -> None:
        self.talk.run(PipedLines([f"{line}\n" for line in lines]))

    @property
    def texts(self) -> list[str]:
        return [str(turn["content"]) for turn in self.talk.conversation.turns]

    @property
    def last(self) -> Any:
        return self.talk._last

    def close(self) -> None:
        self.speaker.close()


@pytest.fixture
def heard(talker: Path) -> Iterator[Heard]:
    with closing(Heard(talker)) as made:
        yield made


def alone(folder: Path, said: tuple[str, ...], system: str | None = None) -> list[str]:
    """What the model answers to these turns, without drafts and caches."""
    model, tokenizer = load(folder)
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for text in said:
        messages.append({"role": "user", "content": text})
        answers.append(generate(model, tokenizer, messages, max_tokens=24).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_answers_are_the_models_own_and_turns_are_read_once(talker: Path, heard: Heard) -> None:
    reused, read = [], []
    for text in SAID:
        heard.say(text)
        reused.append(heard.last.reused_tokens)
        read.append(heard.last.prompt_tokens)
    assert heard.texts[1::2] == alone(talker, SAID)
    assert heard.texts[::2] == list(SAID)
    # What was read and said in the turns before, but for the end of a block.
    assert reused[0] == 0
    for before, again in zip(read, reused[1:], strict=False):
        assert again >= before - 16
    # The answer too, where its text is read as it was said.
    assert reused[-1] > 100
    assert heard.speaker.stats().accepted > 30


def test_without_a_prefix_cache_nothing_is_reused(talker: Path) -> None:
    with closing(Heard(talker, prefix_cache_bytes=0)) as heard:
        heard.say(*SAID[:2])
        assert heard.last.reused_tokens == 0


def test_lines_of_a_pipe_are_turns(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/system Be brief.", *SAID[:2], "/stats", "/exit", "never said"]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    command = ["chat", "--model", str(talker), "--max-tokens", "24", "--draft", "ngram"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.out == "".join(f"{text}\n" for text in alone(talker, SAID[:2], "Be brief."))
    assert "system prompt set" in shown.err
    assert "Context:" in shown.err
    assert "prompt tokens reused" in shown.err
    assert "By drafter: ngram" in shown.err or "Acceptance rate" in shown.err


def test_a_line_that_fails_is_said_and_the_talk_goes_on(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/sytem x\n/load nowhere.json\n{SAID[0]}\n"))
    assert main(["chat", "--model", str(talker), "--max-tokens", "24"]) == 1
    shown = capsys.readouterr()
    assert "no command /sytem; did you mean /system?" in shown.err
    assert "nowhere.json: No such file" in shown.err
    assert shown.out == f"{alone(talker, SAID[:1])[0]}\n"


def test_a_model_without_a_template_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", "demo"]) == 2
    assert "demo has no chat template" in capsys.readouterr().err


# --- commands -------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_and_goes_on_alike(
    talker: Path, heard: Heard, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    heard.say("/system Be brief.", SAID[0], f"/save {path}")
    messages = json.loads(path.read_text())
    assert [one["role"] for one in messages] == ["system", "user", "assistant"]
    before = heard.texts
    heard.say("/reset")
    assert heard.texts == []
    heard.say("/system other", f"/load {path}")
    assert heard.texts == before
    assert heard.talk.conversation.system == "Be brief."
    heard.say(SAID[1])
    assert heard.texts[1::2] == alone(talker, SAID[:2], "Be brief.")
    heard.say("/save")  # where it came from
    assert len(json.loads(path.read_text())) == 5


@pytest.mark.parametrize(
    ("name", "holds", "words"),
    [
        ("a.safetensors", "x", "holds arrays; /load takes messages in JSON"),
        ("a.json", "", "a.json"),
        ("a.json", '[{"role": "user"', "not JSON"),
        ("a.json", '{"format": 9}', "expected a list of"),
        ("a.json", '[{"role": "robot", "content": 3}]', "message 1"),
    ],
)
def test_a_file_that_is_no_talk_changes_nothing(
    name: str, holds: str, words: str, heard: Heard, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(holds)
    heard.say(SAID[0], f"/load {tmp_path / name}")
    assert words in heard.told[-1]
    assert heard.texts[0] == SAID[0]
    assert len(heard.texts) == 2


def test_a_file_is_not_overwritten_by_chance(heard: Heard, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("precious")
    heard.say(SAID[0], f"/save {path}")
    assert "exists; /save!" in heard.told[-1]
    assert path.read_text() == "precious"
    heard.say(f"/save! {path}")
    assert len(json.loads(path.read_text())) == 2


def test_a_full_disk_leaves_the_old_file(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.json"
    heard.say(SAID[0], f"/save {path}")
    before = path.read_text()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    heard.say(SAID[1], "/save")
    assert "No space left on device" in heard.told[-1]
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_retry_answers_the_last_message_again(talker: Path) -> None:
    with closing(Heard(talker, temp=0.9)) as heard:
        heard.say(SAID[0])
        first = heard.texts
        heard.say("/retry")
        assert len(heard.texts) == 2
        assert heard.texts[0] == first[0]
        assert heard.texts[1] != first[1]  # another seed is drawn


def test_drafts_change_in_the_middle_and_no_answer_does(talker: Path, heard: Heard) -> None:
    heard.say(SAID[0], "/draft off", SAID[1])
    assert any(line.startswith("drafts: off") for line in heard.told)
    assert heard.last.drafted == 0
    heard.say("/draft nonsense")
    assert heard.speaker.drafting == "off"
    assert "names 'nonsense'" in heard.told[-1]
    heard.say(f"/draft model {talker}", SAID[2])
    assert f"drafts: model ({talker}); that changes no text" in heard.told
    assert heard.last.drafters["model"].accepted > 0
    assert heard.texts[1::2] == alone(talker, SAID)


def test_help_names_every_command(heard: Heard) -> None:
    heard.say("/help")
    shown = "\n".join(heard.told)
    assert all(f"/{name}" in shown for name in COMMANDS)
    assert heard.texts == []


def test_a_path_is_no_command(heard: Heard) -> None:
    heard.say("/usr/bin/env is what?", " /help")
    assert heard.texts[::2] == ["/usr/bin/env is what?", " /help"]


# --- a full context -------------------------------------------------------------------------


def test_a_full_context_is_said_and_nothing_is_forgotten_unasked(small: Path) -> None:
    with closing(Heard(small, max_tokens=16)) as heard:
        heard.say(SAID[0], SAID[1])
        before = heard.texts
        heard.say(SAID[2] * 3)
        assert "the context holds 160 tokens, this conversation has" in heard.told[-1]
        assert "/drop forgets" in heard.told[-1]
        assert heard.texts == before
        heard.say("/drop")
        assert "2 exchanges forgotten" in heard.told
        assert heard.texts[:-1] == [*before[4:], SAID[2] * 3]
        assert heard.texts[-1]
        assert heard.talk.unsent is None


def test_old_exchanges_go_by_themselves_where_that_was_said(small: Path) -> None:
    with closing(Heard(small, max_tokens=16, drop_old=True)) as heard:
        heard.say(*SAID, *SAID)
        assert not heard.talk.failed
        assert any("of the oldest exchanges forgotten" in line for line in heard.told)
        assert heard.texts[-2] == SAID[-1]


def test_thirty_turns_in_a_context_of_ten(tmp_path: Path) -> None:
    """Each is answered with room to spare. What is forgotten goes a quarter of the context at a
    time, so that most turns find what the one before has read."""
    folder = write_talker(tmp_path / "some", context=400)
    with closing(Heard(folder, max_tokens=8, drop_old=True)) as heard:
        reused = []
        for turn in range(30):
            heard.say(f"{turn}?")
            reused.append(heard.last.reused_tokens)
            assert heard.last.generation_tokens == 8
            assert heard.last.prompt_tokens + 50 <= 400
        assert not heard.talk.failed
        assert heard.texts[-2] == "29?"
        forgotten = sum("exchanges forgotten" in line for line in heard.told)
        assert 2 < forgotten < 20
        assert sum(tokens > 100 for tokens in reused) > 10


def test_a_message_that_no_context_holds(small: Path) -> None:
    with closing(Heard(small)) as heard:
        heard.say("x" * 200)
        assert "the message alone is too long" in heard.told[-1]
        assert heard.texts == []
        assert heard.talk.unsent is None


def test_an_answer_that_the_context_cuts_says_so(small: Path) -> None:
    with closing(Heard(small, max_tokens=-1, ignore_eos=True)) as heard:
        heard.say(SAID[0])
        assert "the context of 160 tokens is full" in heard.told[-1]


# --- lines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\\\ntwo\n", ["one\ntwo"]),
        ('"""one\n\ntwo"""\nthree\n', ["one\n\ntwo", "three"]),
        ('"""one"""\n', ["one"]),
        ("\n  \none\n", ["one"]),
        ('"""never\nclosed', ["never\nclosed"]),
        ("ends\\", ["ends"]),
        ("dos\r\n", ["dos"]),
    ],
)
def test_messages_of_several_lines(typed: str, meant: list[str]) -> None:
    lines, found = PipedLines(io.StringIO(typed, newline="")), []
    while (text := lines.ask()) is not None:
        found.append(text)
    assert found == meant
