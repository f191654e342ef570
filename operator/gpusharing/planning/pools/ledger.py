"""What the pools share in one pass: the cluster after the changes, the looks at pods, what PodDisruptionBudgets still allow, and where the operator's own pod could be scheduled.

A cordoned node keeps its pods, but the operator's own pod may be replaced in the middle of a change, because somebody deletes, upgrades or drains it. If our cordons covered every node then, no operator could run to lift them (docs/design/drain.md#place).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.snapshot.looks import Look, count_recent, find_due
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.members import Member, find_member
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason

LAST_PLACE = (
    "this is one of the last schedulable nodes, and the operator's own pod needs one; waiting until another node is"
    " Ready and not cordoned"
)
"""The message on a node that has to stay schedulable for our own pod."""


@dataclass(slots=True)
class Places:
    """The nodes on which our own pod could be scheduled. Its tolerations and selectors are not known, and are ignored."""

    open: set[str]
    all: int
    """How many nodes are open or may open again, such as nodes that are cordoned or not Ready."""

    @staticmethod
    def of(nodes: Iterable[NodeView]) -> "Places":
        able = [node for node in nodes if _may_open(node)]
        return Places({node.name for node in able if _is_open(node)}, len(able))

    def spare(self, candidates: Iterable[NodeCase]) -> int | None:
        """Return how many open nodes may be cordoned so that one is left, or None if no candidate would close a node, or if waiting for a second node would not help."""
        closes = any(case.node.name in self.open and case.disruption.cordons for case in candidates)
        return len(self.open) - 1 if closes and self.all > 1 else None


def becomes_place(node: NodeView) -> bool:
    """Whether our change keeps pods off the node now, and lets them in again when it ends."""
    fence = node.fence
    return fence is not None and not fence.prior_unschedulable and _may_open(node) and not _is_open(node)


def _is_open(node: NodeView) -> bool:
    return node.ready and not node.unschedulable


def _may_open(node: NodeView) -> bool:
    return not node.barred and not node.deleting


@dataclass(slots=True)
class PassState:
    """What all pools share in one pass and update as their nodes start."""

    afterwards: Afterwards
    now: datetime
    looks: Mapping[str, Look] = field(default_factory=dict)
    crowd: Counter[str] = field(default_factory=Counter)
    """How many pods of nodes in flight still have to be evicted under each PodDisruptionBudget."""
    crowd_known: bool = True
    """Whether `crowd` is complete. False while a node settles after its cordon and nothing shows which of its pods will be evicted."""
    due: frozenset[str] = frozenset()
    """The blocked nodes that are due for another look."""
    recent: int = 0
    """How many blocked nodes were looked at within the last poll interval."""
    claimed_waves: Mapping[str, str] = field(default_factory=dict)
    """For each node with a claim but no fence, because an operator stopped between writing the two: the wave in which it was about to start, or an empty string. It starts in that wave, so that the wave stays together."""
    places: Places | None = None
    """None if we do not run in a pod."""
    keepers: list[Member] = field(default_factory=list)
    """The nodes of all policies that occupy a slot of the operator-wide cap until somebody acts."""

    @staticmethod
    def of(
        snapshot: ClusterSnapshot,
        now: datetime,
        afterwards: Afterwards,
        cases: Sequence[tuple[NodeCase, PolicyView]],
    ) -> "PassState":
        """Return the state before any node starts; `cases` are the candidates that were looked at before and may start now, with their policies."""
        looks, poll = snapshot.memory.looks, snapshot.settings.poll
        found = ((case.node.name, standing_look(case, policy, looks)) for case, policy in cases)
        last = [(name, look) for name, look in found if look is not None]
        fenced = {node.name for node in snapshot.nodes.values() if node.fence is not None}
        return PassState(
            afterwards,
            now,
            looks,
            due=find_due(last, now, poll),
            recent=count_recent((look for _, look in last), now, poll),
            claimed_waves={name: claim.wave for name, claim in snapshot.claims.items() if name not in fenced},
            places=Places.of(snapshot.nodes.values()) if snapshot.settings.pod_name else None,
        )

    def add_in_flight(self, snapshot: ClusterSnapshot, verdict: Verdict) -> Look | None:
        """Count the coming evictions on a fenced node. Return the look that was used, so that the caller can keep it, or None."""
        node = snapshot.nodes[verdict.node]
        held = verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD
        if held or not verdict.phase.in_flight:
            self.keepers.append(find_member(verdict, node, None))
        if (
            node.fence is None
            or not node.fence.disruption.cordons
            or verdict.reason is Reason.NODE_NOT_JUDGED
        ):
            return None
        if (work := snapshot.work.get(node.name)) is not None and not work.error:
            self.crowd.update(dict(verdict.needs))
            return None
        settles = verdict.reason is Reason.SETTLING
        if not settles and verdict.reason is not Reason.LIST_FAILED:
            return None  # nothing is evicted before the pods are listed
        look = snapshot.memory.looks.get(node.name)
        if look is None or look.blockers:
            self.crowd_known = self.crowd_known and not settles
            return None
        self.crowd.update(dict(look.needs))
        return look


def find_mates(case: NodeCase) -> frozenset[str]:
    """Return the other nodes that run members of the gangs that this node's change interrupts, as far as their pods were listed."""
    members = (member for view in case.gangs for member in view.members)
    return frozenset(member.node for member in members if member.node not in ("", case.node.name))


def standing_look(case: NodeCase, policy: PolicyView, looks: Mapping[str, Look]) -> Look | None:
    """Return the last look at a candidate if it found blockers, and neither the policy nor the node's retry annotation has changed since."""
    look = looks.get(case.node.name)
    if look is None or not look.blockers or look.version != policy.version:
        return None
    return look if look.retry == case.node.retry else None
