"""``TextDrafter``: a draft model of quite another tokenizer, reached through text.

On the host, before each step: what a row holds becomes text, the text the draft's tokens, and what
the draft model says to them text and the target's tokens again. Guesses go as far as the target's
tokenizer, given the end of the row's text and the draft's, begins with what the row holds::

    target   The | cat | s at             text   "The cats at"
    draft    Th e cat s at | the mat      text   "The cats at the mat"
    target   The | cat | s at | the | mat        two guesses

Other tokens have other noise, so the draft model says what it thinks most probable, whatever the
row's temperature.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_spec.config import BatchingConfig
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext, Trial
from mlx_spec.errors import UnsupportedModel
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence

TAIL = 8  # tokens of a row that its guesses are tokenized with
RIDE = 16  # tokens of a row that are read with others', in one pass


@dataclass
class _TextRow:
    """A row in the draft's tokens.

    Attributes:
        sequence: the row.
        ids: its text in the draft's tokens.
        read: how many of them the draft's caches hold.
    """

    sequence: Sequence
    ids: list[int] = field(default_factory=list)
    read: int = 0


class TextDrafter(BaseDrafter):
    """Drafts with a model of another tokenizer.

    Args:
        runner: the draft model with its slots; all of its caches hold entries by position.
        tokenizer, draft_tokenizer: of both, which give back what they are given.
        batching: how many tokens are read at once.

    Raises:
        UnsupportedModel: caches that cannot be taken back where a text is cut otherwise.
    """

    needs_host = True

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Any,
        draft_tokenizer: Any,
        batching: BatchingConfig | None = None,
    ) -> None:
        if not runner.pool.sliceable or runner.support.form.needs_host:
            raise UnsupportedModel(
                "[TextDrafter] its tokens are translated through text, which may change the last "
                "ones: that needs a draft model whose layers all attend to the whole text"
            )
        self.runner, self.runners = runner, (runner,)
        self._target, self._draft = tokenizer, draft_tokenizer
        self._batching = batching or BatchingConfig()
        self._rows: list[_TextRow] = []

    def join(self, sequences: Seq[Sequence], longest: int) -> None:
        """Take slots; texts are read with the first draft."""
        self.runner.pool.acquire(len(sequences))
        self.runner.pool.reserve(longest)
        self._rows += [_TextRow(sequence) for sequence in sequences]

    def keep(self, order: Seq[int]) -> None:
        """Move rows to their new slots and give the others back."""
        self.runner.pool.keep(order)
        self._rows = [self._rows[row] for row in order]

    def propose(self, context: DraftContext, count: int) -> Draft:
        """What the draft model says to each row's text, as far as that is the target's tokens."""
        for row in self._rows:
            self._follow(row)
        self.runner.pool.reserve(max(len(row.ids) for row in self._rows) + count)
        said = self._say(count)
        guesses = [
            self._guesses(row, new, count, context.vocabulary)
            for row, new in zip(self._rows, said, strict=True)
        ]
        lengths = [len(guess) for guess in guesses]
        width = max(lengths)
        padded = [[*guess, *[0] * (width - len(guess))] for guess in guesses]
        tokens = mx.array(padded, mx.int32).reshape(len(guesses), width)
        return Draft(tokens, lengths=lengths)

    def _follow(self, row: _TextRow) -> None:
        """Let a row's draft tokens be those of its text; what changed is read again."""
        known = row.sequence.known(0, row.sequence.length)
        ids = self._encode(self._draft, self._decode(self._target, known)) or [0]
        alike = next(
            (place for place, (a, b) in enumerate(zip(ids, row.ids, strict=False)) if a != b),
            min(len(ids), len(row.ids)),
        )
        row.ids, row.read = ids, min(row.read, alike)

    def _say(self, count: int) -> list[list[int]]:
        """``count`` tokens of the draft model for each row."""
        for slot, row in enumerate(self._rows):
            if len(row.ids) - row.read > RIDE:
                end = len(row.ids) - 1
                missing, start = mx.array([row.ids[row.read : end]]), mx.array([row.read], mx.int32)
                alone = Rows(missing, start, end, slot, uniform=True)
                self.runner.feed(alone, self._batching.prefill_step_size, wait=True)
                row.read = end
        width = max(1, *(len(row.ids) - row.read for row in self._rows))
        starts = [max(0, len(row.ids) - width) for row in self._rows]
        tokens = [
            (row.ids[start:] + [0] * width)[:width]
            for row, start in zip(self._rows, starts, strict=True)
        ]
        last = [len(row.ids) - 1 - start for row, start in zip(self._rows, starts, strict=True)]
        limit = max(start + width for start in starts)
        logits = self.runner.forward(
            Rows(mx.array(tokens), mx.array(starts, mx.int32), limit, at=tuple(starts))
        )
        logits = mx.take_along_axis(logits, mx.array(last)[:, None, None], axis=1)
        said = [mx.argmax(logits, axis=-1)]
        at = [len(row.ids) for row in self._rows]
        for step in range(count - 1):
            where = tuple(place + step for place in at)
            rows = Rows(said[-1], mx.array(where, mx.int32), max(where) + 1, at=where)
            said.append(mx.argmax(self.runner.forward(rows), axis=-1))
        for row in self._rows:
            row.read = len(row.ids)
        read: Any = mx.concatenate(said, axis=1).tolist()
        return [list(map(int, row)) for row in read]

    def _guesses(self, row: _TextRow, new: list[int], count: int, vocabulary: int) -> list[int]:
        """The draft's tokens as the target's; none where texts do not fit together."""
        known = row.sequence.known(0, row.sequence.length)
        tail = known[-TAIL:]
        whole, before = self._decode(self._target, known), self._decode(self._target, known[:-TAIL])
        said = self._decode(self._draft, row.ids + new)
        if not whole.startswith(before) or not said.startswith(whole):
            return []
        text = said[len(before) :].rstrip("\ufffd")
        ids = self._encode(self._target, text)
        if ids[: len(tail)] != tail:
            return []
        guesses = ids[len(tail) :][:count]
        return guesses if all(token < vocabulary for token in guesses) else []

    @staticmethod
    def _decode(tokenizer: Any, ids: list[int]) -> str:
        try:
            return str(tokenizer.decode(ids)) if ids else ""
        except Exception:  # whatever a tokenizer raises costs guesses only
            return ""

    @staticmethod
    def _encode(tokenizer: Any, text: str) -> list[int]:
        try:
            return list(tokenizer.encode(text, add_special_tokens=False)) if text else []
        except Exception:
            return []

    def trial(self) -> Trial:
        """As any model's passes; what tokenizers take, steps say."""
        runner = self.runner
        return Trial(runner.trial, (runner.model,), key_share=runner.key_share)

    def snapshot(self) -> Any:
        """How much is read: what lies behind that is read again."""
        return [row.read for row in self._rows]

    def restore(self, snapshot: Any) -> None:
        """Take it back."""
        for row, read in zip(self._rows, snapshot, strict=True):
            row.read = min(row.read, read)
