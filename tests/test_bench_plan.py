"""How much ``mlx-spec bench`` measures: what was asked for, and of the rest what fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlx_spec.bench.options import BenchOptions
from mlx_spec.bench.plan import FirstLook, Plan, first_plan, make_plan, within_context
from mlx_spec.errors import InvalidRequest

FAST = FirstLook({1: 0.001, 16: 0.002}, 1e-5)
SLOW = FirstLook({1: 0.1, 16: 0.3}, 1e-3)


def planned(look: FirstLook, **options: Any) -> Plan:
    return make_plan(BenchOptions(**options), look, lambda batch: 4, 128, built_in=True)


def seconds(plan: Plan, look: FirstLook) -> float:
    return plan.seconds(look, lambda batch: 4, 128)


def test_a_fast_machine_does_all_of_it() -> None:
    assert planned(FAST) == Plan()


def test_a_slow_one_does_what_fits_and_never_less_than_three_rounds() -> None:
    for milliseconds in (5, 10, 20, 40, 80):
        look = FirstLook({1: milliseconds / 1e3, 16: 3e-3 * milliseconds}, milliseconds / 1e5)
        plan = planned(look)
        assert seconds(plan, look) <= 120
        assert seconds(Plan(), look) > 120 or plan == Plan()
        assert plan.rounds >= 3
    hopeless = planned(FirstLook({1: 10.0, 16: 10.0}, 1.0))
    assert hopeless == Plan(batches=(1,), rounds=3, tokens=16, prompts=2)


def test_more_minutes_measure_more() -> None:
    few, more = planned(SLOW), planned(SLOW, minutes=10.0)
    assert seconds(few, SLOW) < seconds(more, SLOW) <= 600
    assert set(few.batches) <= set(more.batches)


def test_what_was_asked_for_stays() -> None:
    asked = {"batch_sizes": ("2", "32"), "rounds": 7, "max_tokens": 200, "prompt_lengths": ("64",)}
    plan = planned(SLOW, **asked)
    assert (plan.batches, plan.rounds, plan.tokens, plan.lengths) == ((2, 32), 7, 200, (64,))


def test_quick_and_full() -> None:
    assert planned(FAST, quick=True).batches == (1, 8)
    assert seconds(planned(SLOW, quick=True), SLOW) < seconds(planned(SLOW), SLOW)
    full = planned(SLOW, full=True)
    assert full.lengths == (16, 128, 512, 2048)
    assert full.batches == Plan().batches


def test_prompts_of_a_file_are_as_long_as_they_are() -> None:
    plan, _ = first_plan(BenchOptions(prompts="mine.jsonl"), built_in=False)
    assert plan.lengths == (None,)
    assert seconds(plan, FAST) == seconds(Plan(), FAST)


def test_only_lengths_that_fit_into_the_context_are_measured() -> None:
    full = planned(SLOW, full=True)
    assert within_context(full, None) == full
    assert within_context(full, 2176) == full
    assert within_context(full, 2175).lengths == (16, 128, 512)
    assert within_context(full, 100).lengths == (16,)
    own = replace(full, lengths=(None,))
    assert within_context(own, 100) == own


def test_a_first_look_tells_of_rows_between_and_beyond() -> None:
    assert SLOW.step(1) == 0.1
    assert SLOW.step(16) == 0.3
    assert SLOW.step(4) == pytest.approx(0.14)
    assert SLOW.step(32) == pytest.approx(0.6)
    assert FirstLook({2: 0.5}, 0.0).step(1) == 0.5


def test_a_plan_counts_all_runs() -> None:
    plan = Plan(batches=(1, 8), lengths=(10,), rounds=2, tokens=4, prompts=4)
    look = FirstLook({1: 1.0, 8: 3.0}, 0.1)
    # At one row four prompts, one after the other; at eight rows eight, together.
    one, eight = 4 * 10 * 0.1 + 4 * 4 * 1.0, 8 * 10 * 0.1 + 4 * 3.0
    warm = 10 * 0.1 + 8 * 1.0 + 8 * 10 * 0.1 + 8 * 3.0
    assert plan.seconds(look, lambda batch: 3, 10) == pytest.approx(2 * warm + 6 * (one + eight))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quick": True, "full": True}, "--quick and --full"),
        ({"batch_sizes": ("1", "x")}, "--batch-sizes 1,x, expected numbers"),
        ({"batch_sizes": ("0",)}, "--batch-sizes 0"),
        ({"prompt_lengths": ("-3",)}, "--prompt-lengths -3"),
        ({"prompts": "a.jsonl", "prompt_lengths": ("16",)}, "--prompt-lengths is for the built-in"),
        ({"compare": ("vllm",)}, "--compare 'vllm', expected mlx-lm"),
        ({"rounds": 0}, "--rounds 0, expected at least 1"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"minutes": 0.0}, "--minutes 0.0"),
        ({"quantize": ("4", "5x")}, "quantize='5x'"),
    ],
)
def test_a_mistake_is_said_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words.replace("(", r"\(")):
        BenchOptions(**options)


def test_forms_of_the_weights() -> None:
    assert BenchOptions().weights == (None,)
    assert BenchOptions(quantize=("none", "4", "8", "4")).weights == (None, "4", "8")
