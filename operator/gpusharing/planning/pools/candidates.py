"""Which nodes may start next, and how does the change of one start?"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple, TypeAlias

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.times import parse_duration
from gpusharing.planning.drain.plan import Crowd, crowding, due_under, examine
from gpusharing.planning.drain.pods import REPORTED_WITHIN, has_finished, holds_gpu
from gpusharing.planning.drain.standing import Standings, find_standings
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.memory import Look, count_recent, find_due
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import Claim, Fence, SpecVersion
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.transition.attempts import failed_before, owed_for, was_rolled_back
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.fencing import marks_for, may_taint
from gpusharing.planning.transition.gates import find_other_divider
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import (
    Blocker,
    Finding,
    ends_at,
    explain_blockers,
    main_reason,
    merge,
)
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessed

CAP = "the cap on nodes in flight (chart value operator.maxInFlight) has been reached"
LAST_PLACE = (
    "this is one of the last schedulable nodes, and the operator's own pod needs one; waiting until another node is"
    " Ready and not cordoned"
)


def find_places(nodes: Iterable[NodeView]) -> set[str] | None:
    """Return the nodes on which our own pod could be scheduled, or None if no second one can be had.

    If our cordons covered every node when our pod is replaced, no operator could run to lift them
    (docs/design/drain.md#place). The pod's tolerations and selectors are not known, and are ignored.
    """
    able = [node for node in nodes if _may_open(node)]
    return {node.name for node in able if _is_open(node)} if len(able) > 1 else None


def spare(places: set[str] | None, candidates: Iterable[NodeCase]) -> int | None:
    """Return how many of our pod's places may be cordoned so that one is left, or None if there is no such limit."""
    if places is None or not any(case.node.name in places and case.disruption.cordons for case in candidates):
        return None
    return len(places) - 1


def becomes_place(node: NodeView) -> bool:
    """Whether our change keeps pods off the node now, and lets them in again when it ends."""
    fence = node.fence
    return fence is not None and not fence.prior_unschedulable and _may_open(node) and not _is_open(node)


def _is_open(node: NodeView) -> bool:
    return node.ready and not node.unschedulable


def _may_open(node: NodeView) -> bool:
    return not node.barred and not node.deleting


CAPPED = Finding(Reason.BUDGET_FULL, f"{CAP}; waiting for a slot")


@dataclass(slots=True)
class PassState:
    """What all pools share in one pass and update as their nodes start."""

    afterwards: Afterwards
    now: datetime
    looks: Mapping[str, Look] = field(default_factory=dict)
    crowd: Crowd = field(default_factory=dict)
    crowd_known: bool = True
    """Whether `crowd` is complete: not while a node settles and nothing shows which of its pods will be evicted."""
    due: frozenset[str] = frozenset()
    """The blocked nodes that are due for another look."""
    recent: int = 0
    """How many blocked nodes were looked at within the last poll interval."""
    claimed_waves: Mapping[str, str] = field(default_factory=dict)
    """By node with a claim but no fence, because an operator stopped in between: its wave, or empty."""
    places: set[str] | None = None
    """The result of `find_places`, less the nodes that start; None if we do not run in a pod."""
    capped: Finding = CAPPED
    """That no slot of the operator-wide cap is free (`find_capped`)."""

    @staticmethod
    def of(snapshot: ClusterSnapshot, now: datetime, afterwards: Afterwards, cases: Iterable[NodeCase]) -> "PassState":
        """Return the state before any node starts; `cases` are candidates that were looked at before."""
        looks, poll = snapshot.memory.looks, snapshot.settings.poll
        found = ((case.node.name, standing_look(case, looks)) for case in cases)
        last = [(name, look) for name, look in found if look is not None]
        return PassState(
            afterwards,
            now,
            looks,
            due=find_due(last, now, poll),
            recent=count_recent((look for _, look in last), now, poll),
            claimed_waves={name: claim.wave for name, claim in snapshot.claims.items() if name not in snapshot.fences},
            places=find_places(snapshot.nodes.values()) if snapshot.settings.pod_name else None,
        )

    def add_evictions(self, node: str, needs: Iterable[tuple[str, int]]) -> None:
        for budget, count in needs:
            self.crowd.setdefault(budget, Counter())[node] += count

    def add_in_flight(self, snapshot: ClusterSnapshot, member: Member) -> Look | None:
        """Count the evictions on a fenced node whose turn has come. Return the look that was used, or None."""
        node, verdict = member.node, member.verdict
        if node.fence is None or not node.fence.disruption.cordons:
            return None
        if verdict.reason in (Reason.NODE_NOT_JUDGED, Reason.DRAIN_HELD):  # a drain past its time may last for ever
            return None
        if (work := snapshot.work.get(node.name)) is not None and not work.error:
            self.add_evictions(node.name, verdict.needs)
            return None
        settles = verdict.reason is Reason.SETTLING
        if not settles and verdict.reason is not Reason.LIST_FAILED:
            return None  # nothing is evicted before the pods are listed
        look = snapshot.memory.looks.get(node.name)
        if look is None or look.blockers:
            self.crowd_known = self.crowd_known and not settles
            return None
        self.add_evictions(node.name, look.needs)
        return look


def find_mates(case: NodeCase) -> frozenset[str]:
    """Return the other nodes that run listed members of the gangs that this node's change interrupts."""
    members = (member for view in case.gangs for member in view.members)
    return frozenset(member.node for member in members if member.node not in ("", case.node.name))


def standing_look(case: NodeCase, looks: Mapping[str, Look]) -> Look | None:
    """Return the last look at a candidate if it found blockers and counts for this policy version and retry value."""
    look = looks.get(case.node.name)
    if look is None or not look.blockers or look.version != case.version:
        return None
    return look if look.retry == case.node.retry else None


MAX_NAME = 40
"""The most characters of a policy's name in the id of its changes."""
UNKNOWN_PODS = 1000
"""The cost of a node whose pods cannot be counted. It is high, so that the node comes after all others."""
Order: TypeAlias = tuple[bool, bool, bool, bool, int, str]
"""The sort key of a candidate; the candidate with the smallest key starts first."""


@value
class Candidate:
    """A node that every gate lets through, with what is known about its pods, which may still block it."""

    case: NodeCase
    assessed: Assessed
    look: Look | None
    """The last look at its pods if it found blockers."""
    pods: Standings | None = None
    """The pods of the node. None if they were not listed in this pass."""
    follows: bool = False
    """Whether other nodes of its gang have started without it, so that it comes next (`find_following`)."""

    @property
    def cordons(self) -> bool:
        return self.case.disruption.cordons

    @property
    def newcomer(self) -> bool:
        """Whether the node takes no slot of the policy's budget."""
        empty = self.pods is None or self.pods.holders == 0
        return empty and self.case.newcomer

    @property
    def needs_list(self) -> bool:
        return self.cordons and self.pods is None and self.look is None

    @property
    def order(self) -> Order:
        unclaimed, cost, shuffle = find_place(self.case)
        # A look at a node whose gang has started reserves a slot and then shows a higher cost than was assumed. If such
        # nodes with unknown pods came first, one after another would be looked at, and none would ever start.
        unknown = self.follows and self.needs_list
        return (unclaimed, self.look is not None, not self.follows, unknown, cost, shuffle)


def find_place(case: NodeCase) -> tuple[bool, int, str]:
    """Return the sort key of a candidate that nothing blocks; its shuffle differs for each revision of the policy."""
    pods = case.observed.pods if case.observed is not None else None
    cost = UNKNOWN_PODS if pods is None else find_cost(case, pods)
    deferred = case.node.deferred
    if deferred is not None and deferred.version == case.version:  # the others come before another attempt
        cost += UNKNOWN_PODS * deferred.count
    return not case.claimed, cost, _shuffle(case.node.uid, case.version)


def find_unlisted(candidates: tuple[NodeCase, ...]) -> tuple[str, ...]:
    """Return the candidates that must be listed before they may start and were not, in the order of `find_place`."""
    unlisted = [case for case in candidates if case.work is None and case.disruption.cordons and not case.newcomer]
    return tuple(case.node.name for case in sorted(unlisted, key=find_place))


class Waiting(NamedTuple):
    """Candidates that wait for one and the same thing."""

    why: Finding
    for_slot: bool
    """Whether they wait only for a slot (`wait_for`)."""
    cases: Sequence[NodeCase]


@dataclass(slots=True)
class Selection:
    """Which candidates start in this pass, and what becomes of the others."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The verdicts of all candidates that are neither in `waiting` nor in `standing`, by node."""
    claims: dict[str, Claim] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    """What the next passes need to know about the pods of candidates, by node."""
    waiting: list[Waiting] = field(default_factory=list)
    standing: dict[str, tuple[NodeCase, Look, bool]] = field(default_factory=dict)
    """The candidates that their last look blocks, with that look and whether it is made again (`stand`)."""

    def put(self, case: NodeCase, verdict: Verdict, look: Look | None = None) -> bool:
        """Record the verdict of a candidate. Return whether its change starts."""
        name = case.node.name
        self.verdicts[name] = verdict
        if look is not None:
            self.looks[name] = look
        begun = next((action.fence for action in verdict.actions if isinstance(action, FenceNode)), None)
        if begun is not None:
            self.claims[name] = Claim.of(case.node.uid, begun)
        return begun is not None

    def add(self, other: "Selection") -> None:
        self.verdicts |= other.verdicts
        self.claims |= other.claims
        self.looks |= other.looks
        self.waiting += other.waiting
        self.standing |= other.standing


@lru_cache(maxsize=16384)
def _shuffle(node_uid: str, version: SpecVersion) -> str:
    return sha256(f"{node_uid}{version.uid}{version.revision}".encode()).hexdigest()


def find_cost(case: NodeCase, pods: int) -> int:
    """Return how many pods the change of this node ends: `pods`, or more with a gang."""
    if case.work is None or not (gangs := case.gangs):
        return pods
    ended = {one.pod.uid for view in gangs for one in view.members if not has_finished(one.pod)}
    ended |= {pod.uid for pod in case.work.pods if holds_gpu(pod) and not has_finished(pod)}
    return len(ended)


def find_candidate(case: NodeCase, state: PassState, *, follows: bool = False) -> Candidate:
    """Return the candidate with what the last LIST of its pods shows. `case` may come from an earlier pass."""
    assessed, before = case.assessed, standing_look(case, state.looks)
    assert assessed is not None, "candidates have a target"
    if case.work is None and before is not None:
        return Candidate(case, assessed, before, follows=follows)
    case = replace(case, now=state.now)
    if (work := case.work) is None:
        return Candidate(case, assessed, None, follows=follows)
    awaited = _await_report(case, work, before)
    partly = case.disruption is DisruptionClass.CHANGED_GPUS and not work.error
    if awaited is None and partly and (unreported := case.unreported):
        case = replace(case, widened=unreported)
    drain = assessed.spec.drain
    if awaited is not None:
        pods = find_standings(work, drain, case.now, scope=case.scope, cordoned=False)
        return Candidate(case, assessed, look_at(case, before, pods, (awaited,)), pods, follows)
    pods, blockers = examine(work, drain, case.now, scope=case.scope, afterwards=state.afterwards)
    if (divider := find_other_divider(case.node, case.observed, work, case.stack)) is not None:
        blockers = merge((divider, *blockers))
    return Candidate(case, assessed, look_at(case, before, pods, blockers) if blockers else None, pods, follows)


def _await_report(case: NodeCase, work: NodeWork, before: Look | None) -> Blocker | None:
    """Return what a change of some GPUs waits for before all have to be emptied; None if nothing."""
    if case.disruption is not DisruptionClass.CHANGED_GPUS or work.error or not (missing := case.unreported):
        return None
    if case.spec is not None and case.spec.rollout.approval == "Manual":  # nobody approved to empty all
        return Blocker(Reason.HOLDER_UNKNOWN, message=f"{missing}; to have all GPUs emptied, set drain.scope: Node")
    message = f"{missing}; if it does not, all GPUs will be emptied"
    ends = (one.until for one in before.blockers if one.message == message) if before is not None else ()
    until = next(filter(None, ends), case.now + REPORTED_WITHIN)
    return Blocker(Reason.HOLDER_UNKNOWN, message=message, until=until) if case.now < until else None


def look_at(case: NodeCase, before: Look | None, pods: Standings, blockers: tuple[Blocker, ...]) -> Look:
    """Return the look to record; the next one waits the longer the more looks in a row have found blockers."""
    tries = 1
    if before is not None:
        tries = before.tries if before.at == pods.listed_at else before.tries + 1
    return Look(case.version, case.node.retry, pods.listed_at, tries, blockers, widened=case.unplaced)


def try_start(candidate: Candidate, state: PassState) -> tuple[Verdict, Look | None]:
    """Start a candidate with a slot, or say what blocks it. Return its verdict, and the look to record or None."""
    case, look, pods = candidate.case, candidate.look, candidate.pods
    if not candidate.cordons:
        return begin(candidate), None
    if look is not None:
        return blocked(case, look, state.now), look
    if pods is None or (not state.crowd_known and due_under(pods)):
        return looking(case), None
    if crowded := crowding(pods, state.crowd):
        # Other nodes make room within seconds, so the pods of this one are listed again at every poll.
        look = look_at(case, None, pods, crowded)
        return blocked(case, look, state.now), look
    return start(candidate, pods, state, state.claimed_waves.get(case.node.name, ""))


def start(
    candidate: Candidate, pods: Standings, state: PassState, wave: str, mates: tuple[str, ...] = ()
) -> tuple[Verdict, Look]:
    """Start the change of a node with these pods and count its evictions. Return its verdict and the look to record."""
    node, needed = candidate.case.node, tuple(due_under(pods).items())
    state.add_evictions(node.name, needed)
    look = Look(candidate.case.version, node.retry, pods.listed_at, 1, (), needed)
    return begin(candidate, wave, mates), look


def begin(candidate: Candidate, wave: str = "", mates: tuple[str, ...] = ()) -> Verdict:
    case, assessed, policy = candidate.case, candidate.assessed, candidate.assessed.policy
    node, drains = case.node, candidate.cordons
    labels, annotations = marks_for(node, case.settings.neighbor_labels)
    added = (*labels, *annotations)
    if drains and names.LABEL_MODE in node.labels:
        labels[names.LABEL_MODE] = None
    settle = timedelta(seconds=case.settings.settle)
    fence = Fence(
        op=op_of(case),
        policy=policy.name,
        version=policy.version,
        node_uid=node.uid,
        prior_unschedulable=node.unschedulable,
        added=added,
        disruption=case.disruption,
        gpus=case.gpus,
        to_layout=assessed.target.text,
        stage="fenced",
        step=1,
        steps=2 if assessed.two_steps else 1,
        attempt=1,
        since=case.now,
        stage_since=case.now,
        deadline=case.now + settle + parse_duration(assessed.spec.drain.timeout),
        drift=assessed.drift is not None and not was_rolled_back(node, policy),
        from_mode=node.labels.get(names.LABEL_MODE, ""),
        retry=node.retry,
        newcomer=candidate.newcomer,
        planned=case.disruption,
        failed_version=policy.version if failed_before(node, policy) else None,
        approved=owed_for(assessed.target) if assessed.spec.rollout.approval == "Manual" else "",
        tainted=drains and may_taint(case),
        wave=wave,
        mates=mates,
    )
    verdict = case.verdict(Phase.CORDONED, Reason.SETTLING, "the change begins")
    return replace(verdict, deadline=fence.deadline).then(FenceNode(node, fence, fence.cordons, labels, annotations))


def looking(case: NodeCase) -> Verdict:
    message = "listing the pods on the node"
    verdict = case.verdict(Phase.PREFLIGHT, Reason.PROGRESSING, message, candidate=True)
    return replace(verdict, wants_pods=True)


def blocked(case: NodeCase, look: Look, now: datetime, *, again: bool = False) -> Verdict:
    due = look.due(case.settings.poll)
    wake = due if due > now else now + timedelta(seconds=case.settings.poll)
    return replace(stand(case, look, again=again), wake=wake)


def stand(case: NodeCase, look: Look, *, again: bool = False) -> Verdict:
    """Return the verdict on a node that a look blocks, without a wake, so that it stays the same until the next look."""
    reason = main_reason(look.blockers) or Reason.BLOCKED
    message = explain_blockers(look.blockers)[0]
    verdict = case.verdict(reason.waiting_phase, reason, message, wants_pods=again, candidate=True)
    return replace(verdict, blockers=look.blockers, deadline=ends_at(look.blockers))


def op_of(case: NodeCase) -> str:
    """Return the id of a change that begins now: policy, and the time in milliseconds in hexadecimal."""
    name = case.owner_name
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 8]}-{sha256(name.encode()).hexdigest()[:7]}"
    return f"{name}.{int(case.now.timestamp() * 1000):x}"
