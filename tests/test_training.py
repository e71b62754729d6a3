"""``mlx-spec train-draft``: from prompts to a folder, through interruptions, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest

from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig, batch_generate, load
from mlx_spec.cli.main import main
from mlx_spec.config import ChatConfig
from mlx_spec.errors import InvalidRequest, OutputError
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.training.acceptance import POSITIONS, Acceptance
from mlx_spec.training.answers import Answer
from mlx_spec.training.batch import Batch
from mlx_spec.training.features import compute_features, read_features
from mlx_spec.training.loop import Course, Standing
from mlx_spec.training.make import Making, Target
from mlx_spec.training.order import batches
from mlx_spec.training.questions import Question, read_questions
from mlx_spec.training.recipe import Recipe
from mlx_spec.training.unrolled import unroll
from mlx_spec.training.vocabulary import Vocabulary
from tests.folders import write_folder
from tests.models import VOCABULARY, make_model

RECIPE: dict[str, Any] = {
    "vocabulary": 40,
    "max_tokens": 8,
    "steps": 6,
    "tokens_per_step": 96,
    "learning_rate": 3e-3,
    "width": 16,
    "batch_size": 8,
}


class Listener:
    """A watch that keeps what it hears, and may be tired of it."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.losses, self.works = until, [], []  # type: ignore[var-annotated]
        self.tokens = 0

    def begin(self, what: str, total: int | None) -> None:
        self.works.append(what)

    def more(self, amount: int) -> None:
        self.tokens += amount

    def trained(self, progress: Standing, done: float) -> None:
        self.losses.append(progress.loss)
        if progress.step == self.until:
            raise KeyboardInterrupt

    def measured(self, reached: dict[str, Acceptance]) -> None:
        assert reached[""].tried[0] > 0


def questions(count: int = 12) -> list[Question]:
    random = np.random.default_rng(5)
    return [
        Question(f"{n:016x}", "ab"[n % 2], random.integers(1, VOCABULARY, 5).tolist())
        for n in range(count)
    ]


def make(out: Path, until: int | None = None, **changes: Any) -> tuple[Making, Listener]:
    listener = Listener(until)
    target = Target("tiny", make_model(), None, ChatConfig(texts=False))
    return Making(target, questions(), Recipe(**{**RECIPE, **changes}), out, listener), listener


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    return {name: np.array(array) for name, array in loaded.items()}


def test_interrupted_and_gone_on_with_is_as_uninterrupted(tmp_path: Path) -> None:
    making, listener = make(tmp_path / "whole")
    making.run()
    assert listener.works[0].startswith("writing")
    assert listener.tokens > 0
    other, _ = make(tmp_path / "parts", until=3)
    with pytest.raises(KeyboardInterrupt):
        other.run()
    assert not (tmp_path / "parts").exists()
    # A kill in the middle of a line, and of a shard.
    answers = tmp_path / "parts.training" / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-7])
    (tmp_path / "parts.training" / "features" / ".part-00009.new.safetensors").write_bytes(b"half")
    again, heard = make(tmp_path / "parts")
    again.run()
    assert len(heard.losses) == RECIPE["steps"] - 3
    assert heard.losses[-1] == listener.losses[-1]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert "tokens" in whole
    for name, array in whole.items():
        assert np.array_equal(array, parts[name]), name
        assert array.dtype == (np.int32 if name == "tokens" else np.float16)


def test_it_learns_and_says_what_it_reached(tmp_path: Path) -> None:
    making, listener = make(tmp_path / "head", steps=30)
    reached = making.run()
    assert listener.losses[-1] < 0.8 * listener.losses[0]
    assert set(reached) == {"", "a"}  # of twelve prompts the hash holds two out
    card = (tmp_path / "head" / "README.md").read_text()
    for part in ("draft head for tiny", "10 prompts", "30 steps", "| a |", "T=0.8", "Licence"):
        assert part in card
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["draft_vocab_size"] == 40
    assert config["vocab_size"] == VOCABULARY


def test_a_small_model_of_its_own(tmp_path: Path) -> None:
    making, listener = make(tmp_path / "small", kind="model", steps=20)
    making.run()
    assert listener.losses[-1] < 0.9 * listener.losses[0]
    assert json.loads((tmp_path / "small" / "config.json").read_text())["model_type"] == "llama"


def head_and_text() -> tuple[Any, mx.array, mx.array]:
    from mlx_spec.model.heads.head import DraftHead, HeadConfig

    mx.random.seed(3)
    head = DraftHead(HeadConfig(16, 24, 4, 2, 4, 64, 20))
    return head, mx.random.normal((2, 9, 16)), mx.random.normal((2, 9, 16))


def test_unrolled_is_what_drafting_does() -> None:
    """Every depth at every position, as a head that drafts one token after another computes it."""
    head, embeddings, hidden = head_and_text()
    found = unroll(head, embeddings, hidden, 3)
    for last in range(7):  # the last verified position
        states = hidden[:, : last + 1]
        for depth in range(3):
            place = last + depth
            expected = head(embeddings[:, : place + 1], states, mask="causal")[:, -1:]
            assert mx.allclose(found[depth][:, place], expected[:, 0], atol=1e-5), (last, depth)
            states = mx.concatenate([states, expected], axis=1)


def test_each_epoch_has_every_text_once() -> None:
    lengths = [5, 9, 3, 12, 40, 7, 7, 2]
    order = batches(lengths, 20, seed=1, skipped=0)
    whole = [next(order) for _ in range(30)]
    seen: list[int] = []
    for batch in whole:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 20
        seen += batch
        if len(seen) == len(lengths):
            assert sorted(seen) == list(range(len(lengths)))
            seen = []
    later = batches(lengths, 20, seed=1, skipped=17)
    assert [next(later) for _ in range(13)] == whole[17:]


def test_a_guess_counts_where_those_before_it_were_right() -> None:
    acceptance = Acceptance()
    right = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]])
    acceptance.add(right, np.full((3, POSITIONS), 0.5))
    assert acceptance.tried.tolist() == [3, 2, 1, 0]
    assert acceptance.rates == ([2 / 3, 0.5, 0, 0], [0.5, 0.5, 0.5, 0])
    assert acceptance.tokens == 2


def test_time_moves_a_course_as_steps_do() -> None:
    course = Course(steps=100, seconds=60, tokens=1, learning_rate=1.0, seed=0)
    assert course.done(10, 30) == 0.5
    assert course.done(90, 30) == 0.9
    assert course.rate(0) < 0.05
    assert course.rate(0.05) > 0.95
    assert 0.04 < course.rate(1) < 0.06


def test_prompts_as_other_commands_take_them(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("What is tea?\n\nWhat is milk?\nWhat is tea?\n")
    assert [one.prompt for one in read_questions(lines)] == ["What is tea?", "What is milk?"]
    records = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "Hello"}]
    records.write_text(
        json.dumps({"messages": turns, "category": "chat"}) + '\n{"text": "def f("}\n'
    )
    chat, text = read_questions(records)
    assert (chat.category, chat.prompt, text.prompt) == ("chat", turns, "def f(")
    assert chat.held_out(["chat"])
    assert chat.id != text.id
    records.write_text('{"prompt": "fine"}\n{"other": 1}\n')
    with pytest.raises(InvalidRequest, match=r"record 2: no field 'prompt'"):
        read_questions(records)
    lines.write_text("\n")
    with pytest.raises(InvalidRequest, match="no prompts in it"):
        read_questions(lines)


def test_what_belongs_to_another_run_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "out", vocabulary=30)
    with pytest.raises(OutputError, match=r"vocabulary was 30, now 40.*delete it"):
        make(tmp_path / "out")
    make(tmp_path / "out", vocabulary=30, steps=99)  # longer is the same run
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="there exists"):
        make(tmp_path / "there")
    checkpoint = tmp_path / "out.training" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"no such thing")
    making, _ = make(tmp_path / "out", vocabulary=30)
    with pytest.raises(OutputError, match="cannot be read; delete it"):
        making.run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "tree"}, "--kind 'tree'"),
        ({"vocabulary": 0}, "--vocabulary 0, expected at least 1"),
        ({"temp": ("warm",)}, "--temp warm"),
        ({"hours": -1.0}, "--hours -1.0, expected above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
    ],
)
def test_impossible_recipes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Recipe(**options)


def test_the_command_makes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_folder(tmp_path / "tiny")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{word} and more\n" for word in "abcdefghijkl"))
    out = tmp_path / "draft"
    command = ["train-draft", "--model", str(model), "--prompts", str(prompts), str(out)]
    command += ["--steps", "3", "--max-tokens", "6", "--tokens-per-step", "64"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "held out: greedy" in shown.err
    assert f"Try: --draft-model {out}" in shown.err
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert main(command) == 2
    assert f"{out} exists; name another folder" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Making, "run", interrupted)
    model, prompts = write_folder(tmp_path / "tiny"), tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{word} and more\n" for word in "abcdefghijkl"))
    out = tmp_path / "draft"
    assert main(["train-draft", "--model", str(model), "--prompts", str(prompts), str(out)]) == 130
    assert f"the same command goes on: {out}.training keeps" in capsys.readouterr().err


def test_mistakes_are_said_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, out = str(tmp_path / "none.jsonl"), str(tmp_path / "out")
    assert main(["train-draft", "--prompts", missing, out]) == 2
    assert "--model is needed" in capsys.readouterr().err
    assert main(["train-draft", "--model", "no/model", "--prompts", missing, out]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    assert main(["train-draft", "--model", "m", "--prompts", missing, out, "--steps", "0"]) == 2
    assert "--steps 0, expected at least 1" in capsys.readouterr().err


def test_what_is_learnt_is_what_the_target_thinks_there(tmp_path: Path) -> None:
    """Index p of a batch: the hidden state at p, token p + 1, the choice of token p + 2; padding
    and neighbours change nothing."""
    model, vocabulary = make_model(), Vocabulary(range(0, VOCABULARY, 2), VOCABULARY)
    random = np.random.default_rng(1)
    answers = [
        Answer(str(n), str(n), "", 0.0, random.integers(0, VOCABULARY, 3 + n).tolist(), [1, 2, 3])
        for n in range(3)
    ]
    compute_features(model, answers, vocabulary, tmp_path, lambda _: None)
    examples = list(read_features(tmp_path))
    assert [one.id for one in examples] == ["0", "1", "2"]
    batch = Batch.of(examples)
    for row, answer in enumerate(answers):
        text = mx.array([[*answer.prompt, *answer.tokens]])
        logits, last = model(text)[0], text.shape[1] - 1
        assert batch.tokens[row, : last + 1].tolist() == text[0].tolist()
        assert batch.counts[row].tolist() == [1.0] * last + [0.0] * (batch.counts.shape[1] - last)
        assert batch.best[row, :last].tolist() == mx.argmax(logits, axis=-1)[1:].tolist()
        assert examples[row].answer == len(answer.prompt)
        states = batch.hidden[row, :last] @ TargetParts(model).rows(vocabulary.ids).T
        assert mx.allclose(states, logits[:last, ::2], atol=0.05)
        chances = mx.softmax(logits[1:], axis=-1)[:, ::2]
        found = mx.put_along_axis(
            mx.zeros_like(chances),
            batch.likely[row, :last],
            mx.exp(batch.logprobs[row, :last]),
            axis=-1,
        )
        assert mx.allclose(found, chances, atol=2e-3)
    compute_features(model, answers, vocabulary, tmp_path, lambda _: pytest.fail("again"))


@pytest.mark.parametrize("kind", ["head", "model"])
def test_what_was_made_drafts_and_changes_nothing(kind: str, tmp_path: Path) -> None:
    """As ``--draft-model`` reads it: guesses come and some are right, rows end apart."""
    making, _ = make(tmp_path / "draft", kind=kind, steps=30)
    making.run()
    draft = load_draft(tmp_path / "draft")
    model, prompts = make_model(), [question.prompt for question in questions(5)]
    for temperature in (0.0, 0.9):
        options = [
            SamplingParams(max_tokens=9 + 3 * n, temperature=temperature, seed=n) for n in range(5)
        ]
        plain = batch_generate(model, None, prompts, sampling=options)
        drafted = batch_generate(
            model,
            None,
            prompts,
            draft_model=draft,
            sampling=options,
            speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
            batching=BatchingConfig(batch_size=3),
        )
        assert [r.token_ids for r in drafted.results] == [r.token_ids for r in plain.results]
        assert 0 < drafted.stats.accepted < drafted.stats.drafted


def load_draft(folder: Path) -> Any:
    """A head, or a small model (whose tiny target has no tokenizer)."""
    if json.loads((folder / "config.json").read_text())["model_type"] == "llama":
        return mlx_lm.utils.load_model(folder)[0]
    return load(folder)[0]
