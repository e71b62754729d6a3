"""mlx-lm beside ours, by its public functions: its batches, and its own speculation."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm import batch_generate, stream_generate
from mlx_lm.sample_utils import make_sampler

from mlx_spec.bench.arms import ArmRun
from mlx_spec.config import SamplingParams
from mlx_spec.pipeline.backend import Loaded

NAME = "mlx-lm"
LENGTHS = (2, 4, 6)
"""Draft lengths, which are fixed there: its best is what counts."""


def _sampler(sampling: SamplingParams) -> Any:
    return make_sampler(
        sampling.temperature, top_p=sampling.top_p, min_p=sampling.min_p, top_k=sampling.top_k
    )


@dataclass(frozen=True)
class MlxLmBatch:
    """``mlx_lm.batch_generate``.

    Attributes:
        target: model and tokenizer.
        sampling: its options.
    """

    target: Loaded = field(repr=False)
    sampling: SamplingParams
    name: str = NAME
    exact: bool = False

    def runs_at(self, batch: int) -> bool:
        return True

    def run(self, prompts: Seq[list[int]], batch: int, tokens: int) -> ArmRun:
        mx.reset_peak_memory()
        started = time.perf_counter()
        made = batch_generate(
            *self.target,
            list(prompts),
            max_tokens=tokens,
            sampler=_sampler(self.sampling),
            completion_batch_size=batch,
            prefill_batch_size=min(8, batch),
            return_token_ids=True,
        )
        seconds = time.perf_counter() - started
        figures = {
            "tok/s": made.stats.generation_tps,
            "seconds": seconds,
            "prompt tok/s": made.stats.prompt_tps,
            "tokens": made.stats.generation_tokens,
            "peak": mx.get_peak_memory(),
        }
        return ArmRun(figures, tuple(made.texts), tuple(map(tuple, made.token_ids or ())))


@dataclass(frozen=True)
class MlxLmSpeculative:
    """``mlx_lm.stream_generate`` with a draft model, which knows no batches.

    Attributes:
        target: model and tokenizer.
        draft: the draft model.
        sampling: its options.
        draft_tokens: the draft length.
        name: as tables have it.
    """

    target: Loaded = field(repr=False)
    draft: Any = field(repr=False)
    sampling: SamplingParams
    draft_tokens: int
    name: str
    exact: bool = False

    def runs_at(self, batch: int) -> bool:
        return batch == 1

    def run(self, prompts: Seq[list[int]], batch: int, tokens: int) -> ArmRun:
        mx.reset_peak_memory()
        texts: list[str] = []
        ids: list[tuple[int, ...]] = []
        speeds: list[float] = []
        made, decoding, reading = 0, 0.0, 0.0
        started = time.perf_counter()
        for prompt in prompts:
            answers = []
            for answer in stream_generate(
                *self.target,
                prompt,
                max_tokens=tokens,
                draft_model=self.draft,
                num_draft_tokens=self.draft_tokens,
                sampler=_sampler(self.sampling),
            ):
                answers.append(answer)
            texts.append("".join(one.text for one in answers))
            ids.append(tuple(one.token for one in answers))
            speeds.append(answer.generation_tps)
            made += answer.generation_tokens
            decoding += answer.generation_tokens / answer.generation_tps
            reading += answer.prompt_tokens / answer.prompt_tps
        figures = {
            "tok/s": made / decoding,
            "seconds": time.perf_counter() - started,
            "prompt tok/s": sum(map(len, prompts)) / reading,
            "tokens": made,
            "peak": mx.get_peak_memory(),
        }
        return ArmRun(figures, tuple(texts), tuple(ids), tuple(speeds))


def mlx_lm_arms(
    target: Loaded, drafts: Seq[tuple[str, Loaded]], sampling: SamplingParams
) -> list[MlxLmBatch | MlxLmSpeculative]:
    """What of mlx-lm can run beside.

    Args:
        target: model and tokenizer.
        drafts: names and models with a tokenizer of their own; heads are ours alone.
        sampling: options.
    """
    found: list[MlxLmBatch | MlxLmSpeculative] = [MlxLmBatch(target, sampling)]
    for name, (model, tokenizer) in drafts:
        if tokenizer is not None:
            found += [
                MlxLmSpeculative(target, model, sampling, length, f"{NAME} {name} K={length}")
                for length in LENGTHS
            ]
    return found
