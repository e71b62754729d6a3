"""From what a caller may write as a prompt to a checked sequence of token ids."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any, TypeAlias, cast

from mlx_spec.batching.borders import TurnIds
from mlx_spec.batching.chat import RAW, text_ids, turns_ids
from mlx_spec.batching.messages import check_text
from mlx_spec.cache.layout import cut_anywhere
from mlx_spec.config import ChatConfig, SamplingParams
from mlx_spec.config.checks import check_integer
from mlx_spec.decoding.prompt_share import share_prompts
from mlx_spec.errors import InvalidRequest, PromptTooLong
from mlx_spec.model.context import context_length
from mlx_spec.model.pairing import check_pair
from mlx_spec.sequence import NO_END, Sequence
from mlx_spec.structured.compiler import guide_of

Prompt: TypeAlias = str | Seq[int] | Seq[Mapping[str, Any]]
"""A text, a list of token ids, or a list of chat messages."""

DraftModel: TypeAlias = Any
"""A draft model, or the (model, tokenizer) pair that ``load`` returned."""


def make_sequences(
    model: Any,
    tokenizer: Any,
    prompts: Seq[Prompt],
    sampling: SamplingParams | Seq[SamplingParams],
    longest: int | None = None,
    chat: ChatConfig = RAW,
) -> list[Sequence]:
    """One checked sequence a prompt, in order; ``longest`` is a limit beside the context's.

    ``chat`` says whether texts are messages, and how messages are templated.

    Raises:
        InvalidRequest: no prompts, an empty one, a text without a tokenizer, a token id outside
            the vocabulary, or a number of options that differs from the number of prompts.
        PromptTooLong: a prompt that leaves no room in the model's context.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Seq):
        raise InvalidRequest("[batch_generate] prompts must be a list; for one use generate()")
    if not prompts:
        raise InvalidRequest("[batch_generate] 0 prompts, expected at least 1")
    options = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
    if not isinstance(options, Seq) or not all(isinstance(o, SamplingParams) for o in options):
        raise InvalidRequest(
            "[batch_generate] sampling must be SamplingParams or a list of them, "
            f"not {type(sampling).__name__}"
        )
    if len(options) != len(prompts):
        raise InvalidRequest(
            f"[batch_generate] {len(options)} sampling options for {len(prompts)} prompts"
        )
    limits = [limit for limit in (context_length(model), longest) if limit is not None]
    context = min(limits, default=None)
    made = []
    # Prompts that come in lists are not of talks that go on.
    talks = all(prompt is prompts[0] for prompt in prompts) and not cut_anywhere(model)
    for index, (prompt, option) in enumerate(zip(prompts, options, strict=True)):
        where = f"[generate] {prompt_name(index, len(prompts))}"
        ids = encode(tokenizer, prompt, where, chat)
        made.append(_make_sequence(list(ids), option, tokenizer, context, index, where))
        if talks and isinstance(ids, TurnIds):
            made[-1].border = ids.border()
    share_prompts(made)
    return made


def repeated(
    prompts: Seq[Prompt], sampling: SamplingParams | Seq[SamplingParams], n: int
) -> tuple[Seq[Prompt], SamplingParams | Seq[SamplingParams]]:
    """Each prompt ``n`` times, with the seeds SEED, SEED + 1, ...; without a seed each draws one.

    Raises:
        InvalidRequest: ``n`` is no such number, or asks for several greedy texts, all the same.
    """
    check_integer("batch_generate", "n", n, 1)
    if n == 1 or isinstance(prompts, (str, bytes)):
        return prompts, sampling
    options = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
    for option in options:
        if not option.temperature:
            raise InvalidRequest(
                f"[batch_generate] n={n} greedy texts of a prompt are all the same; "
                "give a temperature"
            )
    seeded = [
        option if option.seed is None else replace(option, seed=option.seed + number)
        for option in options
        for number in range(n)
    ]
    return [prompt for prompt in prompts for _ in range(n)], seeded


def prompt_name(index: int, count: int) -> str:
    """What a prompt is called in errors, everywhere."""
    return "the prompt" if count == 1 else f"prompt {index + 1} of {count}"


def prompt_label(prompt: Prompt) -> str:
    """What a person knows a prompt by: its text, or its last message's, or its length."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1]
    if isinstance(last, Mapping):
        content = last.get("content")
        return content if isinstance(content, str) else f"{len(prompt)} messages"
    return f"{len(prompt)} token ids"


def encode(
    tokenizer: Any, prompt: Prompt, where: str = "[generate] the prompt", chat: ChatConfig = RAW
) -> list[int]:
    """Token ids of one prompt; ``where`` names it in errors, ``chat`` says how it is templated.

    Raises:
        InvalidRequest: an empty prompt, or one that needs a tokenizer or chat template that is
            not there.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InvalidRequest(f"{where} is empty")
        _need(tokenizer, f"{where} is text")
        if chat.texts:
            return text_ids(tokenizer, prompt, chat, where)
        # As mlx-lm: a prompt that already starts with the special tokens gets no second set.
        bare = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
        check_text(prompt, where)
        try:
            return list(tokenizer.encode(prompt, add_special_tokens=bare))
        except Exception as error:  # a foreign tokenizer may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InvalidRequest(f"{where}: the tokenizer fails: {reason}") from error
    # Arrays of ids (mlx, numpy) are no sequences by their type, but say so by their length.
    if isinstance(prompt, (bytes, Mapping, Set)) or not hasattr(prompt, "__len__"):
        raise InvalidRequest(
            f"{where} is {type(prompt).__name__}, expected text, token ids or chat messages"
        )
    if len(prompt) == 0:
        raise InvalidRequest(f"{where} is empty")
    if isinstance(prompt[0], Mapping):
        _need(tokenizer, f"{where} is a list of chat messages")
        return turns_ids(tokenizer, cast("Seq[Mapping[str, Any]]", prompt), chat, where)
    if isinstance(prompt, TurnIds):
        return prompt
    return [_token_id(token, where) for token in prompt]


def _token_id(token: Any, where: str) -> int:
    """A token id as a plain int; mlx and numpy integers count, truth values do not."""
    token = token.item() if hasattr(token, "item") and getattr(token, "size", 0) == 1 else token
    if isinstance(token, bool) or not isinstance(token, int):
        raise InvalidRequest(f"{where} holds {token!r}, expected token ids")
    return token


def _need(tokenizer: Any, what: str) -> None:
    if tokenizer is None:
        raise InvalidRequest(f"{what}, which needs a tokenizer (tokenizer=None)")


def _make_sequence(
    ids: list[int],
    option: SamplingParams,
    tokenizer: Any,
    context: int | None,
    index: int,
    where: str,
) -> Sequence:
    if not ids:
        raise InvalidRequest(f"{where} encodes to no tokens")
    if min(ids) < 0:
        raise InvalidRequest(f"{where} holds the token id {min(ids)}")
    if option.stop_texts:
        _need(tokenizer, f"{where} has stop texts")
    room = NO_END if option.max_tokens is None else option.max_tokens
    if context is not None:
        if len(ids) >= context:
            raise PromptTooLong(
                f"{where} has {len(ids)} tokens; the model's context is {context} and must hold "
                "at least one more"
            )
        room = min(room, context - len(ids))
    stops = set(option.stop_ids)
    if tokenizer is not None and not option.ignore_eos:
        stops |= set(tokenizer.eos_token_ids)
    option = _with_special(option, tokenizer)
    sequence = Sequence(ids, option, room, frozenset(stops), index)
    if option.structure is not None:
        _need(tokenizer, f"{where} has a structure")
        sequence.guide = guide_of(option.structure, tokenizer, where)
    return sequence


def _with_special(option: SamplingParams, tokenizer: Any) -> SamplingParams:
    """The same with the tokens that XTC leaves alone where nobody says which: as mlx-lm's."""
    if not option.xtc_probability or option.xtc_special_tokens is not None or tokenizer is None:
        return option
    special = [*tokenizer.encode("\n"), *sorted(tokenizer.eos_token_ids)]
    return replace(option, xtc_special_tokens=tuple(dict.fromkeys(special)))


def drafting_model(draft_model: DraftModel, tokenizer: Any) -> Any:
    """The draft model, with its tokenizer where that is known: then the token maps are compared."""
    if isinstance(draft_model, (str, os.PathLike)):
        raise InvalidRequest(
            f"[generate] draft_model is the name {os.fspath(draft_model)!r}; "
            f"give what it loads: load({os.fspath(draft_model)!r})"
        )
    if not isinstance(draft_model, tuple):
        return draft_model
    _, draft_tokenizer = draft_model
    if tokenizer is not None and draft_tokenizer is not None:
        check_pair(tokenizer, draft_tokenizer)
    return draft_model
