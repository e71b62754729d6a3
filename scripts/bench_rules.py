"""What constraints, processors and log-probabilities cost: milliseconds a step over plain decoding.

Each option has an engine of its own, with all rows of the batch under it, and a plain one beside it
whose rows are as long; no drafts, greedy. A round is plain, option, option, plain, a few steps each
after one that does not count, so that what runs before whom is alike for both; a cost is the median
of the differences of neighbours. ``--layers 1`` has the model's tokenizer and vocabulary, and one
thin random layer: what the options add is the same, and does not drown in the noise of long passes.

    python scripts/bench_rules.py --layers 1 --rounds 5 --steps 6
    python scripts/bench_rules.py --batch 4 --only penalties "JSON schema"
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from bench_support.results import add_save, finish, table  # loads the fast BLAS, before mlx

import mlx.core as mx  # isort: skip
from mlx_lm.models import llama

from mlx_spec import BatchingConfig, SamplingParams, SpeculationConfig, Structure, load
from mlx_spec.batching.engine import Engine
from mlx_spec.batching.prompts import make_sequences

PLAIN = "plain"
PROMPT = "Write a list of people with their ages and the towns where they live:"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 4, "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "town": {"enum": ["Bern", "Lyon", "Turin", "Vienna"]},
    },
    "required": ["name", "age", "town"],
    "additionalProperties": False,
}
# None of them ends before all steps are done.
SCHEMA = Structure.json_schema({"type": "array", "items": PERSON, "minItems": 100})
REGEX = Structure.regex(r"([a-z]{1,12}, ){400}")
CHOICES = Structure.choices([f"{word} and again" * 100 for word in ("yes", "no", "never")])
METHODS: dict[str, SamplingParams] = {
    PLAIN: SamplingParams(ignore_eos=True),
    "plain again": SamplingParams(ignore_eos=True),
    "T = 0.8": SamplingParams(ignore_eos=True, temperature=0.8, seed=1),
    "T = 0.8, top-p 0.9, top-k 50": SamplingParams(
        ignore_eos=True, temperature=0.8, top_p=0.9, top_k=50, seed=1
    ),
    "penalties": SamplingParams(
        ignore_eos=True, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1
    ),
    "bias of 10 tokens": SamplingParams(
        ignore_eos=True, logit_bias=dict.fromkeys(range(1000, 1010), 0.5)
    ),
    "min_tokens": SamplingParams(max_tokens=1000, min_tokens=1000),
    "logprobs, 5 likeliest": SamplingParams(ignore_eos=True, top_logprobs=5),
    "JSON schema": SamplingParams(structure=SCHEMA),
    "regex": SamplingParams(structure=REGEX),
    "choices": SamplingParams(structure=CHOICES),
    "a processor of the user": SamplingParams(
        ignore_eos=True, logits_processors=[lambda tokens, logits: logits]
    ),
}


def open_engine(model: Any, tokenizer: Any, sampling: SamplingParams, rows: int) -> Engine:
    """An engine with all its rows decoding."""
    engine = Engine(
        model,
        tokenizer,
        speculation=SpeculationConfig(enabled=False),
        batching=BatchingConfig(batch_size=rows),
    )
    options = SamplingParams(**{**vars(sampling), "max_tokens": 1000})
    prompts = [f"{PROMPT} {number}." for number in range(rows)]
    engine.submit(*make_sequences(model, tokenizer, prompts, options))
    while len(engine.decoder.running) < rows:
        engine.step(hurry=True)
    for _ in range(4):
        engine.step(hurry=True)
    return engine


def timed(engine: Engine, steps: int, rows: int) -> float:
    """Milliseconds a step, all that was launched computed; after one that does not count."""
    engine.step(hurry=True)
    mx.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        engine.step(hurry=True)
    mx.synchronize()
    seconds = time.perf_counter() - started
    assert len(engine.decoder.running) == rows, "a row has ended"
    return 1e3 * seconds / steps


def measure(
    model: Any, tokenizer: Any, rows: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds a step of plain decoding; and by method what it takes more, each time."""
    chosen = {n: s for n, s in METHODS.items() if n in (options.only or METHODS) and n != PLAIN}
    each: dict[str, list[float]] = {PLAIN: [], **{name: [] for name in chosen}}
    for name, sampling in chosen.items():
        plain = open_engine(model, tokenizer, METHODS[PLAIN], rows)
        own = open_engine(model, tokenizer, sampling, rows)
        for _ in range(options.rounds):
            first, a, b, last = (
                timed(one, options.steps, rows) for one in (plain, own, own, plain)
            )
            each[PLAIN] += [first, last]
            each[name] += [a - first, b - last]
    return each


def thin(tokenizer: Any, layers: int) -> Any:
    """A random Llama with this tokenizer's vocabulary and hardly anything else."""
    mx.random.seed(0)
    shape = llama.ModelArgs(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=layers,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        vocab_size=len(tokenizer.get_vocab()),
    )
    model = llama.Model(shape)
    mx.eval(model.parameters())
    return model


def spread(more: Sequence[float]) -> str:
    """Median, and quartiles."""
    low, middle, high = statistics.quantiles(more, n=4)
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    """Print one table for all batch sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=0, help="of a thin one; 0: the model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--only", nargs="+", choices=list(METHODS)[1:])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="of a method at a time")
    add_save(parser)
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    if options.layers:
        model = thin(tokenizer, options.layers)
    results = {rows: measure(model, tokenizer, rows, options) for rows in options.batch}
    names = list(results[options.batch[0]])
    lines = [["a plain step", *(f"{statistics.median(results[b][PLAIN]):.1f}" for b in results)]]
    for name in names[1:]:
        lines.append([name, *(spread(each[name]) for each in results.values())])
    table(
        "Milliseconds a step over plain (quartiles over the rounds)",
        ["all rows with", *(f"B = {rows}" for rows in options.batch)],
        lines,
    )
    finish(options, results)


if __name__ == "__main__":
    main()
