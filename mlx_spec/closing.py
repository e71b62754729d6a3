"""``Closing``: what has a ``close()`` is a context manager. Imports nothing of ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Closing")


class Closing(ABC):
    """Closed when its ``with`` block is left, however that happens."""

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
