"""Plain decoding, ours against mlx-lm's: same model, same prompts; step by step, or whole calls.

    python scripts/bench_plain.py --model smollm2 --batch 1 2 4 8 16 32 --rounds 9
    python scripts/bench_plain.py --model smollm2 --batch 1 2 4 8 --what calls --rounds 2

*Steps* are those of mlx-lm's ``BatchGenerator``. Both stand side by side in one process, in the
middle of their texts, and take turns of ``--steps`` steps; what each has launched is waited for at
the end of its turn, so that neither computes in the other's time. A third runs nothing but the
model over mlx-lm's caches and an argmax, and waits for each token: what a step costs if whatever is
around it costs nothing. *Calls* are whole ones of both ``batch_generate``, prompts and all. Ratios
are medians over rounds; above 1 ours is the faster. The tokens of both are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx_spec
import mlx_spec.model  # the fast BLAS is loaded before mlx

import mlx.core as mx  # isort: skip
from bench_support.results import add_save, finish, table
from bench_support.rounds import Series, interleave, ratio
from mlx_lm.generate import BatchGenerator
from mlx_lm.generate import batch_generate as mlx_lm_batch
from mlx_lm.models.cache import BatchKVCache

from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.sequence import Sequence

MS = "ms"
TEXT = "In a village by the sea there lived an old woman who kept bees and told stories to whoever "
PLAIN = SpeculationConfig(num_draft_tokens=0)

Steps = Callable[[int], list[list[int]]]
"""Takes so many steps of all rows; gives what each row has said so far."""


def prompts(tokenizer: Any, rows: int) -> list[list[int]]:
    """One for each row, 32 to 47 tokens long, all different."""
    ids = list(tokenizer.encode(TEXT * 4))
    return [ids[row % 16 : row % 16 + 32 + row * 7 % 16] for row in range(rows)]


def ours(model: Any, texts: list[list[int]], tokens: int) -> Steps:
    """Our decoder, its prompts read and the first step in flight."""
    decoder = SpeculativeDecoder(
        model, speculation=PLAIN, batching=BatchingConfig(batch_size=len(texts))
    )
    options = SamplingParams(max_tokens=tokens, ignore_eos=True)
    rows = [Sequence(prompt=text, sampling=options) for text in texts]
    decoder.add(rows)
    while not all(row.tokens for row in rows):
        decoder.step()

    def run(steps: int) -> list[list[int]]:
        for _ in range(steps):
            decoder.step()
        decoder.device.synchronize()
        return [row.tokens for row in rows]

    return run


def theirs(model: Any, texts: list[list[int]], tokens: int) -> Steps:
    """mlx-lm's, likewise."""
    generator = BatchGenerator(
        model, prefill_batch_size=len(texts), completion_batch_size=len(texts)
    )
    said: dict[int, list[int]] = {uid: [] for uid in generator.insert(texts, [tokens] * len(texts))}

    def run(steps: int) -> list[list[int]]:
        for _ in range(steps):
            for answer in generator.next_generated():
                said[answer.uid].append(answer.token)
        mx.synchronize(generator.stream)
        return list(said.values())

    while not all(said.values()):
        run(1)
    return run


def alone(model: Any, texts: list[list[int]], tokens: int) -> Steps:
    """The model, mlx-lm's caches and an argmax: its tokens are of padded prompts, and no matter."""
    width = min(map(len, texts))
    caches = [BatchKVCache([0] * len(texts)) for _ in model.layers]
    state = [mx.argmax(model(mx.array([t[:width] for t in texts]), cache=caches)[:, -1], axis=-1)]

    def run(steps: int) -> list[list[int]]:
        for _ in range(steps):
            state[0] = mx.argmax(model(state[0][:, None], cache=caches)[:, -1], axis=-1)
            mx.eval(state[0])
        return []

    return run


def turns(model: Any, tokenizer: Any, rows: int, options: argparse.Namespace) -> Any:
    """A setting by steps: series by method, and whether both said the same."""
    texts, total = prompts(tokenizer, rows), options.steps * (options.rounds + 2) + 8
    runs = {"ours": ours, "mlx-lm": theirs, "model alone": alone}
    made = {name: make(model, texts, total) for name, make in runs.items()}
    said = {name: run(2) for name, run in made.items()}

    def timed(name: str) -> dict[str, float]:
        started = time.perf_counter()
        said[name] = made[name](options.steps)
        return {MS: 1e3 * (time.perf_counter() - started) / options.steps}

    series = interleave({name: partial(timed, name) for name in made}, options.rounds)
    pairs = zip(said["ours"], said["mlx-lm"], strict=True)
    return series, all(a == b for row in pairs for a, b in zip(*row, strict=False))


def calls(model: Any, tokenizer: Any, rows: int, options: argparse.Namespace) -> Any:
    """A setting by whole calls."""
    texts, tokens = prompts(tokenizer, rows), options.max_tokens
    said: dict[str, Any] = {}

    def our_call() -> Any:
        made = mlx_spec.batch_generate(
            model,
            tokenizer,
            texts,
            sampling=SamplingParams(max_tokens=tokens, ignore_eos=True),
            speculation=PLAIN,
            batching=BatchingConfig(batch_size=rows),
        )
        return [result.token_ids for result in made.results]

    def their_call() -> Any:
        return mlx_lm_batch(
            model, tokenizer, texts, max_tokens=tokens, return_token_ids=True,
            completion_batch_size=rows, prefill_batch_size=rows,
        ).token_ids  # fmt: skip

    def timed(name: str, call: Callable[[], Any]) -> dict[str, float]:
        started = time.perf_counter()
        said[name] = call()
        return {MS: 1e3 * (time.perf_counter() - started)}

    both = {"ours": our_call, "mlx-lm": their_call}
    series = interleave({name: partial(timed, name, both[name]) for name in both}, options.rounds)
    return series, said["ours"] == said["mlx-lm"]


Setting = Callable[[Any, Any, int, argparse.Namespace], tuple[dict[str, Series], bool]]
SETTINGS: dict[str, tuple[Setting, str]] = {
    "steps": (turns, "A step"),
    "calls": (calls, "A call of {tokens} tokens a row"),
}


def compared(what: str, model: Any, tokenizer: Any, options: argparse.Namespace) -> Any:
    """One way to compare, at all numbers of rows: a table, and the record of it."""
    measure, title = SETTINGS[what]
    lines, record = [], {}
    for rows in options.batch:
        series, same = measure(model, tokenizer, rows, options)
        over = {n: ratio(one, series["ours"], MS) for n, one in series.items() if n != "ours"}
        names = ["mlx-lm", *(n for n in over if n != "mlx-lm")]
        cells = [series["ours"].span(MS), *(series[name].span(MS) for name in names)]
        ratios = [f"{over[name]:.2f}" for name in names]
        lines.append([rows, *cells, *ratios, "yes" if same else "NO"])
        each = {name: [round(figures[MS], 3) for figures in s.rounds] for name, s in series.items()}
        record[rows] = {MS: each, "over ours": over, "same": same}
        print(what, dict(zip(["rows", "ours", *names], lines[-1], strict=False)), flush=True)
    columns = ["ours ms", *(f"{name} ms" for name in names), *(f"{name} / ours" for name in names)]
    table(title.format(tokens=options.max_tokens), ["rows", *columns, "same tokens"], lines)
    return record


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="as mlx_spec.load takes it")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="of one turn")
    parser.add_argument("--what", nargs="+", choices=list(SETTINGS), default=["steps"])
    parser.add_argument("--max-tokens", type=int, default=32, help="of a row in a whole call")
    add_save(parser)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, and print tables and one JSON line."""
    options = parse()
    model, tokenizer = mlx_spec.load(options.model)
    tokenizer.eos_token_ids = []
    finish(options, {what: compared(what, model, tokenizer, options) for what in options.what})


if __name__ == "__main__":
    main()
