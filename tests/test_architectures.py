"""Every architecture that mlx-lm ships: mlx-lm's own tokens, or a refusal in words.

Five requests in three slots with ragged drafts, joins, leaves and a preemption, past several
windows of 16 tokens (``tests/architecture_runs.py``). A long run of each is ``scripts/architectures``,
which writes ``docs/models.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from mlx_spec.model.support import Support, examine
from tests.architecture_runs import not_compiled, run
from tests.architectures import build, names

# What mlx-lm cannot decode here itself, so that nothing can be compared with it: two need Metal,
# one's code adds a mask that is a word.
UNDECODED = {"bitnet", "muse_spark", "olmo"}


@pytest.fixture(scope="module", autouse=True)
def uncompiled() -> Iterator[None]:
    with not_compiled():
        yield


@cache
def support(name: str) -> Support:
    return examine(build(name))


@pytest.mark.cut(12)
@pytest.mark.parametrize("name", names())
def test_it_says_what_mlx_lm_says_or_is_refused_in_words(name: str) -> None:
    outcome = run(name)
    assert outcome.wrong == []
    if outcome.support.verdict == "refused":
        assert outcome.support.reason
        assert "\n" not in outcome.support.reason
        assert "TypeError" not in outcome.support.reason
        return
    assert name not in UNDECODED
    # Never undrafted in silence: guesses of all rows were verified, some rejected.
    assert outcome.drafted >= 100
    assert 0.4 < outcome.accepted / outcome.drafted < 0.9
