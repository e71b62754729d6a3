"""A program that several processes run (``tests.ranks``): every drafter, then options of all kinds.

    python -m tests.rank_drafts '{"model": ..., "head": ..., "shard": "tensor", "kinds": ["head"]}'

Without ``shard`` one process runs it, of whom ``"kinds": ["off"]`` asks what the model says alone.
Rank 0 prints a JSON object, the others nothing.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mlx_spec import (
    BatchedMLXGenerator,
    BatchingConfig,
    SpeculationConfig,
    Structure,
    UnsupportedModel,
    follow,
    load,
)
from mlx_spec.config import SamplingParams

# Rows that say five letters only, some of them by lot: what was said before comes again, and often
# goes on in another way, so that every drafter is right now and then.
SAID = dict.fromkeys((65, 70, 75, 80, 85), 60.0)
PROMPTS = ("FKPUA", "a text of several words, FKPU", "x", "FKFKFKPUPUPU", "later: AFKPUA")
TOKENS = (26, 9, 40, 18, 22)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.5, "seed": 1},
    {},
    {"temperature": 0.7, "seed": 2, "top_k": 3},
    {"temperature": 0.5, "seed": 3},
    {"temperature": 0.3, "seed": 4},
)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
LONG = "one two three four five six seven eight nine ten, "
# One batch with nearly all that a request can ask for.
MIXED: tuple[tuple[str, dict[str, Any]], ...] = (
    (LONG, {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "max_tokens": 24}),
    ("p", {"temperature": 0.8, "seed": 5, "top_p": 0.9, "top_logprobs": 2, "max_tokens": 20}),
    ("{", {"structure": Structure.json_schema(SCHEMA), "max_tokens": 48}),
    ("?", {"structure": Structure.choices(["yes", "no", "perhaps"]), "temperature": 1, "seed": 6}),
    ("b", {"logit_bias": SAID, "presence_penalty": 0.5, "temperature": 0.6, "seed": 7, "n": 2}),
    ("c", {"min_p": 0.02, "xtc_probability": 0.5, "temperature": 1.2, "seed": 8, "min_tokens": 4}),
    (f"{LONG}eleven", {"prompt_logprobs": True, "logprobs": True, "max_tokens": 12}),
    (f"{LONG}twelve", {"stop": "\x01", "max_tokens": 30, "ignore_eos": True}),
)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """What all of them say."""
    model, tokenizer = load(options["model"], shard=options.get("shard"))
    head = load(options["head"]) if options.get("head") else None
    follow(model, tokenizer, draft_model=head)
    made: dict[str, Any] = {"rows": {}, "refused": {}}

    def generator(kind: str, **more: Any) -> BatchedMLXGenerator:
        layers = (0,) if "self" in kind else None
        speculation = SpeculationConfig(
            enabled=False if kind == "off" else None,
            draft=None if kind == "off" else kind,
            draft_layers=layers,
            num_draft_tokens=3,
            adaptive=False,
        )
        return BatchedMLXGenerator(
            model,
            tokenizer,
            draft_model=head if "head" in kind else None,
            speculation=speculation,
            batching=BatchingConfig(batch_size=3, **more),
        )

    for kind in options["kinds"]:
        try:
            with generator(kind) as made_for:
                made["rows"][kind] = _rows(made_for)
        except UnsupportedModel as error:
            made["refused"][kind] = str(error)
    cached = {"prefix_cache_bytes": 2**20, "block_size": 8}
    with generator(options["mixed"], **cached, **options.get("batching", {})) as mixed:
        made["mixed"] = _mixed(mixed, tokenizer)
    return made


def _rows(generator: BatchedMLXGenerator) -> dict[str, Any]:
    """Five requests in three slots: rows join and leave, one joins late and one is cancelled."""

    def submit(place: int) -> Any:
        sampling = SamplingParams(
            max_tokens=TOKENS[place], ignore_eos=True, logit_bias=SAID, **OPTIONS[place]
        )
        return generator.submit(PROMPTS[place], sampling)

    first = [submit(place) for place in range(4)]
    for _ in zip(range(4), first[0], strict=False):
        pass
    first[2].cancel()
    streams = [*first, submit(4)]
    rows = [stream.result(timeout=600) for stream in streams]
    drafters = generator.stats().generation.drafters
    return {
        "tokens": [row.token_ids for row in rows],
        "reasons": [row.finish_reason for row in rows],
        "drafters": {name: [of.drafted, of.accepted] for name, of in drafters.items()},
    }


def _mixed(generator: BatchedMLXGenerator, tokenizer: Any) -> dict[str, Any]:
    """Then a conversation that goes on behind the first of them."""
    streams: list[Any] = []
    for prompt, options in MIXED:
        several = options.get("n", 1) > 1
        given = {"max_tokens": 16, **options}
        stream = generator.submit(prompt, **given)
        streams += stream if several else [stream]
    rows = [stream.result(timeout=600) for stream in streams]
    turn = [*tokenizer.encode(MIXED[0][0]), *rows[0].token_ids, 7, 9]
    rows.append(generator.submit(turn, max_tokens=6).result(timeout=600))
    drafters = generator.stats().generation.drafters
    return {
        "texts": [row.text for row in rows],
        "tokens": [row.token_ids for row in rows],
        "reasons": [row.finish_reason for row in rows],
        "scores": [row.scores for row in rows],
        "reused": rows[-1].reused_tokens,
        "drafters": {name: [of.drafted, of.accepted] for name, of in drafters.items()},
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
