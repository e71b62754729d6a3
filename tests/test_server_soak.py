"""Sixty-four streams at once, of which some are dropped at any moment.

Every stream that is read to its end says what its prompt's text is alone; afterwards no row is
held, nothing waits, and memory is what it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from mlx_spec import batch_generate
from tests import api_support
from tests.servers import CHAT, SAFETY, Live, running_server, toy

STREAMS = 64
SECONDS = float(os.environ.get("MLX_SPEC_SOAK_SECONDS", "6"))
WORDS = ("def read_", "class Stack", "import os", "for line in ", "return", "with open(", "try:")


@dataclass(frozen=True)
class Ask:
    """A request, and what the model alone says to it."""

    content: str
    options: dict[str, Any]
    text: str


@dataclass
class Tally:
    """What came of all.

    Attributes:
        read, dropped, refused: streams.
        wrong: of those read, the ones with another text.
    """

    read: int = 0
    dropped: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def asks() -> list[Ask]:
    """Greedy and sampled ones, short and long, each with the text that it has alone."""
    model, tokenizer = toy()
    luck, found = random.Random(3), []
    for number in range(24):
        content = " ".join(luck.choices(WORDS, k=luck.randint(1, 12)))
        sampling = {"max_tokens": luck.choice([1, 5, 12, 24]), "seed": number}
        temperature = luck.choice([0.0, 0.9])
        alone = batch_generate(
            model,
            tokenizer,
            [[{"role": "user", "content": content}]],
            temperature=temperature,
            **sampling,
        )
        found.append(Ask(content, {**sampling, "temperature": temperature}, alone.results[0].text))
    return found


async def stream(client: httpx.AsyncClient, ask: Ask, luck: random.Random, tally: Tally) -> None:
    """One request: read to its end, or dropped after some pieces, or at once."""
    body = {"messages": [{"role": "user", "content": ask.content}], "stream": True, **ask.options}
    leaves = luck.choice([None, None, 0, 1, 3])
    pieces: list[str] = []
    async with client.stream("POST", CHAT, json=body) as answer:
        if answer.status_code == 429:
            tally.refused += 1
            return
        assert answer.status_code == 200, await answer.aread()
        heard = 0
        async for line in answer.aiter_lines():
            if leaves is not None and heard >= leaves:
                tally.dropped += 1
                return
            if not line.startswith("data: {"):
                continue
            heard += 1
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                pieces.append(choice["delta"].get("content") or "")
    tally.read += 1
    if "".join(pieces) != ask.text:
        tally.wrong.append(f"{ask.content!r}: {''.join(pieces)!r} for {ask.text!r}")


async def soak(live: Live, known: list[Ask], seconds: float) -> Tally:
    """Streams for so long, each followed by another one."""
    tally, ends = Tally(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url, timeout=SAFETY, limits=limits) as client:

        async def user(number: int) -> None:
            luck = random.Random(number)
            while time.monotonic() < ends:
                await stream(client, luck.choice(known), luck, tally)

        await asyncio.gather(*map(user, range(STREAMS)))
    return tally


def settled(live: Live) -> dict[str, Any]:
    """The server's figures once nothing runs any more."""
    ends = time.monotonic() + SAFETY
    with live.client() as client:
        while True:
            stats: dict[str, Any] = client.get("/v1/stats").json()
            if not stats["rows"]["running"] + stats["queue"]["waiting"]:
                return stats
            assert time.monotonic() < ends, stats
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ngram", "model"])
def test_streams_that_come_and_go(kind: str) -> None:
    """Stops rows that stay held for who has left, and texts that take a neighbour's pieces."""
    known = asks()
    draft = api_support.draft_model() if kind == "model" else None
    with running_server(draft=draft, batch_size=8) as live:
        asyncio.run(soak(live, known, 1.0))  # all buffers are there
        before = settled(live)
        tally = asyncio.run(soak(live, known, SECONDS / 2))
        after = settled(live)
    assert not tally.wrong, tally.wrong[:3]
    assert tally.read > STREAMS / 2
    assert tally.dropped > STREAMS / 4
    held = after["kv"]["bytes"] - after["kv"]["bytes_prefix"]
    assert held <= 1.5 * (before["kv"]["bytes"] - before["kv"]["bytes_prefix"]) + 2**20
    happening = after["happening"]
    assert happening["most_rows"] == 8
    assert happening["drafters"] == [kind]
    assert after["requests"]["cancelled"] > 0
    assert after["requests"]["failed"] == 0
