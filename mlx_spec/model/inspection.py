"""What one model is and what to expect of it here, without reading its weights."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.model.context import context_length
from mlx_spec.model.heads.parts import TargetParts
from mlx_spec.model.loader import load
from mlx_spec.model.pace import on_cpu
from mlx_spec.model.pairing import Pairing, check_pair
from mlx_spec.model.quantized import quantized_advice, quantized_bits
from mlx_spec.model.support import Verdict, examine, model_name


@dataclass(frozen=True)
class ModelInspection:
    """What :func:`inspect_model` found.

    Attributes:
        name: as it was asked for.
        model_type: the architecture.
        layers: layers of it.
        parameters: numbers in its weights, quantized ones counted packed.
        bytes: bytes of its weights as they would lie in memory here.
        bits: bits of its quantized weights, None if they are plain.
        context: most tokens that its positions allow, None if its config does not say.
        vocabulary: tokens that its tokenizer knows.
        chat: whether its tokenizer has a chat template.
        verdict: ``exact``, ``near-ties`` or ``refused``.
        reason: why, in words.
        unread: what of its config counts and is not read (``unread``); empty where nothing.
        passes: what is slow about how it is read (``PassForm.cost``); empty where nothing is.
        advice: what would make it faster here, or None.
    """

    name: str
    model_type: str
    layers: int
    parameters: int
    bytes: int
    bits: int | None
    context: int | None
    vocabulary: int
    chat: bool
    verdict: Verdict
    reason: str
    unread: str
    passes: str
    advice: str | None


class Looked(NamedTuple):
    """A model with its weights unread, its tokenizer (None of a head), and what of its config it
    passes by."""

    model: Any
    tokenizer: Any
    unread: str


def inspect_model(name: str | os.PathLike[str], **options: Any) -> ModelInspection:
    """Look at a model; ``options`` are those of ``load``.

    Raises:
        ModelLoadError: there is no model, or it cannot be read.
    """
    return inspection_of(name, look(name, **options))


def inspect_pair(
    name: str | os.PathLike[str], draft: str | os.PathLike[str], **options: Any
) -> tuple[ModelInspection, ModelInspection, Pairing]:
    """Look at a target, at a draft for it, and at what they share.

    Raises:
        ModelLoadError: one of them is no model, or cannot be read.
        TokenizerMismatch: they have too few tokens in common.
    """
    target, drafter = (look(each, **options) for each in (name, draft))
    if drafter.tokenizer is None:  # a head: whether it fits is asked of it
        drafter.model.check(TargetParts(target.model))
    pairing = check_pair(target.tokenizer, drafter.tokenizer)
    return inspection_of(name, target), inspection_of(draft, drafter), pairing


def look(name: str | os.PathLike[str], **options: Any) -> Looked:
    """Open a model without reading it; arguments and errors as of :func:`inspect_model`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        options = {"kernels": "reference", **options}  # what is only looked at tries no kernel
        model, tokenizer = load(name, lazy=True, **options)
    said = [str(one.message) for one in caught if "does not read" in str(one.message)]
    return Looked(model, tokenizer, "; ".join(said))


def inspection_of(name: str | os.PathLike[str], looked: Looked) -> ModelInspection:
    """What was found of an opened model."""
    model, tokenizer, unread = looked
    weights = [value for _, value in tree_flatten(model.parameters())]
    if tokenizer is None:
        return _head_inspection(name, weights)
    support, bits = examine(model), quantized_bits(model)
    return ModelInspection(
        name=os.fspath(name),
        model_type=model_name(model),
        layers=len(getattr(model, "layers", ())),
        parameters=sum(value.size for value in weights),
        bytes=sum(value.nbytes for value in weights),
        bits=bits,
        context=context_length(model),
        vocabulary=len(tokenizer.get_vocab()),
        chat=bool(tokenizer.has_chat_template),
        verdict=support.verdict,
        reason=support.reason,
        unread=unread,
        passes=support.form.cost if support.verdict != "refused" else "",
        advice=quantized_advice(bits) if bits is not None and on_cpu() else None,
    )


def _head_inspection(name: str | os.PathLike[str], weights: list[mx.array]) -> ModelInspection:
    """A draft head, which is no model without its target."""
    return ModelInspection(
        name=os.fspath(name),
        model_type="draft head",
        layers=1,
        parameters=sum(value.size for value in weights),
        bytes=sum(value.nbytes for value in weights),
        bits=None,
        context=None,
        vocabulary=0,
        chat=False,
        verdict="exact",
        reason="it guesses from its target's hidden states; give it as the draft model",
        unread="",
        passes="",
        advice=None,
    )
