"""All APIs at once against one server: every text is what the Python API says for its seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest

from mlx_spec import SpeculationConfig, generate
from tests.api_support import TEMPLATE, model, tokenizer
from tests.clients import (
    SAFETY,
    async_anthropic_client,
    async_openai_client,
    plain_server,
)
from tests.servers import Live, events_of

PROMPTS = ["def read_", "class Stack:", "x", "import os", "Gr\u00fc\u00dfe \U0001f600", "for i in"]
SAMPLING: dict[str, Any] = {"temperature": 0.9, "max_tokens": 24}
Said = Coroutine[Any, Any, str]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with plain_server() as server:
        yield server


def truth(prompt: str, seed: int, chat: bool) -> str:
    """What the model alone says, without any draft."""
    off = SpeculationConfig(enabled=False)
    words = tokenizer(TEMPLATE)
    options = {**SAMPLING, "seed": seed, "chat": chat, "speculation": off}
    return generate(model(), words, prompt, **options).text


def turns(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def askers(live: Live) -> dict[str, Callable[[str, int], Said]]:
    """One for each way of asking."""
    ours, theirs = async_openai_client(live), async_anthropic_client(live)

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

    async def response(prompt: str, seed: int) -> str:
        made = await ours.responses.create(
            model="any", input=prompt, extra_body={**SAMPLING, "seed": seed}
        )
        return made.output_text

    async def response_streamed(prompt: str, seed: int) -> str:
        async with ours.responses.stream(
            model="any", input=prompt, extra_body={**SAMPLING, "seed": seed}
        ) as stream:
            return (await stream.get_final_response()).output_text

    async def message(prompt: str, seed: int) -> str:
        made = await theirs.messages.create(
            model="any", messages=turns(prompt), extra_body={"seed": seed}, **SAMPLING
        )
        return "".join(block.text for block in made.content)

    async def message_streamed(prompt: str, seed: int) -> str:
        async with theirs.messages.stream(
            model="any", messages=turns(prompt), extra_body={"seed": seed}, **SAMPLING
        ) as stream:
            return "".join([text async for text in stream.text_stream])

    async def raw(prompt: str, seed: int) -> str:
        body = {"messages": turns(prompt), "seed": seed, "stream": True, "n_predict": 24}
        async with httpx.AsyncClient(base_url=live.url, timeout=SAFETY) as http:
            answer = await http.post("/v1/chat/completions", json={**body, "temperature": 0.9})
        return "".join(
            one["choices"][0]["delta"].get("content", "") for one in events_of(answer.text)
        )

    kinds = [chat, chat_streamed, completion_streamed, response, response_streamed, message]
    return {one.__name__: one for one in (*kinds, message_streamed, raw)}


def test_mixed_apis_in_one_batch_say_what_the_model_says(live: Live) -> None:
    """Sixteen requests over four rows, drafts for all, neighbours of every kind."""

    async def ask() -> list[str]:
        kinds = list(askers(live).items()) * 2
        asked = [ask(PROMPTS[place % len(PROMPTS)], place) for place, (_, ask) in enumerate(kinds)]
        return list(await asyncio.gather(*asked))

    texts = asyncio.run(ask())
    names = list(askers(live)) * 2
    expected = [
        truth(PROMPTS[place % len(PROMPTS)], place, "completion" not in name)
        for place, name in enumerate(names)
    ]
    assert dict(enumerate(zip(names, texts, strict=True))) == dict(
        enumerate(zip(names, expected, strict=True))
    )
    stats = live.service.generator.stats()
    assert stats.generation.drafted > 0
    assert stats.running == 0
