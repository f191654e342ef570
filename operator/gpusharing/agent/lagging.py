"""Counters that are exported as Prometheus needs them, and dropped long after they stopped changing. Pure.

`increase` does not count the first value that it sees of a series, and takes a value that fell for a counter that
restarted at 0. So a series that is new, or comes back, is exported at once, with 0, and stays 0 for longer than the
usual time between scrapes; then it is exported as it is. None is dropped before its last count was exported, and could
be scraped.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")


class LaggingCounts(Generic[Key]):
    """Counters of one metric, by their labels."""

    def __init__(self, lag: float) -> None:
        """`lag`: seconds for which a new counter is exported as 0."""
        self.told: Mapping[Key, float] = {}
        """What is exported since the last turn; replaced, never changed."""
        self.grown: Mapping[Key, float] = {}
        """By how much more than the turn before, where it is more."""
        self._lag = lag
        self._counts: dict[Key, float] = {}
        self._born: dict[Key, float] = {}
        """When each was counted first."""
        self._stirred: dict[Key, float] = {}
        """When each was last counted, or last exported with a value that differs from the one before or from its
        own."""

    def __contains__(self, key: Key) -> bool:
        return key in self._counts

    def __iter__(self) -> Iterator[Key]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: Key, amount: float, now: float) -> None:
        """Count. 0 says that there will be something to count."""
        self._counts[key] = self._counts.get(key, 0.0) + amount
        self._born.setdefault(key, now)
        self._stirred[key] = now

    def tell(self, now: float) -> Mapping[Key, float]:
        """The end of a turn: what is exported from now on."""
        before, told, grown = self.told, {}, {}
        for key, count in self._counts.items():
            told[key] = count if now - self._born[key] >= self._lag else 0.0
            if not told[key] == count == before.get(key):
                self._stirred[key] = now
            if (more := told[key] - before.get(key, 0.0)) > 0:
                grown[key] = more
        self.told, self.grown = told, grown
        return told

    def drop(self, now: float, patience: float, keep: Collection[Key] = ()) -> None:
        """Drop what has not changed for more than `patience` seconds and was exported in full, but for what to keep.
        If it comes back, it is new."""
        gone = {
            key
            for key, at in self._stirred.items()
            if now - at > patience and self.told.get(key) == self._counts[key] and key not in keep
        }
        if not gone:
            return
        for key in gone:
            del self._counts[key], self._born[key], self._stirred[key]
        self.told = {key: count for key, count in self.told.items() if key not in gone}
