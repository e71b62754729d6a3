"""``Closing``: what has a ``close()`` is a context manager. Imports nothing of ours."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Closing")


class Closing(ABC):
    """Closed when its ``with`` or ``async with`` block is left, however that happens."""

    @abstractmethod
    def close(self) -> None:
        """End it. Doing it twice does no harm."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """The same from a coroutine, whose event loop goes on meanwhile."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
