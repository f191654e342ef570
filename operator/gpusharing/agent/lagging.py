"""Counters that are exported late, as Prometheus needs them, and dropped long after they stopped changing. Pure.

`increase` does not count the first value that it sees of a series, and takes a value that fell for a counter that
restarted at 0. So a series that is new, or comes back, is exported at once, with 0, and stays 0 for longer than the
usual time between scrapes; and none is dropped before its last count was exported, and could be scraped.
"""

from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

_KEPT = 8
"""Points in time of a lag that are kept, so that many turns in a row cost no memory."""
Key = TypeVar("Key")


class LaggingCounts(Generic[Key]):
    """Counters of one metric, by their labels."""

    def __init__(self, lag: float) -> None:
        """`lag`: seconds by which exported values lag behind what was counted."""
        self.told: Mapping[Key, float] = {}
        """As of the lag before the last turn; replaced, never changed."""
        self._lag = lag
        self._counts: dict[Key, float] = {}
        self._stirred: dict[Key, float] = {}
        """When each was last counted, or last exported with a value that differs from the one before or from its
        own."""
        self._past: deque[tuple[float, Mapping[Key, float]]] = deque()
        """Turns, oldest first: one that is older than the lag, and later ones."""

    def __contains__(self, key: Key) -> bool:
        return key in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: Key, amount: float, now: float) -> None:
        """Count. 0 says that there will be something to count."""
        self._counts[key] = self._counts.get(key, 0.0) + amount
        self._stirred[key] = now

    def tell(self, now: float) -> Mapping[Key, float]:
        """The end of a turn: what is exported from now on."""
        if not self._past or now - self._past[-1][0] >= self._lag / _KEPT:
            self._past.append((now, dict(self._counts)))
        while len(self._past) > 1 and self._past[1][0] <= now - self._lag:
            self._past.popleft()
        at, oldest = self._past[0]
        if at > now - self._lag:
            oldest = {}
        told: dict[Key, float] = {}
        for key, count in self._counts.items():
            told[key] = oldest.get(key, 0.0)
            if not told[key] == count == self.told.get(key):
                self._stirred[key] = now
        self.told = told
        return told

    def drop(self, now: float, patience: float) -> None:
        """Drop what has not changed for more than `patience` seconds and was exported in full. If it comes back, it is
        new: it is removed from the past too."""
        gone = {
            key
            for key, at in self._stirred.items()
            if now - at > patience and self.told.get(key) == self._counts[key]
        }
        if not gone:
            return
        for key in gone:
            del self._counts[key], self._stirred[key]
        self._past = deque((at, _without(counts, gone)) for at, counts in self._past)


def _without(counts: Mapping[Key, float], gone: set[Key]) -> Mapping[Key, float]:
    return {key: count for key, count in counts.items() if key not in gone}
