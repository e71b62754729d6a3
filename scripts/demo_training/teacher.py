"""What the draft learns from: the target's final hidden states over text, computed once.

The hidden state and the tied embedding give the target's whole distribution back, so the cache is
256 numbers a token where the distribution has 2,048. Two kinds of text: the training corpus, and
the target's own continuations of it, because those are what a draft is asked about when it works.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .corpus import LONG, SHORT, Shuffled, is_long_step, windows
from .model import Llama, generate

_WINDOW = 1024  # context the target has when it reads the corpus
_PROMPT = 32
_TEMPERATURE = 0.8
_ROWS = 128


@dataclass(frozen=True)
class Lesson:
    """A text and the target's hidden state at each of its tokens."""

    tokens: np.ndarray  # [N] uint16
    hidden: np.ndarray  # [N, D] float16

    def __getitem__(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] and hidden states [B, T, D] at the positions [B, T]."""
        tokens = torch.from_numpy(self.tokens[index].astype(np.int64))
        return tokens, torch.from_numpy(self.hidden[index]).bfloat16()

    def save(self, path: Path) -> None:
        """Write both arrays, the tokens last: a folder with tokens is complete."""
        path.mkdir(parents=True, exist_ok=True)
        np.save(path / "hidden.npy", self.hidden)
        np.save(path / "tokens.npy", self.tokens)

    @classmethod
    def load(cls, path: Path) -> Lesson:
        """Open what `save` wrote; the hidden states stay on disk until read."""
        return cls(np.load(path / "tokens.npy"), np.load(path / "hidden.npy", mmap_mode="r"))


@torch.inference_mode()
def read_corpus(target: Llama, stream: np.ndarray) -> Lesson:
    """The target's hidden states over the training stream, in windows of 1,024."""
    reader, states = copy.deepcopy(target).bfloat16(), []
    rows = torch.from_numpy(windows(stream, _WINDOW)[:, :-1].astype(np.int64))
    for batch in rows.split(4):
        states.append(reader.hidden(batch).half().flatten(0, 1).numpy())
    return Lesson(rows.flatten().numpy().astype(np.uint16), np.concatenate(states))


@torch.inference_mode()
def write_continuations(target: Llama, stream: np.ndarray, rows: int, seed: int) -> Lesson:
    """The target's own text at T=0.8: `rows` windows of 512, each begun by 32 corpus tokens."""
    writer, tokens, states = copy.deepcopy(target).bfloat16(), [], []
    starts = np.random.default_rng([seed, 99]).integers(len(stream) - _PROMPT, size=rows)
    for first in range(0, rows, _ROWS):
        index = starts[first : first + _ROWS, None] + np.arange(_PROMPT)
        prompt = torch.from_numpy(stream[index].astype(np.int64))
        text, hidden = generate(writer, prompt, SHORT - _PROMPT + 1, _TEMPERATURE, seed + first)
        tokens.append(text[:, :-1].flatten().numpy().astype(np.uint16))
        states.append(hidden.half().flatten(0, 1).numpy())
        print(f"continuations {first + len(prompt)} of {rows}", flush=True)
    return Lesson(np.concatenate(tokens), np.concatenate(states))


class Distillation:
    """The draft's loss at a step: forward KL to the target, then total variation mixed in.

    A batch is 4,096 tokens: three quarters corpus, one quarter the target's continuations; every
    eighth is corpus in long windows. KL = E_x sum_v p log(p / q) fits the whole
    distribution; TV = E_x sum_v |p - q| / 2 is exactly the rejection probability of speculative
    sampling (Leviathan et al. 2023), a good finish and a poor start.
    """

    def __init__(self, head: Tensor, corpus: Lesson, own: Lesson, seed: int) -> None:
        self._head, self._corpus, self._own = head.bfloat16(), corpus, own
        self._short = Shuffled(np.arange(len(corpus.tokens)), SHORT, 6, seed)
        self._long = Shuffled(np.arange(len(corpus.tokens)), LONG, 2, seed + 1)
        # One more position than there are, so that the last row counts as a window.
        self._rows = Shuffled(np.arange(len(own.tokens) + 1), SHORT, 2, seed + 2, aligned=True)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] and the target's hidden states [B, T, D]."""
        if is_long_step(step):
            return self._corpus[self._long.batch(step)[:, :-1]]
        read = self._corpus[self._short.batch(step)[:, :-1]]
        written = self._own[self._rows.batch(step)[:, :-1]]
        return torch.cat([read[0], written[0]]), torch.cat([read[1], written[1]])

    def loss(self, draft: Llama, step: int, tv_weight: float) -> Tensor:
        """A scalar: (1 - w) KL + w TV, mean over positions."""
        tokens, hidden = self.batch(step)
        with torch.no_grad():
            logits = functional.linear(hidden, self._head).float().flatten(0, 1)
            target = functional.log_softmax(logits, dim=-1)
        ours = functional.log_softmax(draft(tokens).float().flatten(0, 1), dim=-1)
        loss = functional.kl_div(ours, target, log_target=True, reduction="batchmean")
        if tv_weight > 0:
            variation = (ours.exp() - target.exp()).abs().sum(-1).mean() / 2
            loss = (1 - tv_weight) * loss + tv_weight * variation
        return loss
