"""Fields that clients may send and that cannot be done here: refused in words, never passed over.

Only where they would change what comes out. What a client sends by default (a neutral value) is no
wish, and what changes speed or bookkeeping alone is ignored, like any field that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_spec.errors import InvalidRequest

# Field -> the values that ask for nothing, and what to say to others.
NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "adapters": ((), "adapters are loaded with the model, not per request"),
    "audio": ((), "only text is generated"),
    "background": ((False,), "answers are not kept: stream, or use /v1/batches"),
    "best_of": ((1,), "texts are not ranked: ask for n and choose"),
    "chat_template": ((), "the template is the model's; chat_template_kwargs sets its variables"),
    "container": ((), "there are no containers"),
    "conversation": ((), "conversations are not kept: send all messages"),
    "dry_multiplier": ((0,), "DRY is not there; repetition_penalty is"),
    "dynatemp_range": ((0,), "the temperature is the same at each token"),
    "function_call": (("none",), "it is called tool_choice now"),
    "functions": (([],), "they are called tools now"),
    "mcp_servers": (([],), "tools of other servers are not called from here"),
    "mirostat": ((0,), "mirostat is not there; temperature, top_p, top_k, min_p and xtc are"),
    "modalities": ((["text"],), "only text is generated"),
    "previous_response_id": ((), "answers are not kept: send all messages"),
    "role_mapping": ((), "roles are named by the model's chat template"),
    "suffix": (("",), "text is only generated at the end"),
    "typical_p": ((1,), "typical sampling is not there; top_p and min_p are"),
    "use_beam_search": ((False,), "beam search is not there"),
    "web_search_options": ((), "the web is not searched"),
}

# What is no variable of a template, but an order to who fills it in: how much is kept, or another
# template, which could be one that never ends.
ORDERS = {
    "chat_template",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "truncation",
}


def variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request's ``chat_template_kwargs``.

    Raises:
        InvalidRequest: one that no caller sets.
    """
    for name in sorted(ORDERS & (given or {}).keys()):
        raise InvalidRequest(f"chat_template_kwargs.{name} is not for a request to set")
    return dict(given or {})


def effort_keywords(effort: Any) -> dict[str, Any]:
    """What templates are told of how much is to be reasoned."""
    keywords = {} if effort is None else {"reasoning_effort": effort}
    return {**keywords, "enable_thinking": False} if effort == "none" else keywords


def refuse(extra: Mapping[str, Any] | None, known: frozenset[str] = frozenset()) -> None:
    """Refuse what cannot be done, of the fields that a dialect does not know itself.

    Raises:
        InvalidRequest: the first of them, with what to do instead.
    """
    for name, value in (extra or {}).items():
        if name in NEUTRAL and name not in known and value is not None:
            neutral, instead = NEUTRAL[name]
            if value not in neutral:
                raise InvalidRequest(f"{name} cannot be used here: {instead}")
