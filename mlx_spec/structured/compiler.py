"""From a ``Structure`` to a grammar that is ready to be followed, compiled once.

What can be said of a constraint without a text is said here, when a request is made: syntax,
keywords that are not known, schemas that nothing satisfies.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from mlx_spec.config import Structure
from mlx_spec.errors import InvalidRequest
from mlx_spec.structured.guide import Guide, first_words
from mlx_spec.structured.vocabulary import library, vocabulary_of

# Distinct constraints kept compiled: a service has a few; records with their own come in turn.
MOST_KEPT = 64
# As json.dumps writes: models have read much of it, nothing can be padded with blanks for ever, and
# what stands between values is forced.
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# For one mask some 14 and 3 ms of work, for one row some 100 MB: a constraint that needs more ends
# its row there. (llguidance's own limits, but for the states: 250,000.)
_LIMITS = {"step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_lexer_states": 100_000}

# By tokenizer (an id that stays its own, since the compiled grammar holds it) and constraint.
_KEPT: OrderedDict[tuple[int, Structure], Any] = OrderedDict()
_LOCK = threading.Lock()


def guide_of(structure: Structure, tokenizer: Any, where: str = "[structure]") -> Guide:
    """What guides one text by a constraint.

    Args:
        structure: the constraint.
        tokenizer: of the model that writes, as ``load`` returned it.
        where: names the request in errors.

    Raises:
        InvalidRequest: a constraint that is wrong, or that no text satisfies; llguidance is not
            installed; a tokenizer that cannot be used.
    """
    vocabulary = vocabulary_of(tokenizer)
    key = (id(vocabulary), structure)
    with _LOCK:
        start = _KEPT.get(key)
        if start is not None:
            _KEPT.move_to_end(key)
    if start is None:
        start = (vocabulary, _compile(structure, tokenizer, where))
        with _LOCK:
            _KEPT[key] = start
            if len(_KEPT) > MOST_KEPT:
                _KEPT.popitem(last=False)
    return Guide(start[1], vocabulary)


def _compile(structure: Structure, tokenizer: Any, where: str) -> Any:
    """A matcher that stands at the beginning of the text."""
    vocabulary = vocabulary_of(tokenizer)
    limits = library().LLParserLimits(**_LIMITS, verbose_errors=False)
    grammar = _written(structure, where)
    if structure.after:
        grammar = _behind(structure, grammar, tokenizer, vocabulary)
    matcher = library().LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        # What nothing satisfies may show only where the first token is looked for.
        _first(matcher, vocabulary)
    if matcher.is_error():
        reason = first_words(matcher.get_error())
        if reason.startswith("NoExtension"):
            reason = "no text satisfies it that the tokenizer could write"
        raise InvalidRequest(f"{where}: the {structure.kind} cannot be used: {reason}")
    return matcher


def _first(matcher: Any, vocabulary: Any) -> None:
    from llguidance.numpy import fill_next_token_bitmask

    fill_next_token_bitmask(matcher, np.zeros((1, -(-vocabulary.vocab_size // 32)), np.int32))


def _behind(structure: Structure, grammar: str, tokenizer: Any, vocabulary: Any) -> str:
    """Any text, the mark that ends it, and what the grammar has.

    The text does not hold the mark in other tokens: who reads the answer takes it for the end.
    """
    mark = json.dumps(structure.after, ensure_ascii=False)
    ids = tokenizer.encode(structure.after, add_special_tokens=False)
    lark = f"start: head blanks @answer\nhead[suffix={mark}]: ANY\n"
    if len(ids) == 1 and vocabulary.is_special_token(ids[0]):
        lark = f"start: HEAD <[{ids[0]}]> blanks @answer\nHEAD: ANY & ~(ANY {mark} ANY)\n"
    lark += "ANY: /(?s:.*)/\nblanks: /\\n{0,2}/\n"
    if structure.kind in ("choices", "grammar"):
        own = {"lark_grammar": grammar}
    else:
        (own,) = json.loads(grammar)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": lark}, {**own, "name": "answer"}]})


def _written(structure: Structure, where: str) -> str:
    """The constraint in llguidance's words."""
    matcher, text = library().LLMatcher, structure.text
    if structure.kind == "json_schema":
        schema = json.loads(text)
        if isinstance(schema, bool):  # options need an object
            schema = {"anyOf": [schema]}
        return str(matcher.grammar_from_json_schema(schema, defaults=WRITTEN))
    if structure.kind == "regex":
        # \d is 0 to 9: among all digits of Unicode a model finds odd ones.
        return str(matcher.grammar_from_regex(library().regex_to_lark(text, "d")))
    if structure.kind == "choices":
        # One terminal, whose letters are an automaton: thousands of rules would be too many.
        words = (json.dumps(one, ensure_ascii=False) for one in json.loads(text))
        return "start: CHOICE\nCHOICE: " + " | ".join(words)
    try:
        return str(library().grammar_from("grammar", text))
    except ValueError as error:
        raise InvalidRequest(f"{where}: the grammar cannot be used: {error}") from error
