"""What the target is asked: the user's prompts, and which of them are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_spec.pipeline.prompt_file import read_prompt_file

# One question in so many is never trained on, and measures what was reached.
HELD_OUT = 10


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        id: a hash of what it says, so that a longer file of prompts keeps what is done.
        category: the record's own word, or empty.
        prompt: a text or chat messages.
    """

    id: str
    category: str
    prompt: Any

    def held_out(self, categories: Seq[str]) -> bool:
        """Whether it is kept from training: its category is, or its hash says so."""
        return self.category in categories or int(self.id, 16) % HELD_OUT == 0


def read_questions(path: Path) -> list[Question]:
    """The prompts of a file, each once: as ``read_prompt_file`` finds them.

    Raises:
        InvalidRequest: it cannot be read, or a record has no prompt.
    """
    found: dict[str, Question] = {}
    for one in read_prompt_file(path, "train-draft"):
        name = hashlib.blake2b(repr(one.prompt).encode(), digest_size=8).hexdigest()
        found.setdefault(name, Question(name, one.category, one.prompt))
    return list(found.values())
