"""Each drafter, alone and in chains, over full attention, windows and states: exact, and at work.

Five requests in three slots, of which one is preempted and comes back (``drafter_runs``). In every
line of the table the drafter that it is about did guess, was right and was wrong; only what a
constraint forces is never wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlx_spec.decoding.drafters.ngram import NgramDrafter
from tests.drafter_runs import Drafting, kinds, run
from tests.test_mutants import accepts_one_too_many, no_rollback

pytestmark = pytest.mark.usefixtures("uncompiled")

Patch = pytest.MonkeyPatch

FAMILIES = ("llama", "gpt_oss", "lfm2")
DRAFTERS = (
    "ngram",
    "lookahead",
    "self",
    "model",
    "head",
    "stack",
    "forced",
    "predicted",
    "ngram+model",
    "predicted+ngram+model",
    "forced+ngram+model",
)
LOOKED_UP = {"ngram", "lookahead"}  # find nothing in some texts


def check(draft: str, outcome: Drafting) -> None:
    """That it is exact, and that nobody was idle."""
    assert outcome.wrong == []
    assert outcome.packed
    assert set(outcome.drafted) == set(kinds(draft).split("+"))
    for name in kinds(draft).split("+"):
        assert outcome.accepted[name] > 0
        if name == "forced":
            assert outcome.rejected(name) == 0
        else:
            assert outcome.rejected(name) > 0
    if draft not in LOOKED_UP:
        assert outcome.idle == []


@pytest.mark.cut(4)
@pytest.mark.parametrize("draft", DRAFTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_drafter_is_exact_and_at_work(family: str, draft: str) -> None:
    check(draft, run(family, draft))


def never_asked(patch: Patch) -> None:
    """It has nothing to say."""
    patch.setattr(NgramDrafter, "needs_host", False)


@pytest.mark.parametrize("plant", [no_rollback, accepts_one_too_many, never_asked])
def test_a_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check("ngram", run("llama", "ngram"))
