"""Which drafts a target takes: by the meaning of their tokens, and exact with each of them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import TokenizerMismatch
from mlx_spec.model.loader import load
from mlx_spec.model.pairing import check_pair
from mlx_spec.sequence import Sequence
from tests.folders import byte_vocabulary, write_folder
from tests.models import VOCABULARY, make_model
from tests.scenario import make_jobs, run_jobs, target, wrong_rows


def vocabulary(*added: str, **changes: int) -> Any:
    """A tokenizer as far as pairs go: a map, some of it added later."""
    tokens = {"a": 0, "b": 1, "c": 2, "def": 3} | changes
    return SimpleNamespace(
        get_vocab=lambda: tokens,
        get_added_vocab=lambda: {token: tokens[token] for token in added},
    )


def test_equal_token_maps_are_a_pair() -> None:
    pairing = check_pair(vocabulary(), vocabulary())
    assert (pairing.shared, pairing.tokens, pairing.share) == (4, 4, 1.0)


@pytest.mark.parametrize(
    ("target_map", "draft_map", "share", "words"),
    [
        (vocabulary("<im>", **{"<im>": 4}), vocabulary(), 4 / 5, r"'<im>' \(4\) is not in the dr"),
        (vocabulary(), vocabulary("<im>", **{"<im>": 4}), 1.0, "all of the target's tokens"),
        (
            vocabulary("<im>", **{"<im>": 4}),
            vocabulary("<s>", **{"<s>": 4}),
            4 / 5,
            "4 is '<im>' in the target, '<s>' in the draft",
        ),
        (
            vocabulary("<im>", "<s>", **{"<im>": 4, "<s>": 5}),
            vocabulary("<im>", "<s>", **{"<im>": 5, "<s>": 4}),
            4 / 6,
            "'<im>' is 4 in the target, 5 in the draft",
        ),
        # Ordinary words, but the draft has nothing else under their ids.
        (vocabulary(more=4), vocabulary(), 4 / 5, r"'more' \(4\) is not in the draft"),
    ],
)
def test_what_is_common_is_drafted_and_its_share_said(
    target_map: Any, draft_map: Any, share: float, words: str
) -> None:
    pairing = check_pair(target_map, draft_map)
    assert pairing.share == pytest.approx(share)
    assert re.search(words, str(pairing))


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        # Equal sizes on purpose: comparing sizes, as mlx-lm does, passes here.
        ({"a": 1, "b": 0}, r"in 2 of 4 tokens; .* \(2\): 'a' is 0 in the target, 1 in the draft"),
        ({"def": 9, "if": 3}, r"in 1 of 4 tokens; .* \(1\): 'def' is 3 in the target, 9 in the"),
    ],
)
def test_ordinary_tokens_that_differ_are_refused_by_name(draft: Any, words: str) -> None:
    with pytest.raises(TokenizerMismatch, match=words):
        check_pair(vocabulary(), vocabulary(**draft))


def test_an_ordinary_token_in_the_place_of_another_is_refused() -> None:
    other = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "c": 2, "class": 3})
    with pytest.raises(TokenizerMismatch, match="3 is 'def' in the target, 'class' in the draft"):
        check_pair(vocabulary(), other)


def test_a_draft_that_knows_little_is_refused() -> None:
    with pytest.raises(TokenizerMismatch, match="only 1 of the target's 4 tokens"):
        check_pair(vocabulary(), SimpleNamespace(get_vocab=lambda: {"a": 0}))


def test_two_tokenizers_are_compared_once() -> None:
    class Counting:
        asked = 0

        def get_vocab(self) -> dict[str, int]:
            Counting.asked += 1
            return {"a": 0}

    target_map, draft_map = Counting(), Counting()
    assert check_pair(target_map, draft_map) is check_pair(target_map, draft_map)
    assert Counting.asked == 2
    del draft_map
    check_pair(target_map, Counting())
    assert Counting.asked == 4


def test_token_maps_are_compared_not_padded_embeddings(tmp_path: Path) -> None:
    _, tokenizer = load(write_folder(tmp_path / "good"))
    other = byte_vocabulary()
    other["a"], other["b"] = other["b"], other["a"]
    _, draft_tokenizer = load(write_folder(tmp_path / "other", other))
    with pytest.raises(TokenizerMismatch, match=r"'a' is \d+ in the target, \d+ in the draft"):
        check_pair(tokenizer, draft_tokenizer)


class Watched(nn.Module):
    """A model that notes the highest token it reads."""

    def __init__(self, inner: Any, seen: list[mx.array]) -> None:
        super().__init__()
        self.inner, self.layers, self.args = inner, inner.layers, inner.args
        self._note = seen.append

    def __call__(self, tokens: mx.array, cache: Any) -> mx.array:
        self._note(tokens.max())
        logits: mx.array = self.inner(tokens, cache=cache)
        return logits


@pytest.mark.parametrize("size", [VOCABULARY - 24, VOCABULARY + 40], ids=["smaller", "larger"])
def test_no_model_reads_a_token_that_it_has_no_embedding_for(size: int) -> None:
    """It would be read from beyond the table: garbage, or the end of the process."""
    read: tuple[list[mx.array], list[mx.array]] = ([], [])
    draft = make_model("llama", seed=1, vocab_size=size, num_hidden_layers=1)
    decoder = SpeculativeDecoder(
        Watched(target("llama"), read[0]),
        draft_model=Watched(draft, read[1]),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        batching=BatchingConfig(batch_size=2),
    )
    rows = [
        Sequence([VOCABULARY - 1, row, *([VOCABULARY - 2] * 12)], SamplingParams(max_tokens=30))
        for row in range(2)
    ]
    decoder.add(rows)
    while decoder.busy:
        decoder.step()
    highest = [max(int(token) for token in tokens) for tokens in read]
    assert highest[0] == VOCABULARY - 1
    assert highest[1] < size


@pytest.mark.parametrize("size", [VOCABULARY - 24, VOCABULARY + 40], ids=["smaller", "larger"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_draft_of_another_size_changes_nothing(size: int, sampled: bool) -> None:
    """Prompts and outputs hold tokens that a smaller draft has no embedding for."""
    jobs = make_jobs("llama", sampled, 7)
    assert any(max(job.prompt) >= VOCABULARY - 24 for job in jobs)
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=make_model("llama", seed=1, vocab_size=size, num_hidden_layers=1),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        batching=BatchingConfig(batch_size=3),
    )
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    assert sum(sequence.drafted for sequence in sequences) > 0


def test_what_is_common_is_accepted() -> None:
    """A draft that is the target without its last tokens: right whenever it can be."""
    model = target("llama")
    draft = make_model("llama", vocab_size=VOCABULARY)
    draft.model.embed_tokens.weight = model.model.embed_tokens.weight[:40]
    draft.lm_head.weight = model.lm_head.weight[:40]
    decoder = SpeculativeDecoder(
        model,
        draft_model=draft,
        speculation=SpeculationConfig(num_draft_tokens=2, adaptive=False),
        batching=BatchingConfig(batch_size=2),
    )
    rows = [Sequence([1 + i, 2, 3], SamplingParams(max_tokens=60)) for i in range(2)]
    decoder.add(rows)
    while decoder.busy:
        decoder.step()
    assert any(max(row.tokens) >= 40 for row in rows)
    assert sum(row.accepted for row in rows) > 0
