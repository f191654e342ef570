"""How many nodes of one policy may be unavailable, and who keeps its slots?"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import NEVER
from gpusharing.api.validation import allowance
from gpusharing.planning.pools.candidates import becomes_place
from gpusharing.planning.pools.windows import ALWAYS, UNJUDGED, Hours, find_hours
from gpusharing.planning.snapshot.records import EARLIEST, Consent
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.cases import Member, calls_fail, of_policy
from gpusharing.planning.transition.fencing import tell_foreign
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

MOST = 3
"""The most nodes that a message names. The number of the others is left out, because it would change too often."""


def name_keepers(members: Iterable[Member]) -> tuple[str, str]:
    """Return a clause in parentheses on why these nodes are unavailable, and the first of them as `node/NAME`.

    Nodes whose changes make progress must not be named: the status of every waiting node would be written again each
    time.
    """
    kept = sorted(members, key=lambda member: member.node.name)
    if not kept:
        return "", ""
    reasons = [*map(_why, kept[:MOST]), *["others"] * (len(kept) > MOST)]
    return f" ({'; '.join(reasons)})", f"node/{kept[0].node.name}"


def _why(member: Member) -> str:
    node, verdict = member.node, member.verdict
    # Traces of our own change explain the other states, so they come first.
    if verdict.phase is Phase.FAILED:
        return f"{node.name} has failed"
    if calls_fail(verdict):
        return f"calls to the API server about {node.name} are failing"
    if node.fence is not None and node.fence.stage == "yielded" and node.foreign_works:
        return tell_foreign(node)
    if node.fence is not None:
        return f"the change on {node.name} is on hold"
    if node.deleting:
        return f"{node.name} is being deleted"
    if not node.ready:
        return f"{node.name} is not Ready"
    if node.unschedulable:
        return f"{node.name} is cordoned"
    return f"{node.foreign} has begun to work on {node.name}"


def is_for_a_person(member: Member) -> bool:
    """Whether only a person, or somebody else's maintenance, can free the slot. A kubelet may return by itself."""
    node, verdict = member.node, member.verdict
    if verdict.phase is Phase.FAILED or verdict.reason in (Reason.DRAIN_HELD, Reason.DRIVER_UPGRADE_FAILED):
        return True
    return node.fence is None and node.ready and not node.deleting


def goes_on(verdict: Verdict) -> bool:
    """Whether our change of the node is under way and ends by itself at some deadline."""
    ends = verdict.phase is not Phase.FAILED and not calls_fail(verdict)
    lasts = verdict.phase.part == "emptying" and verdict.deadline in (None, NEVER)
    return verdict.phase.in_flight and ends and not lasts


@dataclass(slots=True)
class Pool:
    """The nodes of one policy, as one pass counts them.

    Nodes without a GPU and products that the policy leaves out do not concern it, but nodes that somebody keeps from
    changing do. Newcomers behind the start-up taint take only a slot of the operator-wide cap; holds of the pool apply
    to them too (docs/design/transition.md#gate). A node that this policy owns by now uses a slot from the first, while
    it is still in a change of another one.
    """

    policy: PolicyView
    names: list[str] = field(default_factory=list)
    used: int = 0
    """How many of the nodes that the budget covers are unavailable or hold a slot."""
    candidates: list[NodeCase] = field(default_factory=list)
    """The cases of the nodes that wait only for a slot."""
    outside: int = 0
    """How many of `names` do not concern the policy, or do not count yet (`NodeCase.newcomer`)."""
    moving: int = 0
    """How many of the used slots become free by themselves: changes that end at a deadline, and mere claims."""
    opening: int = 0
    """How many of the nodes in `moving` accept no pods now but will again when their changes end."""
    members: list[Member] = field(default_factory=list)
    """The nodes that concern the policy, newcomers included."""
    to_go: list[str] = field(default_factory=list)
    keepers: list[Member] = field(default_factory=list)
    """The nodes whose slots do not become free by themselves."""
    failed_before: Mapping[str, str] = field(default_factory=dict)
    """By UID the nodes, as messages name them, whose failure is known only from the record (`count_failures`)."""
    consent: Consent | None = None
    oversize: Finding | None = None
    """Why the Lease has no room for an approval of the plan (`find_oversize`)."""
    hours: Hours = UNJUDGED
    """What the windows allow, or UNJUDGED, which lets no node start, before `with_hours` has computed it."""
    now: datetime = EARLIEST
    """The time of the pass, or EARLIEST before `with_hours` has set it."""

    @staticmethod
    def of(
        policy: PolicyView,
        members: Iterable[Member],
        claimed: AbstractSet[str],
        failing: AbstractSet[str],
        joining: Iterable[Member] = (),
    ) -> "Pool":
        """Return the pool of these nodes.

        `claimed` nodes are about to become unavailable; calls about `failing` ones fail; `joining` ones are still in a
        change of another policy and take a slot already.
        """
        pool = Pool(policy)
        for member in members:
            name = member.verdict.node
            if member.verdict.candidate and name not in failing:
                pool.candidates.append(member.case)
            pool.count(member, claimed=name in claimed)
        for member in joining:
            if member.case.newcomer:
                continue
            pool.used += 1
            if goes_on(member.verdict):
                pool.moving += 1
            else:
                pool.keepers.append(member)
        return pool

    @property
    def total(self) -> int:
        """How many nodes the budget covers: all nodes of the policy except those counted in `outside`."""
        return len(self.names) - self.outside

    def count(self, member: Member, *, claimed: bool = False) -> None:
        verdict = member.verdict
        self.names.append(verdict.node)
        if not member.outside:
            self.members.append(member)
            if member.to_go:
                self.to_go.append(verdict.node)
        if member.outside or member.case.newcomer:
            self.outside += 1
        elif member.away or claimed:
            self.used += 1
            moves = goes_on(verdict)
            self.moving += moves or not member.away
            self.opening += moves and becomes_place(member.node)
            if member.away and not moves:
                self.keepers.append(member)

    def with_hours(self, now: datetime) -> "Pool":
        """Return a copy of the fully counted pool with what its windows allow at `now`."""
        spec, nodes, hours = self.policy.spec, [one.node for one in self.members], ALWAYS
        try:
            if spec is not None:
                hours = find_hours(spec, self.policy.zones, nodes, now)
        except Exception as error:  # noqa: BLE001 - one policy must not stop the others
            hours = Hours(closed=of_policy(self.policy.name, error))
        return replace(self, hours=hours, now=now)

    @property
    def spec(self) -> GPUSharingPolicySpec:
        """The spec of the policy. Raises ValueError if it cannot be read."""
        if self.policy.spec is None:
            raise ValueError(f"the spec of policy {self.policy.name} cannot be read")
        return self.policy.spec

    @property
    def agreed(self) -> Consent:
        revision, known = self.policy.version.revision, self.consent or Consent("")
        return known if known.revision == revision else Consent(revision, known.approved, (), known.resumed)

    @property
    def limit(self) -> int:
        if self.policy.spec is None:
            return 0
        return allowance(self.policy.spec.rollout.max_unavailable, self.total)
