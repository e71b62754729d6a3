"""What the scheduler asks of requests and of memory; it knows neither's record."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol, TypeVar


class Schedulable(Protocol):
    """What the scheduler sees of a request; ``life_cycle`` says what its states are."""

    @property
    def request_id(self) -> str:
        """Its name, for errors."""
        ...

    @property
    def reserved(self) -> int:
        """Most tokens it can come to hold, prompt and output."""
        ...

    @property
    def guesses(self) -> int:
        """Most draft tokens that one step verifies of it."""
        ...

    @property
    def priority(self) -> int:
        """Higher goes first."""
        ...

    @property
    def arrival(self) -> float:
        """When it was submitted, in seconds of the caller's clock."""
        ...

    @property
    def claim(self) -> float:
        """While it holds a row, the claim it was admitted with."""
        ...

    @property
    def ran(self) -> float:
        """Seconds that it held a row before it was preempted, over all times."""
        ...

    def reserve(self, reserved: int) -> None:
        """It can come to hold so many."""
        ...

    def admit(self, now: float, claim: float) -> None:
        """It gets a row."""
        ...

    def preempt(self, now: float) -> None:
        """It loses its row and waits again."""
        ...


R = TypeVar("R", bound=Schedulable)


class Budget(Protocol):
    """Which requests fit into memory together; more or longer ones never fit better."""

    def fits(self, tokens: Seq[int], guesses: Seq[int] = ()) -> bool:
        """Whether rows that may come to hold these numbers of tokens fit together.

        Args:
            guesses: most draft tokens of each one's steps; empty where there are none.
        """
        ...

    def explain(self, tokens: Seq[int], guesses: Seq[int] = ()) -> str:
        """The numbers behind a refusal."""
        ...
