"""The training loop: steps until the budget is spent, with checkpoints that survive a kill.

Learning rate: a short warm-up, then a cosine. Where the budget is time, the larger of steps done
and seconds spent says where on it a step stands, so that a slow machine ends a whole course too.
A checkpoint holds weights, optimizer and step; the order of texts is a function of seed and step;
so a run that was stopped and goes on is the run that was not stopped (if steps are the budget).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_spec.errors import OutputError
from mlx_spec.training.features import Example
from mlx_spec.training.files import load_arrays, save_arrays
from mlx_spec.training.order import batches

# Of a course: its part that warms up, and what is left of the rate at its end.
_WARM_UP, _END = 0.05, 0.05
_LARGEST_GRADIENT = 1.0
_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_NEWEST = 0.02  # the weight of the newest step in the mean of losses
_MODEL, _OPTIMIZER = "model", "optimizer"


class Learner(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """Its weights; frozen ones stay."""

    def loss(self, module: nn.Module, examples: Seq[Example], done: float) -> mx.array:
        """A mean over the positions of a batch; ``done`` is the part of the course that is over."""


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        steps: at most; None: until the time is over.
        seconds: at most; None: until the steps are done.
        tokens: of a batch.
        learning_rate: the highest.
        seed: of the order of texts.
    """

    steps: int | None
    seconds: float | None
    tokens: int
    learning_rate: float
    seed: int

    def done(self, step: int, seconds: float) -> float:
        """The part of the course that is over, 0 to 1."""
        parts = [0.0]
        if self.steps is not None:
            parts.append(step / max(1, self.steps))
        if self.seconds is not None:
            parts.append(seconds / max(1e-9, self.seconds))
        return min(1.0, max(parts))

    def rate(self, done: float) -> float:
        """The learning rate there."""
        warm = min(1.0, (done + 1e-3) / _WARM_UP)
        fall = max(0.0, done - _WARM_UP) / (1 - _WARM_UP)
        cosine = _END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * fall))
        return self.learning_rate * warm * cosine


@dataclass(frozen=True)
class Standing:
    """Where a course stands.

    Attributes:
        step: steps done.
        seconds: spent on them, over all runs.
        tokens: trained on, each as often as it was.
        loss: a running mean of the last steps'.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss: float = 0.0

    def after(self, loss: float, tokens: int, seconds: float) -> Standing:
        """One step more."""
        step = self.step + 1
        mean = self.loss + max(_NEWEST, 1 / step) * (loss - self.loss)
        return Standing(step, self.seconds + seconds, self.tokens + tokens, mean)


class Trainer:
    """One course, from its checkpoint on if there is one.

    Args:
        learner: what is trained.
        course: how long.
        checkpoint: the file.

    Raises:
        OutputError: the checkpoint is of something else.
    """

    def __init__(self, learner: Learner, course: Course, checkpoint: Path) -> None:
        self._learner, self._course, self._checkpoint = learner, course, checkpoint
        self._optimizer = optim.AdamW(course.learning_rate, betas=[0.9, 0.95], weight_decay=0.01)
        self._optimizer.init(learner.module.trainable_parameters())
        self.progress = Standing()
        if checkpoint.exists():
            self._load()

    @property
    def done(self) -> float:
        """The part of the course that is over."""
        return self._course.done(self.progress.step, self.progress.seconds)

    def run(self, examples: Seq[Example], watch: Callable[[Standing], None]) -> None:
        """Train to the end; Ctrl-C leaves a checkpoint of the last whole step."""
        module, course = self._learner.module, self._course
        gradient = nn.value_and_grad(module, self._learner.loss)
        lengths = [len(one) for one in examples]
        order = batches(lengths, course.tokens, course.seed, self.progress.step)
        whole = self._state()  # what a checkpoint holds, wherever Ctrl-C strikes
        saved = time.monotonic()
        try:
            while self.done < 1:
                started = time.monotonic()
                some = [examples[index] for index in next(order)]
                loss, gradients = gradient(module, some, self.done)
                gradients, _ = optim.clip_grad_norm(gradients, _LARGEST_GRADIENT)
                self._optimizer.learning_rate = course.rate(self.done)
                self._optimizer.update(module, gradients)
                mx.eval(module.trainable_parameters(), self._optimizer.state, loss)
                seconds = time.monotonic() - started
                self.progress = self.progress.after(loss.item(), sum(map(len, some)), seconds)
                whole = self._state()
                watch(self.progress)
                if time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                    save_arrays(self._checkpoint, *whole)
                    saved = time.monotonic()
        finally:
            save_arrays(self._checkpoint, *whole)

    def _state(self) -> tuple[dict[str, mx.array], dict[str, Any]]:
        weights = tree_flatten(self._learner.module.trainable_parameters(), prefix=f".{_MODEL}")
        state = tree_flatten(self._optimizer.state, prefix=f".{_OPTIMIZER}")
        return dict([*weights, *state]), {"progress": asdict(self.progress)}

    def _load(self) -> None:
        try:
            arrays, about = load_arrays(self._checkpoint)
            known, _ = self._state()
            if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in known.items()}:
                raise ValueError("it is of another draft")
            tree: Any = tree_unflatten(list(arrays.items()))
            self._learner.module.update(tree[_MODEL])
            self._optimizer.state = tree[_OPTIMIZER]
            self.progress = Standing(**about["progress"])
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"[train-draft] {self._checkpoint} cannot be gone on with ({error}); delete it to "
                "begin again"
            ) from error
