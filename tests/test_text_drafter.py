"""A draft of quite another tokenizer: words against letters, through text and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.text_model import TextDrafter
from mlx_spec.errors import TokenizerMismatch
from mlx_spec.model.pairing import check_pair
from mlx_spec.sequence import Sequence
from tests.models import VOCABULARY
from tests.scenario import make_jobs, run_jobs, target, wrong_rows

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.0123456789"
PAIRS = [a + b for a in "abcde" for b in "fghij"]


class Greedy:
    """A tokenizer of pieces: the longest that fits."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.ids = pieces, {piece: place for place, piece in enumerate(pieces)}

    def get_vocab(self) -> dict[str, int]:
        return {f"{self.pieces[0]}{len(self.pieces)}|{piece}": i for piece, i in self.ids.items()}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = []
        while text:
            size = 2 if text[:2] in self.ids else 1
            ids.append(self.ids[text[:size]])
            text = text[size:]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids if token < len(self.pieces))


TARGET = Greedy([*LETTERS, *PAIRS])
DRAFT = Greedy(list(reversed(LETTERS)))


def test_tokens_that_are_all_different_are_translated() -> None:
    assert len(TARGET.pieces) == VOCABULARY
    pairing = check_pair(TARGET, DRAFT)
    assert pairing.through_text
    assert "0 of the target's 64 tokens (0.00%), so that guesses are translated" in str(pairing)


def test_a_tokenizer_that_gives_back_something_else_is_named() -> None:
    lossy = Greedy(list(reversed(LETTERS)))
    lossy.decode = lambda ids: "?"  # type: ignore[method-assign]
    with pytest.raises(TokenizerMismatch, match=r"0.00%, .* the draft's tokenizer gives '\?' for"):
        check_pair(TARGET, lossy)
    bare = SimpleNamespace(get_vocab=lambda: {"x": 0})
    with pytest.raises(TokenizerMismatch, match="the draft's tokenizer fails"):
        check_pair(TARGET, bare)


class Speller:
    """A draft model's stand-in: spells what the target is known to say next."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __call__(self, drafter: Any, count: int) -> list[list[int]]:
        said = []
        for row in drafter._rows:
            text = DRAFT.decode(row.ids)
            whole = next(known for known in self.texts if known.startswith(text))
            said.append((DRAFT.encode(whole[len(text) :]) + [0] * count)[:count])
        return said


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("spelled", [False, True], ids=["a model", "knowing"])
def test_it_changes_nothing(sampled: bool, spelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins and leaves over three rows; one that knows the text is right at once."""
    jobs = make_jobs("llama", sampled, 7)
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=(target("llama"), DRAFT),
        tokenizer=TARGET,
        speculation=SpeculationConfig(draft="model", num_draft_tokens=4, adaptive=False),
        batching=BatchingConfig(batch_size=3),
    )
    assert any(isinstance(one, TextDrafter) for one in decoder.drafter.members)  # type: ignore[attr-defined]
    if spelled:
        texts = [TARGET.decode([*job.prompt, *job.expected]) for job in jobs]
        say = Speller(texts)
        monkeypatch.setattr(TextDrafter, "_say", lambda self, count: say(self, count))
    rows = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, rows) == []
    accepted, drafted = (sum(getattr(row, of) for row in rows) for of in ("accepted", "drafted"))
    assert drafted > 0
    if spelled:
        assert accepted > drafted / 3


def test_what_is_read_is_what_a_lone_model_reads() -> None:
    """After each step the draft model says the same as from the whole text, read anew."""
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=(target("llama"), DRAFT),
        tokenizer=TARGET,
        speculation=SpeculationConfig(draft="model", num_draft_tokens=3, adaptive=False),
        batching=BatchingConfig(batch_size=2),
    )
    drafter: Any = decoder.drafter.members[-1]  # type: ignore[attr-defined]
    decoder.add([Sequence([1 + i] * (3 + 20 * i), SamplingParams(max_tokens=12)) for i in range(2)])
    for _ in range(6):
        decoder.step()
        if len(drafter._rows) == 2:
            again = drafter._say(3)
            for row in drafter._rows:
                row.read = 0
            assert drafter._say(3) == again
