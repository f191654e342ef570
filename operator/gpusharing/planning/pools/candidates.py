"""A candidate of a pool (a node that every gate lets through): what its pods allow, and how its change starts.

Terms: docs/design/glossary.md#candidate, docs/design/glossary.md#look, docs/design/glossary.md#fence,
docs/design/glossary.md#slot, docs/design/glossary.md#gang, docs/design/glossary.md#wave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import TypeAlias

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.validation import parse_duration
from gpusharing.planning.drain.gangs import with_gangs
from gpusharing.planning.drain.holders import has_finished, holds_gpu
from gpusharing.planning.drain.plan import budget_room, crowding, preflight
from gpusharing.planning.drain.standing import Standings, find_standings
from gpusharing.planning.pools.holds import Wait
from gpusharing.planning.pools.ledger import Ledger, standing_look
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.records import Claim, Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import failed_before, owed_for, was_rolled_back
from gpusharing.planning.transition.marks import marks_for
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.taintfence import may_taint
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.blockers import Blocker, ends_at, explain_blockers, main_reason
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.assess import Assessed

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
    """The node as it is now."""
    assessed: Assessed
    """The assessment of the case; a candidate has a target."""
    policy: PolicyView
    """The policy that the node would follow."""
    look: Look | None
    """The last look at the node's pods if it found blockers. None if nothing blocks the node, or if its pods were not
    listed."""
    pods: Standings | None = None
    """The standings of its pods, or None if they were not listed in this pass."""
    follows: bool = False
    """Whether other nodes of its gang have started without it, so that it comes next (`find_following` in
    waves.py)."""

    @property
    def cordons(self) -> bool:
        """Whether its change is of a class that needs an idle node, which is then cordoned or fenced by a
        DeviceTaintRule."""
        return self.assessed.disruption.cordons

    @property
    def newcomer(self) -> bool:
        """Whether the node takes no slot of the policy's budget: `is_newcomer` holds, and no LIST of its pods in this
        pass has failed or shows a pod that would have to leave."""
        empty = self.pods is None or self.pods.holders == 0
        return empty and is_newcomer(self.case.node, self.case.gpunode)

    @property
    def needs_list(self) -> bool:
        """Whether the change cordons the node and nothing is known about its pods: they were not listed in this pass,
        and no blockers are known from an earlier look."""
        return self.cordons and self.pods is None and self.look is None

    @property
    def order(self) -> Order:
        """The sort key among candidates; the smallest starts first. Nodes with a claim come first, then nodes without
        known blockers, nodes whose gang has started without them, and nodes with a low cost. Among equals, the stable
        shuffle decides.

        Among nodes whose gang has started without them, those whose pods are known come first. A look at such a node
        reserves a slot and then shows a higher cost than was assumed. If nodes with unknown pods came first, one after
        another would be looked at, and none would ever start.
        """
        unclaimed, cost, shuffle = find_place(self.case, self.policy)
        unknown = self.follows and self.needs_list
        return (unclaimed, self.look is not None, not self.follows, unknown, cost, shuffle)


def find_place(case: NodeCase, policy: PolicyView) -> tuple[bool, int, str]:
    """Return the sort key of a candidate that nothing blocks and whose gang has not started without it; the smallest
    starts first. Its parts are whether the node has no claim, its cost in pods, and a stable shuffle. The cost counts
    whole gangs if the node's pods were listed in this pass (`find_cost`), else the pods that its agent reports; it is
    UNKNOWN_PODS if the agent does not report them."""
    observed = case.gpunode.observed if case.gpunode is not None else None
    pods = observed.pods if observed is not None else None
    cost = UNKNOWN_PODS if pods is None else find_cost(case, pods)
    return not case.claimed, cost, _shuffle(case.node.uid, policy.uid, policy.generation)


@value(eq=False, slots=False)  # no slots, because it has a cached property
class Queue:
    """The candidates of a pool, and what can be derived from them alone. The memo reuses it as long as the candidates
    do not change."""

    policy: PolicyView
    """The policy of the pool."""
    cases: tuple[NodeCase, ...]
    """The candidates."""

    @cached_property
    def unlisted(self) -> dict[str, NodeCase]:
        """The candidates whose pods must be known before they may start but were not listed in this pass, by name and
        in the order of `find_place`. Newcomers are left out: they take no slot of the policy's budget. Computed once.
        """
        unlisted = [case for case in self.cases if case.work is None and case.disruption.cordons]
        unlisted = [case for case in unlisted if not is_newcomer(case.node, case.gpunode)]
        unlisted.sort(key=lambda case: find_place(case, self.policy))
        return {case.node.name: case for case in unlisted}


@dataclass(slots=True)
class Selection:
    """Which candidates start in this pass, and what becomes of the others."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The verdicts of all candidates that are not in `waiting`, by node."""
    claims: dict[str, Claim] = field(default_factory=dict)
    """The claim of each candidate that starts, by node."""
    looks: dict[str, Look] = field(default_factory=dict)
    """What the next passes need to know about the pods of candidates, by node."""
    waiting: list[tuple[Wait, Sequence[NodeCase]]] = field(default_factory=list)
    """Pairs of a wait and the candidates to which it applies without a look at their pods."""

    def put(self, case: NodeCase, verdict: Verdict, look: Look | None = None) -> bool:
        """Record the verdict of a candidate, its `look` unless that is None, and its claim if the verdict fences the
        node. Return whether the verdict fences the node, so that its change starts."""
        name = case.node.name
        self.verdicts[name] = verdict
        if look is not None:
            self.looks[name] = look
        begun = next((action.fence for action in verdict.actions if isinstance(action, FenceNode)), None)
        if begun is not None:
            self.claims[name] = Claim.of(case.node.uid, begun)
        return begun is not None

    def add(self, other: "Selection") -> None:
        """Add everything that another pool has selected to this selection. Entries of `other` replace existing entries
        for the same node."""
        self.verdicts |= other.verdicts
        self.claims |= other.claims
        self.looks |= other.looks
        self.waiting += other.waiting


@lru_cache(maxsize=16384)
def _shuffle(node_uid: str, policy_uid: str, generation: int) -> str:
    """Return a hash that orders the nodes of a policy at random. The order is stable, and differs for every
    generation."""
    return sha256(f"{node_uid}{policy_uid}{generation}".encode()).hexdigest()


def find_cost(case: NodeCase, pods: int) -> int:
    """Return how many pods the change of this node ends. If the change interrupts no gang, or the pods were not listed,
    the result is `pods`, the number of pods on the node that hold a GPU. Otherwise the result is the number of the
    gangs' members and of the node's GPU pods together; finished pods and members that were not listed are left out, and
    `pods` is ignored."""
    if case.work is None or not (gangs := case.gangs):
        return pods
    ended = {one.pod.uid for view in gangs for one in view.members if not has_finished(one.pod)}
    ended |= {pod.uid for pod in case.work.pods if holds_gpu(pod) and not has_finished(pod)}
    return len(ended)


def find_candidate(case: NodeCase, policy: PolicyView, ledger: Ledger, *, follows: bool = False) -> Candidate:
    """Return the candidate. If its pods were listed in this pass, it has their standings, and a look with the blockers
    of these pods and of their gangs, if there are any (`preflight`, `with_gangs`). Otherwise it has the look from the
    last LIST, if that found blockers and neither the policy's version nor the node's retry annotation has changed since
    (`standing_look`).

    `case` may come from an earlier pass, so its time is set to the time of this pass. It must have a target. `follows`:
    other nodes of its gang have started without it.
    """
    case = replace(case, now=ledger.now)
    assessed, before = case.assessment, standing_look(case, policy, ledger.looks)
    assert isinstance(assessed, Assessed), "candidates have a target"
    if case.work is None:
        return Candidate(case, assessed, policy, before, follows=follows)
    drain = assessed.spec.drain
    pods = find_standings(case.work, drain, case.now, scope=case.scope, cordoned=False)
    blockers = preflight(pods, drain, ledger.afterwards, case.now)
    blockers = with_gangs(blockers, case.work, drain, now=case.now, scope=case.scope)
    look = look_at(case, policy, before, pods, blockers) if blockers else None
    return Candidate(case, assessed, policy, look, pods, follows)


def look_at(
    case: NodeCase,
    policy: PolicyView,
    before: Look | None,
    pods: Standings,
    blockers: tuple[Blocker, ...],
    *,
    slower: bool = True,
) -> Look:
    """Return the look to record: these blockers, and the time of the LIST that `pods` come from. Its `tries` decide how
    long the next look waits. With `slower`, they are one more than those of the last look `before`, or the same if the
    pods have not been listed again since. Without `slower` or `before`, they are 1, which gives the shortest wait."""
    at, tries = pods.listed_at, 1
    if before is not None and slower:
        tries = before.tries if before.at == at else before.tries + 1
    return Look(policy.version, case.node.retry, at, tries, blockers)


def try_start(candidate: Candidate, ledger: Ledger) -> tuple[Verdict, Look | None]:
    """Return the verdict of a candidate with a slot, and the look to record or None. The first rule that applies
    decides. A change without a cordon begins, with None. A candidate with blockers in its look is Blocked, with that
    look; if its pods were not listed in this pass and `ledger.due` names it, the next pass lists them. A candidate
    whose pods were not listed, or are guarded by budgets while `ledger.crowd_known` is False, waits for a LIST
    (`looking`), with None. If nodes in flight use up such a budget, it is Blocked, with a new look. Otherwise the
    change begins, with `begun_look`, and its evictions are added to `ledger.crowd`."""
    case, policy, look, pods = candidate.case, candidate.policy, candidate.look, candidate.pods
    if not candidate.cordons:
        return begin(candidate), None
    if look is not None:
        return blocked(case, look, again=pods is None and case.node.name in ledger.due), look
    if pods is None:
        return looking(candidate), None
    needed = budget_room(pods)
    if needed and not ledger.crowd_known:
        return looking(candidate), None
    if crowded := crowding(pods, ledger.crowd):
        # Other nodes make room within seconds, so the pods of this one are listed again at every poll.
        look = look_at(case, policy, None, pods, crowded, slower=False)
        return blocked(case, look), look
    ledger.crowd.update(needed)
    return begin(candidate, ledger.resumed_wave(case)), begun_look(candidate, pods)


def begun_look(candidate: Candidate, pods: Standings) -> Look:
    """Return the look to record for a candidate that starts: no blockers, and how many pods the change will evict
    under each budget, according to the LIST before the start."""
    policy, needed = candidate.policy, tuple(budget_room(pods).items())
    return Look(policy.version, candidate.case.node.retry, pods.listed_at, 1, (), needed)


def begin(candidate: Candidate, wave: str = "", mates: tuple[str, ...] = ()) -> Verdict:
    """Return the Cordoned verdict, with the reason Settling, that starts the change of this node by fencing it, with
    the deadline of the fence. The phase is the same if the change needs no cordon. The fence records `wave`, the id of
    the node's wave or an empty string, and `mates`, the nodes of that wave that were left behind."""
    verdict = candidate.case.verdict(Phase.CORDONED, Reason.SETTLING, "the change begins")
    action = _fence(candidate)
    verdict = replace(verdict, deadline=action.fence.deadline)
    return verdict.then(replace(action, fence=replace(action.fence, wave=wave, mates=mates)))


def looking(candidate: Candidate) -> Verdict:
    """Return the Preflight verdict, with the reason Progressing, of a candidate that cannot start before its pods, or
    those of another node of its wave, are listed in the next pass. It asks for that LIST (`wants_pods`) and has no
    actions. The node stays a candidate."""
    message = "listing the pods on the node"
    verdict = candidate.case.verdict(Phase.PREFLIGHT, Reason.PROGRESSING, message, candidate=True)
    return replace(verdict, wants_pods=True)


def blocked(case: NodeCase, look: Look, *, again: bool = False) -> Verdict:
    """Return the Blocked verdict with the blockers of the last look, which must have some. Its reason is their most
    urgent one (`main_reason`), its message ends with the first line of `explain_blockers`, and its deadline is the time
    when all of them end by themselves, if they do. Its `wake` is when the next look is due, or one poll interval from
    now if that is overdue. The node stays a candidate. `again`: the next pass lists the pods."""
    reason = main_reason(look.blockers) or Reason.BLOCKED
    due = look.due(case.settings.poll)
    wake = due if due > case.now else case.now + timedelta(seconds=case.settings.poll)
    message = explain_blockers(look.blockers)[0]
    verdict = case.verdict(Phase.BLOCKED, reason, message, wake=wake, candidate=True)
    return replace(verdict, blockers=look.blockers, deadline=ends_at(look.blockers), wants_pods=again)


def op_of(case: NodeCase, policy: PolicyView) -> str:
    """Return the id of a change that begins now for this policy: the policy's name, its generation, and the time in
    milliseconds as a hexadecimal number, separated by periods. A name longer than MAX_NAME characters is cut and gets a
    hash that keeps it distinct."""
    name = policy.name
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 8]}-{sha256(name.encode()).hexdigest()[:7]}"
    return f"{name}.{policy.generation}.{int(case.now.timestamp() * 1000):x}"


def _fence(candidate: Candidate) -> FenceNode:
    """Return the action that fences the candidate. The fence records the planned change, and as its deadline now plus
    the time to settle plus `drain.timeout`. The action adds the labels and annotations that keep other controllers
    away, as far as the node lacks them. If the change drains the node, the routing label is removed, and the node is
    cordoned unless a DeviceTaintRule may fence it (`may_taint`)."""
    case, assessed, policy = candidate.case, candidate.assessed, candidate.policy
    node, timeout = case.node, parse_duration(assessed.spec.drain.timeout)
    drains = assessed.disruption.cordons
    tainted = drains and may_taint(case)
    labels, annotations = marks_for(node, case.settings.neighbour_labels)
    added = (*labels, *annotations)
    if drains and names.LABEL_MODE in node.labels:
        labels[names.LABEL_MODE] = None
    fence = Fence(
        op=op_of(case, policy),
        policy=policy.name,
        version=policy.version,
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
        drift=assessed.drift is not None and not was_rolled_back(node, policy),
        from_mode=node.labels.get(names.LABEL_MODE, ""),
        retry=node.retry,
        newcomer=candidate.newcomer,
        planned=assessed.disruption,
        failed_version=policy.version if failed_before(node, policy) else None,
        approved=owed_for(assessed.target) if assessed.spec.rollout.approval == "Manual" else "",
        tainted=tainted,
    )
    return FenceNode(node, fence, fence.cordons, labels, annotations)
