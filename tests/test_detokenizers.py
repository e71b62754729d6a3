"""Every family of tokenizers gives its text: whatever the tokens, bytes cost only themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer, decoders, models

import mlx_spec
from mlx_spec.batching.detokenizers import (
    Detokenizer,
    PieceDetokenizer,
    StreamDetokenizer,
    make_detokenizer,
)
from mlx_spec.batching.pieces import LETTERS, find_pieces

WORDS = ["▁", "▁▁", "a", "▁b", "▁the", "ing", "é", ".", "\n"]
SPM = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
END = "<|the end|>"


@cache
def byte_level(wrong: bool = False) -> Tokenizer:
    """A token a byte, some words, and a special token that is no string of letters for bytes;
    ``wrong``: under the decoder of another family.
    """
    letters = sorted(LETTERS, key=LETTERS.__getitem__)
    tokens = [*letters, "Ġthe", "ing"]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    made.decoder = SPM if wrong else decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


@cache
def byte_fallback() -> Tokenizer:
    """Words with a mark for the blank, and single bytes."""
    vocabulary = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE(
        {piece: i for i, piece in enumerate(vocabulary)}, [], byte_fallback=True, unk_token="<unk>"
    )
    made = Tokenizer(model)
    made.decoder = SPM
    made.add_special_tokens([END])
    return made


@cache
def word_piece() -> Tokenizer:
    """A family whose tokens must be decoded together."""
    words = ["[UNK]", "the", "##ing", "walk", ",", "你", "##é"]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece("##", cleanup=False)
    return made


def piecewise(backend: Tokenizer) -> PieceDetokenizer:
    pieces = find_pieces(backend)
    assert pieces is not None
    return PieceDetokenizer(pieces)


def run(detokenizer: Detokenizer, tokens: Iterable[int]) -> str:
    return "".join([*(detokenizer.add(token) for token in tokens), detokenizer.finish()])


def byte_tokens(data: bytes) -> list[int]:
    return [2 + byte for byte in data]


# --- byte-level (GPT-2, Llama 3, Qwen) ---------------------------------------------------------

SOME_BYTES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(["你", "😀", "é", "a", " "]).map(str.encode),
    st.sampled_from(["你", "😀"]).map(lambda text: text.encode()[:-1]),
)


@given(
    parts=st.lists(
        st.one_of(SOME_BYTES.map(list), st.sampled_from([[256], [257], [258], [999]])),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_byte_level_text_is_what_the_tokenizer_decodes(parts: list[list[int]]) -> None:
    """Any bytes, words, the special token and ids that do not exist, to the last character; and
    the same where the tokenizer was saved under the wrong class and says "Ġthe" for " the".
    """
    tokens = [token for part in parts for token in part]
    whole = byte_level().decode(tokens, skip_special_tokens=False)
    text = run(piecewise(byte_level()), tokens)
    assert text.rstrip("\ufffd") == whole.rstrip("\ufffd")
    assert run(piecewise(byte_level(wrong=True)), tokens) == text


def test_the_wrong_decoder_is_wrong() -> None:
    assert byte_level(wrong=True).decode([256, 10]) == "ĠtheĊ"
    assert run(piecewise(byte_level(wrong=True)), [256, 10]) == " the\n"


# --- byte fallback (Llama 2, Mistral, Gemma) ---------------------------------------------------


@given(
    parts=st.lists(st.one_of(st.sampled_from(WORDS), SOME_BYTES), min_size=1, max_size=15),
)
@settings(max_examples=150, deadline=None)
def test_a_stray_byte_costs_itself_only(parts: list[str | bytes]) -> None:
    """Stops forty good characters from being lost behind one bad byte, and blanks from being lost
    at the start of a text (such decoders strip one).
    """
    tokens: list[int] = []
    data = b""
    for part in parts:
        if isinstance(part, str):
            tokens.append(258 + WORDS.index(part))
            data += part.replace("▁", " ").encode()
        else:
            tokens += byte_tokens(part)
            data += part
    text = run(piecewise(byte_fallback()), tokens)
    assert text.rstrip("\ufffd") == data.decode(errors="replace").rstrip("\ufffd")
    whole = byte_fallback().decode([258 + WORDS.index("a"), *tokens])
    if "\ufffd" not in whole:
        assert text == whole[1:]


def test_text_is_given_out_as_soon_as_it_is_certain() -> None:
    detokenizer = piecewise(byte_fallback())
    emoji = byte_tokens("😀".encode())
    given = [detokenizer.add(token) for token in [*emoji, emoji[0], 258, *emoji[:2]]]
    assert given == ["", "", "", "😀", "", "\ufffd ", "", ""]
    assert detokenizer.finish() == ""


def test_a_special_token_is_text() -> None:
    end = byte_fallback().token_to_id(END)
    assert run(piecewise(byte_fallback()), [260, end, 261]) == f"a{END} b"


# --- others ------------------------------------------------------------------------------------


@given(tokens=st.lists(st.integers(0, 6), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_tokens_that_must_be_decoded_together_are(tokens: list[int]) -> None:
    assert find_pieces(word_piece()) is None
    text = run(StreamDetokenizer(word_piece(), [1]), tokens)
    assert "the" + text == word_piece().decode([1, *tokens])


def test_a_large_vocabulary_with_many_letters_is_not_byte_level() -> None:
    """Stops a multilingual vocabulary, which has all 256 letters as letters, from being mangled."""
    words = [*LETTERS, *(f"▁w{i}" for i in range(300)), "Ġ", "Ċ"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, "Ġ"))
    made.decoder = decoders.Metaspace()
    assert find_pieces(made) is None


@pytest.mark.parametrize("message", ["Already borrowed", "no such thing"])
def test_a_tokenizer_in_use_elsewhere_is_waited_for(message: str) -> None:
    """Stops text from being dropped as bad bytes because another thread held the tokenizer for a
    moment; what else it raises is the caller's to hear.
    """

    class Busy:
        decoder = byte_fallback().decoder
        calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(byte_fallback(), name)

        def id_to_token(self, token: int) -> str | None:
            Busy.calls += 1
            if Busy.calls % 3:
                raise RuntimeError(message)
            return byte_fallback().id_to_token(token)

    detokenizer = piecewise(Busy())  # type: ignore[arg-type]
    if message == "no such thing":
        with pytest.raises(RuntimeError, match=message):
            detokenizer.add(260)
    else:
        assert run(detokenizer, [260, *byte_tokens("你".encode()), 261]) == "a你 b"


def test_threads_share_a_tokenizer() -> None:
    """Texts of many threads over one tokenizer that another one changes all the time."""
    folder = Path(mlx_spec.__file__).parent / "demo_models" / "target"
    tokenizer = load_tokenizer(folder)
    text = "def read(path):\n    return “naïve café” 😀\n" * 5
    tokens = tokenizer.encode(text)
    texts: list[str] = []
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            tokenizer.backend_tokenizer.enable_padding(length=3)
            tokenizer.backend_tokenizer.no_padding()

    def decode() -> None:
        texts.append(run(make_detokenizer(tokenizer, [1]), tokens))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    disturber = threading.Thread(target=disturb)
    for thread in (disturber, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    disturber.join()
    assert texts == [tokenizer.decode(tokens)] * 4


def test_a_long_text_costs_the_same_per_token() -> None:
    """Every token is looked up once, however long the text."""

    class Counting:
        decoder = byte_fallback().decoder
        calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(byte_fallback(), name)

        def decode(self, ids: list[int], **options: Any) -> str:
            Counting.calls += 1
            assert len(ids) <= 2
            return str(byte_fallback().decode(ids, **options))

    detokenizer = piecewise(Counting())  # type: ignore[arg-type]
    run(detokenizer, [258 + place % len(WORDS) for place in range(2000)])
    assert Counting.calls <= 2 * len(WORDS) + 1
