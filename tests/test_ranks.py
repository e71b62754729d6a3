"""One model held by several processes: the same tokens as by one, drafted for, rows coming and
going; and an end with a word where a process dies or decides otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import rank_program
from tests.ranks import launch

FIXED = {"adaptive": False, "num_draft_tokens": 4}


def several(count: int, options: dict[str, Any]) -> dict[str, Any]:
    """What rank 0 of so many says; the others say nothing."""
    first, *others = launch(count, "-m", "tests.rank_program", json.dumps(options)).wait()
    assert first[0] == 0, first[2]
    assert [(code, out, err) for code, out, err in others] == [(0, "", "")] * (count - 1)
    said: dict[str, Any] = json.loads(first[1])
    return said


def check_alike(one: dict[str, Any], many: dict[str, Any]) -> None:
    for name in ("reasons", "again", "either"):
        assert many[name] == one[name]
    assert many["reasons"][2] == "cancelled"
    for place, (lone, own) in enumerate(zip(one["tokens"], many["tokens"], strict=True)):
        if place == 2:  # whoever was cancelled has said as much as there was time for
            lone, own = (row[: min(len(lone), len(own))] for row in (lone, own))
        assert own == lone
    assert many["drafted"] > many["accepted"] > 0


@pytest.mark.slow
def test_tensor_parallel_says_what_one_process_says() -> None:
    options = {"model": "demo", "draft": "demo-draft", "speculation": FIXED}
    check_alike(rank_program.run(options), several(2, {**options, "shard": "tensor"}))
