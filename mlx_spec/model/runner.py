"""``ModelRunner.forward(rows)``: the only way into a model.

Prefill chunks, plain decode, drafting and verification are all one ragged forward: each row
brings its own new tokens at its own position. The runner owns the model's KV pool and knows
neither sequences nor sampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.cache.cost import RowCost
from mlx_spec.cache.layer import LayerCache
from mlx_spec.cache.layout import plan
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.config import PLAIN_CACHES, CacheOptions
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.as_rows import bind_as_rows
from mlx_spec.model.attention import bind_attention
from mlx_spec.model.attributes import quicken
from mlx_spec.model.chosen import chooses
from mlx_spec.model.hidden import HiddenLayers, bind_hidden, noting
from mlx_spec.model.known_support import require
from mlx_spec.model.materialize import materialize
from mlx_spec.model.pace import CPU_TOKENS, Chunk, Pieces, on_cpu
from mlx_spec.model.packing import packs
from mlx_spec.model.passes.make import make_pass
from mlx_spec.model.passes.packed import PackedPass
from mlx_spec.model.ranks import Ranks, ranks_of
from mlx_spec.model.reading_pace import ReadingPace, pace_of
from mlx_spec.model.recurrence.binding import bind_recurrence
from mlx_spec.model.rotations import share_angles
from mlx_spec.model.rows import Rows as Rows
from mlx_spec.model.trial import describe_pass


class ModelRunner:
    """A model with its slots.

    Args:
        model: any model loaded by mlx-lm that ``support`` does not refuse.
        max_slots: most rows that run together.
        options: what its caches keep.

    Attributes:
        ranks: the processes that hold the model.
        hidden: of the last pass, where they are wanted (:meth:`tap`): [B, N, D], lazy.

    Raises:
        UnsupportedModel: a model that this engine cannot run (``support`` says why), or
            arrays that another thread left to be computed.
    """

    def __init__(
        self,
        model: Any,
        max_slots: int,
        options: CacheOptions = PLAIN_CACHES,
    ) -> None:
        quicken(model)
        self.options = options
        if options.late:
            bind_attention(model)
        self.support = require(model, options)
        bind_recurrence(model, self.support.recurrence.probes)
        # Whatever thread runs it later: from here on everything it holds is computed.
        materialize(model)
        share_angles(model)
        self.model = model
        self.pool = KVCachePool(plan(model, options), max_slots)
        if self.support.form.tokens_as_rows and self.pool.folds:
            bind_as_rows(model)
        self._pass = make_pass(
            self.support.form, model, self.pool, grouped=self.support.grouped_masks
        )
        self.hidden: mx.array | None = None
        self._tapped: HiddenLayers | None = None
        self._attached = RowCost()
        self._packs: bool | None = None
        self._pace: ReadingPace | None = None
        self.run_by(ranks_of(model))
        self._fed, self._seconds = 0, 0.0  # tokens and time of the pass that is being computed

    def run_by(self, ranks: Ranks) -> None:
        """Have the processes that hold a target run it alike: each a draft of its own."""
        self.ranks = ranks
        self._pieces = Pieces(self.pool, ranks)
        self._clock = ranks.clock(time.perf_counter)

    @property
    def vocabulary(self) -> int:
        """Size of the logits' last axis; padded embeddings make it exceed the tokenizer's."""
        return self.support.vocabulary

    @property
    def pads(self) -> bool:
        """Whether rows of different width may share a pass (``Rows.counts``) at no cost."""
        return self.support.recurrence.pads

    @property
    def packs(self) -> bool:
        """Whether a pass may be of any number of tokens of each row (``Rows.packing``)."""
        if self._packs is None:  # no ``cached_property``: ranks may wait for each other here
            self._packs = packs(self.model, self.options, self.support)
        return self._packs

    @cached_property
    def chooses(self) -> bool:
        """Whether logits of some tokens of a pass can be had without the others'
        (``Rows.chosen``)."""
        return not self.ranks.several and chooses(self.model, self.support)

    @cached_property
    def _packed(self) -> PackedPass:
        """Its passes of that kind."""
        support = self.support
        return PackedPass(self.model, self.pool, support.form, support.grouped_masks)

    @property
    def branches(self) -> bool:
        """Whether one new token is computed in another way than several (prompts are several)."""
        return self.support.form.tokens_as_rows

    @property
    def cost(self) -> RowCost:
        """Bytes that a row's caches take over all layers, by its tokens."""
        return self.support.cost + self._attached

    def trial(self, tokens: int, width: int = 1) -> list[mx.array]:
        """A pass of no row over so many tokens, ``width`` of them each, to be timed."""
        return describe_pass(self.model, self.support.form, self.vocabulary, tokens, width)

    @property
    def key_share(self) -> float:
        """What a key costs that attention reads, of a pass of one token: by bytes that are read."""
        weights = sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))
        cost = self.support.cost
        read = cost.per_token + sum(each for _, each in cost.capped)
        return float(read / max(1, weights))

    def attach(self, layers: Seq[LayerCache], cost: RowCost) -> None:
        """Let slots have more layers than the model: they go where its own go.

        Args:
            layers: empty ones, behind those that the model gets.
            cost: bytes that they add to a row.
        """
        self.pool.attach(layers)
        self._attached += cost

    @cached_property
    def parameters(self) -> int:
        """Numbers in the model's weights; quantized ones count at four bits each."""
        arrays = [array for _, array in tree_flatten(self.model.parameters())]
        return sum(a.size * (8 if a.dtype == mx.uint32 else 1) for a in arrays)

    @property
    def pace(self) -> ReadingPace:
        """How fast this model reads prompts here."""
        if self._pace is None:
            self._pace = pace_of(self.model, self.parameters, self.ranks)
        return self._pace

    def forward(self, rows: Rows) -> mx.array:
        """Logits [B, N, vocabulary] of the new tokens; their K/V are written to the slots.

        Of a packed pass [M, 1, vocabulary]: of its tokens, in their order. Of chosen tokens
        [C, 1, vocabulary].
        Whatever is raised on the way, the slots are then what they were.
        """
        before = self.pool.snapshot()
        if self.ranks.several:
            packed = 0 if rows.packing is None else rows.packing.size
            self.ranks.note(*rows.tokens.shape, rows.first, rows.limit, packed)
        padded = rows.counts is not None and rows.tokens.shape[1] > 1
        # What folds padding into a state is told afterwards where each row ends.
        cut = padded and not self.pads and not rows.tentative
        try:
            logits = self._forward(replace(rows, tentative=True) if cut else rows)
            if cut:
                self._pass.commit(rows.counts)
            return logits
        except BaseException:
            self.pool.restore(before)
            raise

    def _forward(self, rows: Rows) -> mx.array:
        """Through the model in its form, and what was tapped noted."""
        own = self._pass if rows.packing is None else self._packed
        if self._tapped is None and rows.chosen is None:
            return own.forward(rows)[0]
        with noting(self._tapped or HiddenLayers()) as notes:
            notes.chosen = rows.chosen
            logits, hidden = own.forward(rows)
        if self._tapped is not None:
            self.hidden = hidden
        if rows.chosen is not None and logits.shape[0] != rows.chosen.size:
            raise UnsupportedModel(
                f"[ModelRunner] logits {logits.shape} of {rows.chosen.size} chosen tokens"
            )
        return logits

    def tap(self, wanted: HiddenLayers) -> None:
        """Have hidden states of every pass from now on (``hidden``).

        Raises:
            UnsupportedModel: this model does not show them.
        """
        bind_hidden(self.model, wanted)
        self._tapped = wanted

    @property
    def tapped(self) -> bool:
        """Whether somebody wants hidden states of every pass."""
        return self._tapped is not None

    def commit(self, kept: mx.array) -> None:
        """Of the last pass keep each row's first ``kept`` [B] tokens, known to the device alone.

        Passes that nobody commits are kept whole, up to their rows' ``counts``.
        """
        self._pass.commit(kept)

    def begin(self, rows: Rows) -> mx.array:
        """Build a pass that writes the K/V of prompt tokens; :meth:`proceed` computes it.

        Returns:
            Its logits, which are not.
        """
        logits = self.forward(rows)
        self._pieces.start()
        self._fed = rows.computed
        self._seconds = 0.0
        return logits

    def proceed(self, seconds: float | None = None) -> bool:
        """Compute what :meth:`begin` built, for about ``seconds`` (None: to the end).

        A few layers at a time, so that Ctrl-C is heard in between.

        Returns:
            Whether all of it is done.
        """
        started = self._clock()
        done = self._pieces.compute(seconds)
        self._seconds += self._clock() - started
        if done and self._fed:
            self.pace.note(self._fed, self._seconds)
            self._fed = 0
        return done

    def chunk(
        self,
        tokens: int,
        heard: Callable[[float], None],
        also: Callable[[], object] = lambda: None,
        more: Seq[mx.array] = (),
    ) -> Chunk:
        """What was described of passes that write the K/V of ``tokens`` prompt tokens.

        Args:
            tokens: all of them, what is left of a begun pass included.
            heard: is told the seconds that they took.
            also: is told then, too.
            more: what else is to be computed with them.
        """

        def done(chunk: Chunk) -> None:
            self.pace.note(tokens, chunk.seconds, exact=chunk.exact)
            heard(chunk.seconds)
            also()

        self._fed = 0
        self._pieces.drop()
        layers: list[Seq[mx.array]] = [layer.arrays for layer in self.pool.layers]
        return Chunk([*layers, more] if more else layers, tokens, done)

    @property
    def unread(self) -> int:
        """Tokens of the begun pass that are not computed yet, about."""
        return int(self._fed * self._pieces.left)

    def feed(self, rows: Rows, step_size: int, *, wait: bool) -> None:
        """Write the K/V of many tokens in chunks, computing no logits.

        Args:
            rows: as in :meth:`forward`.
            step_size: most tokens of one forward pass, over all rows.
            wait: compute each chunk before the next (bounds the memory of a long prompt).
        """
        count, width = rows.tokens.shape
        chunk = max(1, pass_size(step_size) // count)
        start = rows.limit - width
        for begin in range(0, width, chunk):
            end = min(begin + chunk, width)
            part = Rows(
                rows.tokens[:, begin:end],
                rows.starts + begin,
                start + end,
                rows.first,
                rows.uniform,
                None if rows.counts is None else mx.clip(rows.counts - begin, 0, end - begin),
                None if rows.at is None else tuple(at + begin for at in rows.at),
            )
            if wait:
                self.begin(part)
                self.proceed()
            else:
                self.forward(part)


def pass_size(step_size: int) -> int:
    """Prompt tokens of one pass, over all rows, where nobody waits for it."""
    return min(step_size, CPU_TOKENS) if on_cpu() else step_size
