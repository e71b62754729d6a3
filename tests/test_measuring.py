"""What a decoder measures before its first step: really timed, on tiny models, in a folder of the
test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import BatchingConfig, SpeculationConfig
from mlx_spec.control import shared
from mlx_spec.control.pass_costs import PassCosts
from mlx_spec.decoding import prices, timed_part
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.model import cost_files
from mlx_spec.model.runner import ModelRunner
from mlx_spec.sequence import Sequence
from mlx_spec.weak_memo import WeakMemo
from tests.models import make_model
from tests.waiting import eventually

PROMPTS = ([1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14])


@pytest.fixture(autouse=True)
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_time: Callable[..., object]
) -> Path:
    """Everything is really timed and kept, in a new folder."""
    monkeypatch.setenv(cost_files.VARIABLE, str(tmp_path))
    monkeypatch.setattr(timed_part.PassTimer, "time", own_time)
    for name in ("kept_costs", "keep_costs", "model_lines"):
        monkeypatch.setattr(timed_part, name, getattr(cost_files, name))
    return tmp_path


def decoder(model: Any, draft: Any = None, draft_by: str | None = None, **more: Any) -> Any:
    speculation = SpeculationConfig(draft=draft_by, num_draft_tokens=3, **more)
    batching = BatchingConfig(batch_size=4)
    return SpeculativeDecoder(model, draft_model=draft, speculation=speculation, batching=batching)


def run(made: SpeculativeDecoder, count: int = 8) -> list[list[int]]:
    rows = [Sequence(prompt=list(prompt), max_new_tokens=count) for prompt in PROMPTS]
    made.add(rows)
    while made.busy:
        made.step()
    return [row.tokens for row in rows]


def forget() -> None:
    """As another process."""
    shared._KNOWN = WeakMemo()


def test_a_pair_is_timed_once_for_all_processes(folder: Path) -> None:
    target, draft = make_model(seed=1), make_model(seed=2, num_hidden_layers=1)
    first = decoder(target, draft)
    assert not first.speculation.measuring.prices.known
    tokens = run(first)
    assert first.speculation.measuring.prices.known
    assert "kept in" in first.speculation.measuring.told
    assert str(folder) in first.speculation.measuring.told
    points = first.speculation.measuring.prices.target.points[1]
    assert points.keys() == {1, 2, 3, 4, 6, 8, 10, 12, 14, 15, 16, 18}  # 4 rows of 3
    assert len(list(folder.iterdir())) == 2
    assert first.speculation.measuring.prices.draft("model", 4, 2) > 0

    second = decoder(target, draft)
    assert second.speculation.measuring.prices is first.speculation.measuring.prices
    assert run(second) == tokens
    assert second.speculation.measuring.told == ""
    forget()
    third = decoder(target, draft)
    assert run(third) == tokens == run(decoder(target))
    assert third.speculation.measuring.told == ""
    again = third.speculation.measuring.prices.target
    assert again.points[1] == points


def test_more_rows_need_more_points(folder: Path) -> None:
    """Once there are so many that of a pass with one guess of each nothing is known."""
    target, draft = make_model(seed=1), make_model(seed=2)
    run(decoder(target, draft))

    def rows(count: int) -> SpeculativeDecoder:
        batching = BatchingConfig(batch_size=12)
        made = SpeculativeDecoder(target, draft_model=draft, batching=batching)
        made.add([Sequence(prompt=[n + 1, n + 2], max_new_tokens=4) for n in range(count)])
        while made.busy:
            made.step()
        return made

    assert rows(9).speculation.measuring.told == ""
    wider = rows(10)
    assert max(wider.speculation.measuring.prices.target.points[1]) == 64
    held = [json.loads(path.read_text())["record"]["costs"]["timed"] for path in folder.iterdir()]
    assert any("64" in look for looks in held for look in looks["1"])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What is timed from now on, a list each time."""
    timed: list[list[int]] = []
    own = timed_part.PassTimer.time

    def count(self: Any, describe: Any, order: Any) -> Any:
        timed.append(list(order))
        return own(self, describe, timed[-1])

    monkeypatch.setattr(timed_part.PassTimer, "time", count)
    return timed


def test_a_closer_look_is_earned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many calls in one process, each with a decoder of its own: what is not known well enough is
    timed when a hundredth of their time has made a look's worth, and then no more."""
    target, draft = make_model(seed=1), make_model(seed=2)
    run(decoder(target, draft))  # up to 18 tokens
    timed = counted(monkeypatch)
    batching = BatchingConfig(batch_size=8)

    def call() -> SpeculativeDecoder:
        made = SpeculativeDecoder(target, draft_model=draft, batching=batching)
        run(made)
        return made

    for _ in range(3):
        call()
    assert not timed
    earned = shared.allowance_of(target)
    assert 0 < earned.left < prices.CLOSER
    earned.left = prices.CLOSER
    first = call().speculation.measuring
    assert any(40 in order for order in timed)
    assert "timed" in first.told
    assert earned.left < prices.CLOSER
    looks = len(timed)
    call()
    assert len(timed) == looks
    # Nothing new is left of so many rows: second looks, until each point has enough, and what is
    # padded to as well as what rows bring.
    for _ in range(8):
        earned.left = prices.CLOSER
        call()
    seen = first.prices.target.looks_at()
    assert all(seen[n] >= timed_part.LOOKS for n in (4, 8, 16, 18, 24))
    looks = len(timed)
    earned.left = prices.CLOSER
    call()
    assert len(timed) == looks
    assert earned.left < prices.CLOSER


def test_a_look_that_has_time_for_two_passes_sees_what_is_new_and_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where passes take long it would else be the same two each time, and nothing new ever."""
    target, batching = make_model(seed=1), BatchingConfig(batch_size=8)
    own = timed_part.PassTimer.time
    monkeypatch.setattr(
        timed_part.PassTimer, "time", lambda self, describe, order: own(self, describe, order[:2])
    )

    def call() -> SpeculativeDecoder:
        made = SpeculativeDecoder(target, batching=batching)
        made.add([Sequence(prompt=[n + 1, n + 2], max_new_tokens=4) for n in range(7)])
        while made.busy:
            made.step()
        return made

    costs = call().speculation.measuring.prices.target
    assert costs.points[1].keys() == {7, 8}
    for _ in range(12):
        shared.allowance_of(target).left = prices.CLOSER
        call()
    assert costs.points[1].keys() == {7, 8, 10, 12, 14, 15}
    (path,) = folder.iterdir()
    kept = PassCosts.from_dict(json.loads(path.read_text())["record"]["costs"])
    assert kept.looks_at() == costs.looks_at()
    assert all(kept.looks_at()[n] > 1 for n in (7, 8, 10, 12))


def test_a_generator_knows_before_it_is_asked(folder: Path) -> None:
    """Passes are timed as its thread begins, not as the first request is there."""
    with BatchedMLXGenerator(make_model(seed=1), None, draft_model=make_model(seed=2)) as made:
        eventually(lambda: "kept in" in made.stats().generation.measured)
    assert list(folder.iterdir())


@pytest.mark.parametrize("draft_by", ["self", "self+ngram"])
def test_layers_of_the_target_are_timed_as_layers(draft_by: str) -> None:
    made = decoder(make_model(seed=1), None, draft_by, draft_layers=(0,))
    tokens = run(made)
    costs = made.speculation.measuring.prices
    assert costs.draft("self", 4, 1) > 0
    assert "could not" not in made.speculation.measuring.told
    assert tokens == run(decoder(make_model(seed=1)))


def test_lookups_cost_next_to_nothing() -> None:
    made = decoder(make_model(seed=1), None, "ngram")
    run(made)
    costs = made.speculation.measuring.prices
    assert costs.known
    assert not costs.draft("ngram", 4, 0)


def test_where_nothing_is_chosen_nothing_is_timed(folder: Path) -> None:
    made = decoder(make_model(seed=1), enabled=False)
    run(made)
    assert made.speculation.measuring.told == ""
    assert not list(folder.iterdir())


def test_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cost_files.VARIABLE, "off")
    made = decoder(make_model(seed=1), make_model(seed=2))
    run(made)
    assert made.speculation.measuring.told == ""
    assert not made.speculation.measuring.prices.known
    assert not list(folder.iterdir())


def test_a_model_that_cannot_be_timed_decodes_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, draft = make_model(seed=1), make_model(seed=2)
    tokens = run(decoder(target))

    def fails(self: ModelRunner, tokens: int, width: int) -> None:
        raise TypeError("a cache, please")

    monkeypatch.setattr(ModelRunner, "trial", fails)
    made = decoder(target, draft)
    assert run(made) == tokens
    assert "could not be timed (a cache, please)" in made.speculation.measuring.told
    assert not made.speculation.measuring.prices.known


def test_ctrl_c_while_passes_are_timed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    target, draft = make_model(seed=1), make_model(seed=2)
    tokens, own, calls = run(decoder(target)), ModelRunner.trial, [0]

    def interrupted(self: ModelRunner, tokens: int, width: int = 1) -> list[mx.array]:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return own(self, tokens, width)

    monkeypatch.setattr(ModelRunner, "trial", interrupted)
    made = decoder(target, draft)
    rows = [Sequence(prompt=list(prompt), max_new_tokens=8) for prompt in PROMPTS]
    made.add(rows)
    with pytest.raises(KeyboardInterrupt):
        made.step()
    assert not made.speculation.measuring.prices.known
    assert not list(folder.iterdir())
    while made.busy:
        made.step()
    assert [row.tokens for row in rows] == tokens
    assert made.speculation.measuring.prices.known


def test_nobody_waits_for_it_any_more() -> None:
    made = decoder(make_model(seed=1), make_model(seed=2))
    made.stop_when(lambda: True)
    made.add([Sequence(prompt=[1, 2, 3], max_new_tokens=8)])
    made.step()
    assert made.speculation.measuring.told == ""


def known_table(
    monkeypatch: pytest.MonkeyPatch, target: Any, seconds: Callable[[int], float]
) -> None:
    """What passes of the target cost, and a hundredth of it what others' do, on a machine whose
    steps say nothing else."""

    def table(self: object, describe: Any, order: Any) -> dict[int, float]:
        share = 1.0 if describe.func.__self__.model is target else 0.01
        return {tokens: share * seconds(tokens) for tokens in order}

    monkeypatch.setattr(timed_part.PassTimer, "time", table)
    for name in ("kept_costs", "keep_costs"):  # nor is anything known of another machine
        monkeypatch.setattr(timed_part, name, lambda *_: None)
    monkeypatch.setattr(prices.StepPrices, "observe", lambda self, report: None)


def test_no_request_is_used_to_find_out_what_a_length_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default, with a new pair: where each token of a pass costs as much as the first, nobody
    drafts (but a guess at most, to see what is accepted); where the others cost nothing the first
    step drafts."""
    target = make_model(seed=1)
    known_table(monkeypatch, target, lambda tokens: 1e-2 * tokens)
    dear = SpeculativeDecoder(target, draft_model=make_model(seed=2))
    tokens = run(dear, 24)
    assert set(dear.meter.draft_lengths) <= {0, 1}
    assert dear.meter.draft_lengths[1] <= 1

    forget()
    known_table(monkeypatch, target, lambda tokens: 1e-2 + 1e-6 * tokens)
    cheap = SpeculativeDecoder(target, draft_model=make_model(seed=1))
    assert run(cheap, 24) == tokens
    assert cheap.meter.draft_lengths[0] <= 2  # but for a last token
    assert sum(cheap.meter.draft_lengths.values()) < 12
