"""What HTTP bodies ask for, in each dialect: every field that names something that is there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_spec import ChatConfig, SamplingParams, Structure
from mlx_spec.server.protocol.asked import Asked
from mlx_spec.server.protocol.chat_completions import chat_completions
from mlx_spec.server.protocol.completions import completions
from mlx_spec.server.protocol.dialect import Dialect
from mlx_spec.server.protocol.faults import parse
from mlx_spec.server.protocol.messages import count_tokens, messages
from mlx_spec.server.protocol.responses import responses
from tests.api_support import tokenizer
from tests.chat_words import served, thinking_tokenizer

HI = [{"role": "user", "content": "hi"}]
LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": LOOK}
BARE: dict[Dialect, dict[str, Any]] = {
    chat_completions: {"messages": HI},
    completions: {"prompt": "hi"},
    messages: {"messages": HI, "max_tokens": 9},
    responses: {"input": "hi"},
}
EACH = pytest.mark.parametrize("dialect", BARE, ids=lambda one: str(one.name))


def read(dialect: Dialect, served_by: Any = None, **fields: Any) -> Asked:
    """What a body asks for, as the route has it: from bytes."""
    body = json.dumps({**BARE[dialect], **fields}).encode()
    return dialect.read(parse(dialect.body, body), served_by or served())


def prompt_of(asked: Asked) -> str:
    return str(thinking_tokenizer().decode(asked.prompts[0]))


@EACH
def test_what_a_request_does_not_say_is_the_servers(dialect: Dialect) -> None:
    usual = SamplingParams(max_tokens=77, temperature=0.4, top_k=5, stop=("END",))
    asked = read(dialect, served(defaults=usual), max_tokens=None, unknown={"deep": [1]})
    assert asked.sampling == usual
    assert (asked.n, asked.stream, asked.prediction, asked.priority) == (1, False, None, 0)
    assert read(dialect, served(defaults=usual), top_k=0).sampling.top_k == 0


SAME: list[dict[str, Any]] = [
    {"temperature": 1},
    {"seed": 7},
    {"presence_penalty": 1, "frequency_penalty": 0.5},
    {"presence_context_size": 3, "frequency_context_size": 4},
    {"repetition_penalty": 1.1, "repetition_context_size": 9},
    {"xtc_probability": 0.2, "xtc_threshold": 0.3},
    {"min_tokens": 3, "ignore_eos": True, "stop_token_ids": [4]},
]
SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *((fields, fields) for fields in SAME),
    ({"top_p": 0.5, "top_k": -1, "min_p": 0.1}, {"top_p": 0.5, "min_p": 0.1}),
    ({"seed": -1}, {"seed": None}),
    ({"seed": -2}, {"seed": 2**64 - 2}),
    ({"max_tokens": -1}, {"max_tokens": None}),
    ({"logit_bias": {"5": -100, "6": 2.5}}, {"logit_bias": {5: -100.0, 6: 2.5}}),
    ({"logit_bias": [[5, False], [6, 1]]}, {"logit_bias": {5: float("-inf"), 6: 1.0}}),
    (
        {"repeat_penalty": 1.1, "repeat_last_n": -1},
        {"repetition_penalty": 1.1, "repetition_context_size": 0},
    ),
    ({"repeat_penalty": 1.1, "repeat_last_n": 0}, {"repetition_context_size": 0}),
    ({"stop": "a"}, {"stop": ("a",)}),
    ({"stop": ["a", "b", "a"]}, {"stop": ("a", "b")}),
]


@pytest.mark.parametrize("dialect", [chat_completions, completions], ids=lambda one: str(one.name))
@pytest.mark.parametrize(("fields", "options"), SAMPLING, ids=lambda one: ",".join(one))
def test_sampling_is_as_asked(dialect: Dialect, fields: Any, options: Any) -> None:
    expected = SamplingParams(**{"max_tokens": 64, **options})
    assert read(dialect, **fields).sampling == expected


def test_how_many_tokens_has_many_names() -> None:
    for dialect, names in (
        (chat_completions, ("max_tokens", "max_completion_tokens", "n_predict")),
        (completions, ("max_tokens", "n_predict")),
        (messages, ("max_tokens",)),
        (responses, ("max_output_tokens",)),
    ):
        for name in names:
            assert read(dialect, **{name: 5}).sampling.max_tokens == 5
    both = read(chat_completions, max_tokens=5, max_completion_tokens=6)
    assert both.sampling.max_tokens == 6


def test_logprobs_in_each_way_of_asking() -> None:
    for asked, likeliest in (
        (read(chat_completions, logprobs=True), 0),
        (read(chat_completions, logprobs=True, top_logprobs=3), 3),
        (read(completions, logprobs=3), 3),
        (read(completions, logprobs=True, top_logprobs=2), 2),
        (read(completions, logprobs=0), 0),
        (read(responses, top_logprobs=3), 3),
        (read(responses, include=["message.output_text.logprobs"]), 0),
    ):
        assert asked.sampling.logprobs
        assert asked.sampling.top_logprobs == likeliest
    assert not read(completions, logprobs=False).sampling.logprobs
    assert read(completions, logprobs=2, echo=True).sampling.prompt_logprobs


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SHAPES = [
    ({"response_format": {"type": "json_object"}}, Structure.json_schema({"type": "object"})),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, Structure.json_schema(SCHEMA)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        Structure.json_schema(SCHEMA),
    ),
    ({"response_format": {"type": "text"}}, None),
    ({"json_schema": SCHEMA}, Structure.json_schema(SCHEMA)),
    ({"guided_regex": "a+"}, Structure.regex("a+")),
    ({"guided_choice": ["a", "b"]}, Structure.choices(["a", "b"])),
    ({"grammar": 'root ::= "a"'}, Structure.grammar('root ::= "a"')),
]


@pytest.mark.parametrize(("fields", "structure"), SHAPES)
def test_the_shape_of_a_text(fields: dict[str, Any], structure: Structure | None) -> None:
    assert read(chat_completions, **fields).sampling.structure == structure
    assert read(completions, **fields).sampling.structure == structure


def test_the_shape_of_a_text_elsewhere() -> None:
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    expected = Structure.json_schema(SCHEMA)
    assert read(responses, text={"format": form}).sampling.structure == expected
    assert read(messages, output_format=form).sampling.structure == expected
    assert read(messages, output_config={"format": form}).sampling.structure == expected


def test_predictions_are_texts() -> None:
    for content in ("a b", [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]):
        prediction = {"type": "content", "content": content}
        assert read(chat_completions, prediction=prediction).prediction == "a b"
        assert read(responses, prediction=prediction).prediction == "a b"


def test_conversations_go_through_the_template() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    talk = [{"role": "developer", "content": "Be."}, {"role": "user", "content": parts}]
    asked = read(chat_completions, messages=talk)
    assert prompt_of(asked) == "[system] Be.\n[user] hi\n[assistant] <think>\n"
    assert asked.thinking
    assert asked.chat is None
    off = read(chat_completions, chat_template_kwargs={"enable_thinking": False})
    assert prompt_of(off) == "[user] hi\n[assistant] "
    assert not off.thinking
    assert not read(chat_completions, reasoning_effort="none").thinking
    begun = [*HI, {"role": "assistant", "content": "<think>So"}]
    goes_on = read(chat_completions, messages=begun, continue_final_message=True)
    assert prompt_of(goes_on).endswith("[assistant] <think>So")
    assert goes_on.thinking
    server = served(
        chat=ChatConfig(system_prompt="Sys.", chat_template_config={"enable_thinking": False})
    )
    assert prompt_of(read(chat_completions, server)) == "[system] Sys.\n[user] hi\n[assistant] "


CALLS = [
    {
        "id": "c1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": 1}'},
    }
]
WITH_CALLS = (
    "<tool>look\n[user] hi\n[assistant] <think>Hm</think>"
    '<tool_call>look {"at": 1}</tool_call>\n[tool] 7\n'
)


def test_calls_and_answers_of_tools() -> None:
    """The same talk, as each API writes it."""
    said = {"role": "assistant", "tool_calls": CALLS, "reasoning_content": "Hm", "content": None}
    answer = {"role": "tool", "tool_call_id": "c1", "content": "7"}
    chat = read(chat_completions, messages=[*HI, said, answer], tools=[TOOL])
    use = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 1}}
    blocks = [{"type": "thinking", "thinking": "Hm", "signature": "x"}, use]
    result = {
        "type": "tool_result",
        "tool_use_id": "c1",
        "content": [{"type": "text", "text": "7"}],
    }
    turns = [
        *HI,
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [result]},
    ]
    tool = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
    anthropic = read(messages, messages=turns, tools=[tool], thinking={"type": "adaptive"})
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
    ]
    flat = {"type": "function", **LOOK}
    response = read(responses, input=items, tools=[flat])
    expected = f"{WITH_CALLS}[assistant] <think>\n"
    assert [prompt_of(one) for one in (chat, anthropic, response)] == [expected] * 3


def test_anthropic_thinks_only_when_asked() -> None:
    assert prompt_of(read(messages)) == "[user] hi\n[assistant] "
    asked = read(messages, thinking={"type": "enabled", "budget_tokens": 1024}, system="Be.")
    assert prompt_of(asked) == "[system] Be.\n[user] hi\n[assistant] <think>\n"
    begun = [*HI, {"role": "assistant", "content": "Well"}]
    assert prompt_of(read(messages, messages=begun)).endswith("[user] hi\n[assistant] Well")
    body = parse(messages.body, json.dumps(BARE[messages]))
    assert count_tokens(body, served()) == {"input_tokens": read(messages).prompt_tokens}


def test_calls_can_be_required() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    named = {"type": "function", "function": {"name": "look"}}
    plain = served(tokenizer(thinking_tokenizer().chat_template))
    asked = read(chat_completions, plain, tools=[tool], tool_choice=named)
    assert asked.sampling.structure == Structure.json_schema(schema)
    flat = {"type": "function", **tool["function"]}  # type: ignore[dict-item]
    choice = {"type": "function", "name": "look"}
    assert read(responses, tools=[flat], tool_choice=choice).sampling == asked.sampling
    ours = {"name": "look", "input_schema": schema}
    choice = {"type": "tool", "name": "look"}
    assert (
        read(messages, tools=[ours], tool_choice=choice, max_tokens=64).sampling == asked.sampling
    )
    required = read(chat_completions, tools=[tool], tool_choice="required").sampling.structure
    assert required is not None
    assert json.loads(required.text)["maxItems"] == 16
    alone = read(chat_completions, tools=[tool], parallel_tool_calls=False)
    assert alone.sampling.stop_texts == ("</tool_call>",)


def test_completions_take_prompts_in_four_forms() -> None:
    words = thinking_tokenizer()
    hi, ho = words.encode("hi"), words.encode("ho")
    for prompt, ids in (
        ("hi", [hi]),
        (["hi", "ho"], [hi, ho]),
        (hi, [hi]),
        ([hi, ho], [hi, ho]),
    ):
        asked = read(completions, prompt=prompt, n=2, temperature=1)
        assert list(asked.prompts) == ids
        assert asked.sequences == 2 * len(ids)
