"""Requests of mixed lengths at random times: our generator and mlx-lm's ``BatchGenerator``.

Prompts come from a file of JSON lines with ``turns`` (or ``question``), as Spec-Bench has them, in
chat form; a share of them is made long by joining questions. The same arrivals (a Poisson process)
drive all methods, one after the other. *TTFT* is from a request's arrival to its first token, *ITL*
between two deliveries of its stream. Then a short request comes one second behind a long one.

    python scripts/bench_load.py --prompts question.jsonl --requests 200 --rate 0.8 --rows 16
    python scripts/bench_load.py --quick      # the embedded pair, a few seconds
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from bench_support.results import add_save, finish, table  # loads the fast BLAS, before mlx

import mlx.core as mx  # isort: skip

from bench_support.open_loop import Arrival, Drive, MlxLm, Ours, Served, alike, figures, poisson

from mlx_spec import load

MLX_LM = "mlx-lm BatchGenerator"
SNIPPETS = Path(__file__).parents[1] / "examples" / "data" / "snippets.jsonl"
COLUMNS = ("tok/s", "TTFT p50", "TTFT p95", "TTFT p99", "ITL p50", "ITL p95", "ITL p99")
Settings = argparse.Namespace


def texts(options: Settings) -> list[str]:
    """All questions, the first of each dialogue, in an order that the seed fixes."""
    if options.prompts is None:
        lines = SNIPPETS.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]
    found = []
    for line in options.prompts.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.append(record["turns"][0] if "turns" in record else record["question"])
    random.Random(options.seed).shuffle(found)
    return found


def long_prompt(tokenizer: Any, questions: list[str], tokens: int, start: int) -> list[int]:
    """Questions from number ``start`` on, joined until they make so many tokens."""
    ids: list[int] = []
    while len(ids) < tokens:
        ids += tokenizer.encode(questions[start % len(questions)] + "\n\n")
        start += 1
    return ids[:tokens]


def prompts(tokenizer: Any, options: Settings) -> list[list[int]]:
    """Of all requests; each ``1 / long_share``-th is a long one."""
    questions, found = texts(options), []
    every = round(1 / options.long_share) if options.long_share else 0
    for number in range(options.requests):
        if every and number % every == every - 1:
            found.append(long_prompt(tokenizer, questions, options.long, number))
        elif options.prompts is None:
            found.append(list(tokenizer.encode(questions[number % len(questions)])))
        else:
            turn = [{"role": "user", "content": questions[number % len(questions)]}]
            found.append(list(tokenizer.apply_chat_template(turn, add_generation_prompt=True)))
    return [ids[: options.longest] for ids in found]


def methods(model: Any, tokenizer: Any, options: Settings) -> dict[str, Drive]:
    """What is compared."""
    draft_model = load(options.draft_model) if options.draft_model else None
    found: dict[str, Drive] = {
        MLX_LM: MlxLm(model, options.rows),
        "ours plain": Ours(model, tokenizer, options.rows),
    }
    for draft in options.draft:
        found[f"ours, {draft}"] = Ours(model, tokenizer, options.rows, draft, draft_model)
    return {name: one for name, one in found.items() if not options.only or name in options.only}


def measure(drives: dict[str, Drive], arrivals: list[Arrival]) -> dict[str, list[Served]]:
    """All methods on the same arrivals, after a request that does not count."""
    found = {}
    for name, drive in drives.items():
        drive([Arrival(0.0, arrivals[0].prompt[:40], 4)])
        mx.clear_cache()
        found[name] = drive(arrivals)
        print(f"{name}: {figures(found[name])}", flush=True)
    return found


def behind(drives: dict[str, Drive], arrivals: list[Arrival]) -> dict[str, Any]:
    """Milliseconds to the first token of a long request, and of a short one behind it."""
    rows, found = [], {}
    for name, drive in drives.items():
        mx.clear_cache()
        long, short = drive(arrivals)
        found[name] = {"long": 1e3 * long.ttft, "short": 1e3 * short.ttft}
        rows.append([name, f"{1e3 * short.ttft:,.0f}", f"{1e3 * long.ttft:,.0f}"])
    size = len(arrivals[0].prompt)
    title = f"A short request ({len(arrivals[1].prompt)} tokens) behind one of {size:,} tokens"
    table(title, ["method", "TTFT of the short one ms", "of the long one ms"], rows)
    return found


def parse(arguments: list[str] | None = None) -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, help="default: examples/data/snippets.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft-model", help="of the methods model and head")
    parser.add_argument("--draft", nargs="*", default=["ngram"])
    parser.add_argument("--only", nargs="+", help="only these methods")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=0.8, help="requests a second")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--mean", type=float, default=32, help="of output tokens")
    parser.add_argument("--most", type=int, default=128, help="output tokens")
    parser.add_argument("--long-share", type=float, default=0.05)
    parser.add_argument("--long", type=int, default=1500, help="tokens of long prompts")
    parser.add_argument("--longest", type=int, default=7000, help="prompts are cut here")
    parser.add_argument("--behind", type=int, default=7000, help="tokens of it; 0: not measured")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the embedded pair, small figures")
    add_save(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.requests, options.rate, options.rows = "demo", 6, 50.0, 3
        options.mean, options.most, options.long, options.long_share = 6, 8, 100, 0.3
        options.behind, options.longest = 200, 400
    return options


def run(options: Settings) -> dict[str, Any]:
    """Measure both questions, print their tables, return all."""
    model, tokenizer = load(options.model)
    drives = methods(model, tokenizer, options)
    ids = prompts(tokenizer, options)
    results: dict[str, Any] = {}
    if options.requests:
        arrivals = poisson(ids, options.rate, options.mean, options.most, options.seed)
        served = measure(drives, arrivals)
        base = next(iter(served.values()))
        of_each = {name: {**figures(s), "alike": alike(s, base)} for name, s in served.items()}
        table(
            f"{options.requests} requests, {options.rate:g} a second, {options.rows} rows, "
            f"{sum(map(len, ids)):,} prompt tokens, {sum(a.tokens for a in arrivals):,} new ones",
            ["method", "tok/s", *(f"{name} ms" for name in COLUMNS[1:]), "same answers"],
            [
                [name, f"{one['tok/s']:.1f}"]
                + [f"{one[column]:,.0f}" for column in COLUMNS[1:]]
                + [f"{one['alike']:.3f}"]
                for name, one in of_each.items()
            ],
        )
        results["load"] = of_each
    if options.behind:
        long = long_prompt(tokenizer, texts(options), options.behind, 0)
        pair = [Arrival(0.0, long, 8), Arrival(1.0, ids[0] if ids else long[:40], 8)]
        plain = {name: drive for name, drive in drives.items() if ", " not in name}
        results["behind"] = behind(plain, pair)
    return results


def main() -> None:
    """As the command line says."""
    options = parse()
    finish(options, run(options))


if __name__ == "__main__":
    main()
