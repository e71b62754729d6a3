"""Does a step cost O(cache)? Step time, and step time less attention, against cached tokens.

Decodes ``--batch`` rows plainly (or with ``--draft-tokens`` drafts verified) at 256 to 4,096
cached tokens on a random Llama-shaped model, and times the same attention calls alone on arrays
of the same shapes. What is left is projections, writes to the cache, masks and the host: it must
not grow with the cache. The capacity of the slots is the same at every length, so a step that
copied its cache would show up as a large constant too. The last line is JSON.

    python scripts/bench_cache.py --batch 4 --steps 40
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from bench_support.results import add_save, finish, table  # loads the fast BLAS, before mlx

import mlx.core as mx  # isort: skip
from mlx_lm.models import llama

from mlx_spec.config import BatchingConfig, SamplingParams
from mlx_spec.control.fixed import FixedDraftLength
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.sequence import Sequence

LAYERS, HEADS, KV_HEADS, DIM = 4, 8, 4, 64


class ZeroDrafter(BaseDrafter):
    """Proposes token 0 again and again at no cost: all that is timed is the target."""

    def propose(self, context: DraftContext, count: int) -> Draft:
        return Draft(mx.zeros((context.lengths.shape[0], count), mx.int32))


def make_model() -> Any:
    """A random Llama of a few million parameters."""
    mx.random.seed(0)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=HEADS * DIM,
            num_hidden_layers=LAYERS,
            intermediate_size=1024,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            rms_norm_eps=1e-5,
            vocab_size=512,
            max_position_embeddings=16384,
        )
    )
    mx.eval(model.parameters())
    return model


def make_decoder(model: Any, batch: int, cached: int, longest: int, draft: int) -> Any:
    """Rows with ``cached`` tokens each, in slots of ``longest`` positions."""
    decoder = SpeculativeDecoder(
        model,
        drafter=ZeroDrafter(),
        policy=FixedDraftLength(draft),
        batching=BatchingConfig(batch_size=batch, prefill_step_size=512),
    )
    decoder.runner.pool.reserve(longest)
    decoder.add([Sequence([1] * cached, SamplingParams(max_tokens=10**6)) for _ in range(batch)])
    while len(decoder.running) < batch:  # prompts are fed in chunks, one a step
        decoder.step()
    return decoder


def time_attention(batch: int, width: int, cached: int) -> float:
    """Seconds of one step's attention calls alone, masks included as the step has them."""
    queries = mx.random.normal((batch, HEADS, width, DIM))
    keys = mx.random.normal((batch, KV_HEADS, cached + width, DIM))
    values = mx.random.normal((batch, KV_HEADS, cached + width, DIM))
    mask = None if width == 1 else mx.ones((batch, 1, width, cached + width), mx.bool_)
    mx.eval(queries, keys, values, mask)
    started = time.perf_counter()
    mx.eval(
        [
            mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.1, mask=mask)
            for _ in range(LAYERS)
        ]
    )
    return time.perf_counter() - started


def main() -> None:
    """Interleave the lengths step by step; print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--draft-tokens", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cached", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    add_save(parser)
    options = parser.parse_args()
    model = make_model()
    longest = max(options.cached) + options.steps * (options.draft_tokens + 1) + 64
    decoders = {
        cached: make_decoder(model, options.batch, cached, longest, options.draft_tokens)
        for cached in options.cached
    }
    steps: dict[int, list[float]] = {cached: [] for cached in options.cached}
    attention: dict[int, list[float]] = {cached: [] for cached in options.cached}
    for _ in range(options.steps):
        for cached, decoder in decoders.items():
            started = time.perf_counter()
            decoder.step()
            steps[cached].append(time.perf_counter() - started)
            attention[cached].append(
                time_attention(options.batch, options.draft_tokens + 1, cached)
            )
    rows: list[list[str]] = []
    for cached, decoder in decoders.items():
        step = 1e3 * statistics.median(steps[cached])
        alone = 1e3 * statistics.median(attention[cached])
        rest = 1e3 * statistics.median(
            a - b for a, b in zip(steps[cached], attention[cached], strict=True)
        )
        size = decoder.runner.pool.nbytes / 1e6
        rows.append([str(cached), f"{size:.0f}", f"{step:.1f}", f"{alone:.1f}", f"{rest:.1f}"])
    table(
        f"B = {options.batch}, {options.draft_tokens} guesses a step",
        ["cached tokens", "cache MB", "step ms", "attention ms", "rest ms"],
        rows,
    )
    finish(options, {"step": steps, "attention": attention})


if __name__ == "__main__":
    main()
