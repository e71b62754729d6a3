"""How long Python takes to build the graph of a step, and what of it takes how long.

    python scripts/bench_build.py
    python scripts/bench_build.py --rows 8 --layers 36 --draft-layers 28 --drafts 0 1 4

Steps of two random Qwen3 models of tiny widths are built, dropped and built again, never computed:
what is timed does not depend on the weights' size. Times are processor time of the thread that
builds, which a busy machine disturbs less. *total* is the median of all builds and, in brackets,
the least one. The parts are least times: *draft* and *target* are the models' passes, *choosing*
all else of a step. *caches* is what slots, spans and masks take of the passes; the rest of them is
the code of mlx-lm and MLX.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import mlx_spec.model  # noqa: F401  isort: skip (loads the fast BLAS before mlx)
import mlx.core as mx  # isort: skip
from mlx_lm.models import qwen3

from mlx_spec.cache.dense import DenseKVCache
from mlx_spec.cache.pool import KVCachePool
from mlx_spec.cache.span import Span
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.flight import Flight
from mlx_spec.decoding.step import choose, commit, propose, verify
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence

Times = dict[str, float]


def make_model(layers: int) -> Any:
    """A random Qwen3 of tiny widths."""
    model = qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3",
            hidden_size=32,
            num_hidden_layers=layers,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-5,
            vocab_size=64,
            max_position_embeddings=512,
            rope_theta=10000.0,
            tie_word_embeddings=False,
        )
    )
    mx.eval(model.parameters())
    return model


def make_decoder(target: Any, draft: Any, rows: int, drafts: int) -> SpeculativeDecoder:
    """A decoder in whose batch nothing happens any more."""
    decoder = SpeculativeDecoder(
        target,
        draft_model=draft,
        batching=BatchingConfig(batch_size=rows),
        speculation=SpeculationConfig(num_draft_tokens=drafts, adaptive=False),
    )
    options = SamplingParams(max_tokens=400)
    decoder.add([Sequence(prompt=[1 + row] * 5, sampling=options) for row in range(rows)])
    for _ in range(3):
        decoder.step()
    return decoder


@contextmanager
def timed(times: Times, *places: tuple[Any, str, str]) -> Iterator[None]:
    """Add the seconds of calls of ``owner.name`` to ``times[key]``, while it lasts."""

    def wrap(call: Callable[..., Any], key: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            start = time.thread_time()
            result = call(*args, **more)
            times[key] += time.thread_time() - start
            return result

        return wrapped

    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, key in places:
        setattr(owner, name, wrap(getattr(owner, name), key))
    try:
        yield
    finally:
        for owner, name, call in before:
            setattr(owner, name, call)


def build(stepper: Stepper) -> tuple[Flight, Times]:
    """One step's graph, and the seconds of its phases."""
    parts, plan = stepper.parts, stepper.plan()
    moments = [time.thread_time()]
    draft = propose(parts, plan)
    moments.append(time.thread_time())
    logits = verify(parts, plan, draft)
    moments.append(time.thread_time())
    flight = commit(parts, plan, draft, choose(parts, draft, logits))
    moments.append(time.thread_time())
    names = ("propose", "verify", "choose")
    phases = {name: moments[i + 1] - moments[i] for i, name in enumerate(names)}
    return flight, {**phases, "total": moments[-1] - moments[0]}


def nodes(flight: Flight, stepper: Stepper) -> int:
    """Operations of a step's graph."""
    pools = [stepper.parts.runner.pool, *(r.pool for r in stepper.parts.drafter.runners)]
    arrays = [array for pool in pools for array in pool.arrays]
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, flight.packed, *arrays)
        return file.read().count("[label =")


def measure(decoder: SpeculativeDecoder, repeats: int) -> dict[str, Any]:
    """Seconds of builds by part, and the operations of one."""
    stepper = decoder._stepper
    every: dict[str, list[float]] = defaultdict(list)
    places = [
        (KVCachePool, "bind", "caches"),
        *((DenseKVCache, name, "caches") for name in ("update_and_fetch", "make_mask")),
        (Span, "__post_init__", "caches"),
        (ModelRunner, "forward", "passes"),
    ]
    with decoder.device.work():
        stepper.land()
        count = 0
        for turn in range(2 * repeats):
            before, times = stepper.snapshot(), defaultdict(float)
            if turn % 2:  # wrapped calls take longer, so that only the parts are looked at
                with timed(times, *places):
                    build(stepper)
            else:
                flight, found = build(stepper)
                count = count or nodes(flight, stepper)
                times.update(found)
            stepper.restore(before)
            for name, seconds in times.items():
                every[name].append(seconds)
    return {
        "nodes": count,
        "median": median(every["total"]),
        **{k: min(v) for k, v in every.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--draft-layers", type=int, default=28)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 4], help="K")
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    target, draft = make_model(options.layers), make_model(options.draft_layers)
    print(f"{options.rows} rows, {options.layers} and {options.draft_layers} layers: ms a step")
    print("| K | total | draft | target | choosing | caches, of the passes | operations |")
    print("|---|---|---|---|---|---|---|")
    for count in options.drafts:
        found = measure(make_decoder(target, draft, options.rows, count), options.repeats)
        ms = {name: f"{1e3 * value:.2f}" for name, value in found.items()}
        share = f"{ms['caches']} of {ms['passes']}"
        cells = [f"{ms['median']} ({ms['total']})", ms["propose"], ms["verify"], ms["choose"]]
        print("|", " | ".join([str(count), *cells, share, str(found["nodes"])]), "|", flush=True)


if __name__ == "__main__":
    main()
