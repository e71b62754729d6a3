"""Random constraints with what tells whether a text satisfies them, and a tokenizer of 64 tokens.

All but a few of them end by themselves: a random model says whatever may be said, for ever.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlx_spec.config import Structure
from tests.models import VOCABULARY

END = 0
_LETTERS = "abcdefghijklmnop"
_SIGNS = '{}[]":,-._ '
_MERGES = ("a b", "c d", "ab cd", '{ "', '" :', '" ,', '": Ġ', '", Ġ', "t r", "u e", "tr ue")


@dataclass(eq=False)
class SmallTokenizer:
    """Byte-level, of few bytes: many texts cannot be written in it."""

    backend_tokenizer: Tokenizer
    eos_token_id: int = END
    eos_token_ids: frozenset[int] = frozenset({END})
    bos_token: None = None

    def decode(self, tokens: list[int]) -> str:
        return str(self.backend_tokenizer.decode([token for token in tokens if token != END]))

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(self.backend_tokenizer.encode(text).ids)


@cache
def small_tokenizer() -> SmallTokenizer:
    merges = [(left, right) for left, right in map(str.split, _MERGES)]
    words = ["<end>", *_LETTERS, "r", "s", "t", "u", "l", "f", *"0123456789"]
    words += [sign.replace(" ", "Ġ") for sign in _SIGNS]
    words += ["".join(pair) for pair in merges]
    words = list(dict.fromkeys(words))
    assert len(words) <= VOCABULARY, len(words)
    words += [f"<unused{i}>" for i in range(VOCABULARY - len(words))]
    vocabulary = {word: token for token, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [word for word in words if word.startswith("<")]
    backend.add_special_tokens([AddedToken(word, special=True) for word in special])
    return SmallTokenizer(backend)


@dataclass(frozen=True)
class Constrained:
    """A constraint, and whether a text satisfies it."""

    structure: Structure
    check: Callable[[str], bool]


def random_constraint(rng: random.Random) -> Constrained:
    """A JSON schema mostly, else a regex, choices or a grammar."""
    kind = rng.choice(("schema", "schema", "schema", "regex", "choices", "grammar"))
    return {"schema": _schema, "regex": _regex, "choices": _choices, "grammar": _grammar}[kind](rng)


def _schema(rng: random.Random) -> Constrained:
    schema = _value(rng, rng.randint(0, 3))
    validator = jsonschema.Draft202012Validator(schema)

    def check(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(text)))
        except ValueError:
            return False

    return Constrained(Structure.json_schema(schema), check)


def _word(rng: random.Random, most: int = 6) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, most)))


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    """A schema of bounded texts, ``depth`` levels deep at most."""
    simple = (_text, _enum, _integer, _pattern, lambda _: {"type": "boolean"}, _const)
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(simple)(rng)
    kind = rng.choice(("object", "object", "array", "any"))
    if kind == "any":
        return {"anyOf": [_value(rng, depth - 1) for _ in range(2)]}
    if kind == "array":
        least = rng.randint(0, 2)
        more = {"minItems": least, "maxItems": least + rng.randint(0, 2)}
        return {"type": "array", "items": _value(rng, depth - 1), **more}
    names = list(dict.fromkeys(_word(rng) for _ in range(rng.randint(1, 3))))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _text(rng: random.Random) -> dict[str, Any]:
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 5)}


def _enum(rng: random.Random) -> dict[str, Any]:
    values: list[Any] = [rng.choice((_word(rng), rng.randint(0, 99), None, True)) for _ in range(4)]
    return {"enum": values}


def _const(rng: random.Random) -> dict[str, Any]:
    return {"const": rng.choice((_word(rng), {_word(rng): [1, 2]}, rng.randint(0, 999)))}


def _integer(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)}


def _pattern(rng: random.Random) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{_expression(rng, 1)}$"}


def _expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice((_word(rng, 4), "[a-f]", r"\d", '[^a-m0-9\\\\"]', "[0-9a-c]"))
    parts = [_expression(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    joined = "(?:" + rng.choice(("", "|")).join(parts) + ")"
    low = rng.randint(0, 2)
    return joined + rng.choice(("", "?", f"{{{low},{low + rng.randint(0, 3)}}}"))


def _regex(rng: random.Random) -> Constrained:
    expression = _expression(rng, 2)
    # As Structure.regex has it: \d is 0 to 9.
    compiled = re.compile(expression, re.ASCII)
    return Constrained(
        Structure.regex(expression), lambda text: compiled.fullmatch(text) is not None
    )


def _choices(rng: random.Random) -> Constrained:
    texts = {_word(rng, 9) for _ in range(rng.randint(1, 30))}
    return Constrained(Structure.choices(sorted(texts)), lambda text: text in texts)


def _grammar(rng: random.Random) -> Constrained:
    """Balanced brackets around words, nested without a bound that a regex could know."""
    left, right = rng.choice(("[]", "{}"))
    words = sorted({_word(rng, 3) for _ in range(3)})
    listed = " | ".join(json.dumps(word) for word in words)
    low = rng.randint(0, 2)
    lark = (
        f'start: "{left}" inner "{right}"\ninner: item ("," item){{{low},{low + 2}}}\n'
        f'item: WORD | "{left}" WORD "{right}"\nWORD: {listed}\n'
    )
    item = "(?:W|LWR)".replace("L", re.escape(left)).replace("R", re.escape(right))
    whole = f"{re.escape(left)}{item}(?:,{item}){{{low},{low + 2}}}{re.escape(right)}"
    compiled = re.compile(whole.replace("W", f"(?:{'|'.join(words)})"))
    return Constrained(Structure.grammar(lark), lambda text: compiled.fullmatch(text) is not None)
