"""How prompts become what the model reads: raw or templated, with every option that a template
takes. Nothing is decoded here, but in the test that all doors lead to the same place.
"""

from __future__ import annotations

from typing import Any

import pytest

from mlx_spec import BatchedMLXGenerator, ChatConfig, batch_generate, generate
from mlx_spec.batching.chat import RAW
from mlx_spec.batching.prompts import encode
from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.flags import Flags
from tests.api_support import model, tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
    "{% if quiet %}quiet;{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"name": "look"}]


def read(prompt: Any, chat: ChatConfig = RAW, template: str | None = TEMPLATE) -> str:
    """What the model is given, as text."""
    words = tokenizer(template)
    return str(words.decode(encode(words, prompt, chat=chat)))


@pytest.mark.parametrize(
    ("chat", "text", "messages"),
    [
        (False, "hi", "<user>hi;<assistant>"),
        (True, "<user>hi;<assistant>", "<user>hi;<assistant>"),
        (
            ChatConfig(system_prompt="be"),
            "<system>be;<user>hi;<assistant>",
            "<user>hi;<assistant>",
        ),
        # The begun answer is not ended, as messages are.
        (ChatConfig(prefill_response="Well"), "<user>hi;<assistant>Well", None),
        (ChatConfig(tools=TOOLS), "<user>hi;[look]<assistant>", None),
        (ChatConfig(chat_template_config={"quiet": True}), "<user>hi;quiet;<assistant>", None),
        (
            ChatConfig(texts=False, chat_template_config={"quiet": True}),
            "hi",
            "<user>hi;quiet;<assistant>",
        ),
    ],
)
def test_texts_are_raw_or_messages_as_asked(
    chat: bool | ChatConfig, text: str, messages: str | None
) -> None:
    config = ChatConfig.of(chat)
    assert read("hi", config) == text
    assert read(HI, config) == (messages or text)


def test_a_template_that_refuses_is_told_in_one_line() -> None:
    refusing = "{{ raise_exception('system role\nnot supported') }}"
    with pytest.raises(InvalidRequest, match="fails: system role not supported") as caught:
        read(HI, template=refusing)
    assert "\n" not in str(caught.value)


def test_a_text_cannot_be_templated_without_a_template() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        read("hi", ChatConfig(), template=None)


def test_the_command_line_templates_where_there_is_a_template() -> None:
    flags = Flags(chat_template_config='{"quiet": true}', system_prompt="be")
    assert read("hi", flags.chat(tokenizer(TEMPLATE))) == "<system>be;<user>hi;quiet;<assistant>"
    assert flags.chat(tokenizer()).texts is False
    assert Flags(ignore_chat_template=True).chat(tokenizer(TEMPLATE)).texts is False


def test_one_more_end_token_by_text_or_number() -> None:
    words = tokenizer()
    number = words.get_vocab()["("]
    for given in ("(", str(number)):
        assert Flags(extra_eos_token=(given,)).sampling_for(words).stop_token_ids == (number,)
    with pytest.raises(InvalidRequest, match="'<none>' is no token"):
        Flags(extra_eos_token=("<none>",)).sampling_for(words)


@pytest.mark.parametrize("text", ["{enable_thinking: false}", "[1]", "1", "", '{"tokenize": true}'])
def test_keywords_that_are_none_are_refused_before_any_model(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"chat.template.config"):
        Flags(chat_template_config=text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"system_prompt": 3}, "system_prompt=3"),
        ({"chat_template_config": [1]}, "expected keywords"),
        ({"chat_template_config": {1: 2}}, "expected keywords"),
        ({"chat_template_config": {"tools": []}}, "give tools="),
        ({"tools": "look"}, "tools='look'"),
    ],
)
def test_configs_refuse_what_no_template_takes(options: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ChatConfig(**options)


def test_every_function_asks_the_same_way() -> None:
    """Text with ``chat=True`` is the message, in a list, alone and through the generator."""
    words = tokenizer(TEMPLATE)
    target: Any = (model(), words)
    wanted = generate(*target, HI, max_tokens=4).token_ids
    assert generate(*target, "hi", max_tokens=4).token_ids != wanted
    assert generate(*target, "hi", chat=True, max_tokens=4).token_ids == wanted
    both = batch_generate(*target, ["hi", HI], chat=ChatConfig(), max_tokens=4).results
    assert [one.token_ids for one in both] == [wanted] * 2
    with BatchedMLXGenerator(*target) as generator:
        assert generator.submit("hi", chat=True, max_tokens=4).result().token_ids == wanted
        results = generator.generate(["hi", HI], chat=True, max_tokens=4)
        assert [one.token_ids for one in results] == [wanted] * 2
    with pytest.raises(InvalidRequest, match="chat='yes'"):
        generate(*target, "hi", chat="yes")  # type: ignore[arg-type]
