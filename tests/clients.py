"""Real clients of real servers, for tests: OpenAI's and Anthropic's own Python packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import anthropic
import openai

from tests.api_support import TEMPLATE, model, tokenizer
from tests.chat_words import VOCABULARY, thinking_tokenizer
from tests.models import make_model
from tests.servers import SAFETY, Live, running_server

# What rows draft by: n-grams and predictions, always, so that there is something to see.
DRAFTING: dict[str, Any] = {"draft": "ngram", "adaptive": False, "num_draft_tokens": 4}
HI: list[Any] = [{"role": "user", "content": "def read_"}]


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
def plain_server() -> Iterator[Live]:
    """A server of a tiny model that only talks."""
    with running_server(target=(model(), tokenizer(TEMPLATE)), **DRAFTING) as live:
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
