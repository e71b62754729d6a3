"""A yes/no question as a statement that goes on with the text.

Small models answer questions at chance, but "This text" goes on with "is an advertisement." more
probably behind an advertisement than behind texts that say nothing. By how much is the score.
Measured against others: see docs/stages.md.
"""

from __future__ import annotations

import re

_TRUE = {
    "The senate voted on the new tax law.": "is about politics.",
    "The door is red and the window frames are white.": "mentions colours.",
    "Roses are red, violets are blue, and so are you.": "is a poem.",
    "Mr. Brown was the kindest teacher I ever had.": "praises someone.",
    "Il treno arriva stasera alle otto.": "is written in Italian.",
    "Could you hold the ladder for me, please?": "is a request.",
    "Dear Sir, I write to you about the flat. Kind regards, Tom": "is a letter.",
    "The dog barked all night and nobody slept.": "mentions an animal.",
    "Why did the bicycle fall over? It was two tired.": "is a joke.",
    "The roses need pruning in March, before the first buds open.": "is about gardening.",
}
STATED = (
    "".join(f"Text: {text}\nThis text {true}\n\n" for text, true in _TRUE.items())
    + "Text: {{ text }}\nThis text"
)
_SUBJECT = r"(?:(?:this|the) (?:text|sentence|message|review|comment)|it|this(?= (?:an?|about) ))"
_QUESTION = re.compile(rf"(is|does|has) {_SUBJECT} (\w+)([^?\n]*)\?", re.IGNORECASE)
_SEVERAL = re.compile(r",|\b(?:and|or)\b", re.IGNORECASE)
_BAN = re.compile(r"no ((?!one\b)[^.,;:?!\n]+)\.?", re.IGNORECASE)


def stated_question(question: str) -> str:
    """What "This text" goes on with where the answer is yes: "Is this text a joke?", "is a joke.".

    Empty where the question is put in another way, which has no safe rewording here, or asks for
    several things at once, all of which hardly any text is likely to be told.
    """
    found = _QUESTION.fullmatch(question.strip())
    if not found or found[2].lower() == "not" or _SEVERAL.search(found[3]):
        return ""
    asked, word, rest = found[1].lower(), found[2], found[3].rstrip()
    return f"{_third_person(word)}{rest}." if asked == "does" else f"{asked} {word}{rest}."


def stated_breach(policy: str) -> str:
    """Likewise where a text breaks a policy: "No insults.", "is insults."."""
    found = _BAN.fullmatch(policy.strip())
    return f"is {found[1].strip()}." if found else ""


def _third_person(verb: str) -> str:
    if verb == "have":
        return "has"
    if re.search(r"([sxzo]|[cs]h)$", verb):
        return verb + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", verb) + "s"
