"""``plan_step``: what the next step may take, with room made for it."""

from __future__ import annotations

from mlx_spec.control.policy import DraftLengthPolicy
from mlx_spec.decoding.chunk_queue import ChunkQueue
from mlx_spec.decoding.drafters.base import Drafter
from mlx_spec.decoding.flight import Flight, StepPlan
from mlx_spec.decoding.step import StepParts


def plan_step(
    parts: StepParts,
    policy: DraftLengthPolicy,
    flight: Flight | None,
    chunks: ChunkQueue,
    *,
    plain: bool,
) -> StepPlan:
    """What a step may take, behind one in flight.

    Asked before the snapshot: while that holds the old arrays of all layers, growing them
    would keep old and new side by side.

    Args:
        parts: target, drafter and rows.
        policy: chooses draft lengths; what it chose is forgotten where the drafter raises.
        flight: the step that computes, if any: its rows gain from 1 to ``width`` tokens by it.
        chunks: gets what the drafter must read before the step.
        plain: whether nothing is to be drafted, whatever the policy says.
    """
    state, rows = parts.state, list(parts.state.sequences)
    flying = flight.rows if flight else ()
    gains = {row: flight.width for row in flying if row not in flight.gone} if flight else {}
    shortest = min(row.length + (row in gains) for row in rows)
    longest = max(row.length + gains.get(row, 0) for row in rows)
    lengths = policy.choose(rows)
    if plain:
        lengths = [0] * len(lengths)
    positions = longest + max(lengths) + 1 + parts.drafter.spare
    for runner in (parts.runner, *parts.drafter.runners):
        runner.pool.reserve(positions)
    state.reserve(positions)
    reading = None
    if max(lengths):  # a plain step asks nothing of the drafter
        try:
            reading = None if chunks.fed else parts.drafter.feed(1 if flight else 0)
            lengths = _covered(parts.drafter, lengths)
        except BaseException:
            policy.forget()
            raise
    chunks.planned(reading)
    known = None if gains else tuple(row.length for row in rows)
    begins = tuple(row.length == 1 and row not in gains for row in rows)
    begins = begins if any(begins) else ()
    plan = (rows, lengths, shortest, longest, reading, known, begins, state.opening)
    return StepPlan(*plan)


def _covered(drafter: Drafter, lengths: list[int]) -> list[int]:
    """Draft lengths of the rows that the drafter has read far enough to guess for; else 0."""
    covered = drafter.covers()
    if covered is None:
        return lengths
    return [k if known else 0 for k, known in zip(lengths, covered, strict=True)]
