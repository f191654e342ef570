"""Counters that are exported as Prometheus needs them, and dropped long after they stopped changing. Pure.

`increase` does not count the first value of a series, and takes a lower value for a counter that restarted at 0. So a
new series, or one that comes back, is exported at once with the value 0, keeps it for longer than the usual time
between scrapes, and only then shows its real count. None is dropped before its last count was exported and could be
scraped.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")


class LaggingCounts(Generic[Key]):
    """The counters of one metric by their labels, exported with a delay."""

    def __init__(self, lag: float) -> None:
        """Start without counters. A counter is exported as 0 for `lag` seconds after its first `add`, and then as its
        whole count."""
        self.exported: Mapping[Key, float] = {}
        """The values that are exported since the last turn. The mapping is replaced, never changed."""
        self.growth: Mapping[Key, float] = {}
        """By how much each exported value grew in the last turn; counters that did not grow are absent."""
        self._lag = lag
        self._counts: dict[Key, float] = {}
        self._first_added: dict[Key, float] = {}
        """When each counter was added to for the first time."""
        self._last_changed: dict[Key, float] = {}
        """When each counter last changed: it was added to, or its exported value changed or still differed from its
        count."""

    def __contains__(self, key: Key) -> bool:
        """Whether there is a counter for `key`."""
        return key in self._counts

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys of all counters."""
        return iter(self._counts)

    def __len__(self) -> int:
        """Return how many counters there are."""
        return len(self._counts)

    def add(self, key: Key, amount: float, now: float) -> None:
        """Add `amount` to the counter of `key`, which is created if there is none, and record that it changed at `now`.
        The exported value changes only with `export`. An amount of 0 announces a counter before there is anything to
        count."""
        self._counts[key] = self._counts.get(key, 0.0) + amount
        self._first_added.setdefault(key, now)
        self._last_changed[key] = now

    def export(self, now: float) -> Mapping[Key, float]:
        """End a turn at the time `now`: update `exported` and `growth`, and return the new `exported`. A counter is
        exported as 0 until the lag has passed since it was first added to, then as its whole count. For `drop`, a
        counter also counts as changed now if its exported value changes or is still behind its count."""
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
        """Drop the counters that have not changed for more than `patience` seconds (see `export`) and whose count was
        exported in full, except those in `keep`. They leave `exported` at once. If a dropped counter comes back, it
        counts as new."""
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
