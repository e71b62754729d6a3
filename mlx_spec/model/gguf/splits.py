"""How a byte-level vocabulary cuts text into words before it merges, by the name in the metadata.

A GGUF file has only a name for this (``tokenizer.ggml.pre``). Another cut gives other tokens, from
which a model says other things, so a name that is not known here is refused. The patterns are those
of the tokenizer.json files of the models that the names come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_spec.errors import UnsupportedModel

_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _END
)  # fmt: skip
_QWEN2 = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _END
_QWEN35 = (
    _SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _END
)  # fmt: skip
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LATE = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _END
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    + _LATE
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}" + _LATE
)
_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _END
)
_HAN_AND_MORE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DIGIT = r"\p{N}"


@dataclass(frozen=True)
class Split:
    """How a vocabulary is used.

    Attributes:
        patterns: regular expressions; each cuts what the ones before it left, and what it matches
            and what lies between are words.
        whole: a word that is in the vocabulary is a token, whatever the merges say.
        begins: a text begins with the vocabulary's begin token, unless the metadata says no.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    begins: bool = False


_LLAMA3_SPLIT = Split((_LLAMA3,), whole=True, begins=True)
_DIGITS_GPT2 = Split((_DIGIT, _GPT2))
_GPT2_SPLIT, _QWEN2_SPLIT = Split((_GPT2,)), Split((_QWEN2,))
_DEEPSEEK3 = Split((r"\p{N}{1,3}", _CJK, _PUNCTUATED))

SPLITS = {
    "bailingmoe": Split(
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "chatglm-bpe": Split((_LLAMA3,)),
    "codeshell": _DIGITS_GPT2,
    "command-r": _DIGITS_GPT2,
    "dbrx": Split((_LLAMA3,)),
    "deepseek-coder": Split(
        (
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            _HAN_AND_MORE,
            _DIGIT,
        )
    ),
    "deepseek-r1-qwen": _QWEN2_SPLIT,
    "deepseek-v3": _DEEPSEEK3,
    "exaone": _DIGITS_GPT2,
    "exaone4": _GPT2_SPLIT,
    "falcon3": _LLAMA3_SPLIT,
    "falcon-h1": _LLAMA3_SPLIT,
    "gigachat": _GPT2_SPLIT,
    "glm4": Split((_LLAMA3,)),
    "gpt-2": _GPT2_SPLIT,
    "gpt-4o": Split((_GPT4O,)),
    "granite-docling": _GPT2_SPLIT,
    "hunyuan": _QWEN2_SPLIT,
    "hunyuan-dense": _DEEPSEEK3,
    "kanana2": Split((_GPT4O,)),
    "kormo": _QWEN2_SPLIT,
    "lfm2": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama4": Split((_GPT4O,)),
    "llama-bpe": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "megrez": _QWEN2_SPLIT,
    "mellum": _GPT2_SPLIT,
    "mellum2": _DIGITS_GPT2,
    "midm-2.0": _LLAMA3_SPLIT,
    "minerva-7b": _DIGITS_GPT2,
    "minimax-m2": Split((_GPT4O,)),
    "mpt": _GPT2_SPLIT,
    "olmo": _GPT2_SPLIT,
    "phi-2": _GPT2_SPLIT,
    "pixtral": _LLAMA3_SPLIT,
    "qwen2": _QWEN2_SPLIT,
    "qwen35": Split((_QWEN35,)),
    "refact": _DIGITS_GPT2,
    "seed-coder": Split(
        (
            _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
        )
    ),
    "smaug-bpe": Split((_LLAMA3,)),
    "smollm": _DIGITS_GPT2,
    "solar-open": _QWEN2_SPLIT,
    "stablelm2": _QWEN2_SPLIT,
    "starcoder": _DIGITS_GPT2,
    "tekken": Split((_TEKKEN,), whole=True, begins=True),
    "trillion": _GPT2_SPLIT,
}


def split_of(name: str | None, file: str) -> Split:
    """The split of a name.

    Args:
        name: ``tokenizer.ggml.pre``.
        file: the file's name, for the message.

    Raises:
        UnsupportedModel: it is not known, or the file gives none.
    """
    if name is not None and name in SPLITS:
        return SPLITS[name]
    what = f"by {name!r}" if name else "in a way that it does not say (tokenizer.ggml.pre)"
    raise UnsupportedModel(
        f"{file} cuts text into words {what}; known are {', '.join(sorted(SPLITS))}"
    )
