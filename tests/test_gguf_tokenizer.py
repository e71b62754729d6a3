"""Tokenizers of GGUF files against those that the vocabularies come from.

Byte-level ones are held against the ``tokenizers`` library with the cut that the original models'
code has, SentencePiece's against ``sentencepiece`` itself.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from mlx_spec import load
from mlx_spec.errors import ModelLoadError, UnsupportedModel
from mlx_spec.model.gguf.file import open_gguf
from mlx_spec.model.gguf.splits import SPLITS
from mlx_spec.model.gguf.tokenizer import load_gguf_tokenizer
from tests.gguf_files import write_gguf

TEXTS = [
    "Hello world, it's fine: we'll see 12345 things in 2026!",
    "  two spaces,\ttabs\n\n\nand lines \r\n  end  ",
    "def f(x):\n    return x[1:-1] + 0.5  # it'S a comment...\n",
    "Zürich, Ærø, naïve; 日本語のテキスト。 한국어 العربية 😀🎉 e\u0301",
    "I've don't CAN'T x1y22z333 $%&/()=? 2026 12345",
    "",
]
CORPUS = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*"))]
SNIPPETS = (Path(__file__).parents[1] / "examples/data/snippets.jsonl").read_text(encoding="utf-8")
SPECIAL = ["<|end|>", "<|im_end|>"]


ONLY_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def byte_level(cuts: list[Any]) -> Tokenizer:
    """A vocabulary trained on texts that stay, uncut, so that every cut shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ONLY_BYTES
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([SNIPPETS, *TEXTS * 50], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return tokenizer


WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
CUTS = {
    "gpt-2": [WORDS],
    "smollm": [DIGITS, WORDS],
    "qwen2": [pre_tokenizers.Split(Regex(QWEN2), behavior="isolated"), ONLY_BYTES],
}


def byte_level_metadata(tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    import json

    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
    }


def read(path: Path, metadata: dict[str, Any]) -> Any:
    write_gguf(path, metadata=metadata, vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    return load_gguf_tokenizer(open_gguf(path), {})


@pytest.mark.parametrize("name", CUTS)
def test_bytes_are_cut_and_merged_as_by_the_original(name: str, tmp_path: Path) -> None:
    original = byte_level(CUTS[name])
    tokenizer = read(tmp_path / "model.gguf", byte_level_metadata(original, name))
    for text in TEXTS:
        tokens = original.encode(text).ids
        assert tokenizer.encode(text) == tokens, text
        assert tokenizer.decode(tokens) == text
    assert len(tokenizer.encode(TEXTS[2])) < 0.75 * len(TEXTS[2])  # something was merged
    assert tokenizer.encode("a<|im_end|>b")[1] == 1
    assert tokenizer.eos_token_ids == {0, 1}


@pytest.mark.parametrize("name", SPLITS)
def test_every_cut_gives_the_text_back(name: str, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers as pre

    split = SPLITS[name]
    cuts = [pre.Split(Regex(pattern), behavior="isolated") for pattern in split.patterns]
    for text in TEXTS:
        words = [word for word, _ in pre.Sequence(cuts).pre_tokenize_str(text)]
        assert "".join(words) == text
        assert len(words) > 8 or not text


def test_texts_begin_where_the_vocabulary_says_so(tmp_path: Path) -> None:
    metadata = byte_level_metadata(byte_level(CUTS["qwen2"]), "llama-bpe")
    begins = read(tmp_path / "a.gguf", metadata)
    assert begins.encode("a")[0] == 1 == begins.bos_token_id
    not_so = read(tmp_path / "b.gguf", {**metadata, "tokenizer.ggml.add_bos_token": False})
    assert not_so.encode("a") == begins.encode("a")[1:]
    both = read(tmp_path / "c.gguf", {**metadata, "tokenizer.ggml.add_eos_token": True})
    assert both.encode("a") == [*begins.encode("a"), 0]


def test_a_chat_template_comes_along(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_end|>{{ m['content'] }}{% endfor %}"
    write_gguf(tmp_path / "model.gguf", metadata={"tokenizer.chat_template": template})
    _, tokenizer = load(tmp_path / "model.gguf")
    assert tokenizer.has_chat_template
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_end|>hi"


def sentencepiece_model(**options: Any) -> Any:
    """A model trained on this project's tests."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS[:8] for line in text.splitlines()]),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<mark>", "\n\n"],
        minloglevel=2,
        **options,
    )
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(model.getvalue())
    return processor


def sentencepiece_metadata(processor: Any, prefix: bool) -> dict[str, Any]:
    count = processor.get_piece_size()

    def kind(number: int) -> int:
        if processor.is_unknown(number):
            return 2
        if processor.is_control(number):
            return 3
        if processor.id_to_piece(number) in ("<mark>", "\n\n"):
            return 4
        return 6 if processor.is_byte(number) else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(number) for number in range(count)],
        "tokenizer.ggml.token_type": [kind(number) for number in range(count)],
        "tokenizer.ggml.scores": [float(processor.get_score(number)) for number in range(count)],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_as_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    processor = sentencepiece_model(add_dummy_prefix=prefix)
    tokenizer = read(tmp_path / "model.gguf", sentencepiece_metadata(processor, prefix))
    for text in TEXTS:
        if prefix and "\n\n" in text:
            continue  # HF and llama.cpp put a space behind an added token, SentencePiece none
        tokens = processor.encode(text)
        if not text:
            tokens = []
        assert tokenizer.encode(text) == [1, *tokens], text
        assert tokenizer.decode(tokens) == text
    assert tokenizer.encode("<mark>")[1] == processor.piece_to_id("<mark>")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": "t5"}, r"tokenizer of kind 't5'; known are 'gpt2'"),
        ({"tokenizer.ggml.pre": "zorg"}, r"cuts text into words by 'zorg'; known are .*qwen2"),
        ({"tokenizer.ggml.pre": None}, r"in a way that it does not say"),
        ({"tokenizer.ggml.tokens": None}, r"no tokenizer\.ggml\.tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 272}, r"has a token twice"),
        ({"tokenizer.ggml.token_type": [1]}, r"has 272 tokens and 1 kinds of them"),
        ({"tokenizer.ggml.merges": ["a zorg"]}, r"has a broken vocabulary \(.*zorg"),
        ({"tokenizer.ggml.eos_token_id": 999}, r"names 999 as its eos token, of a vocabulary of"),
    ],
)
def test_a_broken_tokenizer_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", metadata=changes)
    with pytest.raises((ModelLoadError, UnsupportedModel), match=r"model\.gguf .*" + words):
        load(tmp_path / "model.gguf")
