"""Which drafts a target takes: by the meaning of their tokens, and exact with each of them."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.errors import TokenizerMismatch
from mlx_spec.model.loader import load
from mlx_spec.model.mapped_runner import MappedRunner
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
            1.0,
            "all of the target's tokens, 2 of them under other ids",
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
    ("draft", "shared", "moved", "ids"),
    [
        # Equal sizes on purpose: comparing sizes, as mlx-lm does, sees nothing here.
        ({"a": 1, "b": 0}, 4, 2, [1, 0, 2, 3]),
        ({"def": 9, "if": 3}, 4, 1, [0, 1, 2, 9]),
        ({"a": 7}, 4, 1, [7, 1, 2, 3]),
    ],
)
def test_tokens_under_other_ids_are_found(
    draft: Any, shared: int, moved: int, ids: list[int]
) -> None:
    pairing = check_pair(vocabulary(), vocabulary(**draft))
    assert (pairing.shared, pairing.moved) == (shared, moved)
    assert pairing.to_draft is not None
    assert pairing.to_draft.tolist() == ids
    assert f"{moved} of them under other ids" in str(pairing)


def test_an_ordinary_token_in_the_place_of_another_is_not_guessed() -> None:
    other = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "c": 2, "class": 3})
    pairing = check_pair(vocabulary(), other)
    assert "75.00%; not: 3 is 'def' in the target, 'class' in the draft" in str(pairing)
    assert pairing.to_draft is not None
    assert pairing.to_draft.tolist() == [0, 1, 2, -1]


def test_ids_that_are_alike_are_taken_as_they_are() -> None:
    """No table where none is needed: a row of a plain pair pays nothing for others."""
    assert check_pair(vocabulary(), vocabulary()).to_draft is None
    assert check_pair(vocabulary(more=4), vocabulary()).to_draft is None
    assert check_pair(vocabulary(), vocabulary(more=4)).to_draft is None


def test_vocabularies_of_different_kinds_are_compared_by_what_tokens_stand_for() -> None:
    """Byte-level letters against marks and single bytes."""
    letters = SimpleNamespace(get_vocab=lambda: {"a": 0, "Ġb": 1, "Ã¤": 2, "x": 3})
    marks = SimpleNamespace(get_vocab=lambda: {"<0x61>": 5, "▁b": 4, "ä": 3, "a": 2})
    pairing = check_pair(letters, marks)
    assert pairing.to_draft is not None
    assert pairing.to_draft.tolist() == [2, 4, 3, -1]


def test_a_draft_that_knows_little_is_refused() -> None:
    with pytest.raises(TokenizerMismatch, match=r"1 of the target's 4 tokens \(25.00%, at le"):
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
    assert check_pair(tokenizer, draft_tokenizer).moved == 2


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


def renumbered(model: Any, ids: list[int]) -> Any:
    """A model of one layer in other ids: token t of ``model`` is ``ids[t]``, -1 for none."""
    size = max(ids) + 1
    copy = make_model("llama", seed=1, vocab_size=size, num_hidden_layers=1)
    copy.update(tree_unflatten([*tree_flatten(model.parameters())]))
    kept = [token for token, own in enumerate(ids) if own >= 0]
    places = mx.array([ids[token] for token in kept])
    for layer in (copy.model.embed_tokens, copy.lm_head):
        weight = layer.weight
        layer.weight = mx.zeros((size, weight.shape[1]))
        layer.weight[places] = weight[mx.array(kept)]
    mx.eval(copy.parameters())
    return copy


def named(ids: list[int]) -> Any:
    """A tokenizer of those."""
    tokens = {f"t{token}": own for token, own in enumerate(ids) if own >= 0}
    return SimpleNamespace(get_vocab=lambda: tokens)


PLAIN = list(range(VOCABULARY))
OTHERS = {
    "permuted": random.Random(4).sample(PLAIN, VOCABULARY),
    "moved up": [token + 3 for token in PLAIN],
    "reduced": [token if token % 8 else -1 for token in PLAIN],
}


def drafted(draft: Any, ids: list[int], sampled: bool) -> tuple[list[Sequence], int]:
    """The usual jobs under a draft in such ids, and how many of its guesses were accepted."""
    jobs = make_jobs("llama", sampled, 7)
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=(draft, named(ids)),
        tokenizer=named(PLAIN),
        speculation=SpeculationConfig(num_draft_tokens=3, adaptive=False),
        batching=BatchingConfig(batch_size=3, prefill_interleave=4),
    )
    sequences = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, sequences) == []
    assert sum(sequence.drafted for sequence in sequences) > 0
    return sequences, sum(sequence.accepted for sequence in sequences)


@pytest.fixture(scope="module")
def small() -> Any:
    """The target's first layer under its own head: right now and then."""
    draft = make_model("llama", num_hidden_layers=1)
    whole = dict(tree_flatten(target("llama").parameters()))
    draft.update(
        tree_unflatten([(name, whole[name]) for name, _ in tree_flatten(draft.parameters())])
    )
    return draft


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_other_ids_cost_no_acceptance(small: Any, sampled: bool) -> None:
    """Noise and rules go by the target's ids, so that all guesses are the same."""
    _, plain = drafted(small, PLAIN, sampled)
    assert plain > 0
    for kind in ("permuted", "moved up"):
        assert drafted(renumbered(small, OTHERS[kind]), OTHERS[kind], sampled)[1] == plain
    _, reduced = drafted(renumbered(small, OTHERS["reduced"]), OTHERS["reduced"], sampled)
    assert 0 < reduced < plain


def test_a_table_used_the_wrong_way_round_is_noticed(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes no text: guesses are wrong."""
    ids = OTHERS["permuted"]
    _, right = drafted(renumbered(small, ids), ids, False)
    backwards = {own: token for token, own in enumerate(ids)}
    made = MappedRunner.__init__

    def planted(self: Any, model: Any, slots: int, to_draft: Any, *more: Any) -> None:
        made(self, model, slots, np.array([backwards[own] for own in range(len(ids))]), *more)

    monkeypatch.setattr(MappedRunner, "__init__", planted)
    assert drafted(renumbered(small, ids), ids, False)[1] < right / 2
