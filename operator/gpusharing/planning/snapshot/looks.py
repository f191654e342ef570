"""Looks (LISTs) at the pods of blocked nodes: few at a time, in turn, and less often the longer a node stays blocked.

A LIST of pods costs the API server the same whether it finds the old blocker or a node that can start. Blocked nodes
of all policies share LOOKS of them per poll. The caller remembers what a look found and puts it into the next
snapshot, so everything here is a pure function of that.

Terms: docs/design/glossary.md#look, docs/design/glossary.md#blocker, docs/design/glossary.md#gang.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.vocabulary.blockers import Blocker, ends_at
from gpusharing.planning.vocabulary.values import value

LOOKS = 5
"""LISTs of pods of blocked nodes within one poll, over all policies."""
FIRST_LOOKS = 20
"""Once this many nodes were found blocked within one poll, no further node is looked at for the first time."""
LONGEST = timedelta(seconds=60)
"""The longest time between two looks at one node, however long it is blocked."""


@value
class Look:
    """What kept the pods of a node from leaving when they were listed last, and for which change they were listed."""

    version: SpecVersion
    """The version of the spec whose change the look was for; for another version it is worthless."""
    retry: str
    """The value of the retry annotation on the Node. If it changes, the node is looked at again at once."""
    at: datetime
    """When the pods were listed."""
    tries: int
    """How often in a row the same was found, which decides about the next wait."""
    blockers: tuple[Blocker, ...] = ()
    """What kept the pods. Empty if nothing did and the change began."""
    needs: tuple[tuple[str, int], ...] = ()
    """For a change that began: how many pods it will evict under each PodDisruptionBudget."""

    def due(self, poll: float) -> datetime:
        """Return when to list the pods again: after a wait that doubles up to LONGEST, or earlier when the clock has
        ended all blockers. `poll` is in seconds."""
        again = self.at + min(LONGEST, timedelta(seconds=poll * 2 ** min(self.tries - 1, 10)))
        end = ends_at(self.blockers)
        return again if end is None or end <= self.at else min(again, end)


@value
class Preview:
    """What the change of a node would disturb, by its pods as they were listed while it waits."""

    version: SpecVersion
    """The version of the spec whose change it is; for another version the preview is worthless."""
    at: datetime
    """When the pods were listed."""
    pods: tuple[str, ...] = ()
    """The pods that would have to leave, as `namespace/name`, sorted."""
    budgets: tuple[str, ...] = ()
    """The PodDisruptionBudgets that guard them, as `namespace/name`, sorted."""
    gangs: tuple[str, ...] = ()
    """The gangs that they belong to, as texts."""
    blockers: tuple[Blocker, ...] = ()
    """What would keep the drain from succeeding."""


def find_due(looks: Iterable[tuple[str, Look]], now: datetime, poll: float) -> frozenset[str]:
    """Return the nodes whose pods are due to be listed again, those with the oldest look first. At most LOOKS nodes
    are listed within one poll, including those that were listed already."""
    known = list(looks)
    left = LOOKS - count_recent((look for _, look in known), now, poll)
    due = sorted((look.at, name) for name, look in known if look.due(poll) <= now)
    return frozenset(name for _, name in due[: max(0, left)])


def count_recent(looks: Iterable[Look], now: datetime, poll: float) -> int:
    """Return how many of these looks were made within the last poll of `poll` seconds."""
    return sum(now - timedelta(seconds=poll) < look.at for look in looks)
