"""Is each pod of a draining node leaving, waited for, blocked, or to be evicted now?

A gang counts as a whole: how long a drain waits for its pods, and whether it must not be interrupted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

from gpusharing.api.policy import Drain
from gpusharing.api.times import NEVER, parse_duration
from gpusharing.planning.drain.evictions import PACE, binding_budgets, is_accepted, is_seen
from gpusharing.planning.drain.pods import Classified, Tier, classify, patience, tier_of
from gpusharing.planning.snapshot.podviews import (
    EvictionMemory,
    Gang,
    GangMember,
    GangView,
    NodeWork,
    PdbView,
    PodView,
    Scope,
)
from gpusharing.planning.vocabulary.findings import Blocker, Finding, merge
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.vocabulary.values import value

MAX_NODES = 3
"""The most nodes of a gang that a message names."""
MAX_GANGS = 2
"""The most gangs on a node that a message describes."""


def describe_gang(view: GangView) -> str:
    """Describe the gang, such as `JobSet team-a/train, 16 pods (8 on gpu-1, 8 on gpu-2)`."""
    count = len(view.members)
    where = Counter(member.node for member in view.members)
    waiting = where.pop("", 0)
    places = [f"{number} on {name}" for name, number in sorted(where.items())]
    if len(places) > MAX_NODES:
        places = [*places[:MAX_NODES], counted(len(places) - MAX_NODES, "more node")]
    places += [f"{waiting} without a node"] * bool(waiting)
    least = "at least " if view.partial else ""
    text = f"{view.gang.ref}, {least}{counted(count, 'pod')}"
    return f"{text} ({', '.join(places)})" if places else text


def explain_gangs(gangs: Sequence[GangView]) -> str:
    shown = [describe_gang(view) if not view.error else view.gang.ref for view in gangs[:MAX_GANGS]]
    more = len(gangs) - len(shown)
    return " and ".join(shown) + (f" and {counted(more, 'more gang')}" if more else "")


def name_gang(view: GangView, blocker: Blocker) -> Blocker:
    return replace(blocker, message=f"Gang: {describe_gang(view)}. {blocker.message}".rstrip())


def unlisted(view: GangView) -> str:
    return f"The members of {view.gang.ref} cannot be listed: {view.error}"


def everywhere(scope: Scope) -> Scope:
    """Return the scope for members on any node, with or without a GPU, as if they had to leave too."""
    return replace(scope, all_pods=True, part=None, cordoned_at=None)


GangWait: TypeAlias = tuple[timedelta | None, str, bool]
"""The wait for a gang after the cordon (None: as long as it runs), why, and whether it must end by itself.

If it must, the change is given up when its time is over.
"""


def find_gang_waits(work: NodeWork, options: Drain, scope: Scope) -> Mapping[Gang, GangWait]:
    """Return, by gang, the longest wait for a member to end by itself, if the drain waits for any.

    Evicting one rank ends the whole gang, so the drain waits for all members on all nodes (docs/design/drain.md#t13).
    """
    longest: dict[Gang, GangWait] = {}
    wide = everywhere(scope)
    for view in work.gangs:
        members = _find_members(view, work, scope.node)
        waited = classify((member.pod for member in members), options, wide).waited
        waits = [(patience(one.pod, options), one) for one in members if one.pod.uid in waited]
        # The policy of a member's own node counts too, and may forbid to evict the member at last.
        spared = False
        for member in members:
            rules = member.rules
            if isinstance(rules, Drain) and classify((member.pod,), rules, wide).waited:
                spared = spared or rules.jobs.on_timeout == "Abort"
                waits.append((patience(member.pod, rules), member))
        if waits:
            # Unlimited waits come first, then longer waits before shorter ones, then the member's name decides.
            wait, first = min(waits, key=lambda one: (one[0] is not None, -(one[0] or timedelta(0)), one[1].pod.ref))
            where = f" on {first.node}" if first.node else ""
            may = f"whose member {first.pod.ref}{where} may still complete on its own"
            longest[view.gang] = wait, f"evicting the pod would end {view.gang.ref}, {may}", spared
    return longest


def _find_members(view: GangView, work: NodeWork, node: str) -> list[GangMember]:
    """Return the members that have a node, those on `node` first and from its own LIST, which is newer."""
    here = [GangMember(node, pod) for pod in work.pods if pod.gang == view.gang]
    seen = {member.pod.uid for member in here}
    return here + [member for member in view.members if member.node not in ("", node) and member.pod.uid not in seen]


def find_blocked_gangs(
    work: NodeWork, classified: Classified, gangs: AbstractSet[Gang], options: Drain, scope: Scope
) -> tuple[frozenset[Gang], tuple[Blocker, ...]]:
    """Return those of `gangs` whose pods must not be evicted or deleted now, and why.

    `find_gang_blockers` checks the same before the cordon, but a drain may wait for hours, and meanwhile somebody may
    mark a member or set a rule (docs/design/drain.md#gangs). The blockers of `classified`, the node's pods, are not
    repeated.
    """
    blocked = {pod.gang for pod in classified.blocked} if gangs else set()
    known = {pod.uid for pod in classified.blocked}
    blockers: list[Blocker] = []
    for view in work.gangs:
        if view.gang not in gangs:
            continue
        here: list[Blocker] = []
        if view.error:
            its = (pod for pod in classified.holders if pod.gang == view.gang and pod.deleted_at is None)
            here.append(Blocker(Reason.LIST_FAILED, tuple(pod.ref for pod in its), message=unlisted(view)))
        else:
            for member in _find_members(view, work, scope.node):
                if member.pod.uid in known:
                    continue
                where = f"Runs on {member.node}. " if member.node else ""
                ours = classify((member.pod,), options, everywhere(scope)).blockers
                for blocker in ours or find_ruled((member,), scope):
                    named = replace(blocker, message=f"{where}{blocker.message}".rstrip())
                    here.append(name_gang(view, named))
        blockers += here
        blocked |= {view.gang} if here else set()
    return frozenset(gang for gang in blocked if gang is not None), merge(blockers)


def find_ruled(members: Iterable[GangMember], scope: Scope) -> tuple[Blocker, ...]:
    """Return the blockers of members that must stay according to the differing policy of their own node."""
    blockers: list[Blocker] = []
    for member in members:
        rules = member.rules
        if isinstance(rules, Finding):  # a policy that cannot be read counts as one that blocks every pod
            for blocker in classify((member.pod,), _KEEPS_ALL, everywhere(scope)).blockers:
                unread = blocker.reason is Reason.RULE_BLOCKS
                blockers.append(replace(blocker, reason=rules.reason, message=rules.message) if unread else blocker)
        elif rules is not None:
            for blocker in classify((member.pod,), rules, everywhere(scope)).blockers:
                message = f"Policy {member.policy} applies here. {blocker.message}".rstrip()
                blockers.append(replace(blocker, message=message))
    return tuple(blockers)


_KEEPS_ALL = Drain.model_validate({"rules": [{"behavior": "Block"}]})


STUCK_AFTER = timedelta(seconds=60)
"""How long after the end of its grace period a pod that still exists counts as stuck (T5)."""


@value
class Standing:
    """One pod that has to leave the node and that no rule blocks, with the state of its eviction."""

    pod: PodView
    memory: EvictionMemory | None
    """The server's last answer about the pod. None if no eviction was sent or the answer no longer counts."""
    budgets: tuple[PdbView, ...]
    """The budgets that the server will check, sorted by name. With more than one, the server always refuses (E8)."""
    leaves: bool
    """Whether it needs no eviction: it is terminating, accepted (E1), or unknown to the server (E2, E3)."""
    due: bool
    """Whether nothing prevents its eviction now, except the pace and what the budget still allows."""
    tier: Tier = (0, False)
    """The pod is evicted only after all pods of lower tiers are gone."""
    waits: bool = False
    """Whether the pod is not evicted now because it, or its gang, should end by itself."""
    ends: datetime | None = None
    """Until when the drain waits for the pod, NEVER if without a limit; None without a wait or before the cordon."""
    spared: bool = False
    """Whether the drain waits for the pod and never evicts it. When the pod's time is over, the change is given up."""
    waits_for: str = ""
    """Why the drain waits for the pod, if another member of its gang causes the wait; else empty."""
    gang_blocked: bool = False
    """Whether it is neither evicted nor deleted because a member of its gang must stay, or the members are unknown."""

    @property
    def budget(self) -> PdbView | None:
        return self.budgets[0] if len(self.budgets) == 1 else None

    @property
    def is_full(self) -> bool:
        return self.budget is not None and self.budget.disruptions_allowed <= 0

    @property
    def answer(self) -> Reason | None:
        return None if self.memory is None else self.memory.reason

    @property
    def marks(self) -> frozenset[Mark]:
        return frozenset() if self.memory is None else self.memory.reason.marks

    @property
    def conflicts(self) -> bool:
        """Whether several budgets guard the pod, so that every eviction of it fails (500, kubernetes#75957)."""
        return len(self.budgets) > 1


@value
class Standings:
    """All pods that have to leave one node, each in exactly one place, sorted by `namespace/name`."""

    listed_at: datetime
    """When the LIST of the pods began."""
    leaving: tuple[Standing, ...] = ()
    remaining: tuple[Standing, ...] = ()
    blocked: int = 0
    """How many pods would have to leave, but must not or cannot be evicted."""
    blockers: tuple[Blocker, ...] = ()
    """Why the blocked pods must stay, and why some gangs must not be interrupted."""
    front: Tier = (0, False)
    """The tier whose turn it is: the lowest of all pods that have to leave, blocked ones included."""
    sent_at: tuple[datetime, ...] = ()
    """When the evictions of the last `PACE` were sent, including those of pods that have gone since."""
    error: str = ""
    """Why the pods could not be listed; nothing else is known then."""
    force_within: timedelta | None = None
    """The length of the drain if pods may be deleted by force at its end (T4), or None if none may be."""
    scope: Scope = Scope("")
    """What the drain must empty. If the node is `silent`, no pod is evicted."""

    @property
    def holders(self) -> int:
        """How many pods still have to leave, blocked ones included, or -1 if the pods could not be listed."""
        return -1 if self.error else len(self.leaving) + len(self.remaining) + self.blocked


def find_standings(work: NodeWork, options: Drain, now: datetime, *, scope: Scope, cordoned: bool = True) -> Standings:
    """Return the standing of every pod that has to leave the node.

    `cordoned` says whether the drain has begun. Before that, a refused eviction is ignored once its wait is over,
    because no further eviction would replace the refusal, and gangs are left to `examine`.
    """
    if work.error:
        return Standings(work.listed_at, error=work.error)
    memories = work.evictions
    if not cordoned:
        memories = {uid: one for uid, one in memories.items() if one.next_try > now or is_accepted(one)}
    scope = replace(scope, now=now)
    classified = classify(work.pods, options, scope)
    front = min((tier_of(pod, options) for pod in classified.must_leave), default=(0, False))
    waits = find_gang_waits(work, options, scope)

    def stand(pod: PodView) -> Standing:
        memory, budgets = memories.get(pod.uid), binding_budgets(pod, work.pdbs)
        seen = memory is None or is_seen(memory, work.listed_at)
        # A pod that the server no longer knew needs no eviction before a newer LIST shows it (E2, E3).
        gone = memory is not None and memory.reason is Reason.PODS_LEAVING and not seen
        leaves = pod.deleted_at is not None or is_accepted(memory) or gone
        # A pod that was evicted since the LIST began is left alone: an eviction whose answer was lost may have been
        # accepted. With two budgets the server always refuses.
        asks = seen and (memory is None or memory.next_try <= now)
        due = asks and not (leaves or len(budgets) > 1 or scope.silent)
        standing = Standing(pod, memory, budgets, leaves, due, tier_of(pod, options))
        gang = waits.get(pod.gang) if pod.gang is not None else None
        waited = pod.uid in classified.waited
        if leaves or not (waited or gang is not None):
            return standing
        wait, why, spared = patience(pod, options), "", options.jobs.on_timeout == "Abort"  # T9-T13
        if gang is not None:
            longest, waits_for, gang_spared = gang
            wait, why = (wait, why) if waited and wait == longest else (longest, waits_for)
            spared = spared or gang_spared
        ends = None
        if scope.cordoned_at is not None:
            ends = NEVER if wait is None else scope.cordoned_at + wait
        waits_now = spared or ends is None or now < ends
        return replace(standing, waits=waits_now, ends=ends, spared=spared, due=due and not waits_now, waits_for=why)

    standings = [stand(pod) for pod in classified.holders]
    gangs = {one.pod.gang for one in standings if cordoned and not one.leaves and one.pod.gang is not None}
    blocked_gangs, why = find_blocked_gangs(work, classified, gangs, options, scope)
    waiting = any(standing.waits and standing.tier == front for standing in standings)
    for index, one in enumerate(standings):
        blocked = one.pod.gang in blocked_gangs
        due = one.due and one.tier == front and not waiting and not blocked
        if (due, blocked) != (one.due, one.gang_blocked):
            standings[index] = replace(one, due=due, gang_blocked=blocked)
    forces = scope.forces and options.on_timeout == "ForceDelete"
    return Standings(
        work.listed_at,
        leaving=tuple(standing for standing in standings if standing.leaves),
        remaining=tuple(standing for standing in standings if not standing.leaves),
        blocked=len(classified.blocked),
        blockers=merge((*classified.blockers, *why)) if why else classified.blockers,
        front=front,
        sent_at=tuple(one.asked_at for one in memories.values() if now - PACE < one.asked_at),
        force_within=parse_duration(options.timeout) if forces else None,
        scope=scope,
    )


def stuck_from(pod: PodView) -> datetime | None:
    """Return when a terminating pod counts as stuck (T5). None if it is not terminating or the time is too late."""
    try:
        return None if pod.deleted_at is None else pod.deleted_at + STUCK_AFTER
    except OverflowError:
        return None
