"""Answers at once and streamed say the same, in each dialect, and count what they took."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mlx_spec.server.protocol.chat_completions import chat_completions
from mlx_spec.server.protocol.completions import completions
from mlx_spec.server.protocol.dialect import Dialect, Event
from mlx_spec.server.protocol.faults import Fault, failed, fault_of
from mlx_spec.server.protocol.messages import messages
from mlx_spec.server.protocol.responses import responses
from tests.chat_words import served, spoken, thinking_tokenizer
from tests.test_protocol_read import BARE, EACH, TOOL, read

CALL = '<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'
TEXT = f"Hm.</think>\n\nWell \u00e4.\n{CALL}"


def stream(
    dialect: Dialect, asked: Any, *texts: str, reason: Any = "stop", **how: Any
) -> list[Event]:
    """The events of texts that come in turns, a token each."""
    writer = dialect.writer(asked, served())
    made = [spoken(text, reason, **how) for text in texts]
    events = writer.start()
    for place in range(max(len(chunks) for chunks, _ in made)):
        for index, (chunks, _) in enumerate(made):
            if place < len(chunks):
                events += writer.chunk(index, chunks[place])
    return [*events, *writer.end([result for _, result in made])]


def values(events: list[Event]) -> list[Any]:
    assert all("\n" not in event.data for event in events)
    return [json.loads(event.data) for event in events if event.data != "[DONE]"]


def tools(dialect: Dialect) -> list[Any]:
    function = TOOL["function"]
    if dialect is responses:
        return [{"type": "function", **function}]  # type: ignore[dict-item]
    if dialect is messages:
        return [{"name": function["name"], "input_schema": {}}]  # type: ignore[index]
    return [TOOL]


def test_a_chat_at_once() -> None:
    asked = replace(read(chat_completions, tools=[TOOL]), request_id="r", created=3)
    answer = chat_completions.whole(asked, [spoken(TEXT)[1]], served())
    assert answer == {
        "id": "chatcmpl-r",
        "object": "chat.completion",
        "created": 3,
        "model": "toy",
        "system_fingerprint": "mlx-spec",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Well \u00e4.",
                    "refusal": None,
                    "reasoning_content": "Hm.",
                    "tool_calls": [
                        {
                            "id": "call_r_0_0",
                            "type": "function",
                            "function": {"name": "look", "arguments": '{"at": 1}'},
                        }
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": answer["usage"],
    }
    usage = answer["usage"]
    said = spoken(TEXT)[1].generation_tokens
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, said)
    assert usage["total_tokens"] == 5 + said
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    reasoned = len(thinking_tokenizer().encode("Hm."))
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": reasoned,
        "accepted_prediction_tokens": 7,
        "rejected_prediction_tokens": 2,
    }


def joined(frames: list[Any], index: int) -> dict[str, Any]:
    """A chat's choice, of the chunks that a client gets."""
    choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
    message: dict[str, Any] = {"refusal": None}
    scores: list[Any] = []
    for frame in frames:
        for one in frame["choices"]:
            if one["index"] != index:
                continue
            assert choice["finish_reason"] is None
            choice["finish_reason"] = one["finish_reason"]
            delta = dict(one["delta"])
            for call in delta.pop("tool_calls", []):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append({key: value for key, value in call.items() if key != "index"})
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
            for name, text in delta.items():
                message[name] = message.get(name, "") + text
            scores += (one["logprobs"] or {}).get("content", [])
    if scores:
        choice["logprobs"] = {"content": scores, "refusal": None}
    if message.get("tool_calls") and not message["content"]:
        message["content"] = None
    return {**choice, "message": message}


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize(
    "texts", [("Hm.",), (TEXT, f"x</think>{CALL}"), ("</think>a", "b", "x</think>a <too")]
)
def test_a_streamed_chat_says_the_same(texts: tuple[str, ...], reason: Any, logprobs: bool) -> None:
    asked = read(
        chat_completions,
        tools=[TOOL],
        n=len(texts),
        temperature=1,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=logprobs,
    )
    results = [spoken(text, reason, logprobs=logprobs)[1] for text in texts]
    whole = chat_completions.whole(asked, results, served())
    events = stream(chat_completions, asked, *texts, reason=reason, logprobs=logprobs)
    assert events[-1].data == "[DONE]"
    frames = values(events)
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"] == whole["usage"]
    assert all(frame["usage"] is None for frame in frames[:-1])
    assert {frame["id"] for frame in frames} == {whole["id"]}
    assert [joined(frames, index) for index in range(len(texts))] == whole["choices"]
    if reason == "length":
        assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}
    if logprobs:
        for choice in whole["choices"]:
            spelled = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
            assert spelled.decode() == texts[choice["index"]]


def test_usage_is_streamed_only_when_asked() -> None:
    asked = read(chat_completions, stream=True)
    assert all("usage" not in frame for frame in values(stream(chat_completions, asked, "a")))


def test_chunks_say_who_guessed_them() -> None:
    asked = read(chat_completions, stream=True, mlx_spec={"drafts": True})
    frames = values(stream(chat_completions, asked, "</think>a b"))
    assert [frame["mlx_spec"] for frame in frames if "mlx_spec" in frame]


@pytest.mark.parametrize("echo", [False, True])
def test_completions_say_the_same(echo: bool) -> None:
    asked = read(completions, prompt=["hi", "ho"], n=2, temperature=1, stream=True, echo=echo)
    texts = ["a", "b c", "d\n", TEXT]
    whole = completions.whole(asked, [spoken(text)[1] for text in texts], served())
    said = dict.fromkeys(range(4), "")
    reasons: dict[int, str] = {}
    for frame in values(stream(completions, asked, *texts)):
        for one in frame["choices"]:
            said[one["index"]] += one["text"]
            if one["finish_reason"]:
                reasons[one["index"]] = one["finish_reason"]
    assert said == {one["index"]: one["text"] for one in whole["choices"]}
    assert set(reasons.values()) == {"stop"}
    if echo:
        assert said[0] == "hia"
        assert said[3] == f"ho{TEXT}"
    assert whole["usage"]["prompt_tokens"] == 10


def test_completions_echo_how_likely_the_prompt_was() -> None:
    _, result = spoken("b", logprobs=True)
    assert result.logprobs is not None
    result = replace(result, prompt_logprobs=[None, result.logprobs[0]])
    asked = read(completions, prompt="a b", echo=True, logprobs=1)
    choice = completions.whole(asked, [result], served())["choices"][0]
    assert choice["text"] == "a bb"
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5]
    assert logprobs["tokens"][1:] == ["b", "b"]
    assert logprobs["text_offset"] == [0, 1, 2]
    only = read(completions, prompt="a b", echo=True, logprobs=1, max_tokens=0)
    answer = completions.whole(only, [result], served())
    assert answer["choices"][0]["text"] == "a b"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["usage"]["completion_tokens"] == 0


def blocks_of(events: list[Event]) -> tuple[list[Any], Any, Any]:
    """Anthropic's message, of its events."""
    blocks: list[Any] = []
    ending = usage = None
    for event in events:
        value = json.loads(event.data)
        assert event.event == value["type"]
        if value["type"] == "content_block_start":
            assert value["index"] == len(blocks)
            blocks.append({**value["content_block"], "partial": ""})
        elif value["type"] == "content_block_delta":
            delta, block = value["delta"], blocks[value["index"]]
            for name in ("text", "thinking"):
                if name in delta:
                    block[name] += delta[name]
            block["partial"] += delta.get("partial_json", "")
        elif value["type"] == "content_block_stop":
            partial = blocks[value["index"]].pop("partial")
            if partial:
                blocks[value["index"]]["input"] = json.loads(partial)
        elif value["type"] == "message_delta":
            ending, usage = value["delta"], value["usage"]
    return blocks, ending, usage


@pytest.mark.parametrize(
    ("text", "reason", "stop"),
    [
        (TEXT, "stop", "tool_use"),
        ("Hm.</think>Yes", "stop", "end_turn"),
        ("Hm.</think>Yes", "length", "max_tokens"),
    ],
)
def test_messages_say_the_same(text: str, reason: Any, stop: str) -> None:
    asked = read(messages, tools=tools(messages), thinking={"type": "enabled"}, stream=True)
    whole = messages.whole(asked, [spoken(text, reason)[1]], served())
    events = stream(messages, asked, text, reason=reason)
    blocks, ending, usage = blocks_of(events)
    assert [event.event for event in (events[0], events[-1])] == ["message_start", "message_stop"]
    assert blocks == whole["content"]
    assert ending == {"stop_reason": stop, "stop_sequence": None}
    assert whole["stop_reason"] == stop
    assert usage == whole["usage"]
    assert usage["input_tokens"] == 3
    assert usage["cache_read_input_tokens"] == 2


def test_messages_say_which_text_ended_them() -> None:
    asked = read(messages, stop_sequences=["!", "END"])
    _, result = spoken("a b END", "length")
    result = replace(result, text="a b ", finish_reason="stop")
    answer = messages.whole(asked, [result], served())
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END")


@pytest.mark.parametrize("text", [TEXT, "Hm.</think>Yes"])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_responses_say_the_same(text: str, reason: Any) -> None:
    asked = read(responses, tools=tools(responses), stream=True, top_logprobs=2)
    whole = responses.whole(asked, [spoken(text, reason, logprobs=True)[1]], served())
    events = stream(responses, asked, text, reason=reason, logprobs=True)
    told = values(events)
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    assert [event.event for event in events] == [one["type"] for one in told]
    assert told[0]["type"] == "response.created"
    status = "completed" if reason == "stop" else "incomplete"
    assert told[-1]["type"] == f"response.{status}"
    final = told[-1]["response"]
    for item in (*whole["output"], *final["output"]):
        for part in item.get("content", ()):
            part.pop("logprobs", None)
    assert final["usage"] == whole["usage"]
    kinds = ["reasoning", "message", *(["function_call"] if CALL in text else [])]
    assert [item["type"] for item in whole["output"]] == kinds
    assert [item["status"] for item in final["output"]][-2:] == ["completed", status]
    assert final == whole
    deltas = [one["delta"] for one in told if one["type"] == "response.output_text.delta"]
    assert "".join(deltas) == whole["output"][1]["content"][0]["text"]


@EACH
def test_a_text_that_fails_is_told(dialect: Dialect) -> None:
    asked = read(dialect, stream=True)
    _, result = spoken("a")
    broken = replace(result, finish_reason="error", error="no token can follow")
    fault = failed([broken])
    assert fault is not None
    assert fault.status == 500
    events = dialect.writer(asked, served()).end([broken])
    assert "no token can follow" in events[0].data
    hidden = fault_of(RuntimeError("secret"))
    assert hidden.status == 500
    assert "secret" not in json.dumps(dialect.error(hidden))
    assert failed([result]) is None


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (404, "invalid_request_error", "not_found_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (503, "service_unavailable_error", "overloaded_error"),
    ],
)
def test_errors_are_of_the_callers_kind(status: int, openai: str, anthropic: str) -> None:
    fault = Fault(status, "word", "In words.")
    for dialect in BARE:
        error = dialect.error(fault)["error"]
        assert error["type"] == (anthropic if dialect is messages else openai)
        assert error["message"] == "In words."
