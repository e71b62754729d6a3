"""``Entrance``: hears which requests the engine has taken.

What a prompt asks for is checked in two places: by the caller's thread (does it fit the context?)
and by the engine (is there such a token? can it ever fit the memory?). A stream's status line may
be written only when both have said yes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from contextlib import suppress

from mlx_spec.batching.token_stream import TokenStream
from mlx_spec.events import ErrorHappened, Event, RequestSubmitted

# Seconds after which a worker that is gone is noticed.
_LOOK = 1.0


class Entrance:
    """A listener of the engine; told in the worker's thread, asked in event loops."""

    def __init__(self) -> None:
        self._expected: dict[str, asyncio.Future[bool]] = {}

    def __call__(self, event: Event) -> None:
        """A request was queued, or refused."""
        if not isinstance(event, (RequestSubmitted, ErrorHappened)):
            return
        future = self._expected.pop(event.request_id or "", None)
        if future is not None:
            # A loop that is closed has nobody waiting in it any more.
            with suppress(RuntimeError):
                taken = isinstance(event, RequestSubmitted)
                future.get_loop().call_soon_threadsafe(_resolve, future, taken)

    def expect(self, request_ids: Iterable[str]) -> dict[str, asyncio.Future[bool]]:
        """Before they are submitted: what :meth:`passed` waits for."""
        loop = asyncio.get_running_loop()
        made = {name: loop.create_future() for name in request_ids}
        self._expected.update(made)
        return made

    async def passed(
        self, expected: dict[str, asyncio.Future[bool]], streams: Seq[TokenStream]
    ) -> bool:
        """Wait until the engine has taken all of them (True), or has refused one."""
        waiting = set(expected.values())
        while waiting and not all(stream.done for stream in streams):
            heard, waiting = await asyncio.wait(
                waiting, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED
            )
            if not all(future.result() for future in heard):
                return False
        return True

    def forget(self, request_ids: Iterable[str]) -> None:
        """Nobody waits for them any more."""
        for name in request_ids:
            self._expected.pop(name, None)


def _resolve(future: asyncio.Future[bool], taken: bool) -> None:
    if not future.done():
        future.set_result(taken)
