"""A program that several processes run (``tests.ranks``): five requests in three slots.

    python -m tests.rank_program '{"model": "demo", "shard": "tensor", "draft": "demo-draft"}'

Without ``shard`` one process runs it: what several say must be the same. Rank 0 prints a JSON
object, the others nothing.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from mlx_spec import (
    BatchedMLXGenerator,
    BatchingConfig,
    SpeculationConfig,
    Structure,
    batch_generate,
    follow,
    load,
)

PROMPTS = (
    "def read_file(path):\n",
    "class Stack:\n    def push(self",
    "import os\n\n\ndef main():\n    for name in os.listdir(",
    "x",
    "for i in range(10):\n    print(i)\nfor i in range(10):\n    print(",
)
TOKENS = (14, 6, 30, 9, 12)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """What the requests say, and how they were drafted for."""
    model, tokenizer = load(options["model"], shard=options.get("shard"))
    draft = load(options["draft"]) if options.get("draft") else None
    if options.get("planted") and os.environ["MLX_RANK"] == "1":
        _plant()
    follow(model, tokenizer, draft_model=draft)
    speculation = SpeculationConfig(**options.get("speculation", {}))
    batching = BatchingConfig(batch_size=3, **options.get("batching", {}))
    with BatchedMLXGenerator(
        model, tokenizer, draft_model=draft, speculation=speculation, batching=batching
    ) as generator:
        if options.get("forever"):
            _forever(generator)
        rows = _rows(generator)
        stats = generator.stats().generation
        generator.set_batch_size(2)
        again = generator.generate(PROMPTS[:3], max_tokens=6, ignore_eos=True)
    either = batch_generate(
        model,
        tokenizer,
        PROMPTS[:2],
        draft_model=draft,
        max_tokens=16,
        speculation=speculation,
        structure=Structure.choices(["yes", "no", "perhaps"]),
    )
    return {
        "tokens": [row.token_ids for row in rows],
        "reasons": [row.finish_reason for row in rows],
        "again": [row.token_ids for row in again],
        "either": either.texts,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "packed": stats.packed_steps,
        "reused": stats.reused_tokens,
    }


def _rows(generator: BatchedMLXGenerator) -> list[Any]:
    first = [
        generator.submit(prompt, max_tokens=tokens, ignore_eos=True)
        for prompt, tokens in zip(PROMPTS[:4], TOKENS, strict=False)
    ]
    for _ in zip(range(4), first[0], strict=False):
        pass  # the last one joins in the middle, and one leaves before its end
    first[2].cancel()
    last = generator.submit(
        PROMPTS[4], max_tokens=TOKENS[4], ignore_eos=True, temperature=0.8, seed=7
    )
    return [stream.result(timeout=300) for stream in (*first, last)]


def _forever(generator: BatchedMLXGenerator) -> None:
    """Until a rank is killed."""
    stream = generator.submit(PROMPTS[0], max_tokens=None, ignore_eos=True)
    next(stream)
    print("running", flush=True)
    while True:
        generator.generate(PROMPTS[:3], max_tokens=500, ignore_eos=True)


def _plant() -> None:
    """This rank says of its passes what is not so."""
    from mlx_spec.model.ranks import SeveralRanks

    own = SeveralRanks.note
    SeveralRanks.note = lambda ranks, *facts: own(ranks, *facts, 1)  # type: ignore[method-assign]


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
