"""One training loop for both models: schedule, checkpoints, log lines.

The learning rate warms up, stays, and falls linearly to zero over the last part of the run
(warmup-stable-decay). Progress is the larger of steps done and minutes spent, each as a fraction
of its budget, so the schedule completes even where the machine turns out slower than measured.
A checkpoint holds model, optimizers, step and elapsed seconds, and replaces the last atomically.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .model import Llama

LossFunction = Callable[[Llama, int, float], Tensor]  # (model, step, progress) -> scalar


@dataclass(frozen=True)
class Plan:
    """How long and how fast one model is trained."""

    steps: int
    minutes: float
    learning_rate: float
    optimizer: str = "muon"
    warmup_steps: int = 100
    decay: float = 0.4
    weight_decay: float = 0.1
    save_seconds: float = 180.0
    log_steps: int = 25
    check_steps: int = 500


class Threads:
    """Picks the number of PyTorch threads by measuring: a shared machine changes under a run.

    Threads meet at a barrier after every operation. When another process occupies a core, all
    wait for the one that shares it, and one thread is then several times faster than two. So of
    every 16 steps the first two try all threads and one thread, and the rest use the faster.
    """

    def __init__(self, most: int) -> None:
        self._choices = (most, 1)
        self._seconds = [0.0, 0.0]

    def before(self, step: int) -> None:
        """Set the number of threads for this step."""
        turn = step % 16
        choice = turn if turn < 2 else self._seconds.index(min(self._seconds))
        torch.set_num_threads(self._choices[choice])

    def after(self, step: int, seconds: float) -> None:
        """Note how long the step took."""
        if step % 16 < 2:
            self._seconds[step % 16] = seconds


@dataclass
class Run:
    """A model in training, and where it stands."""

    model: Llama
    plan: Plan
    path: Path
    step: int = 0
    seconds: float = 0.0
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizers = _optimizers(self.model, self.plan)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]
            print(f"continuing {self.path} at step {self.step}", flush=True)

    @property
    def progress(self) -> float:
        """How much of the budget is used, 0 to 1."""
        return max(self.step / self.plan.steps, self.seconds / (60 * self.plan.minutes))

    def save(self) -> None:
        """Write the checkpoint beside the old one, then replace it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".tmp")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
            },
            fresh,
        )
        os.replace(fresh, self.path)


def fit(run: Run, loss_of: LossFunction, check: Callable[[Llama], str]) -> None:
    """Train until the budget is used; `check` returns the text of a validation line."""
    saved, average, threads = run.seconds, math.nan, Threads(torch.get_num_threads())
    while run.progress < 1:
        started = time.perf_counter()
        threads.before(run.step)
        scale = _schedule(run)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(run.model, run.step, run.progress)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average = loss.item() if math.isnan(average) else 0.95 * average + 0.05 * loss.item()
        threads.after(run.step, time.perf_counter() - started)
        run.step += 1
        run.seconds += time.perf_counter() - started
        if run.step % run.plan.log_steps == 0:
            print(
                f"step {run.step} {run.progress:.1%} loss {average:.4f} norm {norm:.2f} "
                f"lr x{scale:.3f} {run.seconds:.0f} s "
                f"{time.perf_counter() - started:.3f} s/step, {torch.get_num_threads()} threads",
                flush=True,
            )
        if run.step % run.plan.check_steps == 0:
            print(f"step {run.step} check {check(run.model)}", flush=True)
        if run.seconds - saved > run.plan.save_seconds:
            run.save()
            saved = run.seconds
    run.save()
    print(f"finished at step {run.step}, {run.seconds:.0f} s: {check(run.model)}", flush=True)


def _schedule(run: Run) -> float:
    """The learning rate as a fraction of its peak."""
    warm = min(1.0, (run.step + 1) / run.plan.warmup_steps)
    return warm * min(1.0, (1 - run.progress) / run.plan.decay)


def _optimizers(model: Llama, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers and AdamW for the rest, or AdamW alone."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and "embed" not in name and plan.optimizer == "muon"
        (matrices if is_matrix else others).append(parameter)
    decayed = [p for p in others if p.dim() == 2]
    plain = [p for p in others if p.dim() < 2]
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": plan.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=plan.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
    ]
    if matrices:
        chosen.append(
            torch.optim.Muon(
                matrices,
                lr=plan.learning_rate,
                weight_decay=plan.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    for optimizer in chosen:
        for group in optimizer.param_groups:
            group["peak"] = plan.learning_rate
    return chosen
