"""One policy's nodes together: how many may be away, and which go next.

limit      allowance(maxUnavailable, nodes of the policy); 0 freezes
used       a set: not Ready, cordoned by anyone, fenced, claimed or being deleted; a node counts once
           (a claim without a fence is left by a crash or a predecessor: that very node goes first)
room       limit - used, and never more than the operator-wide cap leaves
order      fewest GPU pods first, then a stable shuffle; nodes that something blocks do not stop the others
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
from gpusharing.planning.blockers import Blocker, explain_blockers, main_reason
from gpusharing.planning.drain import preflight
from gpusharing.planning.gates import CORDONING
from gpusharing.planning.marks import marks_for
from gpusharing.planning.reasons import Reason
from gpusharing.planning.verdict import NodeCase, Verdict
from gpusharing.planning.views import Claim, Fence, NodeView, PolicyView

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

    @property
    def limit(self) -> int:
        """Nodes that may be unavailable at once."""
        if self.policy.spec is None:
            return 0
        return allowance(self.policy.spec.rollout.max_unavailable, len(self.names))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which candidates start in this pass, and the verdicts of all candidates."""

    verdicts: Mapping[str, Verdict]
    claims: Mapping[str, Claim]


def is_unavailable(node: NodeView) -> bool:
    """Whether the node counts as used, for whatever reason."""
    return not node.ready or node.unschedulable or node.deleting or node.fence is not None


def select(pool: Pool, cap: int, offered: frozenset[str]) -> Selection:
    """Choose among the candidates of a pool. `cap`: how many more nodes the whole operator may take."""
    limit = pool.limit
    room = max(0, min(limit - pool.used, cap))
    verdicts: dict[str, Verdict] = {}
    claims: dict[str, Claim] = {}
    listed = 0
    waiting = f"spec.rollout.maxUnavailable lets {limit} of {len(pool.names)} nodes be away at once; waiting for a slot"
    for case in sorted(pool.candidates, key=lambda case: _order(case, pool.policy, offered)):
        if limit == 0:
            verdict = case.verdict(
                Phase.PENDING, Reason.FROZEN, "spec.rollout.maxUnavailable is 0: nothing starts"
            )
        elif room <= 0 or (_needs_list(case) and listed >= room + LOOKAHEAD):
            verdict = case.verdict(Phase.PENDING, Reason.BUDGET_FULL, waiting, candidate=True)
        else:
            verdict = _try(case, pool.policy, offered)
            listed += verdict.wants_pods
            if any(isinstance(action, FenceNode) for action in verdict.actions):
                room -= 1
                claims[case.node.name] = Claim(case.node.uid, pool.policy.name, _op(case, pool.policy))
        verdicts[case.node.name] = verdict
    return Selection(verdicts, claims)


def _order(case: NodeCase, policy: PolicyView, offered: frozenset[str]) -> tuple[bool, bool, int, str]:
    observed = case.gpunode.observed if case.gpunode else None
    shuffle = _shuffle(case.node.uid, policy.uid, policy.generation)
    blocked = bool(_find_blockers(case, offered))
    return (not case.claimed, blocked, observed.pods if observed else 0, shuffle)


@lru_cache(maxsize=16384)
def _shuffle(node_uid: str, policy_uid: str, generation: int) -> str:
    """A stable order that is another one for every generation."""
    return sha256(f"{node_uid}{policy_uid}{generation}".encode()).hexdigest()


def _needs_list(case: NodeCase) -> bool:
    """The pods must be known before this node may start, and are not."""
    assert case.assessment is not None, "candidates have a target"
    return case.work is None and case.assessment.disruption in CORDONING


def _find_blockers(case: NodeCase, offered: frozenset[str]) -> tuple[Blocker, ...]:
    """What would keep a drain from succeeding, as far as the pods are listed."""
    if case.work is None:
        return ()
    return preflight(case.work, case.spec.drain, offered, case.now, scope=case.scope)


def _try(case: NodeCase, policy: PolicyView, offered: frozenset[str]) -> Verdict:
    """Preflight of one candidate that has a slot: fence it, or say what blocks."""
    assert case.assessment is not None, "candidates have a target"
    if _needs_list(case):
        message = "looking at the pods of the node"
        verdict = case.verdict(Phase.PREFLIGHT, Reason.PROGRESSING, message, candidate=True)
        return replace(verdict, wants_pods=True)
    if case.assessment.disruption in CORDONING and (blockers := _find_blockers(case, offered)):
        reason = main_reason(blockers) or Reason.BLOCKED
        wake = case.now + timedelta(seconds=case.settings.poll)
        verdict = case.verdict(
            Phase.BLOCKED, reason, explain_blockers(blockers)[0], wake=wake, candidate=True
        )
        return replace(verdict, blockers=blockers, wants_pods=True)
    verdict = case.verdict(Phase.CORDONED, Reason.SETTLING, "the change begins")
    return verdict.then(_fence(case, policy))


def _op(case: NodeCase, policy: PolicyView) -> str:
    return f"{policy.name[:40]}.{policy.generation}.{int(case.now.timestamp() * 1000):x}"


def _fence(case: NodeCase, policy: PolicyView) -> FenceNode:
    node, assessment = case.node, case.assessment
    assert assessment is not None, "candidates have a target"
    assert assessment.target is not None, "candidates have a target"
    cordon = assessment.disruption in CORDONING
    labels, annotations = marks_for(node)
    added = (*labels, *annotations)
    if cordon and names.LABEL_MODE in node.labels:
        labels[names.LABEL_MODE] = None
    fence = Fence(
        op=_op(case, policy),
        policy=policy.name,
        generation=policy.generation,
        node_uid=node.uid,
        prior_unschedulable=node.unschedulable,
        added=added,
        disruption=assessment.disruption,
        from_layout=assessment.observed_text,
        to_layout=assessment.target.text,
        stage="fenced",
        step=1,
        steps=2 if assessment.two_steps else 1,
        attempt=1,
        since=case.now,
        stage_since=case.now,
        deadline=case.now + parse_duration(case.spec.drain.timeout),
        drift=assessment.drift,
        from_mode=node.labels.get(names.LABEL_MODE, ""),
        retry=node.retry,
    )
    return FenceNode(node, fence, cordon, labels, annotations)
