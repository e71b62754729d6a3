"""Where a device plans attention by its shape (CUDA), shapes come again, and tokens stay what they
are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.cache import packing as packings
from mlx_spec.cache.packing import TokenPacking
from mlx_spec.cache.slot_sizes import POSITION_STEP
from mlx_spec.cache.span import Span
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding import setup
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model import replay
from mlx_spec.model.ranks import LONE
from tests.fakes import CorruptingDrafter, RaggedPolicy, every_fifth
from tests.models import VOCABULARY
from tests.scenario import make_jobs, run_jobs, target, wrong_rows

Shape = tuple[int, int, int]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and packings as on a GPU that plans attention by its shape."""
    monkeypatch.setattr("mlx_spec.cache.layout.plans_by_shape", lambda: True)
    monkeypatch.setattr(packings, "asks_dearly", lambda: True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[Shape]:
    """Rows, queries and keys of all calls of attention of more than one query a row, but a
    prompt's."""
    found: set[Shape] = set()
    own: Callable[..., mx.array] = mx.fast.scaled_dot_product_attention

    def attention(queries: mx.array, keys: mx.array, *more: Any, **options: Any) -> mx.array:
        rows, _, width, _ = queries.shape
        if 1 < width <= 5:
            found.add((rows, width, keys.shape[2]))
        return own(queries, keys, *more, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)
    return found


def run(family: str, rows: int, sampled: bool) -> tuple[list[int], int]:
    """Rows that said something wrong, and guesses that stood; drafts are ragged, and requests join
    as others leave."""
    jobs = make_jobs(family, sampled, 2 * rows + 1)
    decoder = SpeculativeDecoder(
        target(family),
        drafter=CorruptingDrafter(target(family), rows, every_fifth, VOCABULARY),
        policy=RaggedPolicy(4),
        batching=BatchingConfig(batch_size=rows, prefill_step_size=16),
    )
    sequences = run_jobs(decoder, jobs)
    return wrong_rows(jobs, sequences), sum(each.accepted for each in sequences)


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3", "jamba"])
def test_every_row_equals_the_target_alone(family: str, rows: int, sampled: bool) -> None:
    wrong, accepted = run(family, rows, sampled)
    assert wrong == []
    assert accepted > 0


@pytest.mark.parametrize("rows", [1, 5])
def test_shapes_come_again(rows: int, asked: set[Shape], request: pytest.FixtureRequest) -> None:
    """A text that grows is planned once for a step of positions, and once for all rows."""
    run("llama", rows, False)
    before = set(asked)
    asked.clear()
    request.getfixturevalue("planned")
    run("llama", rows, False)
    assert {keys % POSITION_STEP for _, _, keys in asked} == {0}
    assert len(asked) <= 4 * rows < len(before)


def test_rows_of_a_packed_pass_ask_together(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [5, 1, 1, 1, 1, 1, 5]
    apart = TokenPacking.of(counts, sum(counts))
    monkeypatch.setattr(packings, "asks_dearly", lambda: True)
    together = TokenPacking.of(counts, sum(counts))
    assert len(apart.runs) > 1
    assert [(run.first, run.end, run.width) for run in together.runs] == [(0, 7, 5)]


@pytest.mark.parametrize(
    ("width", "limit", "positions", "keys"),
    [(3, 70, 512, 256), (3, 257, 300, 300), (1, 70, 512, 70), (65, 70, 512, 70)],
    ids=["guesses", "the end of the slots", "plain", "a prompt"],
)
def test_keys_of_a_pass(width: int, limit: int, positions: int, keys: int) -> None:
    span = Span(0, 2, mx.array([limit - width, 3]), width, limit).in_steps(positions)
    assert span.limit == keys
    mask = span.mask(None)
    assert mask.shape == (2, 1, width, keys)
    assert mask.sum(axis=-1)[:, 0].tolist() == [
        [limit - width + 1 + n for n in range(width)],
        [4 + n for n in range(width)],
    ]


def test_what_cuda_was_slower_with_is_off_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (setup, replay):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    assert setup.may_be_filled(SpeculationConfig(), LONE)
    assert replay.replay_pays()
    for module in (setup, replay):
        monkeypatch.setattr(module, "plans_by_shape", lambda: True)
    assert not setup.may_be_filled(SpeculationConfig(), LONE)
    assert not replay.replay_pays()
