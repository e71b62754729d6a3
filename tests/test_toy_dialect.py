"""A stranger's API in one file: exact in a batch, streamed and whole, errors in its words."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlx_spec import generate
from mlx_spec.server.dialects import DIALECTS
from tests.servers import asgi_client, events_of, open_toy, toy
from tests.toys.say_dialect import Say

BEGINNINGS = ["def read_", "class Stack:", "import ", "for i in range(", "x = [", "return self."]


def test_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIALECTS, "/say", Say())  # type: ignore[misc]
    model, tokenizer = toy()

    async def ask() -> tuple[list[Any], Any, Any, int]:
        with open_toy(target=(model, tokenizer)) as service:
            async with asgi_client(service) as client:
                bodies = [{"begin": text, "tokens": 12} for text in BEGINNINGS]
                whole = await asyncio.gather(*(client.post("/say", json=one) for one in bodies))
                streamed = await client.post("/say", json=bodies[0] | {"stream": True})
                refused = await client.post("/say", json={"tokens": 3})
            return list(whole), streamed, refused, service.traffic.batched_steps

    whole, streamed, refused, batched = asyncio.run(ask())
    assert batched > 0
    alone = [generate(model, tokenizer, text, max_tokens=12).text for text in BEGINNINGS]
    assert [one.json() for one in whole] == [{"said": text} for text in alone]
    *pieces, end = events_of(streamed.text)
    assert "".join(one["piece"] for one in pieces) == alone[0]
    assert end == {"end": "length"}
    assert refused.status_code == 400
    assert "begin" in refused.json()["cannot"]
