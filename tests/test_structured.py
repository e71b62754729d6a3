"""Constrained rows: what they say satisfies their constraint, drafted or not, in any company."""

from __future__ import annotations

from functools import cache

import pytest

from mlx_spec.config import SpeculationConfig
from mlx_spec.decoding.drafters.forced import ForcedDrafter
from mlx_spec.decoding.drafters.ngram import NgramDrafter
from mlx_spec.sequence import Sequence
from mlx_spec.structured.guide import Guide
from tests.structured_runs import constraints, invalid, knowing, run

COUNT = 200


@cache
def plainly() -> list[Sequence]:
    """All requests without drafts."""
    return run(constraints(COUNT), rows=8, drafted=False)[1]


def counted(made: list[Sequence]) -> tuple[int, int]:
    """Guesses verified, and accepted."""
    return sum(row.drafted for row in made), sum(row.accepted for row in made)


def test_two_hundred_random_constraints_hold_and_drafts_change_nothing() -> None:
    """Ragged drafts that are often wrong, joins, leaves and preemptions, greedy and sampled."""
    wanted = constraints(COUNT)
    plain = plainly()
    assert invalid(wanted, plain) == []
    assert sum(row.finish_reason == "stop" for row in plain) > 0.95 * COUNT
    decoder, made = run(wanted, rows=8, drafter=knowing(plain), preempting=5)
    assert [row.tokens for row in made] == [row.tokens for row in plain]
    drafted, accepted = counted(made)
    assert 500 < accepted < drafted - 300
    assert decoder.meter.ahead == 0  # every step had to be seen


def test_a_row_says_alone_what_it_says_in_a_batch() -> None:
    wanted = constraints(12)
    assert [row.tokens for row in run(wanted, rows=1, drafted=False)[1]] == [
        row.tokens for row in plainly()[:12]
    ]


def test_rows_without_a_constraint_lose_nothing() -> None:
    """The very tokens, and drafts, for both kinds of rows."""
    mixed = [one if index % 3 else None for index, one in enumerate(constraints(15))]
    alone = run([None] * 15, rows=1, drafted=False, only=[i for i in range(15) if i % 3 == 0])[1]
    said = [plainly()[i] if one else alone[i // 3] for i, one in enumerate(mixed)]
    _, made = run(mixed, drafter=knowing(said))
    assert [row.tokens for row in made] == [row.tokens for row in said]
    for kind in (True, False):
        rows = [row for row, one in zip(made, mixed, strict=True) if (one is None) == kind]
        assert 0 < sum(row.accepted for row in rows) < sum(row.drafted for row in rows)


@pytest.mark.parametrize("family", ["gemma3_text", "mamba2", "qwen3_next"])
def test_on_rings_and_states(family: str) -> None:
    wanted = constraints(10)
    plain = run(wanted, family=family, rows=4, drafted=False)[1]
    made = run(wanted, family=family, rows=4, drafter=knowing(plain), preempting=7)[1]
    assert [row.tokens for row in made] == [row.tokens for row in plain]
    assert invalid(wanted, made) == []
    assert 0 < sum(row.accepted for row in made) < sum(row.drafted for row in made)


def test_by_rejection_too_every_text_is_valid() -> None:
    """Drawn guesses and guesses that are sure of themselves."""
    wanted = constraints(16)
    for drafter in (None, ForcedDrafter()):
        speculation = SpeculationConfig(acceptance="rejection")
        _, made = run(wanted, drafter=drafter, speculation=speculation)
        assert invalid(wanted, made) == []
        drafted, accepted = counted(made)
        assert 0 < accepted < drafted or drafter is not None


def test_forced_tokens_are_drafts() -> None:
    """Without any model: nearly all are accepted, and rows without a constraint have none."""
    mixed = [one if index % 4 else None for index, one in enumerate(constraints(40))]
    _, made = run(mixed, drafter=ForcedDrafter())
    for row, plain, one in zip(made, plainly(), mixed, strict=False):
        if one is None:
            assert row.drafted == 0
        else:
            assert row.tokens == plain.tokens
    drafted, accepted = counted(made)
    assert accepted > 50
    assert accepted > 0.8 * drafted


def test_what_is_looked_up_is_cut_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known on the host, so nobody verifies it; rows without a constraint are not cut."""
    seen, allowed = [0, 0], Guide.allowed

    def counting(guide: Guide, tokens: list[int]) -> int:
        seen[0] += len(tokens)
        seen[1] += allowed(guide, tokens)
        return allowed(guide, tokens)

    monkeypatch.setattr(Guide, "allowed", counting)
    mixed = [one if index % 4 else None for index, one in enumerate(constraints(40))]
    _, made = run(mixed, drafter=NgramDrafter(2**16), preempting=5)
    guided = [row for row, one in zip(made, mixed, strict=True) if one is not None]
    plain = [row for row, one in zip(plainly(), mixed, strict=False) if one is not None]
    assert [row.tokens for row in guided] == [row.tokens for row in plain]
    assert 0 < seen[1] < seen[0]
    assert 0 < sum(row.drafted for row in guided) <= seen[1]


def test_without_a_constraint_nobody_waits() -> None:
    decoder, made = run([None] * 6, drafter=ForcedDrafter())
    assert decoder.meter.ahead > 0
    assert sum(row.drafted for row in made) == 0
