"""Labels' scores for a stage: the very text goes on, spellings are summed, the prior comes off."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import pytest

from mlx_spec import load
from mlx_spec.errors import InvalidRequest, PromptTooLong
from mlx_spec.pipeline import collect
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.scoring.label_scores import Scoring, check_numbers, log_sum_exp
from mlx_spec.pipeline.stage import Done, Generate, Score, Stage
from mlx_spec.pipeline.stages.align import Align
from mlx_spec.pipeline.stages.classify import Classify
from mlx_spec.pipeline.stages.filter import Filter
from tests.folders import CONTEXT, write_folder
from tests.test_scoring import slow_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("scores") / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for m in messages %}{% if m.role == 'assistant' %}[{{ m.content }}"
        "{% else %}<{{ m.content }}>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load(str(folder))


def scores(loaded: tuple[Any, Any], *requests: Score, **flags: Any) -> list[dict[str, float]]:
    """The answers to requests that wait together."""
    backend = Scoring(*loaded, Flags(batch_size=flags.pop("batch_size", 4), **flags))
    return [answer.result() for answer in [backend.submit(one, 0) for one in requests]]  # type: ignore[misc]


def by_hand(loaded: tuple[Any, Any], text: str, *spellings: str) -> float:
    """log p of one label: its spellings' texts through the model, one at a time."""
    model, tokenizer = loaded
    prompt = tokenizer.encode(text)
    each = [slow_score(model, prompt, tokenizer.encode(one)) for one in spellings]
    return math.log(sum(map(math.exp, each)))


def test_scores_are_those_of_the_text_that_goes_on(loaded: tuple[Any, Any]) -> None:
    texts = ("Topic:", "A longer text\nTopic:", "ab ")
    for got, text in zip(
        scores(loaded, *(Score(text, ("code", "soup!")) for text in texts)), texts, strict=True
    ):
        blank = "" if text.endswith(" ") else " "
        for label in ("code", "soup!"):
            assert got[label] == pytest.approx(by_hand(loaded, text, blank + label), abs=1e-3)


def test_spellings_are_summed(loaded: tuple[Any, Any]) -> None:
    (got,) = scores(loaded, Score("Answer:", ("yes", "no"), variants=True))
    assert got["yes"] == pytest.approx(
        by_hand(loaded, "Answer:", " yes", " Yes", "yes", "Yes"), abs=1e-3
    )


def test_the_prior_is_taken_off(loaded: tuple[Any, Any]) -> None:
    """Less the log of the mean share that each label has behind the neutral texts."""
    labels, neutral = ("code", "soup"), ("N/A:", ":", "[text]:")
    shares = []
    for text in neutral:
        each = [by_hand(loaded, text, f" {label}") for label in labels]
        shares.append([math.exp(value - log_sum_exp(each)) for value in each])
    prior = [math.log(sum(column) / 3) for column in zip(*shares, strict=True)]
    for rows in (1, 2, 4):  # more neutral texts than rows, too
        got = scores(loaded, *(Score(f"T{i}:", labels, neutral) for i in range(5)), batch_size=rows)
        for i, answer in enumerate(got):
            for label, known in zip(labels, prior, strict=True):
                expected = by_hand(loaded, f"T{i}:", f" {label}") - known
                assert answer[label] == pytest.approx(expected, abs=1e-3)


def test_a_lone_label_loses_its_mean_log_probability(loaded: tuple[Any, Any]) -> None:
    neutral = ("N/A:", ":", "[text]:")
    prior = sum(by_hand(loaded, text, " code") for text in neutral) / 3
    got = scores(loaded, *(Score(f"T{i}:", ("code",), neutral) for i in range(3)))
    for i, answer in enumerate(got):
        expected = by_hand(loaded, f"T{i}:", " code") - prior
        assert answer["code"] == pytest.approx(expected, abs=1e-3)


def test_neutral_texts_are_scored_once_for_all_records(loaded: tuple[Any, Any]) -> None:
    backend = Scoring(*loaded, Flags(batch_size=2))
    fed: list[int] = []
    score = backend._scorer.score
    backend._scorer.score = lambda prompts, labels: (  # type: ignore[method-assign]
        fed.append(len(prompts)),
        score(prompts, labels),
    )[1]
    waiting = [backend.submit(Score(f"T{i}:", ("a", "b"), ("N/A:", ":")), 0) for i in range(4)]
    assert all(one.result() for one in waiting)
    assert fed == [2, 2, 2]


def test_in_a_chat_the_last_line_begins_the_answer(loaded: tuple[Any, Any]) -> None:
    prompt = "Text: soup\nTopic:"
    (raw,) = scores(loaded, Score(prompt, ("code", "soup")))
    (chat,) = scores(loaded, Score(prompt, ("code", "soup"), chat=True))
    # A system prompt is heard in the template only, so it is used then.
    (system,) = scores(loaded, Score(prompt, ("code", "soup")), system_prompt="Hi")
    (off,) = scores(loaded, Score(prompt, ("code", "soup"), chat=True), ignore_chat_template=True)
    (turns,) = scores(loaded, Score([{"role": "user", "content": "soup"}], ("code", "soup")))
    assert off == raw
    for got, text, blank in [
        (raw, prompt, " "),
        (chat, "<Text: soup>[Topic:", " "),
        (system, "<Hi><Text: soup>[Topic:", " "),
        (turns, "<soup>[", ""),
    ]:
        assert got["code"] == pytest.approx(by_hand(loaded, text, f"{blank}code"), abs=1e-3)


def test_a_record_too_long_for_the_model_costs_itself_only(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(PromptTooLong, match=f"context is {CONTEXT}"):
        scores(loaded, Score("x" * CONTEXT, ("a", "b")))


def test_what_fails_in_a_batch_is_raised_to_all_who_wait(loaded: tuple[Any, Any]) -> None:
    backend = Scoring(*loaded, Flags(batch_size=2))

    def failing(prompts: Any, labels: Any) -> Any:
        raise RuntimeError("out of memory")

    backend._scorer.score = failing  # type: ignore[method-assign]
    for one in [backend.submit(Score("T:", ("a", "b")), 0) for _ in range(3)]:
        with pytest.raises(RuntimeError, match="out of memory"):
            one.result()


def test_a_neutral_prompt_that_cannot_be_fed_is_the_record_s_error(
    loaded: tuple[Any, Any],
) -> None:
    with pytest.raises(InvalidRequest, match="is empty"):
        scores(loaded, Score("T:", ("a", "b"), ("",)))
    bare = Classify(labels=("a", "b"), prompt_template="{{ text }}", neutral=("", "N/A"))
    request = bare.prepare({"text": "one"})
    assert isinstance(request, Score)
    assert request.neutral == ("N/A",)


def test_a_raw_prompt_skips_the_chat_template(folder: Path) -> None:
    """Generation: the same text, with and without the template's tokens in front."""
    records = [{"text": "soup"}] * 2

    @dataclass(frozen=True)
    class Ask(Stage):
        kind: ClassVar[str] = "ask"
        raw: bool = False

        def prepare(self, fields: Mapping[str, Any]) -> Generate:
            return Generate(fields["text"], raw=self.raw)

        def complete(self, fields: Mapping[str, Any], answer: Any) -> Done:
            return Done({"tokens": answer.prompt_tokens})

    flags = Flags(model=str(folder), max_tokens=2)
    assert [row["tokens"] for row in collect(Ask(raw=True), records, flags)] == [4, 4]
    assert [row["tokens"] for row in collect(Ask(), records, flags)] == [7, 7]  # <soup>[


# --- scores that are no numbers ---------------------------------------------------------------


class _Spoiled:
    """The model, but where a prompt holds "!" its logits are no numbers."""

    def __init__(self, model: Any, token: int) -> None:
        self._model, self._token = model, token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, tokens: mx.array, *more: Any, **options: Any) -> mx.array:
        bad = (tokens == self._token).any(axis=-1)[:, None, None]
        return mx.where(bad, mx.nan, self._model(tokens, *more, **options))


def test_nan_is_the_record_s_error_and_its_neighbours_go_on(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    (bang,) = tokenizer.encode("!")

    class Given:
        def pair(self, flags: Flags, *, drafting: bool) -> Any:
            return (_Spoiled(model, bang), tokenizer), None

    records = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    template = "{{ text }}{{ '!' if text == 'two' }}"
    for stage in (
        Classify(labels=("a", "b"), prompt_template=template),
        Filter(prompt_template=template, threshold=1.0),
        Align(policy="p", prompt_template=template),
    ):
        rows = collect(stage, records, Flags(batch_size=4), models=Given())  # type: ignore[arg-type]
        assert ["error" in row for row in rows] == [False, True, False], stage.kind
        assert "no numbers" in rows[1]["error"]
        assert not {"label", "keep", "flagged"} & rows[1].keys()


def test_which_scores_rank_nothing() -> None:
    check_numbers({"a": -math.inf, "b": -1.0})
    for bad in ({"a": math.nan, "b": 0.0}, {"a": -math.inf, "b": -math.inf}):
        with pytest.raises(InvalidRequest, match=r"no numbers \(a"):
            check_numbers(bad)
    assert log_sum_exp([-math.inf, -math.inf]) == -math.inf
    assert all(math.isnan(log_sum_exp(pair)) for pair in ([0.0, math.nan], [math.nan, 0.0]))
    assert log_sum_exp([1.0, 1.0]) == pytest.approx(1 + math.log(2))
