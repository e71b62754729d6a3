"""Labels as the tokens with which a text goes on, and nothing that the text would not hold.

A label that is encoded alone may begin with a second blank (tokenizers that put one before every
text), split otherwise, or miss a token that spans the place where it joins the text. So text and
label are encoded together, and what differs from the text alone is what the label is.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import takewhile

from mlx_spec.errors import InvalidRequest

Encode = Callable[[str], list[int]]
"""Token ids of a whole text, special tokens as in a prompt."""


def spellings(label: str, text: str, variants: bool) -> list[str]:
    """How a label may follow a text: after one blank, unless the text ends with white space.

    With ``variants`` also in lower case, with a capital, and without the blank: ``yes`` gives
    ``" yes"``, ``" Yes"``, ``"yes"``, ``"Yes"``.
    """
    word = label.strip()
    blanks = [""] if not text or text[-1].isspace() else [" "]
    words = [word]
    if variants:
        words += [word.lower(), word[:1].upper() + word[1:]]
        blanks += [""]
    return list(dict.fromkeys(blank + word for blank in blanks for word in words))


def tokenise(
    encode: Encode, text: str, labels: Seq[Seq[str]]
) -> tuple[list[int], list[list[list[int]]]]:
    """The text's tokens, and for each label those of each of its spellings.

    Where some spelling merges with the end of the text, the tokens that change belong to the
    continuations, of all of them, so that their probabilities can be compared.

    Returns:
        The prompt, and for each label one or more distinct continuations; prompt + continuation
        is how the tokenizer splits text + spelling.

    Raises:
        InvalidRequest: a label that adds nothing, or one that changes the text's first token.
    """
    alone = encode(text)
    whole = [[encode(text + spelling) for spelling in row] for row in labels]
    kept = min(_common(alone, one) for row in whole for one in row)
    if kept == 0:
        raise InvalidRequest(
            f"[score] the label {labels[0][0]!r} joins the prompt {text[:40]!r} in one token; "
            "give a longer prompt"
        )
    rows = [_distinct([one[kept:] for one in row]) for row in whole]
    for row, written in zip(rows, labels, strict=True):
        if not all(row):
            raise InvalidRequest(f"[score] the label {written[0]!r} adds no token to the prompt")
    return alone[:kept], rows


def _common(left: list[int], right: list[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _distinct(rows: list[list[int]]) -> list[list[int]]:
    return [list(row) for row in dict.fromkeys(map(tuple, rows))]
