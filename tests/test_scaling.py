"""``docs/scaling.md``: counts are what models keep, bounds are bounds, the page is in step."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_spec.model.support import examine
from tests.architectures import build

with pytest.MonkeyPatch.context() as _patch:  # as a script finds what is beside it
    _patch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    scaling = importlib.import_module("scaling")
    counted = importlib.import_module("bench_support.scaling_bytes")

CHIPS, MODELS, LLAMA_8B, QWEN_30B = (
    counted.CHIPS,
    counted.MODELS,
    counted.LLAMA_8B,
    counted.QWEN_30B,
)
grouped_heads, latent, step_seconds = (
    counted.grouped_heads,
    counted.latent,
    counted.step_seconds,
)
MEASURED = json.loads((scaling.FOLDER / "measured.json").read_text())


@pytest.mark.parametrize(
    ("family", "numbers"),
    [
        ("llama", lambda a: grouped_heads(a.num_hidden_layers, a.num_key_value_heads, a.head_dim)),
        ("gemma3_text", lambda a: grouped_heads(1, a.num_key_value_heads, a.head_dim)),
        ("qwen3_next", lambda a: grouped_heads(1, a.num_key_value_heads, a.head_dim)),
        ("deepseek_v3", lambda a: latent(a.num_hidden_layers, a.kv_lora_rank, a.qk_rope_head_dim)),
    ],
)
def test_caches_are_counted_as_this_engine_keeps_them(family: str, numbers: Any) -> None:
    model = build(family)
    assert examine(model).cost.per_token == 4 * numbers(model.args)


def test_a_state_is_counted_as_it_is_kept() -> None:
    model = build("qwen3_next")
    a = model.args
    keys, values = (
        a.linear_num_key_heads * a.linear_key_head_dim,
        a.linear_num_value_heads * a.linear_value_head_dim,
    )
    state = 4 * values * a.linear_key_head_dim
    convolution = 4 * (2 * keys + values) * (a.linear_conv_kernel_dim - 1)
    assert examine(model).cost.fixed == state + convolution


def test_known_numbers() -> None:
    assert LLAMA_8B.row(1) == 131_072
    assert LLAMA_8B.weights(16) == pytest.approx(15.01e9)
    assert QWEN_30B.weights(16, 1) == pytest.approx(2 * (1.23e9 + 28.99e9 / 16))
    assert QWEN_30B.weights(16, 10_000) == pytest.approx(2 * (1.23e9 + 28.99e9))
    assert counted.expected(0.7, 2) == pytest.approx(1 + 0.7 + 0.49)
    # 34 thousand tokens of context weigh as much as the weights.
    rows = scaling.crossing(LLAMA_8B, 4, 1024)
    assert rows * LLAMA_8B.row(1024) > LLAMA_8B.weights(4) >= (rows - 1) * LLAMA_8B.row(1024)


@pytest.mark.parametrize("machine", CHIPS, ids=lambda chip: chip.name)
def test_a_bound_grows_with_all_that_must_be_done(machine: Any) -> None:
    for model in MODELS:
        times = [
            step_seconds(model, machine, (rows, tokens), context)
            for rows, tokens, context in ((1, 1, 0), (1, 1, 999), (4, 1, 999), (4, 5, 999))
        ]
        assert times == sorted(times)
        assert times[0] >= model.weights(4) / machine.bandwidth


def test_what_operations_bind_no_draft_makes_faster() -> None:
    """Up to the ridge a draft is verified for nothing; past it each token costs its share."""
    m1_max = next(chip for chip in CHIPS if chip.name == "M1 Max")
    one, five, forty = (step_seconds(LLAMA_8B, m1_max, (1, n), 0) for n in (1, 5, 40))
    assert one == five
    assert forty == pytest.approx(40 * LLAMA_8B.operations(0) / m1_max.flops)
    assert scaling.best_draft(m1_max, 64, 1024) == (0, 1.0)
    assert scaling.best_draft(m1_max, 64, 131_072)[1] > 2


def test_no_measured_pass_beats_its_bound() -> None:
    for rows, keys, seconds in MEASURED["passes"]:
        bound, both = scaling.parts(MEASURED, rows, keys)
        assert bound <= both <= seconds


def test_the_page_is_in_step() -> None:
    page = (scaling.DOCS / "scaling.md").read_text(encoding="utf-8")
    assert page == scaling.document(MEASURED), "run: python scripts/scaling.py"
    assert "<!--" not in page
    shown = set(re.findall(r"scaling/(\w+)\.svg", page))
    names = {picture.name for picture in scaling.pictures(MEASURED)}
    assert shown == names == {path.stem for path in scaling.FOLDER.glob("*.svg")}
