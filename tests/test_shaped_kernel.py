"""A kernel that runs the passes where it pays: between the points that were tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from metal_kernels.trials.site import POINTS, KernelPoint, points_of
from mlx_spec.model.kernel_binding import OPERATIONS, bind_operations
from mlx_spec.model.rows import Rows
from mlx_spec.model.runner import ModelRunner
from mlx_spec.model.shaped_kernel import ShapedKernel
from tests.models import make_model


def won(*shapes: tuple[int, int]) -> frozenset[KernelPoint]:
    return frozenset(point for point in POINTS if (point.rows, point.tokens) in shapes)


@pytest.mark.parametrize(
    ("rows", "tokens", "taken"),
    [
        (1, 1, True),
        (4, 3, True),
        (8, 5, True),
        (8, 9, True),
        (9, 1, True),
        (16, 3, False),
        (32, 5, False),
        (64, 1, True),
        (1, 17, False),
    ],
)
def test_between_points_all_neighbours_must_pay(rows: int, tokens: int, taken: bool) -> None:
    paid = won((1, 1), (1, 5), (8, 1), (8, 5), (32, 1))
    assert ShapedKernel(OPERATIONS["rope"], paid).takes(rows, tokens) is taken


@pytest.mark.parametrize(
    ("rows", "keys", "taken"),
    [
        (1, 40, True),
        (1, 1024, True),
        (1, 3000, True),
        (1, 4097, False),
        (1, 50_000, False),
        (8, 4096, True),
        (4, 9000, False),
        (32, 1024, True),
        (32, 4096, True),  # as (8, 4096) and (32, 1024)
        (32, 9000, False),
    ],
)
def test_attention_is_chosen_by_context(rows: int, keys: int, taken: bool) -> None:
    """Ours pays up to 4,096 keys here, and not at 16,384."""
    paid = [point for point in points_of("attention") if point.keys <= 4096]
    assert ShapedKernel(OPERATIONS["attention"], paid).takes(rows, 3, keys) is taken


def test_many_rows_of_many_keys_need_both_of_those_that_stand_for_them() -> None:
    for missing in ((8, 4096), (32, 1024)):
        paid = [p for p in points_of("attention") if (p.rows, p.keys) != missing]
        assert not ShapedKernel(OPERATIONS["attention"], paid).takes(32, 1, 4096)


def test_a_pass_over_a_long_text_takes_what_is_quicker_there() -> None:
    """In a model: the same kernel, the same rows, other keys."""
    ran: list[int] = []

    def kernel(q: Any, k: Any, *arguments: Any, **options: Any) -> Any:
        ran.append(k.shape[2])
        return OPERATIONS["attention"].reference(q, k, *arguments, **options)

    fake: Any = SimpleNamespace(kernel=kernel, name="attention")
    paid = [point for point in points_of("attention") if point.keys == 1024]
    model = make_model("llama")
    runner = ModelRunner(model, 1)
    runner.pool.acquire(1)
    runner.pool.reserve(1100)
    with bind_operations(model, {"attention": ShapedKernel(fake, paid)}):
        for limit in (700, 1024, 1025):
            rows = Rows(mx.zeros((1, 1), mx.int32), mx.array([limit - 1], mx.int32), limit)
            mx.eval(runner.forward(rows))
    assert sorted(set(ran)) == [700, 1024]
