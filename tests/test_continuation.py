"""Labels as the tokens with which a text goes on, under tokenizers that split differently."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from mlx_spec.errors import InvalidRequest
from mlx_spec.pipeline.scoring.continuation import spellings, tokenise


def made(words: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    return Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))


def byte_level() -> Tokenizer:
    """Words keep the blank before them, as in GPT-2's kind."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("n", "o"), ("Ġ", "no"), ("e", "s"), ("Ġ", "y"), ("Ġy", "es")]
    tokenizer = made([*letters, *("".join(pair) for pair in merges)], merges)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def prepending() -> Tokenizer:
    """A blank before every text, and blanks as letters, as in Llama 2's kind."""
    letters = [*"▁:nosyeTpic", "\n"]
    merges = [("n", "o"), ("▁", "no"), ("▁", "y"), ("▁y", "e"), ("▁ye", "s")]
    tokenizer = made([*letters, *("".join(pair) for pair in merges)], merges)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def merging() -> Tokenizer:
    """No words at all: the colon joins with what comes behind it."""
    letters = list(" :nosyeTpic")
    merges = [(":", " "), (": ", "n"), (": n", "o"), ("y", "e"), ("ye", "s")]
    return made([*letters, *("".join(pair) for pair in merges)], merges)


@pytest.mark.parametrize(
    ("tokenizer", "begin", "labels"),
    [
        (byte_level(), ["T", "o", "p", "i", "c", ":"], [["Ġyes"], ["Ġno"]]),
        # Encoded alone " no" would be "▁", "▁no".
        (prepending(), ["▁", "T", "o", "p", "i", "c", ":"], [["▁yes"], ["▁no"]]),
        # The colon merges with both labels, so it is theirs: one token and two.
        (merging(), ["T", "o", "p", "i", "c"], [[": ", "yes"], [": no"]]),
    ],
    ids=["byte-level", "prepending", "merging"],
)
def test_prompt_and_label_are_the_tokens_of_the_whole_text(
    tokenizer: Tokenizer, begin: list[str], labels: list[list[str]]
) -> None:
    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    written = [spellings(label, "Topic:", variants=False) for label in ("yes", "no")]
    prompt, rows = tokenise(encode, "Topic:", written)
    assert [tokenizer.id_to_token(token) for token in prompt] == begin
    assert [[tokenizer.id_to_token(token) for token in row] for (row,) in rows] == labels
    for (row,), (spelling,) in zip(rows, written, strict=True):
        assert prompt + row == encode("Topic:" + spelling)


def test_a_label_that_merges_moves_the_border_for_all_of_them() -> None:
    """ " yes" leaves the colon alone, ":no" does not: both are scored from before the colon."""
    letters = list(" :nosyeTpic")
    tokenizer = made([*letters, ":n"], [(":", "n")])

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    prompt, rows = tokenise(encode, "Topic:", [[" yes"], ["no", " no"]])
    assert prompt == encode("Topic")
    assert rows == [[encode(": yes")], [encode(":no"), encode(": no")]]


def test_spellings() -> None:
    assert spellings("code", "Topic:", False) == [" code"]
    assert spellings(" code ", "Topic:", False) == [" code"]
    assert spellings("code", "assistant\n", False) == ["code"]
    assert spellings("code", "", False) == ["code"]
    assert spellings("yes", "Answer:", True) == [" yes", " Yes", "yes", "Yes"]
    assert spellings("Yes", "Answer:\n", True) == ["Yes", "yes"]
    assert spellings("NASA", "Topic:", True) == [" NASA", " nasa", "NASA", "nasa"]


def test_spellings_that_are_one_to_the_tokenizer_count_once() -> None:
    tokenizer = made(list("abc"), [])
    tokenizer.normalizer = normalizers.Lowercase()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    assert tokenise(encode, "a", [["b", "B", "c"]]) == ([0], [[[1], [2]]])


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [("a", "b", "'b' joins the prompt 'a' in one token"), ("c", "?", r"'\?' adds no token")],
)
def test_what_cannot_be_scored_is_said(text: str, label: str, words: str) -> None:
    tokenizer = made([*"abc", "ab"], [("a", "b")])
    with pytest.raises(InvalidRequest, match=words):
        tokenise(lambda whole: list(tokenizer.encode(whole).ids), text, [[label]])
