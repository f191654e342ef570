"""One policy's nodes together: how many may be away, and which go next.

limit      allowance(maxUnavailable, nodes of the policy); 0 freezes. Nodes without a GPU and products that the policy
           leaves out are none of its business: they are no part of a percentage and take no slot. Nodes that somebody
           keeps from changing (cordon, maintenance, switched-off operands) are; newcomers behind the start-up taint are
           not, and take a slot of the operator-wide cap only (docs/design/way.md#gate)
used       a set: not Ready, cordoned by anyone, fenced, claimed or being deleted; a node counts once
           (a claim without a fence is left by a crash or a predecessor: that very node goes first)
room       limit - used, and never more than the operator-wide cap leaves
order      fewest GPU pods first, then a stable shuffle; nodes that something blocks do not stop the others, and
           share few looks at their pods (looks.py)
crowd      while nodes in flight use up the room of a PodDisruptionBudget, no other node that it guards starts
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.validation import allowance, parse_duration
from gpusharing.planning.actions import FenceNode
from gpusharing.planning.drain.gangs import find_gang_blockers, name_gangs
from gpusharing.planning.drain.plan import budget_room, crowding, preflight
from gpusharing.planning.drain.standing import Standings, find_standings
from gpusharing.planning.pools.common import Common, standing_look
from gpusharing.planning.proof.assess import Assessed
from gpusharing.planning.snapshot.looks import FIRST_LOOKS, Look
from gpusharing.planning.snapshot.records import Claim, Fence
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.way.gates import CORDONING
from gpusharing.planning.way.guard import not_judged
from gpusharing.planning.way.marks import marks_for
from gpusharing.planning.way.startgate import is_newcomer
from gpusharing.planning.way.verdict import NodeCase, Verdict
from gpusharing.planning.words.blockers import Blocker, ends_at, explain_blockers, main_reason, merge
from gpusharing.planning.words.reasons import Reason

UNKNOWN_PODS = 1000
"""A node whose pods nobody can count comes after all others."""
OUTSIDE = frozenset({Reason.NO_GPU, Reason.PRODUCT_SKIPPED})
"""What selected nodes are told that the policy has no business with."""
CAP_REACHED = "the cap on nodes in flight (chart value operator.maxInFlight) is reached; waiting for a slot"
LOOKAHEAD = 2
"""Candidates whose pods are listed beyond the room, so that a blocked node does not stop the pool."""


@dataclass(slots=True)
class Pool:
    """What one pass learns about the nodes of one policy."""

    policy: PolicyView
    names: list[str] = field(default_factory=list)
    """Nodes of the policy."""
    used: int = 0
    candidates: list[NodeCase] = field(default_factory=list)
    outside: int = 0
    """How many of `names` are none of the policy's business, or not yet: see is_newcomer."""

    @property
    def total(self) -> int:
        """Nodes that the budget is about."""
        return len(self.names) - self.outside

    def count(self, verdict: Verdict, *, used: bool, newcomer: bool = False) -> None:
        """Take a node of the policy into the budget. `used`: it is away, or about to be; `newcomer`: is_newcomer."""
        self.names.append(verdict.node)
        if newcomer or verdict.reason in OUTSIDE:
            self.outside += 1
        else:
            self.used += used

    @property
    def limit(self) -> int:
        """Nodes that may be unavailable at once."""
        if self.policy.spec is None:
            return 0
        return allowance(self.policy.spec.rollout.max_unavailable, self.total)

    @property
    def frozen(self) -> bool:
        """Not even one node of many may be away."""
        spec = self.policy.spec
        return spec is None or allowance(spec.rollout.max_unavailable, 1) == 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which candidates start in this pass, and the verdicts of all candidates."""

    verdicts: Mapping[str, Verdict]
    claims: Mapping[str, Claim]
    looks: Mapping[str, Look]
    """What is to be remembered of blocked candidates."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One candidate and what its pods say."""

    case: NodeCase
    assessed: Assessed
    """The case's; a candidate has a target."""
    policy: PolicyView
    look: Look | None
    """What blocks it, by the pods as listed now or last; None: nothing, or they were not listed."""
    pods: Standings | None = None
    """How its pods stand; None: they were not listed in this pass."""

    @property
    def cordons(self) -> bool:
        """Its change needs an idle node."""
        return self.assessed.disruption in CORDONING

    @property
    def newcomer(self) -> bool:
        """It needs no slot of the policy's budget."""
        empty = self.pods is None or self.pods.holders == 0
        return empty and is_newcomer(self.case.node, self.case.gpunode)

    @property
    def needs_list(self) -> bool:
        """The pods must be known before this node may start, and are not."""
        return self.cordons and self.pods is None and self.look is None

    @property
    def order(self) -> tuple[bool, bool, int, str]:
        """Smaller comes first."""
        case, policy = self.case, self.policy
        shuffle = _shuffle(case.node.uid, policy.uid, policy.generation)
        pods = self.assessed.observed.pods
        return (not case.claimed, self.look is not None, UNKNOWN_PODS if pods is None else pods, shuffle)


def is_unavailable(node: NodeView) -> bool:
    """Whether the node counts as used, for whatever reason."""
    return not node.ready or node.unschedulable or node.deleting or node.fence is not None


def select(pool: Pool, cap: int, common: Common) -> Selection:
    """Choose among the candidates of a pool. `cap`: how many more nodes the whole operator may take."""
    waiting, room = _why_full(pool, cap), max(0, min(pool.limit - pool.used, cap))
    verdicts: dict[str, Verdict] = {}
    claims: dict[str, Claim] = {}
    looks: dict[str, Look] = {}
    listed, hold = 0, common.recent >= FIRST_LOOKS
    for candidate in _in_order(pool, common, verdicts):
        case, look = candidate.case, candidate.look
        slots = cap if candidate.newcomer else room
        if pool.frozen:
            verdict = case.verdict(
                Phase.PENDING, Reason.FROZEN, "spec.rollout.maxUnavailable is 0: nothing starts"
            )
        elif slots <= 0 or (candidate.needs_list and (hold or listed >= slots + LOOKAHEAD)):
            full = CAP_REACHED if candidate.newcomer else waiting
            verdict = case.verdict(Phase.PENDING, Reason.BUDGET_FULL, full, candidate=True)
        else:
            verdict, look = _try(candidate, common)
            listed += candidate.needs_list and verdict.wants_pods
            if any(isinstance(action, FenceNode) for action in verdict.actions):
                cap -= 1
                room = min(room - (not candidate.newcomer), cap)
                claims[case.node.name] = Claim(case.node.uid, pool.policy.name, _op(case, pool.policy))
        verdicts[case.node.name] = verdict
        if look is not None:
            looks[case.node.name] = look
    return Selection(verdicts, claims, looks)


def _why_full(pool: Pool, cap: int) -> str:
    """Which of the two limits keeps the next node waiting. It names no count that changes as nodes come and go."""
    if cap < pool.limit - pool.used:
        return CAP_REACHED
    total = pool.total
    return (
        f"spec.rollout.maxUnavailable allows {pool.limit} of {total} nodes to be unavailable at once;"
        " waiting for a slot"
    )


def _in_order(pool: Pool, common: Common, verdicts: dict[str, Verdict]) -> list[_Candidate]:
    """The candidates, best first. One whose pods make the planner fail gets its verdict and stands in nobody's way."""
    found = []
    for case in pool.candidates:
        try:
            candidate = _candidate(case, pool.policy, common)
            found.append((candidate.order, candidate))
        except Exception as error:  # noqa: BLE001 - whatever one node holds, the others are chosen from (guard.py)
            verdicts[case.node.name] = not_judged(case.node, pool.policy.name, error)
    return [candidate for _, candidate in sorted(found, key=lambda row: row[0])]


@lru_cache(maxsize=16384)
def _shuffle(node_uid: str, policy_uid: str, generation: int) -> str:
    """A stable order that is another one for every generation."""
    return sha256(f"{node_uid}{policy_uid}{generation}".encode()).hexdigest()


def _candidate(case: NodeCase, policy: PolicyView, common: Common) -> _Candidate:
    """The candidate with what would keep its drain from succeeding, as far as its pods are or were listed."""
    assessed, before = case.assessment, standing_look(case, policy, common.looks)
    assert isinstance(assessed, Assessed), "candidates have a target"
    if case.work is None:
        return _Candidate(case, assessed, policy, before)
    drain = assessed.spec.drain
    pods = find_standings(case.work, drain, case.now, scope=case.scope, cordoned=False)
    blockers = preflight(pods, drain, common.offered, case.now)
    if case.work.gangs:
        strictest = find_gang_blockers(case.work, case.node.name, drain, case.now, case.scope)
        blockers = merge((*name_gangs(blockers, case.work), *strictest))
    look = _look(case, policy, before, pods, blockers) if blockers else None
    return _Candidate(case, assessed, policy, look, pods)


def _look(
    case: NodeCase,
    policy: PolicyView,
    before: Look | None,
    pods: Standings,
    blockers: tuple[Blocker, ...],
    *,
    slower: bool = True,
) -> Look:
    """What is remembered of a look that found these blockers. `slower`: the next one waits longer than this one did."""
    at, tries = pods.listed_at, 1
    if before is not None and slower:
        tries = before.tries if before.at == at else before.tries + 1
    return Look(policy.uid, policy.generation, case.node.retry, at, tries, blockers)


def _try(candidate: _Candidate, common: Common) -> tuple[Verdict, Look | None]:
    """Preflight of one candidate that has a slot: fence it, look at its pods, or say what blocks."""
    case, policy, look, pods = candidate.case, candidate.policy, candidate.look, candidate.pods
    if not candidate.cordons:
        return _begin(candidate), None
    if look is not None:
        return _blocked(case, look, again=pods is None and case.node.name in common.due), look
    if pods is None:
        return _looking(case), None
    needed = budget_room(pods)
    if needed and not common.crowd_known:
        return _looking(case), None
    if crowded := crowding(pods, common.crowd):
        # Others make room within seconds: such a node is looked at again at every poll.
        look = _look(case, policy, None, pods, crowded, slower=False)
        return _blocked(case, look), look
    common.crowd.update(needed)
    begun = Look(policy.uid, policy.generation, case.node.retry, pods.listed_at, 1, (), tuple(needed.items()))
    return _begin(candidate), begun


def _begin(candidate: _Candidate) -> Verdict:
    verdict = candidate.case.verdict(Phase.CORDONED, Reason.SETTLING, "the change begins")
    return verdict.then(_fence(candidate))


def _looking(case: NodeCase) -> Verdict:
    message = "looking at the pods of the node"
    verdict = case.verdict(Phase.PREFLIGHT, Reason.PROGRESSING, message, candidate=True)
    return replace(verdict, wants_pods=True)


def _blocked(case: NodeCase, look: Look, *, again: bool = False) -> Verdict:
    """What blocks stays shown between two looks. `again`: it is looked at now."""
    reason = main_reason(look.blockers) or Reason.BLOCKED
    due = look.due(case.settings.poll)
    wake = due if due > case.now else case.now + timedelta(seconds=case.settings.poll)
    message = explain_blockers(look.blockers)[0]
    verdict = case.verdict(Phase.BLOCKED, reason, message, wake=wake, candidate=True)
    return replace(verdict, blockers=look.blockers, deadline=ends_at(look.blockers), wants_pods=again)


def _op(case: NodeCase, policy: PolicyView) -> str:
    return f"{policy.name[:40]}.{policy.generation}.{int(case.now.timestamp() * 1000):x}"


def _fence(candidate: _Candidate) -> FenceNode:
    case, assessed, policy = candidate.case, candidate.assessed, candidate.policy
    node, timeout = case.node, parse_duration(assessed.spec.drain.timeout)
    cordon = assessed.disruption in CORDONING
    labels, annotations = marks_for(node)
    added = (*labels, *annotations)
    if cordon and names.LABEL_MODE in node.labels:
        labels[names.LABEL_MODE] = None
    fence = Fence(
        op=_op(case, policy),
        policy=policy.name,
        policy_uid=policy.uid,
        generation=policy.generation,
        node_uid=node.uid,
        prior_unschedulable=node.unschedulable,
        added=added,
        disruption=assessed.disruption,
        from_layout=assessed.observed_text,
        to_layout=assessed.target.text,
        stage="fenced",
        step=1,
        steps=2 if assessed.two_steps else 1,
        attempt=1,
        since=case.now,
        stage_since=case.now,
        deadline=case.now + timedelta(seconds=case.settings.settle) + timeout,
        drift=assessed.drift,
        from_mode=node.labels.get(names.LABEL_MODE, ""),
        retry=node.retry,
        newcomer=candidate.newcomer,
    )
    return FenceNode(node, fence, cordon, labels, annotations)
