"""The two ways to take a step: built ahead, or in turn.

Both run the same phases (``step``) over the same edges (``stepper``). They differ in when the host
has read what the device computed.
"""

from __future__ import annotations

from mlx_spec.decoding.flight import Flight, Plan, StepOutput
from mlx_spec.decoding.step import choose, commit, propose, verify
from mlx_spec.decoding.stepper import Stepper


def ahead(step: Stepper) -> list[StepOutput]:
    """Nobody needs the host: step n + 1 is built while step n computes."""
    if step.flight is None:
        if not step.change():
            return []
        step.launch(_build(step, step.plan()))
    flight, following = step.flight, None
    assert flight is not None
    if step.members.settled:
        plan = step.plan()
        before = step.snapshot()
        following = _build(step, plan)
    outputs = step.read(flight)
    if following is not None:
        if step.members.leaving or step.suspects:
            step.restore(before)
        else:
            # Until the references go, launching would copy the whole cache.
            before.clear()
            step.launch(following)
            step.meter.ahead += 1
    step.check(flight)
    return outputs


def in_turn(step: Stepper) -> list[StepOutput]:
    """Somebody needs the host: step n is read before anything of step n + 1 is proposed."""
    if not step.change():
        return []
    plan = step.plan()
    draft = propose(step.parts, plan)
    logits = verify(step.parts, plan, draft)
    step.show(plan, draft, logits)
    choice = choose(step.parts, draft, logits)
    flight = step.launch(commit(step.parts, plan, draft, choice))
    outputs = step.read(flight)
    step.check(flight)
    return outputs


def _build(step: Stepper, plan: Plan) -> Flight:
    draft = propose(step.parts, plan)
    logits = verify(step.parts, plan, draft)
    return commit(step.parts, plan, draft, choose(step.parts, draft, logits))
