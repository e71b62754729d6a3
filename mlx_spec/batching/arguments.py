"""What people hand to the public functions: keywords of sampling, models, and likely mistakes.

It knows what mlx-lm's, vLLM's and OpenAI's users write, and says what is meant here.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import fields, replace
from typing import Any, TypedDict

from mlx_spec.config import LogitBias, SamplingParams, Structure
from mlx_spec.errors import InvalidRequest


class SamplingOptions(TypedDict, total=False):
    """Fields of :class:`SamplingParams` as keywords: ``generate(..., max_tokens=200)``."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: str | Seq[str] | None
    stop_token_ids: int | Seq[int] | None
    ignore_eos: bool
    structure: Structure | None
    response_format: Mapping[str, Any] | None
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: bool
    num_draft_tokens: int | None
    min_tokens_to_keep: int
    xtc_probability: float
    xtc_threshold: float
    xtc_special_tokens: int | Seq[int] | None
    repetition_penalty: float
    repetition_context_size: int
    presence_penalty: float
    presence_context_size: int
    frequency_penalty: float
    frequency_context_size: int
    logit_bias: LogitBias | None
    min_tokens: int
    logits_processors: Seq[Callable[..., Any]] | None
    sampler: Callable[..., Any] | None


_HINTS = {
    "temp": "it is called temperature",
    "n": "several texts at a time are streamed by stream_batch_generate, or a generator's submit",
    "json_schema": "give structure=Structure.json_schema({...})",
    "regex": "give structure=Structure.regex(...)",
    "choices": "give structure=Structure.choices([...])",
    "grammar": "give structure=Structure.grammar(...)",
    "guided_json": "give structure=Structure.json_schema({...})",
    "max_new_tokens": "it is called max_tokens",
    "min_new_tokens": "it is called min_tokens",
    "eos_token_id": "give stop_token_ids=[...]",
    "bad_words_ids": 'give logit_bias={token: float("-inf")}',
    "logits_processor": "it is called logits_processors",
    "system_prompt": "give chat=ChatConfig(system_prompt=...)",
    "chat_template_config": "give chat=ChatConfig(chat_template_config={...})",
    "enable_thinking": 'give chat=ChatConfig(chat_template_config={"enable_thinking": ...})',
    "tools": "give chat=ChatConfig(tools=[...])",
    "prefill_response": "give chat=ChatConfig(prefill_response=...)",
    "batch_size": "give batching=BatchingConfig(batch_size=...)",
    "prefill_step_size": "give batching=BatchingConfig(prefill_step_size=...)",
    "kv_bits": "give cache=CacheOptions(kv_bits=...), or BatchingConfig(cache=...)",
    "quantized_kv_start": "give cache=CacheOptions(kv_bits=..., quantized_kv_start=...)",
    "max_kv_size": "give cache=CacheOptions(max_kv_size=...), or BatchingConfig(cache=...)",
    "verbose": "nothing is printed here; the command mlx-spec generate prints",
}


def with_options(
    sampling: SamplingParams | Seq[SamplingParams] | None, options: Mapping[str, Any], owner: str
) -> Any:
    """``sampling``, one or a list, with the fields given as keywords to ``owner`` in their place.

    Raises:
        InvalidRequest: a keyword that is no field of :class:`SamplingParams`, and what to write
            for it; ``sampling`` of another type.
    """
    known = [item.name for item in fields(SamplingParams)]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = _HINTS.get(name) or (f"did you mean {close[0]!r}?" if close else None)
            hint = hint or f"options of sampling are {', '.join(known)}"
            raise InvalidRequest(f"[{owner}] unknown option {name!r}: {hint}")
    if sampling is None:
        return SamplingParams(**options)
    listed = not isinstance(sampling, SamplingParams)
    several = sampling if isinstance(sampling, Seq) else [sampling]
    if isinstance(sampling, (str, bytes)) or not all(
        isinstance(one, SamplingParams) for one in several
    ):
        raise InvalidRequest(
            f"[{owner}] sampling must be SamplingParams or a list of them, "
            f"not {type(sampling).__name__}"
        )
    made = [replace(one, **options) for one in several] if options else several
    return made if listed else made[0]


def check_models(model: Any, tokenizer: Any, owner: str) -> None:
    """Refuse a name, a pair or a tokenizer in the place of a model, and say what to write.

    Raises:
        InvalidRequest: ``model`` has no layers, or ``tokenizer`` cannot encode.
    """
    for role, value in (("model", model), ("tokenizer", tokenizer)):
        if isinstance(value, (str, os.PathLike)):
            name = os.fspath(value)
            raise InvalidRequest(
                f"[{owner}] {role} is the name {name!r}; give what it loads: "
                f"model, tokenizer = load({name!r})"
            )
        if isinstance(value, tuple):
            raise InvalidRequest(
                f"[{owner}] {role} is a tuple of {len(value)}, as load() returns it; take it "
                f"apart: model, tokenizer = load(...)"
            )
    if not callable(model) or not hasattr(model, "layers"):
        swapped = "; model and tokenizer are swapped" if hasattr(tokenizer, "layers") else ""
        raise InvalidRequest(
            f"[{owner}] model is {type(model).__name__}, expected a model of mlx-lm{swapped}"
        )
    if tokenizer is not None and not hasattr(tokenizer, "encode"):
        raise InvalidRequest(
            f"[{owner}] tokenizer is {type(tokenizer).__name__}, expected the one that load() "
            "returned, or None where all prompts are token ids"
        )
