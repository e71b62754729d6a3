"""The commands of a chat: lines that begin with a slash.

A new one is a function here with a line in ``COMMANDS``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_spec.errors import InvalidRequest

if TYPE_CHECKING:
    from mlx_spec.cli.talk.loop import Talk

_COMMAND = re.compile(r"/([a-z!?]+)(?:\s+(.*))?", re.DOTALL)
_FILE = "which file? /save FILE.json"


@dataclass(frozen=True)
class Command:
    """What a line may begin with.

    Attributes:
        run: does it, with what follows the name.
        takes: what may follow, for help.
        about: what it does.
    """

    run: Callable[[Talk, str], None]
    takes: str
    about: str


def obey(talk: Talk, text: str) -> bool:
    """Do what a line commands; False for what is said to the model.

    Raises:
        InvalidRequest: there is no such command.
        MlxSpecError: it cannot be done.
    """
    found = _COMMAND.fullmatch(text)
    if found is None:  # also a path: /usr/bin
        return False
    name, argument = found[1], (found[2] or "").strip()
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise InvalidRequest(f"no command /{name}; {hint} (a blank before it sends it as text)")
    COMMANDS[name].run(talk, argument)
    return True


def _system(talk: Talk, text: str) -> None:
    if not text:
        own = talk.conversation.system
        talk.tell("no system prompt" if own is None else f"system prompt: {own}")
        return
    text = text.strip('"')
    talk.conversation.system = text or None
    talk.tell("system prompt set" if text else "no system prompt any more")


def _reset(talk: Talk, _: str) -> None:
    talk.conversation.turns.clear()
    talk.unsent = None
    talk.tell("the conversation begins anew")


def _save(talk: Talk, name: str) -> None:
    _saved(talk, name, overwrite=False)


def _save_over(talk: Talk, name: str) -> None:
    _saved(talk, name, overwrite=True)


def _saved(talk: Talk, name: str, *, overwrite: bool) -> None:
    path = Path(name).expanduser() if name else talk.file
    if path is None:
        raise InvalidRequest(_FILE)
    talk.conversation.save(path, overwrite=overwrite or path == talk.file)
    talk.file = path
    talk.tell(f"{len(talk.conversation.messages)} messages saved in {path}")


def _load(talk: Talk, name: str) -> None:
    if not name:
        raise InvalidRequest("which file? /load FILE.json")
    path = Path(name).expanduser()
    talk.conversation.load(path)
    talk.file, talk.unsent = path, None
    talk.tell(f"{len(talk.conversation.messages)} messages loaded; go on")


def _stats(talk: Talk, _: str) -> None:
    for line in talk.figures():
        talk.tell(line)


def _draft(talk: Talk, words: str) -> None:
    kind, _, model = words.partition(" ")
    if kind:
        talk.speaker.draft_with(kind, model.strip() or None)
    talk.tell(f"drafts: {talk.speaker.drafting}; that changes no text")


def _retry(talk: Talk, _: str) -> None:
    text = talk.conversation.take_back()
    if text is None:
        raise InvalidRequest("nothing was said yet")
    talk.answer(text)


def _drop(talk: Talk, number: str) -> None:
    if number and not number.isdecimal():
        raise InvalidRequest(f"/drop {number!r}, expected a number of exchanges")
    talk.drop(int(number) if number else None)


def _help(talk: Talk, _: str) -> None:
    for name, command in COMMANDS.items():
        if command.about:
            talk.tell(f"  {f'/{name} {command.takes}':16} {command.about}")
    talk.tell('Lines go on after \\, between """ and """, and by Alt-Enter.')
    talk.tell("Ctrl-C stops an answer, Ctrl-D leaves.")


def _exit(talk: Talk, _: str) -> None:
    talk.over = True


COMMANDS = {
    "system": Command(_system, "TEXT", 'how the model is to be; "" takes it away'),
    "reset": Command(_reset, "", "forget what was said, but for the system prompt"),
    "retry": Command(_retry, "", "answer the last message again"),
    "drop": Command(_drop, "N", "forget the oldest exchanges; as many as must, where it is full"),
    "save": Command(_save, "FILE", "write the messages as JSON; /save! replaces a file"),
    "save!": Command(_save_over, "FILE", ""),
    "load": Command(_load, "FILE", "go on with the messages of a file"),
    "draft": Command(_draft, "KIND", "where guesses come from: ngram, head, off, model NAME, ..."),
    "stats": Command(_stats, "", "figures of the last answer, and of all"),
    "help": Command(_help, "", "this list"),
    "exit": Command(_exit, "", "leave"),
}
ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "clear": "reset", "?": "help"}
