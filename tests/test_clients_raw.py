"""Requests as mlx-lm's and llama.cpp's users write them, and anything that the schema allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from mlx_spec import generate
from mlx_spec.server.dialects import DIALECTS
from tests.api_support import TEMPLATE, model, tokenizer
from tests.clients import HI, plain_server
from tests.servers import SAFETY, Live

EXAMPLES, FEW = 6, 2  # of each route that generates, and of each other


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with plain_server(max_tokens=4) as server:
        yield server


def say(prompt: Any, **options: Any) -> str:
    return generate(model(), tokenizer(TEMPLATE), prompt, **options).text


def test_as_mlx_lm_is_asked(live: Live) -> None:
    """Its server's fields, all of them, some at their defaults as its clients send them."""
    body = {
        "model": "default_model",
        "messages": HI,
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.2,
        "repetition_context_size": 10,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.0,
        "logit_bias": None,
        "logprobs": False,
        "top_logprobs": -1,
        "seed": 8,
        "stream": False,
        "stop": [],
        "draft_model": "default_model",
        "num_draft_tokens": 3,
    }
    with live.client() as client:
        answer = client.post("/v1/chat/completions", json=body)
    options: dict[str, Any] = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 8}
    penalty = {"repetition_penalty": 1.2, "repetition_context_size": 10}
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == say(HI, **options, **penalty)


def test_as_llama_cpp_is_asked(live: Live) -> None:
    body = {
        "prompt": "def read_",
        "n_predict": 9,
        "temperature": 0.7,
        "repeat_penalty": 1.2,
        "repeat_last_n": -1,
        "seed": 8,
        "cache_prompt": True,
        "mirostat": 0,
        "typical_p": 1.0,
        "dry_multiplier": 0.0,
        "samplers": ["top_k", "temperature"],
        "logit_bias": [[5, False]],
    }
    with live.client() as client:
        answer = client.post("/v1/completions", json=body)
        grammar = client.post(
            "/v1/completions",
            json={"prompt": "x", "max_tokens": 9, "grammar": 'root ::= "yes" | "no"'},
        )
    options: dict[str, Any] = {"max_tokens": 9, "temperature": 0.7, "seed": 8}
    penalty = {"repetition_penalty": 1.2, "repetition_context_size": 0}
    bias = {"logit_bias": {5: float("-inf")}}
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == say("def read_", **options, **penalty, **bias)
    assert grammar.json()["choices"][0]["text"] in ("yes", "no")


def tried(operation: Any) -> set[int]:
    """The statuses of a route, asked this and that."""
    told: set[int] = set()

    @settings(
        max_examples=EXAMPLES if operation.path in DIALECTS else FEW,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        answer = case.call(timeout=SAFETY)
        told.add(answer.status_code)
        # There are no embeddings, which is said with the status for that.
        assert answer.status_code < 500 or answer.status_code == 501, answer.text

    check()
    return told


@pytest.mark.slow
def test_nothing_that_the_schema_allows_breaks_it(live: Live) -> None:
    """Every route, with odd bodies too: an answer or a refusal in words, never a failure."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses = {operation.path: tried(operation) for operation in operations}
    assert set(DIALECTS) < set(statuses)
    assert all(400 in statuses[path] for path in DIALECTS)
    assert statuses["/v1/models"] == {200}
