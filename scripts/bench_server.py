"""Requests a second over HTTP: ``mlx-spec serve`` and ``mlx_lm.server`` with the same pair.

Requests arrive at random (a Poisson process), at one rate after the other; users of every server
send the same ones. A rate holds where 95% of them see their first text within ``--ttft`` seconds
and none fails. mlx-lm's server must choose between batching and a draft model: both are measured.

Without ``--model`` the embedded pair is used, its target widened to ``--width`` (the same texts and
acceptance, the cost of a larger model), prompts being beginnings of Python source.

    python scripts/bench_server.py --rates 1 2 4 6 8 12
    python scripts/bench_server.py --model ./target --draft-model ./draft --prompts questions.jsonl
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from bench_support.results import add_save, finish, table  # loads the fast BLAS, before mlx

import mlx_spec.demo_models  # isort: skip

from bench_support.http_load import Asked, Heard, drive, ours, running, theirs, write_model
from bench_support.open_loop import figures
from bench_support.pair import PROMPTS, load_pair

from mlx_spec.pipeline.prompt_file import read_prompt_file

Settings = argparse.Namespace
TRIED = 3  # rates after the first that does not hold, at most


def pair(options: Settings, folder: Path) -> tuple[str, str]:
    """Folders of target and draft model."""
    if options.model:
        return options.model, options.draft_model
    source = Path(str(next(iter(mlx_spec.demo_models.__path__))))
    made = load_pair(options.width)
    width = made.model.layers[0].mlp.gate_proj.weight.shape[0]
    changed: dict[str, Any] = {"torch_dtype": "float32", "intermediate_size": width}
    target = write_model(made.model, source / "target", folder / "target", **changed)
    draft = write_model(made.draft, source / "draft", folder / "draft", torch_dtype="float32")
    return str(target), str(draft)


def commands(options: Settings, target: str, draft: str) -> dict[str, list[str]]:
    """The servers that are compared."""
    rows = str(options.rows)
    batching = ["--decode-concurrency", rows, "--prompt-concurrency", "8", "--log-level", "ERROR"]
    both = ["--draft-model", draft, "--num-draft-tokens", str(options.fixed)]
    found = {
        "mlx_lm.server, batching": theirs("--model", target, *batching),
        "mlx_lm.server, draft model": theirs("--model", target, *batching, *both),
        "mlx-spec serve": ours(
            "--model", target, "--draft-model", draft, "--batch-size", rows, *options.ours
        ),
        "mlx-spec serve, no draft": ours(
            "--model", target, "--no-speculative", "--batch-size", rows
        ),
    }
    return {name: one for name, one in found.items() if not options.only or name in options.only}


def requests(options: Settings, rate: float) -> list[Asked]:
    """The same ones for every server: a Poisson process, lengths exponential, at least 4."""
    rng, at, found = random.Random(options.seed), 0.0, []
    texts: list[str] = list(PROMPTS)
    if options.prompts is not None:
        texts = [one.prompt for one in read_prompt_file(options.prompts, "bench_server")]
    for _ in range(max(options.requests, round(rate * options.seconds))):
        tokens = max(4, min(options.most, round(rng.expovariate(1 / options.mean))))
        found.append(Asked(at, rng.choice(texts), tokens))
        at += rng.expovariate(rate)
    return found


def seen(heard: list[Heard], limit: float) -> dict[str, float]:
    """What users saw at one rate."""
    fine = [one for one in heard if one.stamps and not one.error]
    found: dict[str, float] = {**figures(fine)} if fine else {}
    found.pop("tok/s", None)  # pieces of text came in, not tokens
    ends = max((one.stamps[-1] for one in fine), default=0.0)
    good = sum(one.ttft <= limit for one in fine)
    return {
        **found,
        "failed": len(heard) - len(fine),
        "goodput": good / ends if ends else 0.0,
        "holds": len(fine) == len(heard) and found["TTFT p95"] <= 1e3 * limit,
    }


def measure(name: str, url: str, options: Settings, model: str) -> list[dict[str, Any]]:
    """One server at rising rates, until some did not hold."""
    drive(url, [Asked(0.0, PROMPTS[0], 32), Asked(0.1, PROMPTS[1], 32)], model, options.limit)
    found: list[dict[str, Any]] = []
    for rate in options.rates:
        heard = drive(url, requests(options, rate), model, options.limit)
        found.append({"rate": rate, **seen(heard, options.ttft)})
        found[-1]["texts"] = [one.text for one in heard]
        last = {key: value for key, value in found[-1].items() if key != "texts"}
        print(f"{name}: {last}", flush=True)
        if sum(not one["holds"] for one in found) >= TRIED:
            break
    return found


def rows_of(measured: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Lines of the table of all rates."""
    rows = []
    for name, rates in measured.items():
        for one in rates:
            cells = [f"{one.get(key, 0):,.0f}" for key in ("TTFT p50", "TTFT p95", "ITL p95")]
            rows.append([name, f"{one['rate']:g}", f"{one['goodput']:.2f}", *cells])
            rows[-1] += [str(one["failed"]), "yes" if one["holds"] else "no"]
    return rows


def alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """The share of texts that two servers answered alike, of the rates that both saw."""
    pairs = [
        (a, b)
        for mine, yours in zip(one, other, strict=False)
        for a, b in zip(mine["texts"], yours["texts"], strict=False)
    ]
    return f"{sum(a == b for a, b in pairs) / max(1, len(pairs)):.3f}"


def parse(arguments: list[str] | None = None) -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id; default: the embedded pair, widened")
    parser.add_argument("--draft-model")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--width", type=int, default=8192, help="of the widened target's MLPs")
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 3, 4, 6, 8, 12])
    parser.add_argument("--requests", type=int, default=40, help="at each rate, at least")
    parser.add_argument("--seconds", type=float, default=15, help="of arrivals, at least")
    parser.add_argument("--ttft", type=float, default=1.0, help="seconds: the bound of the 95th %%")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a user waits")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--fixed", type=int, default=3, help="draft tokens of mlx-lm's server")
    parser.add_argument("--mean", type=float, default=32, help="of output tokens")
    parser.add_argument("--most", type=int, default=96)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="only these servers")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="more options of ours")
    add_save(parser)
    return parser.parse_args(arguments)


def run(options: Settings) -> dict[str, Any]:
    """All servers, one after the other."""
    measured: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        target, draft = pair(options, folder)
        for name, command in commands(options, target, draft).items():
            with running(command, folder / "log") as url:
                measured[name] = measure(name, url, options, target)
    base = next(iter(measured.values()))
    header = ["server", "requests/s", "goodput/s", "TTFT p50 ms", "p95 ms", "ITL p95 ms"]
    table(
        f"Poisson arrivals, {options.rows} rows, first text within {options.ttft:g} s",
        [*header, "failed", "holds"],
        rows_of(measured),
    )
    best = {
        name: max((one["rate"] for one in rates if one["holds"]), default=0.0)
        for name, rates in measured.items()
    }
    table(
        "The highest rate that holds",
        ["server", "requests/s", "same texts as the first"],
        [[name, f"{rate:g}", alike(measured[name], base)] for name, rate in best.items()],
    )
    for rates in measured.values():
        for one in rates:
            del one["texts"]
    return {"rates": measured, "best": best}


def main() -> None:
    """As the command line says."""
    options = parse()
    finish(options, run(options))


if __name__ == "__main__":
    main()
