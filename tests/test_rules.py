"""Logits rules: what they say holds, with drafts and without, and a text does not depend on it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence as Seq
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlx_spec.config import BatchingConfig
from mlx_spec.decoding import step
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.rules import LogitsRule, RuleContext
from mlx_spec.sequence import Sequence
from tests.fakes import CyclingPolicy, RaggedPolicy
from tests.scenario import Job, make_jobs, noisy_draft, run_jobs, target
from tests.toys.forbid_token import ForbidToken

ARCHITECTURE = Path(__file__).parent.parent / "docs" / "architecture.md"


class NotTwice(LogitsRule):
    """No token after itself: looks at known tokens and guesses on the device."""

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        same = mx.arange(logits.shape[-1]) == context.previous()[..., None]
        return mx.where(same, -mx.inf, logits)


class NotTwiceOnHost(LogitsRule):
    """The same, by a grammar's way: masks are made on the host from the draft it is shown."""

    needs_host = True

    def see(self, sequences: Seq[Sequence], draft: list[list[int]]) -> None:
        last = [sequence.prompt[-1:] + sequence.tokens[-1:] for sequence in sequences]
        rows = [[known[-1], *guesses] for known, guesses in zip(last, draft, strict=True)]
        longest = max(map(len, rows))
        self.previous = mx.array([row + [0] * (longest - len(row)) for row in rows])

    def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
        assert self.previous.shape == context.positions.shape
        same = mx.arange(logits.shape[-1]) == self.previous[..., None]
        return mx.where(same, -mx.inf, logits)


@cache
def jobs(count: int = 8) -> tuple[Job, ...]:
    """Greedy and sampling rows in turn, some with filters."""
    greedy, sampled = (make_jobs("llama", kind, count) for kind in (False, True))
    return tuple(sampled[i] if i % 2 else greedy[i] for i in range(count))


def run(rules: Seq[LogitsRule], *, rows: int = 4, draft: Any = None, most: int = 5) -> Any:
    """All jobs; the decoder and the rows' texts."""
    decoder = SpeculativeDecoder(
        target("llama"),
        draft_model=draft,
        batching=BatchingConfig(batch_size=rows),
        policy=RaggedPolicy(most) if draft is not None else CyclingPolicy([0]),
        rules=rules,
    )
    return decoder, run_jobs(decoder, jobs())


def most_said() -> int:
    """The token that is said most often without a rule."""
    return Counter(token for job in jobs() for token in job.expected).most_common(1)[0][0]


RULES = {
    "forbid": lambda: (ForbidToken(most_said()),),
    "not twice": lambda: (NotTwice(),),
    "not twice, on the host": lambda: (NotTwiceOnHost(),),
    "two": lambda: (ForbidToken(most_said()), NotTwice()),
}


@pytest.mark.parametrize("name", RULES)
def test_a_ruled_text_does_not_depend_on_drafts_or_company(name: str) -> None:
    """Ragged drafts, joins, leaves and mixed rows, against plain decoding of one row at a time."""
    _, alone = run(RULES[name](), rows=1)
    decoder, together = run(RULES[name](), rows=4, draft=noisy_draft("llama"))
    texts = [row.tokens for row in alone]
    assert [row.tokens for row in together] == texts
    assert texts != [list(job.expected) for job in jobs()]
    assert sum(row.accepted for row in together) > 20
    assert sum(row.drafted - row.accepted for row in together) > 5
    for text in texts:
        assert "forbid" not in name or most_said() not in text
        assert "twice" not in name or all(a != b for a, b in pairwise(text))
    assert (decoder.meter.ahead > 0) == ("host" not in name)


def test_a_forbidden_token_is_one_with_a_logit_of_minus_infinity() -> None:
    """Against mlx-lm's own loop with such a logit."""
    token = most_said()

    def forbid(_: Any, logits: mx.array) -> mx.array:
        logits[..., token] = -mx.inf
        return logits

    _, rows = run((ForbidToken(token),), draft=noisy_draft("llama"))
    compared = 0
    for job, row in zip(jobs(), rows, strict=True):
        if job.sampling.temperature > 0:
            continue
        steps = generate_step(
            mx.array(job.prompt),
            target("llama"),
            max_tokens=job.sampling.max_tokens,
            logits_processors=[forbid],
        )
        expected = [int(said) for said, _ in steps][: job.sampling.max_tokens]
        stops = [i for i, said in enumerate(expected) if said in job.sampling.stop_token_ids]
        assert row.tokens == (expected[: stops[0] + 1] if stops else expected)
        compared += 1
    assert compared == 4


@pytest.mark.parametrize("rule", [ForbidToken(7), NotTwice()], ids=["forbid", "not twice"])
def test_the_draft_is_ruled_like_the_target(rule: LogitsRule) -> None:
    """The target as its own draft agrees with itself always, and so only under the same rules."""
    _, rows = run((rule,), draft=target("llama"))
    assert sum(row.drafted for row in rows) > 40
    assert all(row.accepted == row.drafted for row in rows if not row.sampling.stop_token_ids)


def test_a_rule_that_leaves_nothing_fails_its_row() -> None:
    """Stops a token of no sense, chosen from nothing."""

    class Mute(LogitsRule):
        def apply(self, logits: mx.array, context: RuleContext) -> mx.array:
            mute = mx.array([row.index == 3 for row in context.sequences])
            return mx.where(mute[:, None, None], -mx.inf, logits)

    _, rows = run((Mute(),), draft=noisy_draft("llama"))
    for index, (job, row) in enumerate(zip(jobs(), rows, strict=True)):
        assert tuple(row.tokens) == (() if index == 3 else job.expected)


def test_no_rule_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a node in the graph of everybody who has no rule."""
    seen = []
    original = step.apply_rules

    def noted(rules: Any, logits: mx.array, context: RuleContext) -> mx.array:
        ruled = original(rules, logits, context)
        seen.append(ruled is logits)
        return ruled

    monkeypatch.setattr(step, "apply_rules", noted)
    run((), draft=noisy_draft("llama"))
    assert seen
    assert all(seen)


def test_the_example_in_the_docs_is_the_toy() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    section = text[text.index("### Adding a logits rule") :]
    (shown,) = re.findall(r"```python\n(.*?)```", section.split("\n#")[0], re.DOTALL)
    assert inspect.getsource(ForbidToken).strip() in shown
