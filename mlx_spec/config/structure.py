"""``Structure``: what shape a text must have, as a JSON schema, a regex, choices or a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from json import dumps, loads
from typing import Any

from mlx_spec.errors import InvalidRequest

KINDS = ("json_schema", "regex", "choices", "grammar")
FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True)
class Structure:
    """A constraint on a text: every token that would break it is forbidden, the end included.

    Made by the constructors of its kinds. The text is whole where the request ends by ``"stop"``;
    where ``max_tokens`` ends it (``"length"``) it is the beginning of one.

    Attributes:
        kind: one of ``KINDS``.
        text: the schema or the choices as JSON, the expression, or the grammar.
        after: what ends reasoning: the constraint begins behind it, and before it anything may be
            said. Empty where it begins at once.

    Raises:
        InvalidRequest: another kind, an empty text, what is no JSON where that is meant, or what no
            text can hold.
    """

    kind: str
    text: str
    after: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(f"[Structure] kind={self.kind!r}, expected one of {KINDS}")
        if not isinstance(self.text, str) or not self.text.strip():
            raise InvalidRequest(f"[Structure] the {self.kind} {self.text!r} is no text")
        if self.kind == "json_schema" and not isinstance(_json(self), (dict, bool)):
            raise InvalidRequest(f"[Structure] a JSON schema is an object, not {self.text[:60]!r}")
        if self.kind == "choices":
            _check_choices(_json(self))
        written = self.text if self.kind in ("regex", "grammar") else _dumps(_json(self), self.kind)
        if _halved(written):
            raise InvalidRequest(
                f"[Structure] the {self.kind} holds half of a surrogate pair, which no text can"
            )

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Structure:
        """JSON that a schema describes (an object, or its text), written as ``json.dumps`` does."""
        return cls("json_schema", schema if isinstance(schema, str) else _dumps(schema, "schema"))

    @classmethod
    def json(cls) -> Structure:
        """Any JSON value."""
        return cls("json_schema", "{}")

    @classmethod
    def regex(cls, expression: str) -> Structure:
        """A text that a regular expression matches as a whole (Rust's syntax: no look-around, no
        references back)."""
        return cls("regex", expression)

    @classmethod
    def choices(cls, texts: Seq[str]) -> Structure:
        """One of these texts."""
        return cls("choices", _dumps([texts] if isinstance(texts, str) else list(texts), "choices"))

    @classmethod
    def grammar(cls, text: str) -> Structure:
        """What a context-free grammar describes, in Lark's or llama.cpp's (GBNF) syntax."""
        return cls("grammar", text)

    @classmethod
    def of(cls, response_format: Mapping[str, Any]) -> Structure | None:
        """From a ``response_format`` as OpenAI's interface has it; None for plain text.

        Raises:
            InvalidRequest: another type, or a ``json_schema`` without a schema.
        """
        kind = response_format.get("type") if isinstance(response_format, Mapping) else None
        if kind not in FORMATS:
            raise InvalidRequest(
                f"[Structure] response_format={response_format!r}, expected an object whose type "
                f"is one of {FORMATS}"
            )
        if kind == "json_schema":
            inner = response_format.get("json_schema")
            if not isinstance(inner, Mapping) or "schema" not in inner:
                raise InvalidRequest(
                    '[Structure] a response_format of type json_schema has {"json_schema": '
                    f'{{"schema": ...}}}}, not {dict(response_format)!r}'
                )
            return cls.json_schema(inner["schema"])
        return cls.json_schema({"type": "object"}) if kind == "json_object" else None


@dataclass(frozen=True, kw_only=True)
class StructureOptions:
    """What the text of a request must be.

    Attributes:
        structure: JSON by a schema, a match of a regex, one of some choices, or a text of a
            grammar. The request ends where that is whole (``"stop"``), or by ``max_tokens`` in the
            middle of it (``"length"``).
        response_format: the same as OpenAI's interface writes it: ``{"type": "json_object"}`` or
            ``{"type": "json_schema", "json_schema": {"schema": ...}}``. Kept as ``structure``,
            whose place it takes.
    """

    structure: Structure | None = None
    response_format: Mapping[str, Any] | None = None

    def keep_structure(self) -> None:
        """Check them.

        Raises:
            InvalidRequest: what is none.
        """
        if self.response_format is not None:
            object.__setattr__(self, "structure", Structure.of(self.response_format))
            object.__setattr__(self, "response_format", None)
        if not isinstance(self.structure, Structure | None):
            raise InvalidRequest(
                f"[SamplingParams] structure={str(self.structure)[:60]}, expected a Structure: "
                "Structure.json_schema({...}), .regex(...), .choices([...]) or .grammar(...)"
            )


def _dumps(value: Any, what: str) -> str:
    try:
        return dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"[Structure] the {what} is no JSON: {error}") from error


def _json(structure: Structure) -> Any:
    try:
        return loads(structure.text)
    except (ValueError, RecursionError) as error:
        shown = structure.text[:60]
        raise InvalidRequest(
            f"[Structure] the {structure.kind} {shown!r} is no JSON: {error}"
        ) from error


def _halved(text: str) -> bool:
    """Whether it has characters that UTF-8 has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_choices(choices: Any) -> None:
    texts = isinstance(choices, list) and all(isinstance(one, str) for one in choices)
    if not texts or not choices:
        raise InvalidRequest(f"[Structure] choices={str(choices)[:60]}, expected one text or more")
