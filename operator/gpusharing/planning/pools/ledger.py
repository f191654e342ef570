"""What the pools share in one pass: the cluster after the changes, the looks at pods, and what PodDisruptionBudgets
still allow.

Terms: docs/design/glossary.md#slot, docs/design/glossary.md#claim, docs/design/glossary.md#fence,
docs/design/glossary.md#gang, docs/design/glossary.md#wave.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.places import Places
from gpusharing.planning.snapshot.looks import Look, count_recent, find_due
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.members import Member, find_member
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason


@dataclass(slots=True)
class Ledger:
    """What all pools share in one pass and update as their nodes start."""

    afterwards: Afterwards
    """The cluster when all planned changes are done."""
    now: datetime
    """The time of the pass."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """The last look at each node's pods and what it found, by node."""
    crowd: Counter[str] = field(default_factory=Counter)
    """How many pods of nodes in flight still have to be evicted under each PodDisruptionBudget."""
    crowd_known: bool = True
    """Whether `crowd` is complete. False if a node in flight settles after its cordon, its pods were not listed in this
    pass, and no look without blockers shows which of them will be evicted."""
    due: frozenset[str] = frozenset()
    """The blocked nodes that are due for another look."""
    recent: int = 0
    """How many blocked nodes were looked at within the last poll interval."""
    claimed_waves: Mapping[str, str] = field(default_factory=dict)
    """For each node with a claim but no fence: the wave in which it was about to start, or an empty string if it was
    in no wave."""
    places: Places | None = None
    """Where our own pod could be scheduled, or None if we do not run in a pod."""
    keepers: list[Member] = field(default_factory=list)
    """The nodes of all policies that occupy a slot of the operator-wide cap until somebody acts."""

    @staticmethod
    def of(
        snapshot: ClusterSnapshot,
        now: datetime,
        afterwards: Afterwards,
        cases: Sequence[tuple[NodeCase, PolicyView]],
    ) -> "Ledger":
        """Return the ledger before any node starts. `cases` has the candidates that were looked at before and may start
        now, each with its policy; only the last looks that found blockers and still apply decide `due` and `recent`.
        Nodes in flight are not counted yet; `add_in_flight` adds each of them."""
        poll = snapshot.settings.poll
        last = [
            (case.node.name, look)
            for case, policy in cases
            if (look := standing_look(case, policy, snapshot.memory.looks)) is not None
        ]
        due, recent = find_due(last, now, poll), count_recent((look for _, look in last), now, poll)
        fences = {node.name: node.fence for node in snapshot.nodes.values() if node.fence is not None}
        claimed_waves = {name: claim.wave for name, claim in snapshot.claims.items() if name not in fences}
        places = Places.of(snapshot.nodes.values()) if snapshot.settings.pod_name else None
        return Ledger(
            afterwards,
            now,
            snapshot.memory.looks,
            due=due,
            recent=recent,
            claimed_waves=claimed_waves,
            places=places,
        )

    def resumed_wave(self, case: NodeCase) -> str:
        """Return the wave named in the node's claim if the node has a claim but no fence, because an operator stopped
        between writing the two. Empty if there is no such wave. The node then starts in that wave, so that a wave that
        has only partly begun stays together, no matter how often an operator stops."""
        return self.claimed_waves.get(case.node.name, "")

    def add_in_flight(self, snapshot: ClusterSnapshot, verdict: Verdict) -> Look | None:
        """Add to `crowd` how many pods of a fenced node still have to be evicted under each budget. If the node's pods
        were just listed, its verdict has the numbers. While the node settles after the cordon, and while its LISTs
        fail, the numbers come from the look made before its fence. If there is none, or it found blockers, nothing is
        added, and `crowd_known` becomes false if the node settles. Nothing is added in other phases without a LIST, for
        a node that cannot be judged, or if the change needs no cordon. In any case, add the node to `keepers` if it
        occupies its slot until somebody acts: its change failed, its drain is held after the deadline, or its phase is
        not one of a change in flight.

        Return the look if it was used, so that the caller can keep it, else None.
        """
        node = snapshot.nodes[verdict.node]
        held = verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD
        if held or not verdict.phase.in_flight:
            self.keepers.append(find_member(verdict, node, None))
        fence = node.fence
        if fence is None or not fence.disruption.cordons or verdict.reason is Reason.NODE_NOT_JUDGED:
            return None
        if (work := snapshot.work.get(node.name)) is not None and not work.error:
            self.crowd.update(dict(verdict.needs))
            return None
        settles = verdict.reason is Reason.SETTLING
        if (
            not settles and verdict.reason is not Reason.LIST_FAILED
        ):  # nothing is evicted before the pods are listed
            return None
        look = snapshot.memory.looks.get(node.name)
        if look is None or look.blockers:
            self.crowd_known = self.crowd_known and not settles
            return None
        self.crowd.update(dict(look.needs))
        return look


def find_mates(case: NodeCase) -> frozenset[str]:
    """Return the names of the other nodes that run members of the gangs that this node's change interrupts. Empty if
    its pods were not listed; members that were not listed are left out."""
    members = (member for view in case.gangs for member in view.members)
    return frozenset(member.node for member in members if member.node not in ("", case.node.name))


def standing_look(case: NodeCase, policy: PolicyView, looks: Mapping[str, Look]) -> Look | None:
    """Return the last look at a candidate if it found blockers and still applies, else None. It no longer applies once
    the policy has another version, or the node's retry annotation another value."""
    look = looks.get(case.node.name)
    if look is None or not look.blockers or look.version != policy.version:
        return None
    return look if look.retry == case.node.retry else None
