"""The tokenizer of a GGUF file: from the vocabulary in its metadata to mlx-lm's wrapper.

It is written as a tokenizer.json for the moment in which mlx-lm's own loader reads it, so that all
that mlx-lm finds out about a tokenizer (detokenizer, tools, thinking) is found out here too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing

from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.gguf.file import GGUFFile
from mlx_spec.model.gguf.splits import Split, split_of

_SPACE = "\u2581"  # how vocabularies of SentencePiece write a space
# Kinds of tokens (tokenizer.ggml.token_type).
_NORMAL, _CONTROL, _OF_USERS = 1, 3, 4
_PREFIX = "tokenizer.ggml."
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
# Tokens that end a turn or a text, where the metadata names only one of several.
_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)


def load_gguf_tokenizer(file: GGUFFile, options: dict[str, Any]) -> Any:
    """The tokenizer of a file, as mlx-lm wraps it.

    Args:
        file: opened.
        options: further ones for the tokenizer, as ``load`` takes them.

    Raises:
        ModelLoadError: the metadata has no vocabulary, or one that contradicts itself.
        UnsupportedModel: a kind of tokenizer that is not known.
    """
    from mlx_lm.utils import load_tokenizer

    with tempfile.TemporaryDirectory(prefix="mlx-spec-") as folder:
        write_tokenizer(file, Path(folder))
        try:
            return load_tokenizer(Path(folder), options, eos_token_ids=_end_tokens(file))
        except Exception as error:  # the libraries' own types
            reason = " ".join(str(error).split())[:200]
            raise ModelLoadError(f"{file.name} has a broken vocabulary ({reason})") from error


def write_tokenizer(file: GGUFFile, folder: Path) -> None:
    """Write a file's tokenizer into a folder, as tokenizer.json and tokenizer_config.json.

    Raises:
        ModelLoadError, UnsupportedModel: as :func:`load_gguf_tokenizer`.
    """
    tokens = _tokens(file)
    kind = file.need(f"{_PREFIX}model")
    if kind == "gpt2":
        split = split_of(file.get(f"{_PREFIX}pre"), file.name)
        tokenizer, begins = _byte_level(split), split.begins
        merges = file.need(f"{_PREFIX}merges")
    elif kind == "llama":
        tokenizer, begins = _sentencepiece(file, tokens), True
        merges = _merges(file, tokens)
    else:
        raise UnsupportedModel(
            f"{file.name} has a tokenizer of kind {kind!r}; known are 'gpt2' (byte-level) and "
            "'llama' (SentencePiece)"
        )
    ids = {
        name: number
        for entry, name in _SPECIAL.items()
        if (number := _token_id(file, entry, len(tokens))) is not None
    }
    special = {name: tokens[number] for name, number in ids.items()}
    _enclose(tokenizer, file, special, ids, begins)
    record = json.loads(tokenizer.to_str())
    record["added_tokens"] = _added(tokens, file.get(f"{_PREFIX}token_type") or ())
    record["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    record["model"]["merges"] = merges
    (folder / "tokenizer.json").write_text(json.dumps(record), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.need(".context_length"),
        **special,
    }
    if (template := file.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _tokens(file: GGUFFile) -> list[str]:
    """The vocabulary, in order of ids."""
    tokens: list[str] = file.need(f"{_PREFIX}tokens")
    if len(set(tokens)) != len(tokens):
        raise ModelLoadError(f"{file.name} has a token twice in its vocabulary")
    kinds = file.get(f"{_PREFIX}token_type")
    if kinds is not None and len(kinds) != len(tokens):
        raise ModelLoadError(f"{file.name} has {len(tokens)} tokens and {len(kinds)} kinds of them")
    return tokens


def _token_id(file: GGUFFile, entry: str, count: int) -> int | None:
    """A special token of the metadata."""
    number: int | None = file.get(f"{_PREFIX}{entry}_token_id")
    if number is not None and not 0 <= number < count:
        raise ModelLoadError(
            f"{file.name} names {number} as its {entry} token, of a vocabulary of {count}"
        )
    return number


def _added(tokens: list[str], kinds: Iterable[int]) -> list[dict[str, Any]]:
    """Tokens that are found in a text as they stand, before anything is cut or merged."""
    as_it_is = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, "special": kind == _CONTROL, **as_it_is}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind in (_CONTROL, _OF_USERS)
    ]


def _end_tokens(file: GGUFFile) -> list[int]:
    """Tokens that end a text: those of the metadata, and what ends a turn by its name."""
    tokens, kinds = file.need(f"{_PREFIX}tokens"), file.get(f"{_PREFIX}token_type")
    named = [_token_id(file, entry, len(tokens)) for entry in ("eos", "eot", "eom")]
    ends = {number for number in named if number is not None}
    if kinds is not None:
        ends |= {
            number
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL and token in _ENDS
        }
    return sorted(ends)


def _enclose(
    tokenizer: Tokenizer,
    file: GGUFFile,
    special: dict[str, str],
    ids: dict[str, int],
    begins: bool,
) -> None:
    """Have texts begin and end with the tokens that the metadata asks for."""
    wanted = {
        "bos_token": file.get(f"{_PREFIX}add_bos_token", begins),
        "eos_token": file.get(f"{_PREFIX}add_eos_token", False),
    }
    bos, eos = (special.get(name) if wanted[name] else None for name in wanted)
    if bos is None and eos is None:
        return
    tokenizer.post_processor = TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        pair=[*([bos] if bos else []), "$A", *([bos] if bos else []), "$B:1"],
        special_tokens=sorted({(special[name], ids[name]) for name in wanted if name in ids}),
    )


def _byte_level(split: Split) -> Tokenizer:
    """Byte-level BPE, as of GPT-2, its vocabulary not yet there."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split.whole))
    cuts = [pre.Split(Regex(pattern), behavior="isolated") for pattern in split.patterns]
    tokenizer.pre_tokenizer = pre.Sequence(
        [*cuts, pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    """SentencePiece's BPE, its vocabulary not yet there."""
    unknown = _token_id(file, "unknown", len(tokens))
    name = None if unknown is None else tokens[unknown]
    tokenizer = Tokenizer(models.BPE(unk_token=name, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", _SPACE)
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.get(f"{_PREFIX}add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        undo.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def _merges(file: GGUFFile, tokens: list[str]) -> list[str]:
    """Every way to make a token out of two others; the one of the highest score is first."""
    scores, kinds = (file.need(f"{_PREFIX}{name}") for name in ("scores", "token_type"))
    if len(scores) != len(tokens):
        raise ModelLoadError(f"{file.name} has {len(tokens)} tokens and {len(scores)} scores")
    ids = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _NORMAL and " " not in token
    }
    merges = []
    for token in sorted(ids, key=lambda token: (-scores[ids[token]], ids[token])):
        pairs = []
        for at in range(1, len(token)):
            if (left := token[:at]) in ids and (right := token[at:]) in ids:
                pairs.append((ids[left], ids[right], f"{left} {right}"))
        if len(pairs) > 1:
            pairs.sort()
        merges += [pair for _, _, pair in pairs]
    return merges
