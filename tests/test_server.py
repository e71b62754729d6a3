"""The server's routes: every answer is the engine's own, and what is counted has happened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlx_spec import SamplingParams, batch_generate
from mlx_spec.server.options import ServerOptions
from mlx_spec.server.service import Service
from tests.architectures import build
from tests.servers import (
    CHAT,
    asgi_client,
    ask_all,
    content_of,
    events_of,
    have_met,
    open_toy,
    said,
    step_when,
    toy,
    truth,
)

CONTENTS = ["def read_", "class Stack:", "x", "import os", "for i in", "Grüße 😀"]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_toy() as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_what_the_model_says_alone_in_any_company(
    service: Service, stream: bool
) -> None:
    """More requests than rows, greedy and sampled, drafted by default."""
    options = [{}, {"temperature": 0.9, "seed": 5}]
    asked = [(text, 16 + i % 7, options[i % 2]) for i, text in enumerate(CONTENTS)]

    async def ask() -> list[httpx.Response]:
        async with asgi_client(service) as client:
            bodies = [
                said(content=text, stream=stream, **own) | {"max_tokens": count}
                for text, count, own in asked
            ]
            return await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))

    for reply, (text, count, own) in zip(asyncio.run(ask()), asked, strict=True):
        expected = truth(text, count, **own)
        if stream:
            chunks = [chunk["choices"][0]["delta"] for chunk in events_of(reply.text)]
            assert "".join(chunk.get("content") or "" for chunk in chunks) == expected
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert reply.text.endswith("data: [DONE]\n\n")
        else:
            assert content_of(reply) == expected


def test_models_are_told_to_both_kinds_of_clients(service: Service) -> None:
    listed, one, none = ask_all(
        service,
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/toy", None),
        ("GET", "/v1/models/other/name", None),
    )
    assert listed.json()["data"] == [one.json()]
    assert one.json()["id"] == one.json()["display_name"] == "toy"
    assert (one.json()["object"], one.json()["type"]) == ("model", "model")
    assert none.status_code == 404
    assert "'toy' is served" in none.json()["error"]["message"]


def test_what_is_not_here_is_said_in_the_format_of_the_api(service: Service) -> None:
    replies = ask_all(
        service,
        ("GET", "/nowhere", None),
        ("GET", CHAT, None),
        ("POST", "/v1/embeddings", {"input": "a", "model": "b"}),
        ("GET", "/v1/messages/nowhere", None),
    )
    assert [reply.status_code for reply in replies] == [404, 405, 501, 404]
    for reply in replies:
        assert reply.json()["error"]["message"]
    assert "makes no embeddings" in replies[2].json()["error"]["message"]
    assert replies[1].headers["allow"] == "POST"


def test_a_batch_is_answered_text_by_text(service: Service) -> None:
    body = {"prompts": [*CONTENTS, [5, 6, 7]], "max_tokens": 12, "seed": 3}
    model, tokenizer = toy()
    expected = batch_generate(
        model, tokenizer, body["prompts"], sampling=SamplingParams(max_tokens=12)
    )
    whole, streamed = ask_all(
        service,
        ("POST", "/generate/batch", body),
        ("POST", "/generate/batch", {**body, "stream": True}),
    )
    results = whole.json()["results"]
    assert [one["index"] for one in results] == list(range(7))
    for told, result in zip(results, expected.results, strict=True):
        assert told["text"] == result.text
        assert told["token_ids"] == result.token_ids
        assert told["tokens"] == result.generation_tokens
        assert told["finish_reason"] == result.finish_reason
        assert told["ttft"] > 0
        assert 0 <= told["acceptance_rate"] <= 1
    *events, last = events_of(streamed.text)
    assert last == {"done": True}
    by_index = sorted(events, key=lambda one: one["index"])
    assert [one["token_ids"] for one in by_index] == [one["token_ids"] for one in results]


def test_of_a_batch_the_short_ones_leave_early(service: Service) -> None:
    """A result is told, and its row another's, while the long ones go on."""
    free = {"prompts": ["x", [5, 6, 7]], "max_tokens": 200}
    (first,) = ask_all(service, ("POST", "/generate/batch", free))
    end = first.json()["results"][1]["text"][:12]
    body = {**free, "stop": end, "stream": True}
    (reply,) = ask_all(service, ("POST", "/generate/batch", body))
    *events, _ = events_of(reply.text)
    assert [one["index"] for one in events] == [1, 0]
    assert events[0]["finish_reason"] == "stop"
    assert events[0]["duration"] < events[1]["duration"]


def test_several_texts_are_told_apart_in_one_stream(service: Service) -> None:
    """Each chunk is of the text that it names."""
    body = said(n=3, temperature=1.0, seed=7) | {"max_tokens": 20}
    whole, streamed = ask_all(
        service, ("POST", CHAT, body), ("POST", CHAT, {**body, "stream": True})
    )
    texts = {one["index"]: one["message"]["content"] for one in whole.json()["choices"]}
    heard = dict.fromkeys(range(3), "")
    for chunk in events_of(streamed.text):
        for choice in chunk["choices"]:
            heard[choice["index"]] += choice["delta"].get("content") or ""
    assert heard == texts
    expected = [truth("def read_", 20, temperature=1.0, seed=7 + k) for k in range(3)]
    assert [texts[k] for k in range(3)] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_engine_can_tell_is_still_a_400(service: Service, stream: bool) -> None:
    """A stream's status is written when the engine has taken it; the good prompts are let go."""
    body = {"prompts": ["good", [1, 99_999]], "max_tokens": 400, "stream": stream}
    (reply,) = ask_all(service, ("POST", "/generate/batch", body))
    assert reply.status_code == 400
    assert "99999" in reply.json()["error"]["message"]
    service.generator.drain(60)
    assert service.outstanding == 0


def test_turns_of_a_conversation_share_what_was_read_on_windows_and_states_too() -> None:
    """With the second turn the first one's tokens are in the cache, and the text is its own."""
    for family in ("gemma3_text", "mamba2"):
        model = build(family, vocab_size=2048)
        # Rows that cannot be cut are looked at behind every piece.
        with open_toy(target=(model, toy()[1]), prefill_step_size=16) as service:
            first, *_ = ask_all(service, ("POST", CHAT, said(content="def read_ " * 12)))
            messages = [
                {"role": "user", "content": "def read_ " * 12},
                {"role": "assistant", "content": content_of(first)},
                {"role": "user", "content": "x"},
            ]
            body = {"messages": messages, "max_tokens": 12}
            second, stats = ask_all(service, ("POST", CHAT, body), ("GET", "/v1/stats", None))
            assert stats.json()["prefix"]["reused_tokens"] > 20
        own = {"prefix_cache_bytes": 0, "prefill_step_size": 16}
        with open_toy(target=(model, toy()[1]), **own) as service:
            (alone,) = ask_all(service, ("POST", CHAT, body))
        assert content_of(second) == content_of(alone)


def test_a_full_queue_is_429_with_a_time(service: Service) -> None:
    """And nobody who was taken notices."""
    options = ServerOptions(port=0, max_queue=1)

    async def ask(service: Service) -> list[httpx.Response]:
        async with asgi_client(service) as client:
            bodies = [said(content=text) | {"max_tokens": 300} for text in CONTENTS]
            return await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))

    with open_toy(options, batch_size=2) as small:
        step_when(small, lambda _: small.refusals["queue_full"] == 3)
        replies = asyncio.run(ask(small))
    assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 429, 429, 429]
    for reply, text in zip(replies, CONTENTS, strict=True):
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "queue_full"
        else:
            assert content_of(reply) == truth(text, 300)


def test_what_can_never_be_taken_is_not_told_to_try_again() -> None:
    with open_toy(ServerOptions(port=0, max_queue=1), batch_size=2) as small:
        body = {"prompts": ["a", "b", "c", "d"]}
        (reply,) = ask_all(small, ("POST", "/generate/batch", body))
    assert reply.status_code == 400
    assert "4 texts; at most 3" in reply.json()["error"]["message"]


def test_a_draining_server_takes_nothing_new() -> None:
    with open_toy() as service:
        service.drain()
        reply, ready, health = ask_all(
            service, ("POST", CHAT, said()), ("GET", "/ready", None), ("GET", "/health", None)
        )
    assert reply.status_code == ready.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert reply.json()["error"]["code"] == "draining"
    assert health.status_code == 200


def test_an_engine_that_has_failed_is_told_and_seen() -> None:
    def explode(engine: Any) -> None:
        raise RuntimeError("planted secret")

    with open_toy() as service:
        service.generator._worker.post(explode)
        service.generator._worker._thread.join(60)
        reply, health = ask_all(service, ("POST", CHAT, said()), ("GET", "/health", None))
    assert reply.status_code == health.status_code == 503
    assert "secret" not in reply.text


def test_what_nobody_foresaw_is_told_without_its_inside(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planted secret")

    monkeypatch.setattr(service, "limited", fail)
    (reply,) = ask_all(service, ("POST", CHAT, said()))
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    assert "planted secret" in caplog.text


def test_urgent_requests_go_first_as_the_header_says() -> None:
    """One row: of those that wait, the one that came last."""
    order: list[str] = []

    async def ask(service: Service) -> None:
        async with asgi_client(service) as client:

            async def one(name: str, priority: str) -> None:
                headers = {"X-Priority": priority}
                await client.post(CHAT, json=said(content=name), headers=headers)
                order.append(name)

            await asyncio.gather(one("first", "0"), one("later", "-5"), one("urgent", "9"))
            bad = await client.post(CHAT, json=said(), headers={"X-Priority": "high"})
            assert bad.status_code == 400

    with open_toy(batch_size=1) as service:
        step_when(service, have_met(3))
        asyncio.run(ask(service))
    assert order.index("urgent") < order.index("later")


def test_what_cannot_be_is_written_as_json_can(service: Service) -> None:
    """Stops a 500: under a constraint most tokens have no probability at all."""
    schema = {"name": "a", "schema": {"enum": ["aa", "bb"]}}
    body = said(response_format={"type": "json_schema", "json_schema": schema})
    body |= {"logprobs": True, "top_logprobs": 20}
    whole, streamed = ask_all(
        service, ("POST", CHAT, body), ("POST", CHAT, {**body, "stream": True})
    )
    assert whole.status_code == 200
    assert "-9999.0" in whole.text
    assert "Infinity" not in streamed.text


@pytest.mark.parametrize("host", ["[", "a b", "[::1", "localhost:x", ""])
def test_a_strange_host_is_no_accident(service: Service, host: str) -> None:
    (reply,) = ask_all(service, ("POST", CHAT, said()), host=host)
    assert reply.status_code in (200, 403)
