"""Guesses that are given to rows on the device: the parts, against what the host does."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from metal_kernels import MoreFilters, SampleRows
from mlx_spec import SpeculationConfig
from mlx_spec.cache.filled import filled_packing
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.allocation import Prices, StepBudget, fill, fixed_budget
from mlx_spec.control.confidence import Confidence
from mlx_spec.control.filled import FilledDrafts
from mlx_spec.control.filling import Filling
from mlx_spec.control.report import StepReport
from mlx_spec.control.shared import PairMeasurements
from mlx_spec.decoding import setup
from mlx_spec.decoding.filling import give, reaching
from mlx_spec.decoding.sampler import SamplingBatch
from mlx_spec.decoding.setup import may_be_filled
from mlx_spec.model.ranks import LONE
from scripts.simulated.machines import COMPUTE, DRAFTER, FLAT, TILES_5, Machine
from scripts.simulated.play import SimulatedRow
from tests.policies import adaptive

ROWS, WIDTH = 6, 5


def filling_of(luck: random.Random, guesses: int | None = None) -> Filling:
    """Of rows with room for 0 to ``WIDTH`` guesses, after some experience."""
    confidence = Confidence()
    for _ in range(60):
        confidence.add([[luck.random() for _ in range(3)]], [luck.randint(0, 3)])
    most = [luck.randint(0, WIDTH) for _ in range(ROWS)]
    most[luck.randrange(ROWS)] = WIDTH
    wanted = luck.randint(1, sum(most)) if guesses is None else guesses
    times = [luck.uniform(0.5, 1.5) for _ in range(ROWS)]
    weights = [luck.uniform(0.5, 1.5) for _ in range(ROWS)] if luck.random() < 0.5 else None
    return Filling(most, wanted, confidence.worth, times, weights)


def words(luck: random.Random, *, ties: bool = False) -> list[list[float]]:
    """What a drafter says."""
    number = (lambda: luck.choice((0.25, 0.5))) if ties else luck.random
    return [[number() for _ in range(WIDTH)] for _ in range(ROWS)]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_device_gives_what_the_host_would(seed: int, ties: bool) -> None:
    """The likeliest of all rows, in the order of rows where they are equally likely; that is
    always the beginning of a row, and as many in all as the host counts with."""
    luck = random.Random(seed)
    filling = filling_of(luck)
    if ties:
        filling = Filling(filling.most, filling.guesses, filling.worth, [1.0] * ROWS)
    said = mx.array(words(luck, ties=ties))
    values: Any = reaching(said, filling).tolist()
    rows = [row[:most] for row, most in zip(values, filling.most, strict=True)]
    assert all(row == sorted(row, reverse=True) for row in rows), "it falls along a row"
    budget = StepBudget(0, filling.guesses, 0.0, 1.0)
    assert give(said, filling).tolist() == fill(rows, budget, range(ROWS))


def test_a_word_is_worth_on_the_device_what_it_is_on_the_host() -> None:
    luck = random.Random(1)
    confidence = Confidence()
    for _ in range(200):
        confidence.add([[luck.random() for _ in range(3)]], [luck.randint(0, 3)])
    said = words(luck)
    said[0] = [0.0, 0.1, 0.999, 1.0, 0.5]
    times = [luck.uniform(0.5, 1.5) for _ in range(ROWS)]
    device: Any = reaching(mx.array(said), Filling([], 0, confidence.worth, times)).tolist()
    for row, own, factor in zip(device, said, times, strict=True):
        assert row == pytest.approx(confidence.reaching(own, factor), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_words_that_are_no_numbers_cost_their_row_alone(seed: int) -> None:
    """The size of the pass is the host's: whatever is said, so many guesses are given."""
    luck = random.Random(seed)
    filling, said = filling_of(luck), words(luck)
    said[2][1], said[4] = float("nan"), [float("nan")] * WIDTH
    given: Any = give(mx.array(said), filling).tolist()
    assert sum(given) == filling.guesses
    assert all(0 <= n <= most for n, most in zip(given, filling.most, strict=True))


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_pass_that_the_device_fills_is_that_of_the_same_numbers(seed: int, more: int) -> None:
    luck = random.Random(seed)
    counts = [luck.randint(1, WIDTH) for _ in range(ROWS)]
    width, own = max(counts), sum(counts)
    known = TokenPacking.of(counts, own + more)
    filled = filled_packing(mx.array(counts, mx.int32), width, own, own + more)
    assert filled.size == known.size == own + more
    for name in ("places", "index", "whose"):
        assert mx.array_equal(getattr(filled, name), getattr(known, name)), name
    wide: Any = filled_packing(mx.array(counts, mx.int32), width + 2, own, own + more)
    square = mx.arange(ROWS * (width + 2)).reshape(ROWS, width + 2)
    places = [row * (width + 2) + n for row, count in enumerate(counts) for n in range(count)]
    assert wide.packed(square).tolist() == places + [0] * more


@pytest.mark.parametrize("kinds", ["greedy", "sampling", "mixed"])
def test_tokens_are_drawn_with_the_options_of_their_own_rows(kinds: str) -> None:
    """Whosever they are, as where the host knows it."""
    temperature = {"greedy": [0.0] * 5, "sampling": [0.8] * 5, "mixed": [0, 0.8, 1.3, 0.7, 0]}
    plain = kinds != "mixed"
    options = SampleRows.of(
        [3, 1, 4, 1, 5],
        temperature[kinds],
        top_p=None if plain else [1, 1, 0.7, 1, 1],
        more=None if plain else [MoreFilters()] * 3 + [MoreFilters(1, 0.5, 0.05)] + [MoreFilters()],
    )
    batch = SamplingBatch(options)
    rows = [0, 0, 1, 2, 2, 2, 3, 3, 4, 0]
    mx.random.seed(3)
    logits, positions = mx.random.normal((10, 1, 200)), mx.arange(10)[:, None]
    told = batch.sample_told(logits, positions, mx.array(rows, mx.int32))
    known = batch.of_tokens(rows).sample(logits, positions, tops=True)
    assert mx.array_equal(told.tokens, known.tokens)
    assert told.tops is not None
    assert mx.array_equal(told.tops, known.tops)
    assert len(options.of_told(mx.array(rows))) == (4 if kinds == "mixed" else 1)


def test_the_step_of_a_fixed_number_is_the_best_of_all_numbers() -> None:
    """By hand: batches of rows as they were lately, each with its own likeliest guesses."""
    luck = random.Random(4)
    prices = Prices([1.0 + 0.1 * n for n in range(13)], [0.0, 0.05, 0.1, 0.15])
    usual = [[0.9**n * luck.random() for n in (1, 2, 3)] for _ in range(8)]
    usual = [sorted(row, reverse=True) for row in usual]
    best = 0.0
    for passes in (1, 2, 3):
        for guesses in range(1, 4 * passes + 1):
            gains = []
            for batch in (usual[:4], usual[4:]):
                pool = sorted((chance for row in batch for chance in row[:passes]), reverse=True)
                gains.append(4 + sum(pool[:guesses]))
            seconds = prices.verify[guesses] + prices.draft[passes]
            best = max(best, sum(gains) / 2 / seconds)
    found = fixed_budget(usual, 4, prices)
    assert found.speed == pytest.approx(best)
    assert found.guesses > 0


def policy_of(machine: Machine, kind: type[AdaptiveDrafts]) -> AdaptiveDrafts:
    """One that knows what steps cost, and nothing of its drafter."""
    policy = adaptive(machine, pair=PairMeasurements())
    return kind(policy._config, policy._prices, list(policy._drafters.values()))


def played(
    machine: Machine, batch: int, policy: AdaptiveDrafts, seed: int = 0
) -> tuple[float, int, int]:
    """Tokens per second on texts whose next tokens are easy or hard, one by one; guesses that were
    verified, and that stood."""
    luck = random.Random(batch + 1000 * seed)
    easy = [luck.random() < 0.4 for _ in range(5000)]
    rows: list[Any] = [SimulatedRow(10**9, length=32, said=700 * n) for n in range(batch)]
    prices, seconds, tokens, verified, stood = machine.prices(), 0.0, 0, 0, 0
    for _ in range(250):
        plan = policy.choose(rows)
        chances = [[0.92 if easy[(r.said + j) % 5000] else 0.08 for j in range(8)] for r in rows]
        settled = policy.settle(rows, [], [True] * batch)
        lengths, made, said = settled.lengths, max(plan), []
        if made and settled.filling is not None:
            made = max(settled.filling.most)
            said = [row[:made] for row in chances]
            lengths = give(mx.array(said), settled.filling).tolist()  # type: ignore[assignment]
            assert sum(lengths) == sum(settled.lengths), "the pass is as large as was said"
        accepted = [run(own[:length], luck) for own, length in zip(chances, lengths, strict=True)]
        for row, count in zip(rows, accepted, strict=True):
            row.emit(count + 1)
        work = prices.tokens(lengths)
        took = machine.seconds(batch, work, made)
        passes = {DRAFTER: made} if made else {}
        policy.observe(
            StepReport(rows, lengths, accepted, took, True, tokens=work, passes=passes, said=said)
        )
        tokens, seconds = tokens + sum(accepted) + batch, seconds + took
        verified, stood = verified + sum(lengths), stood + sum(accepted)
    return tokens / seconds, verified, stood


def run(chances: Seq[float], luck: random.Random) -> int:
    """How many of them stand."""
    count = 0
    while count < len(chances) and luck.random() < chances[count]:
        count += 1
    return count


@pytest.mark.parametrize(
    ("machine", "batch", "gain"),
    [(FLAT, 4, 0.98), (TILES_5, 4, 1.03), (TILES_5, 16, 1.05), (COMPUTE, 16, 1.05)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_filling_is_quicker_where_tokens_differ(machine: Machine, batch: int, gain: float) -> None:
    """Than the same policy by averages; and more of what is verified stands."""
    runs = [
        [played(machine, batch, policy_of(machine, kind), seed) for seed in range(3)]
        for kind in (FilledDrafts, AdaptiveDrafts)
    ]
    filled, by_averages = ([sum(one) for one in zip(*of, strict=True)] for of in runs)
    assert filled[0] > gain * by_averages[0]
    if batch > 4:
        assert filled[2] / filled[1] > 1.3 * by_averages[2] / by_averages[1]


def test_a_row_alone_and_rectangles_are_not_filled() -> None:
    """There is nobody to give anything to."""
    for machine, batch in ((TILES_5, 1), (Machine("square", FLAT.verify, FLAT.draft, False), 4)):
        policy = policy_of(machine, FilledDrafts)
        played(machine, batch, policy)
        rows: list[Any] = [SimulatedRow(99) for _ in range(batch)]
        assert any(policy.choose(rows)) or not policy.drafts
        assert policy.settle(rows, [], [True] * batch).filling is None


def test_only_a_gpu_fills_and_never_where_it_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under rejection sampling what is thought likely would stand oftener than it may."""
    assert not may_be_filled(SpeculationConfig(), LONE) or not setup.on_cpu()
    monkeypatch.setattr(setup, "on_cpu", lambda: False)
    several: Any = SimpleNamespace(several=True)
    assert may_be_filled(SpeculationConfig(), LONE)
    assert not may_be_filled(SpeculationConfig(acceptance="rejection"), LONE)
    assert not may_be_filled(SpeculationConfig(), several)
