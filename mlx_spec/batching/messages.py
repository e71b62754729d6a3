"""Chat messages: checked, brought to the one form that templates know, and through the template.

Clients and files write messages in several forms: content as a list of parts, no content beside
tool calls, a null for each key that a columnar file has no value for. Templates know one form:
content is a text, and what is not there is absent. Whatever a template refuses is said in its own
words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import suppress
from functools import partial
from typing import Any

from mlx_spec.batching.borders import TurnIds, find_border
from mlx_spec.errors import InvalidRequest

_TEXT_PARTS = ("text", "input_text", "output_text")
# Beside these a message without content says nothing at all.
_NAMES = {"role", "name", "id", "tool_call_id"}


def chat_ids(tokenizer: Any, messages: Seq[Any], where: str, /, **options: Any) -> list[int]:
    """Token ids of a conversation, ready for the answer.

    Args:
        tokenizer: with a chat template.
        messages: as clients write them.
        where: begins every error.
        options: further variables of the template, e.g. ``tools``.

    Raises:
        InvalidRequest: there is no template, a message is malformed (its number is named), or the
            template refuses.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequest(
            f"{where} is a list of chat messages, but the tokenizer has no chat template"
        )
    good = check_messages(messages, where)
    keywords = {"add_generation_prompt": True, **without_nulls(options)}
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str) and template.startswith("\ufeff"):
        # An editor's mark at the start of the file, which is no part of the prompt.
        keywords.setdefault("chat_template", template[1:])
    try:
        ids = tokenizer.apply_chat_template(good, **keywords)
    except Exception as error:  # a foreign template over foreign data may raise anything
        raise InvalidRequest(f"{where}: the chat template fails: {_words(error)}") from error
    if not keywords["add_generation_prompt"]:
        return list(ids)
    return TurnIds(ids, partial(find_border, tokenizer, good, keywords, ids))


def check_messages(messages: Seq[Any], where: str) -> list[dict[str, Any]]:
    """Copies in the form that templates know: content a text or absent, no nulls.

    Raises:
        InvalidRequest: with the number, from 1, of the message that is malformed.
    """
    return [
        _check(message, f"{where}: message {number}")
        for number, message in enumerate(messages, start=1)
    ]


def check_text(text: str, where: str) -> str:
    """The text, if it is one that can be encoded.

    Raises:
        InvalidRequest: it holds half a surrogate pair, which JSON and Python can write.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{where} is not valid Unicode: half a surrogate pair, "
            f"{text[error.start]!a}, at character {error.start + 1}"
        ) from error
    return text


def without_nulls(value: Any) -> Any:
    """A copy without the keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(one) for one in value]
    return value


def _check(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(
            f'{where} is {type(message).__name__}, expected {{"role": ..., "content": ...}}'
        )
    good: dict[str, Any] = without_nulls(message)
    role = good.get("role")
    if not isinstance(role, str) or not role:
        found = "no role" if role is None else f"the role {role!r}"
        raise InvalidRequest(f"{where} has {found}, expected user, assistant, system or tool")
    if "content" in good:
        good["content"] = _text(good["content"], where)
    elif not good.keys() - _NAMES:
        raise InvalidRequest(f"{where} ({role}) has neither content nor tool calls")
    for call in _list(good.get("tool_calls")):
        _read_arguments(call)
    return good


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return check_text(content, where)
    if not isinstance(content, (list, tuple)):
        raise InvalidRequest(
            f"{where} has content of type {type(content).__name__}, "
            "expected a text or a list of text parts"
        )
    return "".join(
        check_text(_part(part, place), place)
        for place, part in ((f"{where}, part {i}", part) for i, part in enumerate(content, start=1))
    )


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"{where} is {type(part).__name__}, expected a text part")
    kind, text = part.get("type", "text"), part.get("text")
    if kind not in _TEXT_PARTS:
        raise InvalidRequest(f"{where} is {kind!r}; only text parts can be taken")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} ({kind}) holds no text")
    return text


def _read_arguments(call: Any) -> None:
    """Arguments that a client wrote as JSON text become the object that templates expect."""
    function = call.get("function", call) if isinstance(call, dict) else None
    text = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(function, dict) and isinstance(text, str):
        # Text that is no JSON is for the template to judge.
        with suppress(ValueError, RecursionError):
            function["arguments"] = json.loads(text)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(error: Exception) -> str:
    """A template's own words; an accident of Python's with its kind."""
    text = " ".join(str(error).split())
    ours = type(error).__module__.startswith("jinja2")
    return text if ours and text else f"{type(error).__name__}: {text}"
