"""A short text passes a much longer one that is being read, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding import feeding
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.fed_rows import FedRow
from mlx_spec.decoding.reading_order import with_newcomers
from mlx_spec.model import pace
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy
from tests.scenario import noisy_draft, plain_alone, target
from tests.test_long_prompts import prompt


def row(tokens: int, seen: int = 0) -> FedRow:
    """With so many tokens to read, one of them after all."""
    return FedRow(Sequence([1] * (tokens + 1)), seen, 0)


def lengths(rows: Seq[FedRow]) -> list[int]:
    return [one.sequence.length - 1 for one in rows]


def test_only_much_longer_texts_are_passed() -> None:
    """Not what is nearly read, nor what is about as long, nor what lies behind such."""
    assert lengths(with_newcomers([row(4000)], [row(40)])) == [40, 4000]
    assert lengths(with_newcomers([row(4000)], [row(1100)])) == [4000, 1100]
    assert lengths(with_newcomers([row(4000, seen=3900)], [row(10)])) == [4000, 10]
    assert lengths(with_newcomers([row(4000), row(60)], [row(40)])) == [4000, 60, 40]
    assert lengths(with_newcomers([row(4000), row(3000)], [row(40), row(50)])) == [
        *(40, 50),
        *(4000, 3000),
    ]
    done = row(4000)
    done.done = True
    assert lengths(with_newcomers([done], [row(40)])) == [4000, 40]


def test_a_text_is_passed_by_no_more_than_its_own_length() -> None:
    rows = [row(1000)]
    for _ in range(20):
        rows = with_newcomers(rows, [row(100)])
    assert lengths(rows) == [*[100] * 10, 1000, *[100] * 10]


def moved(decoder: SpeculativeDecoder) -> list[int]:
    """Where the pool's rows go, filled as they do."""
    orders: list[int] = []
    keep = decoder.runner.pool.keep

    def noting(order: Seq[int]) -> None:
        orders.extend(order if list(order) != sorted(order) else ())
        keep(order)

    decoder.runner.pool.keep = noting  # type: ignore[method-assign]
    return orders


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("company", [0, 2], ids=["alone", "beside rows that decode"])
def test_a_question_behind_a_book_is_answered_first(
    family: str, company: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both are read right, wherever their rows were moved; one is preempted meanwhile."""
    monkeypatch.setattr(pace, "PIECE", 0.0)
    monkeypatch.setattr(feeding, "TURN", 0.0)
    decoder = SpeculativeDecoder(
        target(family),
        draft_model=noisy_draft(family),
        policy=CyclingPolicy([2, 0, 3]),
        batching=BatchingConfig(batch_size=6, prefill_interleave=64, prefill_step_size=64),
    )
    orders = moved(decoder)
    running = [Sequence(prompt(4 + n, n), SamplingParams(max_tokens=40)) for n in range(company)]
    if running:
        decoder.add(running)
    for _ in range(3):
        if running:
            decoder.step()
    book = Sequence(prompt(900, 7), SamplingParams(max_tokens=5))
    decoder.add([book])
    for _ in range(2):
        decoder.step()
    questions = [Sequence(prompt(20 + n, n), SamplingParams(max_tokens=9)) for n in range(2)]
    decoder.add(questions)
    decoder.step()
    assert orders
    if running:
        decoder.suspend(running[0], save=True)
        decoder.step()
        decoder.add(running[:1])
    while not all(one.tokens for one in questions):
        decoder.step()
    assert not book.tokens
    assert decoder._members.feeder.seen(book) < 600
    while decoder.busy:
        decoder.step()
    for one in (book, *questions, *running):
        assert one.tokens == plain_alone(target(family), tuple(one.prompt), one.sampling)
