"""Looks (LISTs) at the pods of blocked nodes: only a few at a time, in turn, and less often the longer a node stays blocked. Also what else one pass remembers for the next one, because the cluster does not record it.

A LIST of pods costs the API server the same whether it finds the old blocker or a node that can start. The blocked
nodes of all policies therefore share at most LOOKS such LISTs per poll. The caller remembers what each look found and
puts that into the next snapshot.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime, timedelta

from gpusharing.planning.snapshot.callfailures import LONGEST_WAIT, backoff
from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.vocabulary.blockers import Blocker, ends_at
from gpusharing.planning.vocabulary.values import value

LOOKS = 5
"""The most blocked nodes, over all policies, whose pods are listed within one poll."""
FIRST_LOOKS = 20
"""Once this many nodes were found blocked within one poll, no further node gets its first look."""
LONGEST = timedelta(seconds=LONGEST_WAIT)
"""The longest time between two looks at one node, no matter how long the node stays blocked."""


@value
class Look:
    """The result of the latest LIST of a node's pods before its change starts."""

    version: SpecVersion
    """The version of the spec whose change the look was for. The look is not used for any other version."""
    retry: str
    """The value of the retry annotation at that time. If it changes, the pods are listed again at once."""
    at: datetime
    """When the pods were listed."""
    tries: int
    """How many looks in a row have found blockers, this one included. 1 if this one found none."""
    blockers: tuple[Blocker, ...] = ()
    """What kept the pods from leaving. Empty if nothing did and the change began."""
    needs: tuple[tuple[str, int], ...] = ()
    """If the change began: how many pods it will evict under each PodDisruptionBudget."""

    def due(self, poll: float) -> datetime:
        """Return when to list the pods again: with back-off, or when all blockers have ended by themselves."""
        again = self.at + timedelta(seconds=backoff(self.tries, poll))
        end = ends_at(self.blockers)
        return again if end is None or end <= self.at else min(again, end)


@value
class Preview:
    """What the change of a waiting node would disturb, according to the latest LIST of its pods."""

    version: SpecVersion
    """The preview is not used for any other version of the spec."""
    at: datetime
    """When the pods were listed."""
    pods: tuple[str, ...] = ()
    """The pods that would have to leave, as `namespace/name`, sorted."""
    budgets: tuple[str, ...] = ()
    """The PodDisruptionBudgets that select those pods, as `namespace/name`, sorted."""
    gangs: tuple[str, ...] = ()
    """Descriptions of the gangs that those pods belong to, for people."""
    blockers: tuple[Blocker, ...] = ()


@value
class PassMemory:
    """State that each plan returns and that the next plan receives. A new process starts without it."""

    wants_pods: frozenset[str] = frozenset()
    """Nodes whose pods have to be listed for the next pass."""
    proving: frozenset[str] = frozenset()
    """Nodes that count as idle as soon as one last LIST of their pods confirms it."""
    drifting_since: Mapping[str, datetime] = field(default_factory=dict)
    """By node: since when this process has seen that the node, Ready and without a fence, differs from its target."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    previews: Mapping[str, Preview] = field(default_factory=dict)
    vain_passes: Mapping[str, int] = field(default_factory=dict)
    """By policy: how many passes in a row made no progress (`count_vain`)."""


def find_due(looks: Iterable[tuple[str, Look]], now: datetime, poll: float) -> frozenset[str]:
    """Return the nodes whose pods must be listed again now, at most LOOKS within `poll` seconds, those with the oldest looks first."""
    known = list(looks)
    left = LOOKS - count_recent((look for _, look in known), now, poll)
    due = sorted((look.at, name) for name, look in known if look.due(poll) <= now)
    return frozenset(name for _, name in due[: max(0, left)])


def count_recent(looks: Iterable[Look], now: datetime, poll: float) -> int:
    return sum(now - timedelta(seconds=poll) < look.at for look in looks)
