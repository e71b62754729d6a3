"""Windows and recurrent states in random, rough and long traffic, and under the debug mode.

The same traffics as those of full attention (``traffic``, ``test_rough_traffic``, ``test_soak``),
shorter: one model of sliding windows of 16 tokens beside full attention, one of gated delta nets
beside it.
"""

from __future__ import annotations

import pytest

from mlx_spec.config import SamplingParams
from tests.architecture_runs import Plan, run
from tests.scenario import noisy_draft, target
from tests.soaking import soaked
from tests.test_rough_traffic import treat_badly
from tests.test_soak import ROWS, Soak, check_outputs, make_generator
from tests.traffic import run_traffic

pytestmark = pytest.mark.usefixtures("uncompiled")

FAMILIES = ("gemma3", "qwen3_next")
SOAKED = 60


class ShortSoak(Soak):
    """Fewer requests: again and again all but two of the rows that run must wait."""

    def _attend(self) -> None:
        super()._attend()
        running = self._generator.stats().running
        if running > 3:
            self._generator.set_batch_size(2)
        elif running < 3:
            self._generator.set_batch_size(ROWS)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_traffic_over_little_memory_is_served(family: str) -> None:
    assert run_traffic(1, family, 14) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_waits_and_every_row_is_free(family: str) -> None:
    treat_badly(0, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soak_leaves_nothing_behind(family: str) -> None:
    models = target(family), noisy_draft(family)
    options = SamplingParams(max_tokens=4, temperature=0.8)
    soak, stats = soaked(
        lambda witness: make_generator(models, witness),
        lambda generator: generator.generate([[1, 2, 3]] * 16, options),
        ShortSoak,
        SOAKED,
    )
    assert stats.preempted > 0
    assert stats.generation.accepted > 50
    assert sum(ask.stream.result(0).reused_tokens > 0 for ask in soak.all) > 3
    check_outputs(soak, family, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_debug_mode_finds_each_row_as_a_lone_one_has_it(family: str) -> None:
    outcome = run(family, Plan(tokens=(14, 9, 12, 20, 8), debug=True))
    assert outcome.wrong == []
    assert min(outcome.drafted) > 0
