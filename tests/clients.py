"""Real clients of real servers, for tests: OpenAI's and Anthropic's own Python packages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import anthropic
import openai

from tests.api_support import TEMPLATE, model, tokenizer
from tests.chat_words import MARKS, VOCABULARY, thinking_tokenizer
from tests.models import make_model
from tests.servers import SAFETY, Live, running_server

# What rows draft by: n-grams and predictions, always, so that there is something to see.
DRAFTING: dict[str, Any] = {"adaptive": False, "num_draft_tokens": 4}
CALM = {"chat_template_kwargs": {"enable_thinking": False}}
HI: list[Any] = [{"role": "user", "content": "def read_"}]


def only(text: str) -> dict[str, Any]:
    """A constraint that leaves one text, its marks as the tokens that they are."""
    ids = dict(zip(MARKS, range(2048, VOCABULARY), strict=True))
    parts = re.split(f"({'|'.join(MARKS)})", text)
    said = [f"<[{ids[part]}]>" if part in ids else json.dumps(part) for part in parts if part]
    return {"grammar": f"start: {' '.join(said)}", **CALM}


@cache
def thinker() -> tuple[Any, Any]:
    """A tiny model whose template thinks and knows tools."""
    return make_model("llama", vocab_size=VOCABULARY), thinking_tokenizer()


@contextmanager
def thinking_server() -> Iterator[Live]:
    """A server of that model."""
    with running_server(target=thinker(), **DRAFTING) as live:
        yield live


@contextmanager
def plain_server(**flags: Any) -> Iterator[Live]:
    """A server of a tiny model that only talks."""
    with running_server(target=(model(), tokenizer(TEMPLATE)), **DRAFTING, **flags) as live:
        yield live


def openai_client(live: Live) -> openai.OpenAI:
    """As a user makes one."""
    options: dict[str, Any] = {"max_retries": 0, "timeout": SAFETY}
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", **options)


def async_openai_client(live: Live) -> openai.AsyncOpenAI:
    """As a user makes one."""
    options: dict[str, Any] = {"max_retries": 0, "timeout": SAFETY}
    return openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", **options)


def anthropic_client(live: Live) -> anthropic.Anthropic:
    """As a user makes one."""
    options: dict[str, Any] = {"max_retries": 0, "timeout": SAFETY}
    return anthropic.Anthropic(base_url=live.url, api_key="none", **options)


def async_anthropic_client(live: Live) -> anthropic.AsyncAnthropic:
    """As a user makes one."""
    options: dict[str, Any] = {"max_retries": 0, "timeout": SAFETY}
    return anthropic.AsyncAnthropic(base_url=live.url, api_key="none", **options)
