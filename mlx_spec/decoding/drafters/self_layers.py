"""``SelfDrafter``: some of the target's own layers guess, over the target's own keys and values.

There is no second model and nothing to be read: whatever a row has, its layers' caches hold. A
guess reads the pending token, the next one the guess before, one token a pass; what such passes
write is garbage that nobody sees, since verification writes the same positions again::

    positions      0 . . . seen-1 | seen     seen+1   seen+2
    holds          the target's   | garbage  garbage              after two guesses d, e
    verified       the target's   | pending  d        e           all layers, all positions

    state          S > S'  > S''    is S again before verification: held by reference meanwhile
    ring           positions up to ``SLACK`` ahead have entries that nobody looks at
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import mlx.core as mx

from mlx_spec.cache.ring_places import SLACK
from mlx_spec.config import SpeculationConfig
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext, Trial
from mlx_spec.decoding.drafters.calibration import chosen_layers
from mlx_spec.decoding.drafters.choosing import Guessing, known_at
from mlx_spec.errors import InvalidRequest, UnsupportedModel
from mlx_spec.model.partial import skipping_of, why_not
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.model.trial import describe_pass


class SelfDrafter(BaseDrafter):
    """Drafts with some layers of the target, on the target's slots.

    Args:
        runner: the target's own; it is not among ``runners``, since its slots are the target's.
        layers: numbers of those that run, from 0.
        guessing: how tokens are chosen.

    Raises:
        UnsupportedModel: the code of the model cannot skip layers.
        InvalidRequest: a layer that does not exist.
    """

    reads_slots = True
    # Guesses are written to a ring one by one, and must not come round to what the row sees.
    max_draft_tokens = SLACK - 2

    def __init__(
        self, runner: ModelRunner, layers: Collection[int], guessing: Guessing | None = None
    ) -> None:
        skipping = skipping_of(runner)
        count = len(skipping.outputs)
        if strange := [layer for layer in layers if not 0 <= layer < count]:
            raise InvalidRequest(
                f"[SpeculationConfig] draft_layers names layer {strange[0]}, the model has {count} "
                f"(0 to {count - 1})"
            )
        self.layers = tuple(sorted(skipping.needed.union(layers)))
        if problem := why_not(runner, skipping, self.layers):
            raise UnsupportedModel(
                f"[SpeculationConfig] draft='self': this model does not run with "
                f"{len(self.layers)} of its {count} layers ({problem})"
            )
        self._pool = runner.pool
        self._guessing = guessing or Guessing()
        self._runner, self._partial = runner, skipping.partial(runner.model, self.layers)
        self._passes = make_pass(
            runner.support.form,
            self._partial,
            runner.pool,
            grouped=runner.support.grouped_masks,
        )

    def trial(self) -> Trial:
        """One token of each row through the layers that draft."""

        runner, partial = self._runner, self._partial

        def describe(rows: int, width: int = 1) -> list[mx.array]:
            return describe_pass(partial, runner.support.form, runner.vocabulary, rows, width)

        return Trial(describe, (runner.model,), part=f"layers {self.layers}")

    def propose(self, context: DraftContext, count: int) -> Draft:
        """Samples of the partial model at positions ``lengths ..``."""
        token = mx.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)
        draft: list[mx.array] = []
        states = self._pool.folded()
        for step in range(count):
            logits, *_ = self._passes.forward(_rows(context, token, step))
            token = self._guessing.choose(context, logits, draft)
            draft.append(token)
            if context.enough:
                break
        for layer, arrays in states:
            layer.arrays = arrays
        return context.draft(draft)


def _rows(context: DraftContext, token: mx.array, step: int) -> Rows:
    """One token [B, 1] of each row, ``step`` behind the pending one."""
    return Rows(
        token,
        context.lengths + (step - 1),
        context.longest + step,
        uniform=context.shortest == context.longest,
        at=known_at(context, step - 1),
        since=context.shortest + step - 1,
        begins=() if step else context.begins,
    )


def make_self_drafter(
    runner: ModelRunner, speculation: SpeculationConfig, tokenizer: Any = None
) -> SelfDrafter:
    """A drafter that runs some layers of the target ``runner``.

    Raises:
        UnsupportedModel, InvalidRequest: as ``SelfDrafter``.
    """
    layers = speculation.draft_layers
    if layers is None:
        layers = chosen_layers(runner, tokenizer).layers
    return SelfDrafter(runner, layers, Guessing(speculation.draft_temperature))
