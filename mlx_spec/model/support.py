"""Whether this engine can run a model, and how exactly: asked before anything is generated.

The engine runs rows of a batch at positions of their own and takes one or several new tokens a
row. Most of mlx-lm's models do that unmodified. Some keep a state that cannot be rolled back, some
take one position for all rows, and some compute one new token in another way than several, so that
equal tokens may come out of numbers that differ in their last bits. Nothing is computed here: the
pass is described as a graph and dropped. ``known_support`` remembers the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import mlx.core as mx

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layout import model_name as model_name
from mlx_spec.cache.layout import own_caches, plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.as_rows import trying_rows
from mlx_spec.model.passes.form import WHOLE, PassForm
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.readings import ADDED_MASK, BY_SHAPE, ONE_TOKEN, having
from mlx_spec.model.recurrence.verdict import Recurrence, recurrence_of
from mlx_spec.model.rows import Rows

Verdict = Literal["exact", "near-ties", "refused"]

# In the order in which they are tried: the first that a model's code can run is taken.
FORMS = (WHOLE, PassForm(rows_apart=True))


@dataclass(frozen=True)
class Support:
    """What may be expected of a model here.

    Attributes:
        verdict: ``"exact"``: one new token and several are computed alike, so speculation changes
            nothing where the device computes rows alike. ``"near-ties"``: they are not, so that
            two tokens that are as good as equally likely may change places. ``"refused"``.
        reason: why, in words; empty for ``"exact"``.
        form: how a pass must go through the model.
        recurrence: how its states are kept right, where it keeps any.
        grouped_masks: attention masks need an axis for groups of query heads (``Span.grouped``).
        vocabulary: size of the logits' last axis; padded embeddings make it exceed the tokenizer's.
        cost: bytes that a row's caches take over all layers, by its tokens.
    """

    verdict: Verdict
    reason: str = ""
    form: PassForm = WHOLE
    recurrence: Recurrence = field(default_factory=Recurrence)
    grouped_masks: bool = False
    vocabulary: int = 0
    cost: RowCost = field(default_factory=RowCost)


def examine(model: Any, options: CacheOptions = PLAIN_CACHES) -> Support:
    """The verdict on a model over caches as ``options`` say, without computing anything."""
    try:
        passed = _first_form(model, options)
    except UnsupportedModel as error:
        return Support("refused", str(error))
    if isinstance(passed, str):
        return Support("refused", passed)
    apart = having(model, ONE_TOKEN)
    if apart is None or passed.form.tokens_apart:  # then all tokens are computed one by one
        return passed
    alike = _as_rows(model, options, passed)
    if alike is not None:
        return alike
    reason = (
        f"{apart} computes one new token in another way than several, so that near-ties may fall "
        "differently with drafts than without"
    )
    return replace(passed, verdict="near-ties", reason=reason)


def _first_form(model: Any, options: CacheOptions) -> Support | str:
    """What the passes of the first form show that a model can run, or why it can run none."""
    failures = []
    plan(model, options)  # a cache that nothing stands for is refused before anything is tried
    adding = having(model, ADDED_MASK)
    if adding is not None:
        return (
            f"{adding} of this {model_name(model)!r} model adds its attention mask to the scores, "
            "but mlx-lm makes one of booleans for it, which hides nothing: what the model says "
            "depends on how its prompt is cut"
        )
    recurrence = recurrence_of(model)
    by_shape = having(model, BY_SHAPE) is not None
    for form in FORMS:
        form = replace(
            form, tokens_apart=not recurrence.replays, beginners_apart=not recurrence.zeros
        )
        if by_shape and not form.rows_apart:
            failures.append("it tells positions from the number of keys")
            continue
        for grouped in (False, True):
            passed = _passes(model, options, form, grouped=grouped)
            if not isinstance(passed, str):
                return replace(passed, recurrence=recurrence)
            failures.append(passed)
    name = model_name(model)
    alone = _alone(model, options)
    if alone is not None:
        own = f"mlx-lm's own code of this {name!r} model"
        bits = options.kv_bits
        if bits is None or _alone(model, PLAIN_CACHES) is not None:
            return f"{own} does not run here: {alone}"
        return f"{own} cannot read keys and values in {bits} bits (kv_bits): {alone}"
    return (
        f"mlx-lm's code of this {name!r} model cannot run rows at different positions: "
        f"{failures[0]}"
    )


def _as_rows(model: Any, options: CacheOptions, passed: Support) -> Support | None:
    """The same where all tokens but prompts' can be computed as one alone is, as rows of their own.

    Where a model has states, only its attention: what a token reads of a state is what the one
    before has made.
    """
    if passed.form != WHOLE:
        return None
    form, grouped = PassForm(tokens_as_rows=True), passed.grouped_masks
    if not passed.recurrence.probes:
        rows = _passes(model, options, form, grouped=grouped)
        return None if isinstance(rows, str) else rows
    with trying_rows(model) as all_ran:
        rows = _passes(model, options, form, grouped=grouped)
        if isinstance(rows, str) or not all_ran():
            return None
    return replace(rows, recurrence=passed.recurrence)


def _passes(model: Any, options: CacheOptions, form: PassForm, *, grouped: bool) -> Support | str:
    """What the passes of this engine show of a model, or why it cannot run them.

    Two numbers of rows: where an axis of a mask falls on another one of the model's, one of the
    two could be equal by chance, and the pass would be wrong without a word.
    """
    cases = [(options, *case) for case in _CASES]
    if options.late:  # also with queries of both kinds, and past the start
        cases = [(replace(options, quantized_kv_start=1), *case) for case in _CASES] + cases
    for caches, rows, width, uniform in cases:
        pool = KVCachePool(plan(model, caches), rows)
        pool.acquire(rows)
        pool.reserve(width + 1)
        at = tuple(1 if uniform else row % 2 for row in range(rows))
        tokens = mx.zeros((rows, width), mx.int32)
        where = Rows(
            tokens,
            mx.array(at, mx.int32),
            width + 1,
            uniform=uniform,
            at=at,
            tentative=not uniform and not form.tokens_apart,
        )
        try:
            logits, *_ = make_pass(form, model, pool, grouped=grouped).forward(where)
        except UnsupportedModel as error:  # in a cache's own words
            raise UnsupportedModel(f"this {model_name(model)!r} model: {error}") from error
        except Exception as error:  # whatever the code of a model raises
            return _words(error)
        if logits.ndim != 3 or logits.shape[:2] != (rows, width):
            return f"logits of shape {logits.shape} for {rows} rows of {width} tokens"
    return Support("exact", "", form, Recurrence(), grouped, logits.shape[-1], pool.cost)


# Rows, new tokens of each, and whether all stand at the same place.
_CASES = ((2, 3, False), (5, 3, False), (2, 1, False), (2, 3, True))


def _alone(model: Any, options: CacheOptions) -> str | None:
    """Why a model cannot run even by itself, over its own caches; None where it can."""
    try:
        model(mx.zeros((1, 3), mx.int32), cache=own_caches(model, options))
    except Exception as error:  # whatever the code of a model raises
        return _words(error)
    return None


def _words(error: Exception) -> str:
    """An exception of a model's code on one line."""
    text = " ".join(str(error).split()).partition(" The following argument types")[0]
    if isinstance(error, (TypeError, AttributeError)):  # told by what the code is made of
        return f"it asks its caches for something else ({text[:200] or 'and does not say what'})"
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
