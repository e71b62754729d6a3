"""Fields that all of OpenAI's bodies share here, and what of ``SamplingParams`` they say.

Beside OpenAI's own names those of mlx-lm's server, of llama.cpp's and of vLLM's, where they name
something that is there. Null is the same as absent. Types are strict: ``"5"`` is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mlx_spec.config import SamplingParams, Structure
from mlx_spec.errors import InvalidRequest
from mlx_spec.server.protocol.refused import refuse
from mlx_spec.server.protocol.served import ServedModel

MOST_STOPS = 64  # each is looked for at every token
MOST_BIASES = 4096

# Field of a request -> field of SamplingParams, where its value is taken as it is.
SAME = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "min_tokens": "min_tokens",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_context_size": "presence_context_size",
    "frequency_context_size": "frequency_context_size",
    "repeat_penalty": "repetition_penalty",
    "repetition_penalty": "repetition_penalty",
    "repetition_context_size": "repetition_context_size",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "num_draft_tokens": "num_draft_tokens",
    "logit_bias": "logit_bias",
}


class Body(BaseModel):
    """Any request: what nobody knows is passed over."""

    model_config = ConfigDict(extra="allow", strict=True)


class StreamOptions(Body):
    """``stream_options``."""

    include_usage: bool | None = None


class Extension(Body):
    """What only this server knows, under ``mlx_spec``."""

    drafts: bool | None = Field(None, description="chunks say which drafter guessed their token")


class SamplingFields(Body):
    """How tokens are chosen, and when texts end."""

    model: str | None = Field(None, description="one model is served; any name means it")
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int | None = None
    presence_context_size: int | None = None
    frequency_context_size: int | None = None
    repeat_penalty: float | None = Field(None, description="llama.cpp's repetition_penalty")
    repeat_last_n: int | None = Field(None, description="llama.cpp's repetition_context_size")
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    logit_bias: (
        dict[str, float] | list[Annotated[list[float | int | bool], Field(max_length=2)]] | None
    ) = None
    n_predict: int | None = Field(None, description="llama.cpp's max_tokens")
    num_draft_tokens: int | None = Field(
        None, description="mlx-lm's: most guesses of a step for this request; 0 is none"
    )


class ShapeFields(SamplingFields):
    """What the text must be, in the words of other servers."""

    grammar: str | None = Field(None, description="llama.cpp's: a grammar as GBNF, or Lark's")
    json_schema: dict[str, Any] | None = Field(None, description="llama.cpp's: of the whole text")
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's")
    guided_regex: str | None = Field(None, description="vLLM's")
    guided_choice: list[str] | None = Field(None, description="vLLM's")
    guided_grammar: str | None = Field(None, description="vLLM's")


class OpenAIFields(ShapeFields):
    """What chat completions and completions share."""

    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    priority: int | None = Field(None, description="higher goes first")
    mlx_spec: Extension | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_drafts(self) -> bool:
        """Whether chunks are to say who guessed them."""
        return bool(self.mlx_spec and self.mlx_spec.drafts)


def sampling_of(body: SamplingFields, served: ServedModel, **own: Any) -> SamplingParams:
    """How tokens are chosen: what a body says, what its dialect adds, and the server's defaults.

    Raises:
        InvalidRequest: a value out of range, or a field that cannot be served.
    """
    refuse(body.model_extra)
    given: dict[str, Any] = {
        name: value for field, name in SAME.items() if (value := getattr(body, field)) is not None
    }
    if isinstance(body.logit_bias, list):
        given["logit_bias"] = [_pair(pair) for pair in body.logit_bias]
    if len(body.logit_bias or ()) > MOST_BIASES:
        raise InvalidRequest(
            f"logit_bias names {len(body.logit_bias or ())} tokens, at most {MOST_BIASES} can be"
        )
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0) if body.top_k >= -1 else body.top_k
    if body.repeat_last_n is not None:
        given["repetition_context_size"] = max(body.repeat_last_n, 0)
        if not body.repeat_last_n:  # none are looked at; here 0 means all
            given["repetition_penalty"] = 0.0
    for limit in (body.n_predict, body.max_tokens):
        if limit is not None:  # llama.cpp: -1 is no end, -2 the end of the context
            given["max_tokens"] = None if limit in (-1, -2) else limit
    if body.seed is not None:
        # llama.cpp: -1 draws one. OpenAI's are signed.
        given["seed"] = None if body.seed == -1 else body.seed % 2**64
    if body.stop is not None:
        given["stop"] = stops_of(body.stop)
    return replace(served.defaults, **{**given, **own})


def texts_of(body: OpenAIFields, sampling: SamplingParams) -> int:
    """How many texts of each prompt are wanted.

    Raises:
        InvalidRequest: several that would all be the same.
    """
    texts = body.n or 1
    if texts > 1 and not sampling.temperature:
        raise InvalidRequest(
            f"n is {texts}, and with temperature 0 all texts are the same; give a temperature"
        )
    return texts


def stops_of(stop: str | list[str]) -> tuple[str, ...]:
    """Stop texts, if they are not too many.

    Raises:
        InvalidRequest: they are.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop))
    if len(texts) > MOST_STOPS:
        raise InvalidRequest(f"stop holds {len(texts)} texts, at most {MOST_STOPS} can be")
    return texts


def structure_of(body: ShapeFields, **own: Structure | None) -> Structure | None:
    """What the text must be; None where anything goes.

    Args:
        body: a request.
        own: what its dialect's own fields say, by name.

    Raises:
        InvalidRequest: two wishes, or one that is none.
    """
    wishes = dict(own)
    for name, make in (
        ("json_schema", Structure.json_schema),
        ("guided_json", Structure.json_schema),
        ("grammar", Structure.grammar),
        ("guided_grammar", Structure.grammar),
        ("guided_regex", Structure.regex),
        ("guided_choice", Structure.choices),
    ):
        value = getattr(body, name)
        if value is not None and value != "":
            wishes[name] = make(value)
    real = {name: one for name, one in wishes.items() if one is not None}
    if len(real) > 1:
        raise InvalidRequest(f"{' and '.join(real)}: only one can say what the text must be")
    return next(iter(real.values()), None)


def by_format(given: Mapping[str, Any] | None) -> Structure | None:
    """What ``response_format`` says.

    Raises:
        InvalidRequest: another type, or no schema.
    """
    if given is None:
        return None
    # llama.cpp lets a json_object have its schema right there.
    if given.get("type") == "json_object" and given.get("schema"):
        return Structure.json_schema(given["schema"])
    return Structure.of(given)


def predicted(prediction: Mapping[str, Any] | None) -> str | None:
    """The text of OpenAI's ``prediction``.

    Raises:
        InvalidRequest: another type, or content that is no text.
    """
    if prediction is None:
        return None
    kind, content = prediction.get("type", "content"), prediction.get("content")
    if kind != "content":
        raise InvalidRequest(f"prediction.type is {kind!r}, expected 'content'")
    if isinstance(content, list):
        parts = [one.get("text") if isinstance(one, Mapping) else None for one in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise InvalidRequest("prediction.content must be a text, or a list of text parts")
    return content or None


def _pair(pair: list[Any]) -> tuple[int, float]:
    """A pair as llama.cpp has them: ``false`` forbids a token."""
    if len(pair) != 2 or isinstance(pair[0], bool) or not isinstance(pair[0], int):
        raise InvalidRequest(f"logit_bias holds {pair}, expected a token id and a number")
    token, bias = pair
    if isinstance(bias, bool):
        if bias:
            raise InvalidRequest(f"logit_bias of token {token} is true, expected a number or false")
        bias = float("-inf")
    return token, float(bias)
