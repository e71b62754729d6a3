"""Picking in the engine: what a drafter says of its guesses is theirs, row by row, and it happens.

The draft model is the target, so that what it says of a guess is what the target says of that
token: a number of another row or position shows.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import pytest

from mlx_spec import (
    BatchingConfig,
    GenerationResult,
    SamplingParams,
    SpeculationConfig,
    batch_generate,
)
from mlx_spec.control.adaptive import AdaptiveDrafts
from mlx_spec.control.surest import Settling, Surest
from mlx_spec.decoding.drafters.chain import Hearing
from mlx_spec.decoding.stepper import Stepper
from tests.leading import lead_alone
from tests.models import make_model
from tests.scenario import noisy_draft, target

PROMPTS = [[3, 7, 11, 2, 9], [5, 1], [8, 8, 4, 6, 2, 1, 9, 3], [2, 4, 6], [9, 9, 1, 4]]
LENGTHS = [30, 21, 27, 34, 12]


class Heard:
    """Spies on picking.

    Attributes:
        said: (known tokens, chances, verified) of each row and step, by row.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: dict[Any, list[tuple[int, list[float], int]]] = {}
        own = Surest.pick

        def pick(
            surest: Surest, rows: Seq[Any], sure: Seq[Seq[float]], settling: Settling
        ) -> list[int]:
            lengths = own(surest, rows, sure, settling)
            for row, numbers, length in zip(rows, sure, lengths, strict=True):
                self.said.setdefault(row, []).append((row.length, list(numbers), length))
            return lengths

        monkeypatch.setattr(Surest, "pick", pick)


def run(model: Any, draft: Any, **options: Any) -> list[GenerationResult]:
    """Five requests in three rows, with joins and leaves."""
    made = batch_generate(
        model,
        None,
        PROMPTS,
        draft_model=draft,
        speculation=SpeculationConfig(enabled=draft is not None, draft="ngram+model")
        if draft is not None
        else None,
        batching=BatchingConfig(batch_size=3),
        max_tokens=LENGTHS[0],
        ignore_eos=True,
        **options,
    )
    return made.results


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_is_said_is_said_of_that_token_of_that_row(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops numbers of another row, or of the position beside, and of another row's noise."""
    model = make_model("llama", seed=4)
    heard = Heard(monkeypatch)
    same, compared = make_model("llama", seed=4), 0
    own = [SamplingParams(temperature=temperature, seed=5 + row) for row in range(len(PROMPTS))]
    results = run(model, same, sampling=own)
    by_prompt = {tuple(p): r for p, r in zip(PROMPTS, results, strict=True)}
    for row, steps in heard.said.items():
        prompt = next(p for p in by_prompt if tuple(row.known(0, len(p))) == p)
        known = [*prompt, *by_prompt[prompt].token_ids]
        for length, numbers, verified in steps[:6]:
            for place, number in enumerate(numbers[:verified]):
                at = length + place
                if at < len(known):
                    lead = lead_alone(same, known[:at], known[at], row.seed, temperature)
                    assert number == pytest.approx(lead, rel=1e-3)
                    compared += 1
    assert compared > 40


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_fewer_are_verified_than_are_guessed_and_nothing_changes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under default settings: guesses are picked, rows have different numbers of them, and texts
    are the target's."""
    model = target(family)
    plain = run(model, None)
    heard = Heard(monkeypatch)
    results = run(model, noisy_draft(family))
    assert [r.token_ids for r in results] == [r.token_ids for r in plain]
    steps = [step for row in heard.said.values() for step in row]
    cut = sum(verified < len(numbers) for _, numbers, verified in steps)
    assert len({len(numbers) for _, numbers, _ in steps}) > 1, "drafting ends when it is enough"
    assert cut > 5
    assert sum(r.drafted for r in results) > 20
    assert 0 < sum(r.accepted for r in results) < sum(r.drafted for r in results)


def test_nothing_is_seen_while_a_step_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that is hardly ever right is left alone, so that steps are built ahead; where it is
    asked again the step in flight is read first, and seems to last no longer than it does."""
    asked, put_off, steppers = list[bool](), list[bool](), list[Stepper]()
    own_plan, own_put_off, own_add = Stepper.plan, Stepper.puts_off, Hearing.add

    def plan(stepper: Stepper) -> Any:
        steppers[:] = [stepper]
        return own_plan(stepper)

    def puts_off(stepper: Stepper) -> bool:
        put_off.append(own_put_off(stepper))
        return put_off[-1]

    def add(hearing: Hearing, notes: Any) -> None:
        asked.append(steppers[0].flight is not None)
        own_add(hearing, notes)

    monkeypatch.setattr(Stepper, "plan", plan)
    monkeypatch.setattr(Stepper, "puts_off", puts_off)
    monkeypatch.setattr(Hearing, "add", add)
    monkeypatch.setattr(AdaptiveDrafts, "PROBE_SHARE", 1.0)  # asked again before the texts end
    model, hostile = make_model("llama", seed=4), make_model("llama", seed=9)
    made = batch_generate(
        model,
        None,
        PROMPTS[:3],
        draft_model=hostile,
        speculation=SpeculationConfig(draft="ngram+model", probe_interval=4),
        batching=BatchingConfig(batch_size=3),
        max_tokens=160,
        ignore_eos=True,
    )
    plain = batch_generate(model, None, PROMPTS[:3], max_tokens=160, ignore_eos=True)
    assert [r.token_ids for r in made.results] == [r.token_ids for r in plain.results]
    assert asked
    assert not any(asked)
    assert any(put_off), "somebody was asked again behind a step"
    assert put_off.count(False) > 50, "most steps are built ahead all the same"
