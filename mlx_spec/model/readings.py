"""What the code of a model's layers says where no pass can show it.

Whether a pass runs is found out by describing one (``support``). That it runs does not make it
right: a position that is taken from a shape, or a mask of booleans that is added, gives numbers
without a word. Such places are read in the source of the model's own layers.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from mlx_spec.model.code_text import source_of

# "if L == 1:" and the like: a branch for one new token.
ONE_TOKEN = re.compile(
    r"\bif\s+(?:\w+\s+and\s+)?(?:L|S|T|N|length|seq_len|seqlen|\w+\.shape\[1\])\s*(?:==|>)\s*1\b"
)

# "S - L": the position of a row is taken for how many keys are read, which is right for one row.
BY_SHAPE = re.compile(r"\b(?:S|kv_len|kv_blocks)\s*-\s*(?:L|q_len|q_blocks)\b")

# "scores + mask" by who never asks whether that mask is of booleans: they add 1 and hide nothing.
ADDED_MASK = re.compile(r"\A(?!.*\bbool).*\bscores\s*(?:\+=|=\s*scores\s*\+)\s*mask\b", re.DOTALL)

# How a model is spread over machines asks for their number, and says nothing of a pass.
_SHARD = re.compile(r"^    def shard\(.*?(?=^    \S|\Z)", re.DOTALL | re.MULTILINE)

# The token before, of a state for the first of a row and of the row for the others: such a branch
# moves numbers and computes none.
_TAKEN = r"\s+(?:return|\w+ =) (?:state|mx\.concatenate\(\[state, [^\n]*\))\n"
_SHIFT = re.compile(rf"\bif L (?:==|>) 1:\n{_TAKEN}\s+else:\n{_TAKEN}")


def having(model: Any, pattern: re.Pattern[str]) -> str | None:
    """A class of a model's layers whose code reads so, if there is one."""
    return min((cls.__name__ for cls in all_having(model, pattern)), default=None)


def all_having(model: Any, pattern: re.Pattern[str]) -> set[type]:
    """All such classes."""
    classes = {cls for _, module in model.named_modules() for cls in type(module).__mro__}
    return {cls for cls in classes if _reads(cls, pattern)}


@cache
def _reads(cls: type, pattern: re.Pattern[str]) -> bool:
    """Whether the code of a class has such a place."""
    if cls.__module__.startswith(("mlx.nn", "mlx_spec")):
        return False
    source = source_of(cls)
    return source is not None and pattern.search(_SHIFT.sub("", _SHARD.sub("", source))) is not None
