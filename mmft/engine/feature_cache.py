"""Keeps what frozen weights made of an input between steps and epochs: a picture is seen once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Entry(Protocol):
    """What can be kept: anything that knows its size."""

    @property
    def num_bytes(self) -> int: ...


Kept = TypeVar("Kept", bound=Entry)


class FeatureCache(Generic[Kept]):
    """Least-recently-used cache of encodings, bounded in bytes.

    Only valid while nothing that they depend on trains; the owner must not use it otherwise.

    Attributes:
        hits: look-ups that found an encoding.
        misses: look-ups that did not.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Hashable, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Kept | None:
        """The encoding of that key, or None; counts the look-up."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Hashable, encoding: Kept) -> None:
        """Stores an encoding and drops the least recently used ones beyond the bound."""
        size = encoding.num_bytes
        if size > self.max_bytes:
            return
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key).num_bytes
        self._entries[key] = encoding
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    @property
    def hit_rate(self) -> float:
        """Share of look-ups so far that found an encoding; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)
