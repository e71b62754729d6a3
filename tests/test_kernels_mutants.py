"""Planted bugs in the Metal sources: each must be caught, by the simulator or by a wrong value.

``docs/kernels.md`` shows the table of what caught which; the last test holds it to these cases.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import metal_sim
from metal_kernels import _runtime
from tests.kernel_mutants import CASES, MUTANTS
from tests.kernel_support import Mutant

DOCS = Path(__file__).parent.parent / "docs" / "kernels.md"
VALUE = "value"


def catchers(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What notices a mutant: kinds of findings, and ``"value"``."""
    original = _runtime.read_source(mutant.file)
    assert mutant.before in original, "the source has changed: plant the bug anew"
    mutated = original.replace(mutant.before, mutant.after)
    monkeypatch.setattr(_runtime, "read_source", lambda file: mutated)
    with metal_sim.installed(collect=True, max_steps=2_000_000) as simulator:
        wrong = mutant.run()
        caught = {finding.kind for finding in simulator.take_findings()}
    return caught | ({VALUE} if not wrong <= 1e-4 else set())


needs_simulator = pytest.mark.skipif(
    metal_sim.unavailable() is not None, reason=metal_sim.unavailable() or ""
)


@needs_simulator
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mutant.caught
    assert set(mutant.caught.split()) <= catchers(mutant, monkeypatch)


@needs_simulator
@pytest.mark.parametrize("run", CASES)
def test_without_a_bug_nothing_is_caught(run: Callable[[], float]) -> None:
    with metal_sim.installed():
        assert run() <= 1e-5


def test_the_table_of_the_docs_is_this_one() -> None:
    rows = re.findall(
        r"^\| ((?:norm|add|attention|sample)[^|]*) \| ([^|]*) \|$", DOCS.read_text(), re.M
    )
    assert rows == [(mutant.name, ", ".join(mutant.caught.split())) for mutant in MUTANTS]
