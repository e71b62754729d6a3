"""A prompt read before the others: what is kept of it in a file, and what goes on behind it.

As ``mlx_lm.cache_prompt`` and ``mlx_lm.generate --prompt-cache-file`` cut a prompt: the text that
is kept begins the user's message, and what follows goes on in the middle of it.
"""

from __future__ import annotations

from typing import Any

from mlx_spec.batching.messages import chat_ids, check_text
from mlx_spec.batching.prompts import encode
from mlx_spec.config import BatchingConfig, ChatConfig, SamplingParams, SpeculationConfig
from mlx_spec.decoding.decoder import SpeculativeDecoder
from mlx_spec.decoding.prompt_share import share_prompts
from mlx_spec.errors import InvalidRequest, PromptTooLong
from mlx_spec.model.context import context_length
from mlx_spec.model.prompt_cache import PromptCache
from mlx_spec.sequence import Sequence

_ONE = SamplingParams(max_tokens=1)
_WHERE, _MARK = "[cache-prompt] the prompt", "<query>"
_GOES_ON = {"add_generation_prompt": False, "continue_final_message": True}


def first_ids(tokenizer: Any, text: str, chat: ChatConfig) -> list[int]:
    """Token ids of a text that others are to follow, up to its last word.

    Raises:
        InvalidRequest: it is empty, or the chat template refuses it.
    """
    if not chat.texts:
        return encode(tokenizer, text, _WHERE)
    options = {**chat.chat_template_config, **_GOES_ON}
    return chat_ids(tokenizer, _turns(text, chat), _WHERE, **options)


def following_ids(tokenizer: Any, text: str, chat: ChatConfig, where: str) -> list[int]:
    """Token ids of a text behind one that was kept, and of what ends the user's message.

    Raises:
        InvalidRequest: the chat template refuses it.
    """
    end = ""
    if chat.texts:
        turns, options = _turns(_MARK, chat), dict(chat.chat_template_config)
        if chat.prefill_response is not None:
            turns = [*turns, {"role": "assistant", "content": chat.prefill_response}]
            options |= _GOES_ON
        else:
            options["add_generation_prompt"] = True
        try:
            whole = tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except Exception as error:  # a foreign template may raise anything
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise InvalidRequest(f"{where}: the chat template fails: {words}") from error
        if _MARK not in whole:
            raise InvalidRequest(f"{where}: the chat template changes what the user says")
        end = whole.partition(_MARK)[2]
    return list(tokenizer.encode(check_text(text, where) + end, add_special_tokens=False))


def _turns(text: str, chat: ChatConfig) -> list[dict[str, str]]:
    system = chat.system_prompt
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def read_prompt(model: Any, tokens: list[int], name: str, batching: BatchingConfig) -> PromptCache:
    """What a model's layers keep of a text.

    Args:
        model: as ``load`` returned it.
        tokens: the text.
        name: of the model, for the file.
        batching: how much is read at once, into which caches.

    Raises:
        PromptTooLong, UnsupportedModel: as for any prompt.
    """
    plain = SpeculationConfig(enabled=False)
    context = context_length(model)
    if context is not None and len(tokens) >= context - 1:
        raise PromptTooLong(
            f"{_WHERE} has {len(tokens)} tokens; the model's context is {context} and must hold "
            "more than that"
        )
    decoder = SpeculativeDecoder(model, speculation=plain, batching=batching)
    # One token more: the last known one is never in the cache. What one of two reads is copied for
    # the other at the prompt's end, to the last token and of whatever kind.
    row, other = (Sequence([*tokens, tokens[-1]], _ONE) for _ in range(2))
    share_prompts([row, other])
    decoder.add([row])
    while decoder.busy:
        decoder.step()
    state = row.share.of(decoder.runner.pool).state
    return PromptCache(tokens, state, name, batching.cache)
