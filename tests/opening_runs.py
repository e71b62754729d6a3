"""Batches that begin together, and the passes that they take."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.model.runner import ModelRunner, Rows
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.scenario import noisy_draft, plain_alone, target

LENGTHS = (5, 1, 12, 7, 3)


def prompt(length: int, seed: int) -> list[int]:
    return [1 + (7 * place + 11 * seed) % 60 for place in range(length)]


def requests(lengths: tuple[int, ...] = LENGTHS, **options: Any) -> list[Sequence]:
    """Every second one sampled."""
    return [
        Sequence(
            prompt(length, seed),
            SamplingParams(max_tokens=9 + seed, temperature=0.9 * (seed % 2), seed=seed, **options),
            index=seed,
        )
        for seed, length in enumerate(lengths)
    ]


def decoder_of(family: str = "llama", **options: Any) -> tuple[SpeculativeDecoder, list[Rows]]:
    """A decoder, and the target's passes as they are described."""
    batching = options.pop("batching", BatchingConfig(batch_size=len(LENGTHS)))
    decoder = SpeculativeDecoder(target(family), batching=batching, **options)
    passes: list[Rows] = []
    forward = decoder.runner.forward

    def noting(rows: Rows) -> mx.array:
        passes.append(rows)
        return forward(rows)

    decoder.runner.forward = noting  # type: ignore[method-assign]
    return decoder, passes


def drafting(family: str = "llama", **options: Any) -> tuple[SpeculativeDecoder, list[Rows]]:
    drafter = ModelDrafter(ModelRunner(noisy_draft(family), len(LENGTHS)))
    return decoder_of(family, drafter=drafter, policy=RaggedPolicy(), **options)


def apart(passes: list[Rows]) -> list[Rows]:
    """Passes that read prompts and nothing else."""
    return [rows for rows in passes if not rows.tentative]


def run(decoder: SpeculativeDecoder, rows: list[Sequence]) -> list[list[int]]:
    decoder.add(rows)
    while decoder.busy:
        decoder.step()
    return [row.tokens for row in rows]


def right(rows: list[Sequence], family: str = "llama") -> list[list[int]]:
    """What each says alone, its prompt read in one pass of its own."""
    return [plain_alone(target(family), tuple(row.prompt), row.sampling) for row in rows]


def again(decoder: SpeculativeDecoder, rows: list[Sequence]) -> list[list[int]]:
    """Step on, whatever was raised."""
    decoder.add(rows)
    while decoder.busy:
        try:
            decoder.step()
        except RuntimeError:
            continue
    return [row.tokens for row in rows]
