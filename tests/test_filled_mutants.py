"""Planted bugs in steps that are filled on the device: each shows in a text or in who was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache.packed_rows import PackedQueries
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.control.filling import Filling
from mlx_spec.decoding import step as step_module
from mlx_spec.decoding.drafters import chain as chain_module
from mlx_spec.model.runner import ModelRunner
from tests.filled_runs import asking, decoder_of, given_rightly, said
from tests.scenario import noisy_draft, target

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module", autouse=True)
def judged_before_bugs_are_planted() -> None:
    """Whether the model packs is asked once a process, and not while a bug hides it."""
    assert ModelRunner(target("llama"), 1).packs


def another_rows_confidence(patch: Patch) -> None:
    own = chain_module.give
    patch.setattr(chain_module, "give", lambda words, f: own(mx.roll(words, 1, axis=0), f))


def one_guess_less_than_the_host_counts_with(patch: Patch) -> None:
    own = chain_module.give

    def planted(words: mx.array, filling: Filling) -> mx.array:
        return own(words, replace(filling, guesses=max(1, filling.guesses - 1)))

    patch.setattr(chain_module, "give", planted)


def one_guess_more(patch: Patch) -> None:
    own = chain_module.give

    def planted(words: mx.array, filling: Filling) -> mx.array:
        return own(words, replace(filling, guesses=min(filling.guesses + 1, sum(filling.most))))

    patch.setattr(chain_module, "give", planted)


def the_row_above_s_mask(patch: Patch) -> None:
    own = PackedQueries._masks

    def planted(self: PackedQueries, mask: Any) -> list[Any]:
        wrong = isinstance(mask, mx.array) and self.packing.told is not None
        return [mx.roll(mask, 1, axis=0)] if wrong else own(self, mask)

    patch.setattr(PackedQueries, "_masks", planted)


def changed(patch: Patch, change: Callable[[TokenPacking], TokenPacking]) -> None:
    own = step_module.filled_packing
    patch.setattr(step_module, "filled_packing", lambda *given: change(own(*given)))


def options_of_the_row_above(patch: Patch) -> None:
    def change(packing: TokenPacking) -> TokenPacking:
        return replace(packing, told=mx.maximum(packing.whose - 1, 0))

    changed(patch, change)


def answers_of_the_place_before(patch: Patch) -> None:
    def change(packing: TokenPacking) -> TokenPacking:
        return replace(packing, order=mx.maximum(packing.order - 1, 0))

    changed(patch, change)


def holes_are_tokens_of_the_row_below(patch: Patch) -> None:
    """Behind a row's last token stands the next one's: it counts as a guess of nobody's, and the
    row's own end is not where it is."""
    own = step_module.filled_packing

    def planted(counts: mx.array, width: int, *sizes: int) -> TokenPacking:
        return own(mx.roll(counts, 1, axis=0), width, *sizes)

    patch.setattr(step_module, "filled_packing", planted)


@pytest.mark.parametrize(
    "plant",
    [
        another_rows_confidence,
        one_guess_less_than_the_host_counts_with,
        one_guess_more,
        the_row_above_s_mask,
        options_of_the_row_above,
        answers_of_the_place_before,
        holes_are_tokens_of_the_row_below,
    ],
)
def test_a_planted_bug_shows(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    asked = asking(monkeypatch)
    decoder = decoder_of(target("llama"), noisy_draft("llama"))
    assert said(decoder) != [] or not given_rightly(decoder, asked)
