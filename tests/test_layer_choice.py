"""Which layers draft: found by numbers, kept on disk, measured anew where the file is no good."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.drafters import calibration
from mlx_spec.decoding.drafters.calibration import chosen_layers
from mlx_spec.decoding.drafters.layer_choice import LayerChoice, choice_file, fingerprint
from mlx_spec.decoding.drafters.self_layers import SelfDrafter
from mlx_spec.model.runner import ModelRunner
from mlx_spec.weak_memo import WeakMemo
from tests.models import make_model
from tests.scenario import make_jobs, run_jobs, target, wrong_rows

IDLE = {1, 2, 4}


@cache
def idle_layers() -> Any:
    """A model of six layers, three of which add nothing."""
    model = make_model("llama", num_hidden_layers=6)
    for place in IDLE:
        layer = model.layers[place]
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight = mx.zeros_like(last.weight)
    mx.eval(model.parameters())
    return model


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "_KNOWN", WeakMemo())


def measured_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, how often layers were measured."""
    monkeypatch.setattr(calibration, "_KNOWN", WeakMemo())
    right, times = calibration._Search.best, [0]

    def best(self: Any) -> LayerChoice:
        times[0] += 1
        return right(self)

    monkeypatch.setattr(calibration._Search, "best", best)
    return times


def test_layers_that_add_nothing_are_skipped_and_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = ModelRunner(idle_layers(), 2)
    choice = chosen_layers(runner)
    assert set(choice.layers) == set(range(6)) - IDLE
    assert (choice.agreement, choice.promise > 1) == (1.0, True)
    assert choice_file(fingerprint(runner.model)).exists()
    times = measured_again(monkeypatch)
    assert chosen_layers(runner) == choice
    assert times == [0]


@pytest.mark.parametrize("spoil", ["{", "[]", '{"key": "other", "layers": [0]}', "foreign layers"])
def test_a_file_that_is_no_good_is_measured_anew(
    spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ModelRunner(idle_layers(), 2)
    choice, file = chosen_layers(runner), choice_file(fingerprint(runner.model))
    good = file.read_text()
    file.write_text(good.replace("[0,", "[9,") if spoil == "foreign layers" else spoil)
    times = measured_again(monkeypatch)
    with pytest.warns(RuntimeWarning, match="is not what was written there"):
        assert chosen_layers(runner) == choice
    assert times == [1]
    assert file.read_text() == good


def test_other_weights_are_another_model() -> None:
    one, same, other = (make_model("llama", seed=seed) for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_a_choice_promises_by_agreement_and_cost() -> None:
    def promise(agreement: float, cost: float) -> float:
        return LayerChoice((0,), agreement, cost).promise

    assert promise(1.0, 0.5) == pytest.approx(7 / 4)  # six guesses, all of them right
    assert promise(0.5, 0.5) == 1.0  # one guess, right every second time: it just pays
    assert promise(0.1, 0.5) < promise(0.8, 0.9) < 1.0 < promise(0.6, 0.2)


def test_asked_for_by_name_a_target_drafts_for_itself() -> None:
    """Nothing else is said; drafts happen by default settings."""
    jobs = make_jobs("llama", False, 5)
    decoder = SpeculativeDecoder(
        target("llama"),
        speculation=SpeculationConfig(draft="self", adaptive=False, num_draft_tokens=2),
        batching=BatchingConfig(batch_size=2),
    )
    assert isinstance(decoder.drafter, SelfDrafter)
    rows = run_jobs(decoder, jobs)
    assert wrong_rows(jobs, rows) == []
    assert 0 < sum(row.accepted for row in rows) < sum(row.drafted for row in rows)
