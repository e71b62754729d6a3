"""The two ways to take a step: built ahead, or in turn.

Both run the same phases (``step``) over the same edges (``stepper``). They differ in when the host
has read what the device computed. Ahead, the host always describes one step more than it knows::

    host    change, build n+1 | read n | launch c, n+1 | emit n | change, build n+2 | read n+1 |
    device  ===== step n =====|          == chunk c ==|====== step n+1 ======|

    members  a b c             b ended     a b c: b is computed once    a d c: b's slot is d's,
    of       n and n+1         in n        past its end, for nobody     who was fed by c: n+2

In turn, nothing of step n + 1 is proposed before step n is read, and the draft is read by rules
while the target verifies it::

    host    change, build | launch c, draft, verify | see draft: masks | choose | read n | emit n |
    device                  == chunk c ==|= draft =|===== verify =====|= choose |

A step is a transaction: whatever is raised while it is described (by a model, a drafter, a rule)
leaves caches, lengths and drafter as they were, and the next call takes it again.

Rows lag by one and a step is seldom dropped: only where at most half of its rows are left, or one
of them must be tried again (``Stepper.holds``). What was described of members and chunks stays;
what was described of the step is forgotten.
"""

from __future__ import annotations

from mlx_spec.decoding.flight import StepOutput
from mlx_spec.decoding.step import choose, commit, propose, verify
from mlx_spec.decoding.stepper import Stepper


def ahead(step: Stepper) -> list[StepOutput]:
    """Nobody needs the host: step n + 1 is built while step n computes, if there is one."""
    flight, following = step.flight, None
    if step.change() and step.builds():
        plan = step.plan()
        if not step.puts_off():
            with step.building() as before:
                draft = propose(step.parts, plan)
                choice = choose(step.parts, draft, verify(step.parts, plan, draft))
                following = commit(step.parts, plan, draft, choice)
    if flight is not None:
        try:
            step.read(flight)
        except BaseException:  # Ctrl-C: whoever goes on finds this step in flight, and no other
            if following is not None:
                step.restore(before)
            raise
    if following is not None:
        if step.send() and (flight is None or step.holds(following)):
            before.clear()  # while these references live, MLX would copy the whole cache
            following.ahead = flight is not None
            step.launch(following)
        else:
            step.restore(before)
    return step.emit(flight) if flight else []


def in_turn(step: Stepper) -> list[StepOutput]:
    """Somebody needs the host: step n is read before anything of step n + 1 is proposed."""
    if not step.change():
        return []
    plan = step.plan()
    if not step.send():
        return []
    with step.building() as before:
        draft = propose(step.parts, plan)
        logits = verify(step.parts, plan, draft)
    before.clear()  # as above: this is launched now
    with step.shown():
        draft, begun = step.show(plan, draft, logits)  # the host works while the target computes
        choice = choose(step.parts, draft, logits)
    flight = step.launch(commit(step.parts, plan, draft, choice), begun)
    step.read(flight)
    return step.emit(flight)
