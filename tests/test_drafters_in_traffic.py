"""Every drafter in random, rough and long traffic, of rows that ask for all there is.

The same traffics as elsewhere, shorter: requests come and go, are cancelled and preempted, and some
are penalised, biased, constrained, or chosen and changed by users' own functions.
"""

from __future__ import annotations

import random
from functools import cache
from types import MappingProxyType
from typing import Any

import pytest

from mlx_spec.batching.generator import BatchedMLXGenerator
from mlx_spec.config import SamplingParams, Structure
from tests.drafter_runs import SAID, WORDS
from tests.models import VOCABULARY
from tests.scenario import Job, plain_alone, target
from tests.soaking import soaked
from tests.structures import small_tokenizer
from tests.test_mixes import second_best, upside_down
from tests.test_rough_traffic import treat_badly
from tests.test_soak import Soak, Witness, check_outputs, make_generator
from tests.traffic import given, run_traffic

pytestmark = pytest.mark.usefixtures("uncompiled")

SOAKED = 30
SHAPED: tuple[dict[str, Any], ...] = (
    {"logit_bias": SAID, "temperature": 0.5},
    {"repetition_penalty": 1.3, "temperature": 0.8},
    {"structure": WORDS},
    {"presence_penalty": 0.4, "frequency_penalty": 0.3, "logit_bias": SAID},
    {"temperature": 0.8, "xtc_probability": 0.5, "xtc_threshold": 0.1},
    {"structure": Structure.json_schema({"enum": ["abcdefgh", 12345, None]}), "temperature": 1.0},
    {"logits_processors": (upside_down,), "temperature": 0.7},
    {"top_logprobs": 3, "prompt_logprobs": True, "logit_bias": SAID},
    {"sampler": second_best},
    {"min_tokens": 6, "stop_token_ids": (3, 17, 29), "logit_bias": SAID},
)


@cache
def job(family: str, index: int) -> Job:
    rng = random.Random(index)
    prompt = tuple(rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 24)))
    options = SHAPED[index % len(SHAPED)]
    sampling = SamplingParams(max_tokens=rng.randint(12, 30), seed=index, **options)
    stops = frozenset(sampling.stop_token_ids)
    said = plain_alone(target(family), prompt, sampling, stops)
    return Job(prompt, sampling, tuple(said), arrival=0)


@pytest.mark.parametrize(
    ("family", "draft"),
    [
        ("llama", "ngram"),
        ("llama", "head"),
        ("llama", "self"),
        ("llama", "stack"),
        ("gemma3", "head"),
        ("lfm2", "self"),
        ("lfm2", "predicted+ngram"),
        ("gemma3", "forced+ngram+model"),
        ("lfm2", "forced+lookahead+model"),
    ],
)
def test_random_traffic_by_drafter(family: str, draft: str) -> None:
    jobs = tuple(job(family, index) for index in range(len(SHAPED) + 4))
    assert run_traffic(2, family, draft=draft, jobs=jobs) == []


@pytest.mark.parametrize("draft", ["head", "ngram+model"])
def test_nobody_waits_and_every_row_is_free(draft: str) -> None:
    treat_badly(0, "llama", draft)


# With a tokenizer, whose end is none for who asks for no structure.
ENDLESS = {"ignore_eos": True}


class ShapedSoak(Soak):
    usual = MappingProxyType(ENDLESS)
    options = tuple(
        one if "structure" in one else {**one, **ENDLESS}
        for one in SHAPED
        if "min_tokens" not in one
    )


@pytest.mark.parametrize("draft", ["head", "self", "ngram+model"])
def test_a_soak_leaves_nothing_behind(draft: str) -> None:
    models = target("llama"), given("llama", draft)
    more: dict[str, Any] = {"draft": draft, "draft_layers": (0,) if draft == "self" else None}

    def begun(generator: BatchedMLXGenerator) -> None:
        for options in ShapedSoak.options:
            generator.generate([[1, 2, 3]] * 4, SamplingParams(max_tokens=4, **options))

    def made(witness: Witness) -> BatchedMLXGenerator:
        return make_generator(models, witness, small_tokenizer(), **more)

    soak, stats = soaked(made, begun, ShapedSoak, SOAKED)
    for name in draft.split("+"):
        of = stats.generation.drafters[name]
        assert 0 < of.accepted < of.drafted
    check_outputs(soak, "llama", 10)
