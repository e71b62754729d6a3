"""Which layers of a model should draft for it: measured on text that it continues itself.

Some rows of text are read and gone on with by the whole model; then copies that skip layers say the
next tokens over the same keys and values, as they will when they draft::

    text        t t t t t t  s s s s s | a b c        the model's own: s sampled, a b c looked at
    copy        the model's keys, values | a -> b? b -> c? c -> d?     its own from there on

First come the layers that change least what passes through them, as many as pay; then single layers
are left out or put back while that pays more, until time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.cache.layout import plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.decoding.drafters.layer_choice import (
    LayerChoice,
    fingerprint,
    keep_choice,
    kept_choice,
)
from mlx_spec.model.partial import Skipped, Skipping, layers_of, skipping_of, with_layers
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.rows import Rows
from mlx_spec.model.runner import ModelRunner
from mlx_spec.weak_memo import WeakMemo

ROWS, WIDTH, OWN, AHEAD = 16, 8, 6, 3  # texts; tokens given, gone on with, and looked at
SECONDS = 2.5  # for trying layers one by one
MOST_COST = 0.75  # of a draft's pass, as a share of the model's
_TEXTS = (
    "The capital of France is known for its museums and",
    "def read_lines(path):\n    with open(path) as",
    "Once upon a time there was a girl who lived",
    "To solve the equation, first move all terms to",
    "The most important causes of the war were the",
    "Dear Sir or Madam, I am writing to you about",
    "In this paper we show that large language models can",
    "Ingredients: two eggs, a cup of flour and some",
    "The weather tomorrow will be mostly cloudy with a",
    "import numpy as np\n\nclass Matrix:\n    def __init__",
    "Q: What is the largest planet of the solar system? A:",
    "He looked at her for a long time before he",
    "The company said on Monday that its profits had",
    "Water boils at a lower temperature on a mountain because",
    "Here is a list of things that you should bring:",
    "A train leaves the station at noon and travels at",
)

_KNOWN = WeakMemo[LayerChoice]()


def chosen_layers(runner: ModelRunner, tokenizer: Any = None) -> LayerChoice:
    """The layers that draft best for a model: as measured before, here or by another process.

    Raises:
        UnsupportedModel: its layers cannot be skipped.
    """
    model = runner.model
    if (known := _KNOWN.get(model)) is not None:
        return known
    skipping, name = skipping_of(runner), fingerprint(model)
    choice = runner.ranks.share(kept_choice(name, len(skipping.outputs)))
    if choice is None:
        choice = _Search(runner, skipping, _prompts(runner, tokenizer)).best()
        if runner.ranks.rank == 0:
            keep_choice(name, choice)
    return _KNOWN.keep(choice, model)


def _prompts(runner: ModelRunner, tokenizer: Any) -> mx.array:
    """[ROWS, WIDTH] int32: beginnings of texts; any tokens where there is no tokenizer."""
    if tokenizer is not None:
        ids = [list(tokenizer.encode(text))[:WIDTH] for text in _TEXTS]
        if all(len(row) == WIDTH and max(row) < runner.vocabulary for row in ids):
            return mx.array(ids, mx.int32)
    return mx.random.randint(0, runner.vocabulary, (ROWS, WIDTH), mx.int32, mx.random.key(1))


class _Influence(Skipped):
    """A layer that runs, and how much it turns what passes through it."""

    turned: mx.array | None = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        out = self._layer(*given, **named)
        x = (given[0] if given else next(iter(named.values()))).astype(mx.float32)
        y = (out[0] if isinstance(out, (tuple, list)) else out).astype(mx.float32)
        norms = mx.linalg.norm(x, axis=-1) * mx.linalg.norm(y, axis=-1)
        self.turned = 1 - ((x * y).sum(axis=-1) / (norms + 1e-9)).mean()
        return out


class _Search:
    """Copies of one model, tried over one text."""

    def __init__(self, runner: ModelRunner, skipping: Skipping, prompts: mx.array) -> None:
        self._runner, self._skipping = runner, skipping
        self._everyone = frozenset(range(len(skipping.outputs)))
        self._layer_cost, self._rest_cost = _costs(runner.model)
        self._pool = KVCachePool(plan(runner.model, runner.options), len(prompts))
        self._pool.acquire(len(prompts))
        self._pool.reserve(WIDTH + OWN + AHEAD + 1)
        self._tried: dict[frozenset[int], LayerChoice] = {}
        self._write(prompts)

    def _pass(self, model: Any, tokens: mx.array, start: int) -> mx.array:
        """Logits [rows, V] after the last of ``tokens``."""
        support = self._runner.support
        passes = make_pass(support.form, model, self._pool, grouped=support.grouped_masks)
        starts = mx.full((len(tokens),), start, mx.int32)
        logits, *_ = passes.forward(Rows(tokens, starts, start + tokens.shape[1], uniform=True))
        return logits[:, -1]

    def _write(self, prompts: mx.array) -> None:
        """The model's own text, and what it would say at the places that are looked at."""
        noted: list[_Influence] = []

        def note(place: int, layer: Any) -> Any:
            noted.append(_Influence(layer))
            return noted[-1]

        model = self._runner.model
        noting, logits = with_layers(model, note), self._pass(model, prompts, 0)
        self._read: list[mx.array] = []
        self._said: list[mx.array] = []
        for step in range(OWN + AHEAD):
            token = mx.random.categorical(logits / 0.7, key=mx.random.key(step))[:, None]
            if step == OWN:
                mx.eval(token, self._pool.arrays)
                self._before = self._pool.snapshot()
            looked = step >= OWN
            logits = self._pass(noting if step == OWN else model, token, WIDTH + step)
            if looked:
                self._read.append(token)
                self._said.append(mx.argmax(logits, axis=-1))
        mx.eval(self._read, self._said, [layer.turned for layer in noted])
        turned = [0.0 if layer.turned is None else float(layer.turned) for layer in noted]
        free = self._everyone - self._skipping.needed
        self._order = sorted(free, key=lambda place: turned[place])

    def _try(self, kept: frozenset[int]) -> LayerChoice:
        """How well some layers draft."""
        kept |= self._skipping.needed
        if kept not in self._tried:
            cost = self._rest_cost + sum(self._layer_cost[place] for place in kept)
            agreement = self._runner.ranks.share(self._agreement(kept))
            self._tried[kept] = LayerChoice(tuple(sorted(kept)), agreement, cost)
        return self._tried[kept]

    def _agreement(self, kept: frozenset[int]) -> float:
        right = []
        try:
            copy = self._skipping.partial(self._runner.model, kept)
            self._pool.restore(self._before)
            for step, (token, said) in enumerate(zip(self._read, self._said, strict=True)):
                logits = self._pass(copy, token, WIDTH + OWN + step)
                right.append(mx.argmax(logits, axis=-1) == said)
            return float(mx.concatenate(right).mean())
        except Exception:  # whatever the code of a model raises where it lacks just these
            return 0.0

    def best(self) -> LayerChoice:
        """The layers that promise most."""
        count = len(self._order)
        skipped = sorted({count * part // 8 for part in range(1, 8)} | {1, count - 1})
        tried = [self._try(self._everyone - set(self._order[:some])) for some in skipped]
        first = [frozenset(range(max(1, count * part // 8))) for part in (1, 2, 4)]
        tried += [self._try(kept) for kept in first]
        best = max(tried, key=_worth)
        clock = self._runner.ranks.clock(time.perf_counter)
        until = clock() + SECONDS
        better = best.promise > 1  # else single layers do not make it pay
        while better and clock() < until:
            better = False
            for kept in self._near(frozenset(best.layers)):
                if _worth(self._try(kept)) > _worth(best):
                    best, better = self._try(kept), True
                    break
                if clock() > until:
                    break
        return best

    def _near(self, kept: frozenset[int]) -> Iterator[frozenset[int]]:
        """The same without one layer, those of little influence first; or with one more."""
        yield from (kept - {place} for place in self._order if place in kept)
        yield from (kept | {place} for place in reversed(self._order) if place not in kept)


def _worth(choice: LayerChoice) -> tuple[bool, float, float]:
    """By what it promises, among those whose passes are much cheaper than the model's."""
    return choice.cost <= MOST_COST, choice.promise, -choice.cost


def _costs(model: Any) -> tuple[list[float], float]:
    """Of each layer, and of norm and head, as shares of a whole pass: by bytes that are read."""
    layers = [_bytes(layer, lambda name: True) for layer in layers_of(model)]
    names = [name for name, _ in tree_flatten(model.parameters())]
    untied = any("lm_head" in name for name in names)
    read = _bytes(model, lambda name: not (untied and "embed" in name))
    total = max(1, read)
    return [own / total for own in layers], max(0, read - sum(layers)) / total


def _bytes(module: Any, counts: Callable[[str], bool]) -> int:
    return sum(array.nbytes for name, array in tree_flatten(module.parameters()) if counts(name))
