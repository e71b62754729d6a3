"""A text that must have a shape, of a model whose template has it reason first.

The constraint holds from the first token on, so it is made one of reasoning, the mark that ends it,
and the shape. Where that cannot be said, the shape begins at once, and nothing is reasoned.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from mlx_spec.config import SamplingParams, Structure
from mlx_spec.structured.compiler import WRITTEN


def reasoned_first(
    sampling: SamplingParams, thinking: bool, tokenizer: Any
) -> tuple[SamplingParams, bool]:
    """The same with room for reasoning before the shape, and whether there is some.

    Args:
        sampling: of a request.
        thinking: whether its prompt ends in the middle of reasoning.
        tokenizer: which knows what ends it.
    """
    structure = sampling.structure
    if structure is None or not thinking:
        return sampling, thinking
    if structure.kind != "json_schema":
        return sampling, False
    grammar = _behind(_mark(tokenizer), json.loads(structure.text))
    return replace(sampling, structure=grammar), True


def _mark(tokenizer: Any) -> str:
    """What ends reasoning, in a grammar's words: a token where it is one, else its text."""
    ids = tuple(getattr(tokenizer, "think_end_tokens", None) or ())
    return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(tokenizer.think_end)


def _behind(mark: str, schema: Any) -> Structure:
    """Any text, a mark, and JSON of this schema."""
    given = schema if isinstance(schema, dict) else {"anyOf": [schema]}
    written = json.dumps({**given, "x-guidance": WRITTEN}, ensure_ascii=False)
    return Structure.grammar(
        f"start: thoughts {mark} blanks answer\n"
        "thoughts: /(.|\\n)*/\n"
        "blanks: /\\n{0,2}/\n"
        f"answer: %json {written}\n"
    )
