"""What the public functions refuse, and that the message says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_spec import (
    SamplingParams,
    batch_generate,
    generate,
    stream_batch_generate,
    stream_generate,
)
from mlx_spec.batching.arguments import SamplingOptions
from mlx_spec.errors import InvalidRequest, MlxSpecError, TokenizerMismatch
from tests.api_support import (
    SIX,
    batch,
    model,
    pair,
    tokenizer,
    tokens_of,
)
from tests.models import make_model

ONE = SamplingParams(max_tokens=1)
BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("no prompts", lambda: batch([]), "0 prompts"),
    ("a text for a list", lambda: batch("def f"), "must be a list"),
    ("an iterator", lambda: batch(iter(["x"])), "must be a list"),
    ("an empty text", lambda: batch(["x", ""]), "prompt 2 of 2 is empty"),
    ("no ids", lambda: batch(["x", []]), "prompt 2 of 2 is empty"),
    ("no messages", lambda: batch([()]), "the prompt is empty"),
    ("a negative id", lambda: batch(["x", [5, -1, 5]]), "prompt 2 of 2 holds the token id -1"),
    ("an id too large", lambda: batch(["x", [5, 2048]]), "prompt 2 holds the token id 2048"),
    ("a huge id", lambda: batch([[2**70]]), "prompt.* holds the token id"),
    ("a float", lambda: batch([[1.0]]), "prompt.* holds 1.0"),
    ("a bool", lambda: batch([[3, True]]), "prompt.* holds True"),
    ("None among ids", lambda: batch([[3, None]]), "prompt.* holds None"),
    ("texts for ids", lambda: batch([["a", "b"]]), "prompt.* holds 'a'"),
    ("nested ids", lambda: batch([[[1, 2]]]), "prompt.* holds"),
    ("too few options", lambda: batch(["x", "y"], sampling=[ONE]), "1 sampling options for 2"),
    ("too many options", lambda: batch(["x"], sampling=[ONE] * 2), "2 sampling options for 1"),
    ("text without tokenizer", lambda: batch_generate(model(), None, ["x"]), "needs a tokenizer"),
    (
        "a stop text without tokenizer",
        lambda: generate(model(), None, [1], sampling=SamplingParams(stop="x")),
        "needs a tokenizer",
    ),
    (
        "messages without tokenizer",
        lambda: generate(model(), None, [{"role": "user", "content": "x"}]),
        "needs a tokenizer",
    ),
    (
        "messages without template",
        lambda: generate(model(), tokenizer(), [{"role": "user", "content": "x"}]),
        "no chat template",
    ),
]
# Errors of Python's own instead of a word about the prompt.
FOREIGN: list[tuple[str, Callable[[], Any]]] = [
    ("messages as the list of prompts", lambda: batch([{"role": "user", "content": "x"}])),
    ("ids as the list of prompts", lambda: batch([1, 2, 3])),
    ("None", lambda: batch([None])),
    ("a set", lambda: batch([{1, 2}])),
    ("bytes", lambda: batch([b"def f"])),
    ("rows of ids in one array", lambda: batch([np.array([[1, 2], [3, 4]])])),
    ("options as a dictionary", lambda: batch(["x"], sampling={"max_tokens": 1})),
    ("a list of dictionaries", lambda: batch(["x"], sampling=[{"max_tokens": 1}])),
    ("the name of a draft", lambda: batch(["x"], draft_model="demo-draft")),
]


@pytest.mark.parametrize(("call", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_refused_in_words(call: Callable[[], Any], message: str) -> None:
    """Stops an error deep in the engine for what can be told at the door."""
    with pytest.raises(InvalidRequest, match=message):
        call()


@pytest.mark.parametrize("call", [f[1] for f in FOREIGN], ids=[f[0] for f in FOREIGN])
def test_more_bad_input_is_refused_in_words(call: Callable[[], Any]) -> None:
    """Stops a KeyError or AttributeError from a likely mistake."""
    with pytest.raises(MlxSpecError):
        call()


def test_bad_input_is_refused_at_once() -> None:
    """Stops an error that comes at the first chunk, when the caller's ``try`` is long over."""
    with pytest.raises(InvalidRequest):
        stream_generate(model(), tokenizer(), "")
    with pytest.raises(InvalidRequest):
        stream_generate(model(), tokenizer(), [2048])
    with pytest.raises(InvalidRequest):
        stream_batch_generate(model(), tokenizer(), ["x", [-1]])


def test_a_draft_given_with_its_tokenizer_is_compared() -> None:
    """Stops a draft of other tokens, whose guesses would be noise."""
    target, words, draft = pair()
    sampling = SamplingParams(max_tokens=4)
    plain = generate(target, words, "def f", sampling=sampling)
    paired = generate(target, words, "def f", sampling=sampling, draft_model=(draft, words))
    assert plain.token_ids == paired.token_ids

    class OtherWords:
        def get_vocab(self) -> dict[str, int]:
            return {f"{token}!": place for token, place in words.get_vocab().items()}

    with pytest.raises(TokenizerMismatch, match=r"only 0 of the target's .*\(0.00%"):
        generate(target, words, "def f", sampling=sampling, draft_model=(draft, OtherWords()))


class Watching:
    """Embeddings that note the largest id they were asked for."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.largest = 0

    def __call__(self, tokens: mx.array) -> mx.array:
        self.largest = max(self.largest, int(tokens.max().item()))
        return self.inner(tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("size", [1024, 4096], ids=["smaller", "larger"])
def test_no_model_is_asked_for_an_embedding_that_it_lacks(size: int, temperature: float) -> None:
    """Stops reads past the embeddings, which give garbage or end the process: those of the
    target, where the draft's are padded to a larger size, and the other way round.
    """
    target = make_model("llama", vocab_size=2048)
    draft = make_model("llama", seed=2, vocab_size=size)
    prompts = [[5], [6, 2047, 7, 1024], list(range(1500, 1530))]
    sampling = SamplingParams(max_tokens=12, temperature=temperature, seed=1, ignore_eos=True)
    plain = batch_generate(target, None, prompts, sampling=sampling)
    seen = [Watching(model.model.embed_tokens) for model in (target, draft)]
    target.model.embed_tokens, draft.model.embed_tokens = seen
    result = batch_generate(
        target, None, prompts, draft_model=draft, sampling=sampling, speculation=SIX
    )
    assert tokens_of(result) == tokens_of(plain)
    assert result.stats.drafted > 0
    assert seen[0].largest < 2048
    assert 0 < seen[1].largest < size


LIKELY: list[tuple[str, Callable[[], Any], str]] = [
    ("names for models", lambda: generate("demo", "demo", "x"), r"model is the name 'demo'.*load"),
    ("a pair for a model", lambda: generate(pair()[:2], pair()[1], "x"), "take it apart"),
    ("a name for a tokenizer", lambda: generate(model(), "demo", "x"), "tokenizer is the name"),
    ("swapped", lambda: generate(tokenizer(), model(), "x"), "are swapped"),
    ("no model", lambda: generate(None, tokenizer(), "x"), "model is NoneType"),
    ("mlx-lm's temp", lambda: generate(model(), tokenizer(), "x", temp=1), "called temperature"),
    (
        "a sampler that is none",
        lambda: generate(model(), tokenizer(), "x", sampler=1),
        "1 is no function of logits",
    ),
    ("a typing error", lambda: generate(model(), tokenizer(), "x", max_token=1), "'max_tokens'"),
    (
        "an unknown word",
        lambda: generate(model(), tokenizer(), "x", zebra=1),
        "options of",
    ),
    ("chat's own", lambda: batch(["x"], system_prompt="x"), "ChatConfig"),
]


@pytest.mark.parametrize(("call", "message"), [c[1:] for c in LIKELY], ids=[c[0] for c in LIKELY])
def test_likely_mistakes_get_a_helpful_word(call: Callable[[], Any], message: str) -> None:
    """Stops an AttributeError from inside, or a bare TypeError, for what others' scripts write."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_fields_of_sampling_may_be_given_as_keywords() -> None:
    """As every script for mlx-lm does; they take the place of those of ``sampling``."""
    short = generate(model(), tokenizer(), "x", max_tokens=3)
    assert short.generation_tokens == 3
    both = batch(["x", "y"], sampling=[SamplingParams(max_tokens=9, seed=1)] * 2, max_tokens=2)
    assert [one.generation_tokens for one in both.results] == [2, 2]
    assert set(SamplingOptions.__annotations__) == {f.name for f in fields(SamplingParams)}
