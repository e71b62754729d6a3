"""A real model in a speculating batch against mlx-lm's own plain decoding of it, row by row.

    python -m tests.real_run gemma3                                   # minutes on two cores
    python -m tests.real_run gemma3 --prompt 520 --tokens 12 --rows 3 --slots 2
    python -m tests.real_run smollm2 --out run.json
    MLX_ENABLE_TF32=0 python -m tests.real_run smollm2 --dtype float32     # on an NVIDIA GPU

The fast BLAS is used: with MLX's own a prompt of 700 tokens takes minutes. It (as a GPU) rounds a
product by its shape, so that a token may give way to one that is as good as equally likely; such a
place is reported with the gap between the two, and what follows in that row is compared with
mlx-lm's decoding of the same beginning.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_spec import BatchingConfig, SamplingParams, load  # before mlx: it chooses the BLAS

import mlx.core as mx  # isort: skip
from mlx_lm.generate import generate_step

from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters.base import BaseDrafter, Draft, DraftContext
from mlx_spec.sequence import Sequence
from tests.fakes import RaggedPolicy
from tests.real_models import gemma3_gguf, smollm2_gguf

TEXTS = Path(__file__).parent.parent / "docs"
# Two tokens of which one is less than so much more likely (in nats) are as good as equally likely:
# in float32, and where logits are told apart by 16-bit floats.
NEAR, NEAR_16 = 0.01, 0.1


@dataclass
class RowReport:
    """One request: what was compared and where it differed."""

    prompt: int
    tokens: int
    equal: int = 0
    near_ties: list[tuple[int, float]] = field(default_factory=list)
    wrong: list[tuple[int, float]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


class ReferenceDrafter(BaseDrafter):
    """Guesses what mlx-lm said, spoilt at every seventh position; further in some rows."""

    needs_host = True

    def __init__(self, references: Seq[Seq[int]], prompts: Seq[int]) -> None:
        self._references, self._prompts = references, prompts

    def propose(self, context: DraftContext, count: int) -> Draft:
        guesses, counts = [], []
        for row in context.sequences:
            place = row.length - self._prompts[row.index]
            said = list(self._references[row.index][place : place + count])
            counts.append(min(len(said), count))
            said += [0] * (count - len(said))
            spoil = [(row.length + k) % 7 == 0 for k in range(count)]
            guesses.append([(t + s) % context.vocabulary for t, s in zip(said, spoil, strict=True)])
        return Draft(mx.array(guesses, mx.int32), mx.array(counts, mx.int32))


def plain(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """mlx-lm's greedy decoding, and by how much each token was the likeliest, in nats."""
    tokens, gaps = [], []
    for token, logits in generate_step(mx.array(prompt), model, max_tokens=count):
        best = mx.topk(logits.astype(mx.float32), 2)
        gaps.append(float(mx.abs(best[0] - best[1])))
        tokens.append(int(token))
    return tokens[:count], gaps[:count]


def prompts_of(tokenizer: Any, rows: int, length: int) -> list[list[int]]:
    """Texts of our own documents; each request's a little shorter than the one before."""
    text = "\n".join(path.read_text() for path in sorted(TEXTS.glob("[a-k]*.md")))
    tokens = tokenizer.encode(text)
    step = max(1, (len(tokens) - length) // rows)
    return [tokens[row * step : row * step + length - 9 * row] for row in range(rows)]


def decode(
    model: Any, prompts: list[list[int]], references: list[list[int]], slots: int
) -> list[Sequence]:
    """All requests in ``slots`` rows, drafts on; the later ones join as rows become free."""
    decoder = SpeculativeDecoder(
        model,
        drafter=ReferenceDrafter(references, [len(prompt) for prompt in prompts]),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=slots, prefill_step_size=256),
    )
    waiting = [
        Sequence(list(prompt), SamplingParams(max_tokens=len(said), ignore_eos=True), index=index)
        for index, (prompt, said) in enumerate(zip(prompts, references, strict=True))
    ]
    everyone = list(waiting)
    while waiting or decoder.busy:
        joining = waiting[: decoder.free_rows]
        waiting = waiting[len(joining) :]
        decoder.add(joining)
        decoder.step()
    return everyone


def compare(
    model: Any,
    sequence: Sequence,
    prompt: list[int],
    said: list[int],
    gaps: list[float],
    tie: float = NEAR,
) -> RowReport:
    """Go along a row; behind a near-tie mlx-lm is asked again, for the beginning that was taken."""
    report = RowReport(len(prompt), len(said), drafted=sequence.drafted, accepted=sequence.accepted)
    found, begin = list(sequence.tokens), 0
    while begin < len(found):
        pairs = enumerate(zip(found[begin:], said, strict=False))
        place = next((n for n, (one, other) in pairs if one != other), None)
        report.equal += len(found) - begin if place is None else place
        if place is None:
            break
        place_in_row = begin + place
        near = gaps[place] < tie
        (report.near_ties if near else report.wrong).append((place_in_row, round(gaps[place], 6)))
        begin = place_in_row + 1
        if not near or len(report.near_ties) > 3 or begin == len(found):
            break
        said, gaps = plain(model, prompt + found[:begin], len(found) - begin)
    return report


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="gemma3, smollm2, or as mlx_spec.load takes it")
    for name, default in (("prompt", 700), ("tokens", 600), ("rows", 5), ("slots", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", help="as mlx-spec's --dtype; by default as the device has it")
    parser.add_argument("--out", type=Path, help="write the report there as JSON too")
    given = parser.parse_args()
    started = time.perf_counter()
    fetched = {"gemma3": gemma3_gguf, "smollm2": smollm2_gguf}
    path = fetched[given.model]() if given.model in fetched else given.model
    model, tokenizer = load(path, dtype=given.dtype)
    tie = NEAR if model.model.norm.weight.dtype == mx.float32 else NEAR_16
    loaded = time.perf_counter()
    prompts = prompts_of(tokenizer, given.rows, given.prompt)
    # One request runs all the while; the others come and go beside it.
    counts = [given.tokens, *(max(3, given.tokens // 4 - row) for row in range(given.rows - 1))]
    plainly = []
    for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True), start=1):
        say(f"mlx-lm alone, request {number} of {given.rows}: {len(prompt)} tokens and {count}")
        plainly.append(plain(model, prompt, count))
    say(f"all {given.rows} in {given.slots} rows")
    referred = time.perf_counter()
    sequences = decode(model, prompts, [said for said, _ in plainly], given.slots)
    decoded = time.perf_counter()
    rows = [
        asdict(compare(model, sequence, prompt, *said, tie))
        for sequence, prompt, said in zip(sequences, prompts, plainly, strict=True)
    ]
    seconds = [loaded - started, referred - loaded, decoded - referred]
    report = {
        "rows": rows,
        "seconds": dict(
            zip(("load", "plain", "batch"), (round(s, 1) for s in seconds), strict=True)
        ),
    }
    if given.model == "smollm2":
        from mlx_spec import generate

        report["answer"] = generate(
            model, tokenizer, "Why is the sky blue?", chat=True, max_tokens=40
        ).text
    print(json.dumps(report, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
