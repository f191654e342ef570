"""Counters that are exported as Prometheus needs them, and dropped long after they stopped changing. Pure.

`increase` does not count the first value of a series, and takes a lower value for a counter that restarted at 0. So a new series, or one that comes back, is exported at once with the value 0, keeps it for longer than the usual time between scrapes, and only then shows its real count.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")


class LaggingCounts(Generic[Key]):
    """The counters of one metric by their labels, each exported as 0 for `lag` seconds after its first `add`."""

    def __init__(self, lag: float) -> None:
        self.exported: Mapping[Key, float] = {}
        """The values since the last turn. The mapping is replaced, never changed."""
        self.growth: Mapping[Key, float] = {}
        """By how much each exported value grew in the last turn, if it did."""
        self._lag = lag
        self._counts: dict[Key, float] = {}
        self._first_added: dict[Key, float] = {}
        self._last_changed: dict[Key, float] = {}
        """When each counter was added to, or its exported value changed or still differed from its count."""

    def __contains__(self, key: Key) -> bool:
        return key in self._counts

    def __iter__(self) -> Iterator[Key]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: Key, amount: float, now: float) -> None:
        """Add `amount` to a counter, which is created if necessary. An amount of 0 announces it before there is anything to count."""
        self._counts[key] = self._counts.get(key, 0.0) + amount
        self._first_added.setdefault(key, now)
        self._last_changed[key] = now

    def export(self, now: float) -> Mapping[Key, float]:
        """End a turn: update `exported` and `growth`, and return the new `exported`."""
        before, exported, growth = self.exported, {}, {}
        for key, count in self._counts.items():
            exported[key] = count if now - self._first_added[key] >= self._lag else 0.0
            if not exported[key] == count == before.get(key):
                self._last_changed[key] = now
            if (more := exported[key] - before.get(key, 0.0)) > 0:
                growth[key] = more
        self.exported, self.growth = exported, growth
        return exported

    def drop(self, now: float, patience: float, keep: Collection[Key] = ()) -> None:
        """Drop the counters that have not changed for `patience` seconds and were exported in full; one that comes back counts as new."""
        gone = {
            key
            for key, at in self._last_changed.items()
            if now - at > patience and self.exported.get(key) == self._counts[key] and key not in keep
        }
        if not gone:
            return
        for key in gone:
            del self._counts[key], self._first_added[key], self._last_changed[key]
        self.exported = {key: count for key, count in self.exported.items() if key not in gone}
