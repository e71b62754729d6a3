"""Ctrl-C that nothing swallows.

Python raises ``KeyboardInterrupt`` wherever the main thread happens to be. Where that is the
callback of a weak reference, a ``__del__`` or a callback of the garbage collector, Python prints
"Exception ignored in" and goes on, and the press is lost: whoever drops a stream of tokens is in
such a place for a moment. So a command notes each press (``listening``), and whatever runs long
asks at its edges whether one is still unanswered (``check``)::

    main thread    --- work --- callback ----- work -------- edge
    press                          x raised, swallowed         | raised again by check()
                                   noted ......................| answered() by who ends the run

The first press is raised where it falls, as ever. From the second on one more ends the process.
Where a press ends a piece of work and not the program, as an answer in a chat, who ends that says
``go_on()``: the next press is a first one again.

SIGTERM, with which schedulers and containers end a job, is heard in the same way, so that what is
done is kept and said, and a terminal is left as it was; but it ends the program, also a chat.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar


class _Presses:
    """Of this process, while somebody listens.

    Attributes:
        count: how many there were.
        unanswered: whether one was raised of which nobody has said that it was heard.
        terminated: whether SIGTERM was among them.
        taken: signals that come here, with what they did before.
    """

    count = 0
    unanswered = False
    terminated = False
    taken: ClassVar[dict[int, Any]] = {}


# Taken only from who has these: what does nothing, or something of its own, keeps it.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
# As shells count.
INTERRUPTED, TERMINATED = 130, 143


def check() -> None:
    """At the edges of what runs long: raise a press again that was raised and not heard.

    Raises:
        KeyboardInterrupt: there is one.
    """
    if _Presses.unanswered:
        raise KeyboardInterrupt


def heard(number: int) -> None:
    """Note a press that came to somebody else, who raises ``KeyboardInterrupt`` for it."""
    _Presses.count += 1
    _Presses.unanswered = True
    _Presses.terminated |= number == signal.SIGTERM


def answered() -> None:
    """A press was heard: what runs is being ended in order."""
    _Presses.unanswered = False


def go_on() -> None:
    """A press was heard and has ended a piece of work; the program goes on.

    Raises:
        KeyboardInterrupt: it was SIGTERM, which ends the program.
    """
    if _Presses.terminated:
        raise KeyboardInterrupt
    _Presses.count, _Presses.unanswered = 0, False
    for number in _Presses.taken:
        signal.signal(number, _press)


def exit_code(code: int) -> int:
    """The code of a process that ends with ``code``: 143 in the place of 130 after SIGTERM."""
    return TERMINATED if code == INTERRUPTED and _Presses.terminated else code


@contextmanager
def listening() -> Iterator[None]:
    """While it lasts, no Ctrl-C is lost.

    Nothing is changed outside the main thread, or where Ctrl-C is somebody else's affair: ignored,
    as for a job in the background, or handled by the program that calls us. The same of SIGTERM.
    """
    taken = {n: own for n, own in _DEFAULTS.items() if signal.getsignal(n) == own}
    if threading.current_thread() is not threading.main_thread() or not taken:
        yield
        return
    before = sys.unraisablehook

    def unraisable(found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):  # that one is raised again
            before(found)

    _Presses.count, _Presses.unanswered, _Presses.terminated = 0, False, False
    _Presses.taken = taken
    sys.unraisablehook = unraisable
    for number in taken:
        signal.signal(number, _press)
    try:
        yield
    finally:
        for number, own in taken.items():
            signal.signal(number, own)
        sys.unraisablehook = before
        _Presses.unanswered, _Presses.taken = False, {}


@contextmanager
def held() -> Iterator[None]:
    """While it lasts Ctrl-C waits, in the main thread: it is answered behind the block."""
    found = {number: signal.getsignal(number) for number in _DEFAULTS}
    before = {number: own for number, own in found.items() if callable(own)}
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    presses: list[tuple[int, FrameType | None]] = []
    for number in before:
        signal.signal(number, lambda number, frame: presses.append((number, frame)))
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
    for press in presses[:1]:
        before[press[0]](*press)


def _press(number: int, _frame: Any) -> None:
    heard(number)
    if _Presses.count > 1:  # it takes long to end in order: the next press does not wait for that
        for one in _Presses.taken:
            signal.signal(one, signal.SIG_DFL)
    raise KeyboardInterrupt
