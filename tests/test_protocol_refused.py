"""What HTTP bodies ask for and cannot have: told in words, in the caller's format."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec.errors import InvalidRequest, MlxSpecError
from mlx_spec.server.protocol.chat_completions import chat_completions
from mlx_spec.server.protocol.completions import completions
from mlx_spec.server.protocol.dialect import Dialect
from mlx_spec.server.protocol.faults import fault_of, parse
from mlx_spec.server.protocol.messages import messages
from mlx_spec.server.protocol.responses import responses
from tests.api_support import tokenizer
from tests.chat_words import served, thinking_tokenizer
from tests.test_protocol_read import EACH, LOOK, TOOL, read

REFUSED: list[tuple[Dialect, dict[str, Any], str]] = [
    (chat_completions, {"temperature": "0.5"}, "temperature: "),
    (chat_completions, {"temperature": -1}, "temperature=-1"),
    (chat_completions, {"max_tokens": 1.5}, "max_tokens: "),
    (chat_completions, {"max_tokens": 0}, "max_tokens=0"),
    (chat_completions, {"n": 0}, "n: "),
    (chat_completions, {"n": 2}, "n is 2, and with temperature 0"),
    (chat_completions, {"messages": []}, "messages is empty"),
    (chat_completions, {"messages": "hi"}, "messages: "),
    (chat_completions, {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    (chat_completions, {"messages": [{"role": "user"}]}, "message 1 .* neither content"),
    (
        chat_completions,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "message 1, part 1 is 'image_url'; only text",
    ),
    (chat_completions, {"stop": [f"{n}" for n in range(65)]}, "65 texts, at most 64"),
    (chat_completions, {"stop": [""]}, "non-empty"),
    (chat_completions, {"logit_bias": {"x": 1}}, "logit_bias"),
    (chat_completions, {"logit_bias": [[1, True]]}, "expected a number or false"),
    (chat_completions, {"top_logprobs": 2}, "needs logprobs"),
    (chat_completions, {"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
    (chat_completions, {"response_format": {"type": "xml"}}, "response_format"),
    (chat_completions, {"guided_regex": "a", "json_schema": {}}, "only one"),
    (chat_completions, {"functions": [LOOK]}, "functions cannot be used here: .*tools"),
    (chat_completions, {"modalities": ["text", "audio"]}, "only text is generated"),
    (chat_completions, {"tools": [{"type": "web_search"}]}, "tools.0 is of type 'web_search'"),
    (chat_completions, {"tools": [TOOL], "tool_choice": "any"}, "tool_choice is 'any'"),
    (chat_completions, {"tool_choice": "required"}, "there are no tools"),
    (chat_completions, {"tools": [TOOL, TOOL]}, "'look' is there twice"),
    (chat_completions, {"prediction": {"type": "content", "content": 5}}, "prediction.content"),
    (chat_completions, {"mirostat": 2}, "mirostat cannot be used here"),
    (chat_completions, {"adapters": "x"}, "adapters"),
    (chat_completions, {"chat_template": "{{ 1 }}"}, "the template is the model's"),
    (chat_completions, {"chat_template_kwargs": {"chat_template": "x"}}, "not for a request"),
    (messages, {"chat_template_kwargs": {"messages": []}}, "not for a request"),
    (responses, {"chat_template_kwargs": {"truncation": True}}, "not for a request"),
    (responses, {"chat_template_kwargs": {"tokenize": False}}, "not for a user to set"),
    (completions, {"prompt": None}, "prompt"),
    (completions, {"prompt": ""}, "prompt is empty"),
    (completions, {"prompt": []}, "prompt is empty"),
    (completions, {"prompt": ["a", ""]}, "prompt.1 is empty"),
    (completions, {"prompt": [1, "a"]}, "prompt"),
    (completions, {"best_of": 3}, "best_of"),
    (completions, {"suffix": "x"}, "suffix"),
    (completions, {"logprobs": 21}, "top_logprobs=21"),
    (completions, {"stream": True, "echo": True, "logprobs": 1}, "not streamed"),
    (messages, {"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
    (
        messages,
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "messages.0.content.0 is 'image'; only text",
    ),
    (messages, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools of your own"),
    (messages, {"thinking": {"type": "much"}}, "thinking.type"),
    (responses, {"previous_response_id": "resp_1"}, "answers are not kept"),
    (responses, {"background": True}, "background"),
    (responses, {"input": [{"type": "item_reference", "id": "x"}]}, "input.0 is of type"),
    (responses, {"tools": [{"type": "web_search"}]}, "only functions"),
    (responses, {"prompt": {"id": "x"}}, "prompts are not kept"),
]


@pytest.mark.parametrize(("dialect", "fields", "words"), REFUSED)
def test_what_cannot_be_done_is_refused_in_words(
    dialect: Dialect, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read(dialect, **fields)
    fault = fault_of(caught.value)
    assert fault.status == 400
    assert "\n" not in fault.message
    error = dialect.error(fault)["error"]
    assert error["message"] == fault.message
    assert error["type"] == "invalid_request_error"


def test_a_model_that_writes_no_calls_is_not_left_to_decide() -> None:
    plain = served(tokenizer(thinking_tokenizer().chat_template))
    with pytest.raises(InvalidRequest, match="no way of its own to write tool calls"):
        read(chat_completions, plain, tools=[TOOL])
    assert read(chat_completions, plain, tools=[TOOL], tool_choice="none").prompts


@EACH
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"a": "\\ud800"}', b"[" * 10_000, b"\xff"])
def test_no_bytes_break_it(dialect: Dialect, body: bytes) -> None:
    with pytest.raises(MlxSpecError):
        dialect.read(parse(dialect.body, body), served())
