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
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Presses:
    """Of this process, while somebody listens.

    Attributes:
        count: how many there were.
        unanswered: whether one was raised of which nobody has said that it was heard.
        listening: whether they come here.
    """

    count = 0
    unanswered = False
    listening = False


def check() -> None:
    """At the edges of what runs long: raise a press again that was raised and not heard.

    Raises:
        KeyboardInterrupt: there is one.
    """
    if _Presses.unanswered:
        raise KeyboardInterrupt


def answered() -> None:
    """A press was heard: what runs is being ended in order."""
    _Presses.unanswered = False


def go_on() -> None:
    """A press was heard and has ended a piece of work; the program goes on."""
    _Presses.count, _Presses.unanswered = 0, False
    if _Presses.listening:
        signal.signal(signal.SIGINT, _press)


@contextmanager
def listening() -> Iterator[None]:
    """While it lasts, no Ctrl-C is lost.

    Nothing is changed outside the main thread, or where Ctrl-C is somebody else's affair: ignored,
    as for a job in the background, or handled by the program that calls us.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = sys.unraisablehook

    def unraisable(found: Any) -> None:
        if not issubclass(found.exc_type, KeyboardInterrupt):  # that one is raised again
            before(found)

    _Presses.count, _Presses.unanswered, _Presses.listening = 0, False, True
    sys.unraisablehook = unraisable
    signal.signal(signal.SIGINT, _press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = before
        _Presses.unanswered = _Presses.listening = False


@contextmanager
def held() -> Iterator[None]:
    """While it lasts Ctrl-C waits, in the main thread: it is answered behind the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    presses: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: presses.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for press in presses[:1]:
        before(*press)


def _press(_number: int, _frame: Any) -> None:
    _Presses.count += 1
    _Presses.unanswered = True
    if _Presses.count > 1:  # it takes long to end in order: the next press does not wait for that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt
