"""Where the prompt of a turn and that of the next one part: templates know, tokens do not.

Most templates begin an answer as they write it later, so that all of a prompt comes again. Those of
models that reason often do not: they open the reasoning, and leave it out of what was said before::

    this turn    <user> Hi <assistant> <think>
    the next     <user> Hi <assistant> Hello! <user> ...
                                      ^ border
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from itertools import takewhile
from typing import Any


class TurnIds(list[int]):
    """Token ids of a conversation that another turn may follow.

    Args:
        ids: the tokens.
        border: finds how many of them the next turn begins with; None: all.
    """

    def __init__(self, ids: Iterable[int], border: Callable[[], int | None]) -> None:
        super().__init__(ids)
        self.border = border


def find_border(
    tokenizer: Any, turns: Seq[Mapping[str, Any]], keywords: Mapping[str, Any], ids: Seq[int]
) -> int | None:
    """Tokens of a prompt that the next turn begins with, too; None where it is all of them.

    Args:
        tokenizer: with a chat template.
        turns: the messages, as the template takes them.
        keywords: of the template.
        ids: what it made of both.
    """
    said = [{"role": "assistant", "content": "-"}, {"role": "user", "content": "-"}]
    try:
        now, later = (
            tokenizer.apply_chat_template(list(messages), **{**keywords, "tokenize": False})
            for messages in (turns, [*turns, *said])
        )
        common = _alike(now, later)
        if common == len(now):
            return None
        begins = tokenizer.encode(now[:common], add_special_tokens=False)
    except Exception:  # a foreign template may raise anything; this prompt it took
        return None
    return _alike(begins, ids)


def _alike(one: Seq[Any], other: Seq[Any]) -> int:
    """How much both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
