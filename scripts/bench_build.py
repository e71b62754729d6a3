"""How long Python takes to build the graph of a step, and what of it takes how long.

    python scripts/bench_build.py
    python scripts/bench_build.py --rows 8 --layers 36 --draft-layers 28 --drafts 0 1 4
    python scripts/bench_build.py --like-gpu --traced

Steps of two random Qwen3 models of tiny widths are built, dropped and built again, never computed:
what is timed does not depend on the weights' size. Times are processor time of the thread that
builds, which a busy machine disturbs less. *total* is the median of all builds and, in brackets,
the least one. The parts are least times: *draft* and *target* are the models' passes, *choosing*
all else of a step. *caches* is what slots, spans and masks take of the passes that are described;
the rest of them is the code of mlx-lm and MLX.

MLX's CPU build describes a norm, a rotation and attention in some twenty operations each, which are
one on a GPU: with ``--like-gpu`` one other operation stands in their places. With ``--traced`` the
draft's passes are traces as well (``mlx_spec.model.replay``), built in turn with the others.
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
from mlx_spec.decoding.drafters.model import ModelDrafter
from mlx_spec.decoding.flight import Flight
from mlx_spec.decoding.step import choose, commit, propose, verify
from mlx_spec.decoding.stepper import Stepper
from mlx_spec.model.replay import Replay
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


def one_operation_each() -> None:
    """Let what is one operation on a GPU be one here, which computes something else."""
    mx.fast.rms_norm = lambda x, *_: mx.softmax(x, axis=-1)
    mx.fast.rope = lambda x, *_, **__: mx.softmax(x, axis=-1)
    mx.fast.scaled_dot_product_attention = lambda q, *_, **__: mx.softmax(q, axis=-1)


def make_decoder(
    target: Any, draft: Any, rows: int, drafts: int, traced: bool
) -> SpeculativeDecoder:
    """A decoder in whose batch nothing happens any more."""
    runner = ModelRunner(draft, rows)
    decoder = SpeculativeDecoder(
        target,
        drafter=ModelDrafter(runner, replay=Replay(runner, after=1) if traced else None),
        batching=BatchingConfig(batch_size=rows),
        speculation=SpeculationConfig(num_draft_tokens=drafts, adaptive=False),
    )
    options = SamplingParams(max_tokens=400)
    decoder.add([Sequence(prompt=[1 + row] * 5, sampling=options) for row in range(rows)])
    for _ in range(6):
        decoder.step()
    with decoder.device.work():
        decoder._stepper.land()
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


def nodes(decoder: SpeculativeDecoder) -> str:
    """Operations of a step's graph."""
    stepper = decoder._stepper
    pools = [runner.pool for runner in decoder.runners]
    with decoder.device.work(), tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        before = stepper.snapshot()
        flight, _ = build(stepper)
        arrays = [array for pool in pools for array in pool.arrays]
        mx.export_to_dot(file.name, flight.packed, *arrays)
        stepper.restore(before)
        return str(file.read().count("[label ="))


PLACES = [
    (KVCachePool, "bind", "caches"),
    *((DenseKVCache, name, "caches") for name in ("update_and_fetch", "make_mask")),
    (Span, "__post_init__", "caches"),
    (ModelRunner, "forward", "passes"),
]


def one_build(decoder: SpeculativeDecoder, apart: bool) -> Times:
    """Seconds of one build that is dropped: of its phases, or of the ``PLACES``."""
    stepper, times = decoder._stepper, defaultdict(float)
    with decoder.device.work():
        before = stepper.snapshot()
        if apart:  # wrapped calls take longer, so that only the parts are looked at
            with timed(times, *PLACES):
                build(stepper)
        else:
            flight, found = build(stepper)
            times.update(found)
            del flight
        stepper.restore(before)
    return times


def measure(decoders: list[SpeculativeDecoder], repeats: int) -> list[dict[str, list[float]]]:
    """Seconds of builds by part, of decoders that take turns."""
    every: list[dict[str, list[float]]] = [defaultdict(list) for _ in decoders]
    for turn in range(2 * repeats):
        for decoder, found in zip(decoders, every, strict=True):
            for name, seconds in one_build(decoder, bool(turn % 2)).items():
                found[name].append(seconds)
    return every


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--draft-layers", type=int, default=28)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 4], help="K")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--traced", action="store_true")
    parser.add_argument("--like-gpu", action="store_true")
    options = parser.parse_args()
    if options.like_gpu:
        one_operation_each()
    target, draft = make_model(options.layers), make_model(options.draft_layers)
    kinds = [False, True] if options.traced else [False]
    print(f"{options.rows} rows, {options.layers} and {options.draft_layers} layers: ms a step")
    print("| K | draft's passes | total | draft | target | choosing | caches, of | operations |")
    print("|---|---|---|---|---|---|---|---|")
    for count in options.drafts:
        decoders = [make_decoder(target, draft, options.rows, count, kind) for kind in kinds]
        every = measure(decoders, options.repeats)
        for decoder, kind, found in zip(decoders, kinds, every, strict=True):
            ms = {name: f"{1e3 * min(seconds):.2f}" for name, seconds in found.items()}
            total = f"{1e3 * median(found['total']):.2f} ({ms['total']})"
            phases = [ms[name] for name in ("propose", "verify", "choose")]
            share = f"{ms['caches']} of {ms['passes']}"
            kept = "traced" if kind else "described"
            print("|", " | ".join([str(count), kept, total, *phases, share, nodes(decoder)]), "|")
        if options.traced:
            ratio = median(a / b for a, b in zip(*(one["total"] for one in every), strict=True))
            print(f"described / traced: {ratio:.2f}")


if __name__ == "__main__":
    main()
