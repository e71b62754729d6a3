"""Planted bugs in how states are kept: five requests in three slots see each of them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache import state
from mlx_spec.cache.layer import RowState
from mlx_spec.cache.state import StateCache
from mlx_spec.model.runner import ModelRunner, Rows
from tests.test_state import make_decoder, run, token_by_token, wrong

__all__ = ["token_by_token"]  # a fixture


def kept_after_a_rejection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StateCache, "commit", lambda self, kept: None)


def one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    right = StateCache.commit
    patch.setattr(
        StateCache, "commit", lambda self, kept: right(self, None if kept is None else kept + 1)
    )


def as_the_first_row(patch: pytest.MonkeyPatch) -> None:
    """What the first row accepted is committed for all."""
    right = StateCache.commit

    def commit(self: StateCache, kept: mx.array | None) -> None:
        right(self, None if kept is None else mx.broadcast_to(kept[:1], kept.shape))

    patch.setattr(StateCache, "commit", commit)


def from_the_first_slot(patch: pytest.MonkeyPatch) -> None:
    """All rows read what slot 0 holds."""
    right = state.read_by

    def begun(states: mx.array | None, span: Any) -> mx.array | None:
        read = right(states, span)
        return None if read is None else mx.broadcast_to(read[:1], read.shape)

    patch.setattr(state, "read_by", begun)


def newcomers_go_on(patch: pytest.MonkeyPatch) -> None:
    """A row begins where whoever held its slot before has ended."""
    patch.setattr(state, "read_by", lambda states, span: states)


def saved_as_it_is(patch: pytest.MonkeyPatch) -> None:
    """A preempted row's state is that of the step in flight, which nobody reads."""
    right = StateCache.save

    def save(self: StateCache, slot: int, begin: int, end: int) -> RowState:
        self._passes.clear()
        return right(self, slot, begin, end)

    patch.setattr(StateCache, "save", save)


def not_loaded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StateCache, "load", lambda self, slot, begin, states: None)


def not_moved(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StateCache, "move", lambda self, sources, slots: [])


def padding_folded(patch: pytest.MonkeyPatch) -> None:
    """Tokens past a row's end count."""
    right = ModelRunner.forward

    def forward(self: ModelRunner, rows: Rows) -> mx.array:
        return right(self, Rows(**{**vars(rows), "counts": None}))

    patch.setattr(ModelRunner, "forward", forward)


EVERYWHERE = [
    kept_after_a_rejection,
    one_token_too_many,
    as_the_first_row,
    from_the_first_slot,
    newcomers_go_on,
    saved_as_it_is,
    not_loaded,
    not_moved,
]


@pytest.mark.parametrize("plant", [*EVERYWHERE, padding_folded])
def test_they_are_seen(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert wrong("mamba2", run(make_decoder("mamba2", 0.6), "mamba2"))


@pytest.mark.usefixtures("token_by_token")
@pytest.mark.parametrize("plant", [kept_after_a_rejection, from_the_first_slot, saved_as_it_is])
def test_they_are_seen_token_by_token(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert wrong("lfm2", run(make_decoder("lfm2", 0.6), "lfm2"))
