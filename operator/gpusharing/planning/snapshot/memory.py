"""What does one pass remember for the next because the cluster does not record it?

It remembers calls that failed, with the back-off after them, and looks: LISTs of the pods of blocked nodes, made only a
few at a time, in turn, and less often the longer a node stays blocked. The caller remembers what each look found and
puts that into the next snapshot.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime, timedelta

from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.vocabulary.findings import Blocker, ends_at
from gpusharing.planning.vocabulary.values import value

FIRST_WAIT = 2.0
"""Seconds to wait after the first failure."""
LONGEST_WAIT = 60.0
"""The longest wait between two attempts, in seconds."""
LASTING = 2
"""How many failures in a row are shown to people; a single one is often over before they read it."""
STUCK = 6
"""How many failures in a row, about a minute's worth, until other nodes no longer count on this node's slot."""

CLAIMS, CONFIG_MAPS = "claims on the Lease", "our ConfigMaps"
"""Subjects of failures that do not concern one node. No fence is written while calls about either of them fail."""
CLUSTER_POLICY = "pointers of ClusterPolicy"
"""Subject of a failure for which no fence waits; so are MPS_DAEMON_SET and DEVICE_CLASS."""
MPS_DAEMON_SET = "MPS DaemonSet"
DEVICE_CLASS = "DeviceClasses"
TAINT_RULE = "DeviceTaintRules"
"""Subject of failed writes of DeviceTaintRules. A node whose rule cannot be written is cordoned."""
POLICIES = "list of policies"
"""Subject of a failed LIST of policies. Until one succeeds, no node starts, because the plan may be outdated."""
COMMON = (CLAIMS, CONFIG_MAPS, POLICIES, TAINT_RULE, DEVICE_CLASS, CLUSTER_POLICY, MPS_DAEMON_SET)
"""All subjects that concern no single policy or node; every policy shows failures about them, the first one first."""


def policy_subject(policy: str) -> str:
    """Return the subject of failed writes to `policy`; only fences of that policy wait for such writes."""
    return f"policy {policy}"  # cannot be the name of a node: it has a space


def backoff(tries: int, first: float, jitter: float = 0.0) -> float:
    """Return the seconds to wait after so many failures in a row: doubling from `first` to LONGEST_WAIT.

    `jitter` is in [0, 1) and shortens the wait by up to a quarter, so that calls do not all come again at once.
    """
    return min(LONGEST_WAIT, first * 2.0 ** min(tries - 1, 10)) * (1 - jitter / 4)


@value
class CallFailure:
    """The latest failure of an unbroken series of failed calls about one node or one other subject.

    Kept in memory only. A failed call may nevertheless have taken effect, if only its response was lost, so each
    attempt is planned afresh from the current state of the cluster.
    """

    message: str
    """Which call failed, and what the server answered."""
    next_try: datetime
    tries: int = 1
    call: str = ""
    """Which kind of call failed. Only a successful call of the same kind ends the series."""
    refused: bool = False
    """Whether the server refused the call itself, such as for a missing right or by an admission policy (403, 422)."""

    def holds(self, now: datetime) -> bool:
        return now < self.next_try

    @property
    def lasts(self) -> bool:
        """Whether to show the failures to people and to give up a slot that was claimed for a fence.

        By the second failure, the watch would have shown a fence that exists although its call failed.
        """
        return self.tries >= LASTING

    @property
    def stuck(self) -> bool:
        return self.tries >= STUCK


def failed_again(
    before: CallFailure | None,
    message: str,
    now: datetime,
    jitter: float,
    call: str = "",
    *,
    first: float = FIRST_WAIT,
    refused: bool = False,
    at_once: bool = False,
) -> CallFailure:
    """Return the failure to remember after one more failed call.

    It continues the series of `before`, whatever the kind of that call. `first` is in seconds. `at_once` shows even the
    first failure to people.
    """
    tries = before.tries + 1 if before is not None else LASTING if at_once else 1
    return CallFailure(message, now + timedelta(seconds=backoff(tries, first, jitter)), tries, call, refused)


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
    tries: int
    """How many looks in a row have found blockers, this one included. 1 if this one found none."""
    blockers: tuple[Blocker, ...] = ()
    """What kept the pods from leaving. Empty if nothing did and the change began."""
    needs: tuple[tuple[str, int], ...] = ()
    """If the change began: how many pods it evicts first under each PodDisruptionBudget."""
    widened: str = ""
    """Why the pods make a change of some GPUs one of the whole node, or empty."""

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
    pods: tuple[str, ...] = ()
    """The pods that would be evicted, as `namespace/name`, sorted."""
    jobs: tuple[str, ...] = ()
    """The pods that the drain would wait for, because they end by themselves (spec.drain.jobs)."""
    budgets: tuple[str, ...] = ()
    """The PodDisruptionBudgets that select those pods, as `namespace/name`, sorted."""
    gangs: tuple[str, ...] = ()
    """Descriptions of the gangs that those pods belong to, for people."""
    blockers: tuple[Blocker, ...] = ()
    stay: int = 0
    """How many pods stay on GPUs that do not change."""


@value
class Evicted:
    """A pod that we evicted, or deleted by force, and that may not be replaced yet."""

    node: str
    budget: str
    """The only PodDisruptionBudget that selects it, as `namespace/name`."""
    at: datetime


DRIFTS = ("", "it differs from its target")
"""What is seen of a node that is Ready and has no fence."""
WITHDRAWN = ("", "its kubelet counts devices and offers none of them")


@value
class PassMemory:
    """State that each plan returns and that the next plan receives. A new process starts without it."""

    wants_pods: frozenset[str] = frozenset()
    """Nodes whose pods have to be listed for the next pass."""
    proving: frozenset[str] = frozenset()
    """Nodes that count as idle as soon as one last LIST of their pods confirms it."""
    seen_since: Mapping[str, Mapping[tuple[str, str], datetime]] = field(default_factory=dict)
    """By node: since when this process has seen DRIFTS, WITHDRAWN and each of its traces, by boot ID and claim."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    previews: Mapping[str, Preview] = field(default_factory=dict)
    widened: Mapping[str, tuple[SpecVersion, str]] = field(default_factory=dict)
    """By node: why its pods made a change of some GPUs one of the whole node when they were last listed."""
    evicted: Mapping[str, Evicted] = field(default_factory=dict)
    """By pod UID."""
    vain_passes: Mapping[str, int] = field(default_factory=dict)
    """By policy: how many passes in a row made no progress (`count_vain`)."""


def remember_seen(
    memory: PassMemory, seen: Mapping[str, tuple[tuple[str, str], ...]], now: datetime
) -> dict[str, Mapping[tuple[str, str], datetime]]:
    """Return `seen_since` after this pass. Equal mappings are one object, which costs no memory and compares at once."""
    new = {what: dict.fromkeys(what, now) for what in set(seen.values())}
    after: dict[str, Mapping[tuple[str, str], datetime]] = {}
    for name, what in seen.items():
        if what:
            since = memory.seen_since.get(name, new[what])
            after[name] = since if tuple(since) == what else {one: since.get(one, now) for one in what}
    return after


def find_due(looks: Iterable[tuple[str, Look]], now: datetime, poll: float) -> frozenset[str]:
    """Return the nodes whose pods must be listed again now, those with the oldest looks first.

    A LIST of pods costs the API server the same whether it finds the old blocker or a node that can start. The blocked
    nodes of all policies therefore share at most LOOKS of them within `poll` seconds.
    """
    known = list(looks)
    left = LOOKS - count_recent((look for _, look in known), now, poll)
    due = sorted((look.at, name) for name, look in known if look.due(poll) <= now)
    return frozenset(name for _, name in due[: max(0, left)])


def count_recent(looks: Iterable[Look], now: datetime, poll: float) -> int:
    return sum(now - timedelta(seconds=poll) < look.at for look in looks)
