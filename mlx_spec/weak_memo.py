"""``WeakMemo``: what was found out about objects, kept while they live. Imports nothing of ours."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class WeakMemo(Generic[T]):
    """One value for an object, or for several together, by identity.

    mlx's modules are dictionaries and so have no hash, which ``WeakKeyDictionary`` would need. A
    model that has gone is not taken for a later one that lies where it lay. It has no lock: that
    would be taken at any allocation, also by whoever holds it. Who makes values in several threads
    holds one of their own.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[tuple[weakref.ref[Any], ...], T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, *owners: Any, key: Hashable = None) -> T | None:
        """What is known of these objects; None where that is nothing.

        Args:
            owners: one or more; None stands for itself.
            key: what it is of them, where there are several things.
        """
        references, value = self._entries.get(_place(owners, key), ((), None))
        living = [owner for owner in owners if owner is not None]
        same = all(known() is owner for known, owner in zip(references, living, strict=False))
        return value if same else None

    def keep(self, value: T, *owners: Any, key: Hashable = None) -> T:
        """Note what is known of them, in the place of what was; returns it."""
        place, entries = _place(owners, key), self._entries
        references = tuple(
            weakref.ref(owner, lambda _: entries.pop(place, None))
            for owner in owners
            if owner is not None
        )
        entries[place] = references, value
        return value


def _place(owners: tuple[Any, ...], key: Hashable) -> Hashable:
    return (*map(id, owners), key)
