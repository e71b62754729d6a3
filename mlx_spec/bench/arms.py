"""What is compared: plain decoding, the same again, and each way to draft."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_spec.api import batch_generate
from mlx_spec.bench.findings import Contender
from mlx_spec.bench.options import BenchOptions
from mlx_spec.bench.rounds import Figures
from mlx_spec.pipeline.backend import Loaded
from mlx_spec.pipeline.flags import Flags
from mlx_spec.pipeline.options import options_of

PLAIN, AGAIN = "plain", "plain again"
SEED = 1  # of sampled texts, the same in every arm


@dataclass(frozen=True)
class ArmRun:
    """One run of one arm.

    Attributes:
        figures: ``tok/s`` of decoding, ``seconds`` of the whole call, ``prompt tok/s``, tokens,
            ``peak`` in bytes, and of ours ``steps``, ``acceptance`` and tokens a pass of a row.
        texts: what it said.
        token_ids: the same as tokens; ours end with the token that ended them.
        speeds: tokens a second of each prompt, where they came one after the other.
    """

    figures: Figures
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...] = ()
    speeds: tuple[float, ...] = ()


class Runner(Protocol):
    """An arm that can be run."""

    @property
    def name(self) -> str:
        """As tables have it."""

    @property
    def exact(self) -> bool:
        """Whether it promises what plain decoding says, token for token."""

    def runs_at(self, batch: int) -> bool:
        """Whether it can run so many rows."""

    def run(self, prompts: Seq[list[int]], batch: int, tokens: int) -> ArmRun:
        """Complete token ids, so many prompts at a time, at most so many tokens each."""


@dataclass(frozen=True)
class OurArm:
    """``batch_generate`` with some flags.

    Attributes:
        name: as tables have it.
        flags: of the command line, those of drafting included.
        target, draft: what they name, loaded.
    """

    name: str
    flags: Flags
    target: Loaded = field(repr=False)
    draft: Loaded | None = field(default=None, repr=False)
    exact: bool = True

    def runs_at(self, batch: int) -> bool:
        return True

    def run(self, prompts: Seq[list[int]], batch: int, tokens: int) -> ArmRun:
        sampling = replace(self.flags.sampling_for(self.target[1]), max_tokens=tokens)
        if sampling.seed is None:
            sampling = replace(sampling, seed=SEED)
        mx.reset_peak_memory()
        started = time.perf_counter()
        made = batch_generate(
            *self.target,
            list(prompts),
            draft_model=self.draft,
            sampling=sampling,
            speculation=self.flags.speculation,
            batching=replace(self.flags.batches, batch_size=batch, prefix_cache_bytes=0),
        )
        seconds = time.perf_counter() - started
        stats = made.stats
        figures = {
            "tok/s": stats.generation_tps,
            "seconds": seconds,
            "prompt tok/s": stats.prompt_tps,
            "texts": len(prompts),
            "tokens": stats.generation_tokens,
            "peak": stats.peak_memory,
            "steps": stats.steps,
            "step seconds": stats.generation_time / max(1, stats.steps),
            "acceptance": stats.acceptance_rate,
            "tokens a pass": stats.mean_acceptance_length,
        }
        return ArmRun(
            figures,
            tuple(made.texts),
            tuple(tuple(one.token_ids) for one in made.results),
            tuple(1 / one.tpot if one.tpot else 0.0 for one in made.results) if batch == 1 else (),
        )


def plain_flags(flags: Flags) -> Flags:
    """Nothing is drafted."""
    return replace(flags, draft_model=None, draft=None, enable_speculative=False)


def drafting_flags(options: BenchOptions, flags: Flags) -> list[Flags]:
    """Each way to draft that was asked for; where none was, what is at hand.

    Raises:
        InvalidRequest: a way that there is not, or that needs a draft model.
    """
    models: list[str] = list(options.draft_model)
    if not models and (own := _own_draft(flags)) is not None:
        models = [own]
    kinds = list(dict.fromkeys(options.draft))
    with_model = [kind for kind in kinds if replace(flags, draft_model="?", draft=kind).drafter]
    by_model: list[str | None] = list(with_model)
    if not with_model and (options.draft_model or not kinds):
        by_model = [None]
    found = [
        replace(flags, draft_model=name, draft=kind)
        for name in dict.fromkeys(models)
        for kind in by_model
    ]
    if with_model and not models:  # a checkpoint may bring a head of its own
        found = [replace(flags, draft=kind) for kind in with_model]
    alone = [kind for kind in kinds if kind not in with_model] if kinds else ["ngram"]
    return found + [replace(flags, draft=kind) for kind in alone]


def _own_draft(flags: Flags) -> str | None:
    """The draft that is embedded for the target, if one is."""
    return flags.drafter or replace(flags, draft="head").drafter


def short(name: str) -> str:
    """The last part of a model's name or path."""
    return os.path.basename(os.path.normpath(name)) or name


def choice_of(flags: Flags) -> Contender:
    """A way to decode as something to choose: its name, and what it needs."""
    if not flags.drafting:
        return Contender(PLAIN)
    models = flags.draft_model or flags.drafter
    names = filter(None, (flags.draft, short(models) if models else None))
    return Contender(" ".join(names), drafts=True, models=int(bool(models or flags.head_of)))


def command_line(flags: Flags, purpose: str) -> str:
    """What to type for these flags; those that stand at their defaults are left out.

    Args:
        flags: all of them.
        purpose: ``"one"`` (prompt at a time) or ``"many"``.
    """
    words = ["generate"] if purpose == "one" else ["batch", "IN.jsonl", "OUT.jsonl"]
    for name, one in options_of(Flags).items():
        value = getattr(flags, name)
        if value == one.default:
            continue
        if isinstance(value, bool):
            words.append(one.flag if value else one.off)
        elif isinstance(value, tuple):
            words += [part for each in value for part in (one.flag, str(each))]
        else:
            words += [one.flag, str(value)]
    return shlex.join(["mlx-spec", *words])


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(int(value.nbytes) for _, value in tree_flatten(model.parameters()))
