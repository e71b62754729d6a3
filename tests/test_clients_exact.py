"""All APIs at once against one server: every text is what the Python API says for its seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest

from mlx_spec import SpeculationConfig, generate
from tests.api_support import TEMPLATE, draft_model, model, tokenizer
from tests.clients import (
    SAFETY,
    async_anthropic_client,
    async_openai_client,
    plain_server,
)
from tests.servers import Live, events_of

PROMPTS = ["def read_", "class Stack:", "x", "import os", "Gr\u00fc\u00dfe \U0001f600", "for i in"]
SAMPLING: dict[str, Any] = {"temperature": 0.9, "max_tokens": 24}
Ask = Callable[[str, int], Coroutine[Any, Any, str]]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with plain_server(draft=draft_model()) as server:
        yield server


def truth(prompt: str, seed: int, chat: bool) -> str:
    """What the model alone says, without any draft."""
    off = SpeculationConfig(enabled=False)
    words = tokenizer(TEMPLATE)
    options = {**SAMPLING, "seed": seed, "chat": chat, "speculation": off}
    return generate(model(), words, prompt, **options).text


def turns(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def more(seed: int) -> dict[str, Any]:
    """What clients have no argument for."""
    return {"seed": seed, "temperature": SAMPLING["temperature"]}


def chats(live: Live) -> list[Ask]:
    """Through chat completions and completions."""
    ours = async_openai_client(live)

    async def chat(prompt: str, seed: int) -> str:
        made = await ours.chat.completions.create(
            model="any", messages=turns(prompt), seed=seed, **SAMPLING
        )
        return made.choices[0].message.content or ""

    async def chat_streamed(prompt: str, seed: int) -> str:
        stream = await ours.chat.completions.create(
            model="any", messages=turns(prompt), seed=seed, stream=True, **SAMPLING
        )
        return "".join([one.choices[0].delta.content or "" async for one in stream])

    async def completion_streamed(prompt: str, seed: int) -> str:
        stream = await ours.completions.create(
            model="any", prompt=prompt, seed=seed, stream=True, **SAMPLING
        )
        return "".join([one.choices[0].text async for one in stream])

    async def raw(prompt: str, seed: int) -> str:
        body = {"messages": turns(prompt), "n_predict": 24, "stream": True, **more(seed)}
        async with httpx.AsyncClient(base_url=live.url, timeout=SAFETY) as http:
            answer = await http.post("/v1/chat/completions", json=body)
        choices = [one["choices"][0] for one in events_of(answer.text)]
        return "".join(one["delta"].get("content", "") for one in choices)

    return [chat, chat_streamed, completion_streamed, raw]


def others(live: Live) -> list[Ask]:
    """Through responses and messages."""
    ours, theirs = async_openai_client(live), async_anthropic_client(live)

    async def response(prompt: str, seed: int) -> str:
        made = await ours.responses.create(
            model="any", input=prompt, max_output_tokens=24, extra_body=more(seed)
        )
        return made.output_text

    async def response_streamed(prompt: str, seed: int) -> str:
        stream = await ours.responses.create(
            model="any", input=prompt, stream=True, max_output_tokens=24, extra_body=more(seed)
        )
        deltas = [one async for one in stream if one.type == "response.output_text.delta"]
        return "".join(one.delta for one in deltas)

    async def message(prompt: str, seed: int) -> str:
        made = await theirs.messages.create(
            model="any", messages=turns(prompt), max_tokens=24, extra_body=more(seed)
        )
        return "".join(block.text for block in made.content)

    async def message_streamed(prompt: str, seed: int) -> str:
        async with theirs.messages.stream(
            model="any", messages=turns(prompt), max_tokens=24, extra_body=more(seed)
        ) as stream:
            return "".join([text async for text in stream.text_stream])

    return [response, response_streamed, message, message_streamed]


def test_mixed_apis_in_one_batch_say_what_the_model_says(live: Live) -> None:
    """Sixteen requests over four rows, drafts for all, neighbours of every kind."""
    kinds = [*chats(live), *others(live)] * 2
    prompts = [PROMPTS[place % len(PROMPTS)] for place in range(len(kinds))]

    async def ask() -> list[str]:
        asked = [one(prompts[seed], seed) for seed, one in enumerate(kinds)]
        return list(await asyncio.gather(*asked))

    texts = asyncio.run(ask())
    names = [one.__name__ for one in kinds]
    for seed, (name, text) in enumerate(zip(names, texts, strict=True)):
        expected = truth(prompts[seed], seed, "completion" not in name)
        assert (seed, name, text) == (seed, name, expected)
    stats = live.service.generator.stats()
    assert stats.generation.drafted > 0
    # Rows were batched: their tokens are more than the steps.
    assert stats.generation.row_steps > 2 * stats.generation.steps
    assert stats.running == 0
