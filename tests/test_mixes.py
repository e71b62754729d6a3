"""Whatever rows ask for, they share a batch and are drafted for.

No option keeps a neighbour from it.

Each line is a batch of plain rows and rows with an option, drafted for by a chain. Every row says
what it says alone without drafts, at least one step held all rows, and both kinds were drafted for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest

from mlx_spec import batch_generate
from mlx_spec.config import BatchingConfig, SamplingParams, SpeculationConfig, Structure
from mlx_spec.events import StepDone
from mlx_spec.results import GenerationResult
from tests.scenario import noisy_draft, target
from tests.structures import small_tokenizer

PROMPTS = [[5, 6, 7, 8, 5, 6, 7, 8, 5], [3, 1, 4, 1, 5, 9], [2, 7, 2, 7, 2], [11, 12, 13]]
TOKENS = 16


def upside_down(tokens: Any, logits: Any) -> Any:
    """A foreign processor, as mlx-lm knows them: tokens of the text, logits [1, V]."""
    return logits * 0.5


def second_best(logprobs: Any) -> Any:
    """A foreign sampler: logprobs [1, V] to a token."""
    return mx.argsort(logprobs, axis=-1)[..., -2]


# Goes on for longer than texts do here.
WORDS = Structure.regex("(?:(?:abcdef|ponmlk|acegik) ){4,}")

MIXES: dict[str, list[dict[str, Any]]] = {
    "nothing": [{}],
    "seeds": [{"temperature": 0.8, "seed": 1}, {"temperature": 0.8, "seed": 2}],
    "temperatures": [{"temperature": 0.3, "seed": 1}, {"temperature": 1.2, "seed": 1}],
    "filters": [
        {"temperature": 0.8, "seed": 1, "top_p": 0.9},
        {"temperature": 0.8, "seed": 1, "top_k": 9},
        {"temperature": 0.8, "seed": 1, "min_p": 0.05},
    ],
    "xtc": [{"temperature": 0.8, "seed": 1, "xtc_probability": 0.5, "xtc_threshold": 0.1}],
    "penalties": [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.4},
        {"frequency_penalty": 0.3, "temperature": 0.8, "seed": 4},
    ],
    "biases": [{"logit_bias": {7: 3.0}}, {"logit_bias": {7: -3.0}}],
    "min_tokens": [{"min_tokens": 9, "stop_token_ids": (7,)}],
    "logprobs": [{"logprobs": True}, {"top_logprobs": 3}],
    "prompt_logprobs": [{"prompt_logprobs": True}],
    "processors": [{"logits_processors": (upside_down,)}],
    "samplers": [{"sampler": second_best}],
    "constraints": [{"structure": WORDS}, {"structure": WORDS, "temperature": 0.8, "seed": 5}],
}


@dataclass(frozen=True)
class Ran:
    results: list[GenerationResult]
    together: int  # steps in which all rows decoded
    drafters: set[str]


def alone(options: list[SamplingParams], family: str = "llama") -> list[list[int]]:
    """What each row says by itself, without drafts."""
    ran = run(options, family, at_once=1, enabled=False)
    assert not ran.drafters
    return [list(result.token_ids) for result in ran.results]


def run(
    options: list[SamplingParams],
    family: str = "llama",
    at_once: int = len(PROMPTS),
    **speculation: Any,
) -> Ran:
    """All prompts in one batch; drafts of four, whatever comes of them."""
    rows: list[int] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepDone):
            rows.append(event.rows)

    batch = batch_generate(
        target(family),
        small_tokenizer(),
        PROMPTS,
        sampling=options,
        draft_model=noisy_draft(family, 0.05),
        speculation=SpeculationConfig(num_draft_tokens=4, adaptive=False, **speculation),
        batching=BatchingConfig(batch_size=at_once),
        listeners=[listen],
    )
    return Ran(batch.results, rows.count(len(PROMPTS)), set(batch.stats.drafters))


def mixed(mix: str) -> list[SamplingParams]:
    """A plain row, and rows of this kind."""
    kinds = MIXES[mix]
    given = [{}, *(kinds[i % len(kinds)] for i in range(len(PROMPTS) - 1))]
    return [
        SamplingParams(max_tokens=TOKENS, ignore_eos="structure" not in one, **one) for one in given
    ]


def check(drafted: Ran) -> None:
    """Everybody was drafted for, in a batch of all; some guesses were right and some wrong."""
    assert drafted.together > 0
    assert "model" in drafted.drafters
    for result in drafted.results:
        assert result.drafted > 0
        assert result.generation_tokens <= TOKENS
    assert sum(r.accepted for r in drafted.results) > 0
    assert sum(r.drafted - r.accepted for r in drafted.results) > 0


@pytest.mark.cut(3)
@pytest.mark.parametrize("family", ["llama", "gpt_oss", "lfm2"])
@pytest.mark.parametrize("mix", MIXES)
def test_nobody_is_kept_from_batching_or_drafting(mix: str, family: str) -> None:
    """Over full attention, windows and states."""
    options = mixed(mix)
    drafted = run(options, family, draft="ngram+model")
    assert [list(result.token_ids) for result in drafted.results] == alone(options, family)
    check(drafted)


@pytest.mark.parametrize("mix", ["temperatures", "xtc", "penalties", "samplers", "constraints"])
def test_nor_where_guesses_are_rejected_by_lot(mix: str) -> None:
    """Rows without a temperature say what they say alone; each other one's text is as likely."""
    options = mixed(mix)
    drafted = run(options, draft="ngram+model", acceptance="rejection")
    for own, result, said in zip(options, drafted.results, alone(options), strict=True):
        assert own.temperature > 0 or list(result.token_ids) == said
    check(drafted)
