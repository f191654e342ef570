"""What a rollout promises, asked of every plan of a World and of every call: the invariants (i) to (v) of rollout.py.
The tests' own opinion, from what people did (`Ledger`) and what the API server shows; nothing is asked of pools/, or of the modules about gangs in drain/."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.planning import lastresorts, podkinds
from tests.planning.broken import hold
from tests.planning.pooling import is_away, is_newcomer, joining, pool
from tests.planning.rules import NEEDS_IDLE, emptied

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Drain, GPUSharingPolicySpec, Window
from gpusharing.api.times import parse_duration
from gpusharing.api.validation import allowance
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.pools.choice import MOST_VAIN
from gpusharing.planning.pools.holds import propose
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    UpdateFence,
)
from gpusharing.planning.snapshot.podviews import Gang, PodView
from gpusharing.planning.snapshot.records import UNRECORDED, Fence, SpecVersion, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.verdict import find_health
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.ownership import Owners, find_contenders

if TYPE_CHECKING:
    from tests.planning.world import World

OUR_LABELS = frozenset(
    {
        names.LABEL_MODE,
        names.LABEL_POLICY,
        names.LABEL_MIG_CONFIG,
        names.LABEL_MIG_STATE,
        names.LABEL_PLUGIN_CONFIG,
        *names.NEIGHBOR_LABELS,
    }
)
UNKNOWN = timedelta(minutes=15)
"""What a change is thought to take before there was one (docs/design/drain.md#windows)."""


@dataclass
class Ledger:
    """What people agreed to and what came of it, as nobody but the tests writes it down."""

    approved: dict[tuple[SpecVersion, str], Mapping[str, DisruptionClass]] = field(default_factory=dict)
    """By what a policy asks for and hash: what a person saw that its nodes need, by their UIDs, and approved."""
    seen: dict[tuple[SpecVersion, str], frozenset[str]] = field(default_factory=dict)
    """By what a policy asks for and hash: UIDs of the nodes that had failed when a person let it go on."""
    failed: dict[SpecVersion, set[str]] = field(default_factory=dict)
    """UIDs of nodes that were Failed after the point of no return, and were not proven late by themselves since. A new intent ends them, and nothing else that is edited does."""
    retries: dict[str, str] = field(default_factory=dict)
    """By UID of a node the retry that it bore when it was Failed last: another one is a person's doing."""
    waves: dict[str, datetime] = field(default_factory=dict)
    """By wave: when its first node was found proven."""
    proofs: dict[str, tuple[SpecVersion, datetime]] = field(default_factory=dict)
    """By UID of a node: the change that was proven there last, and when; also of nodes that were forgotten since."""
    specs: dict[SpecVersion, Mapping[str, Any]] = field(default_factory=dict)
    """What people asked for: whatever they wrote but prices, what a deletion does, and how the rollout goes."""
    turns: set[tuple[str, SpecVersion, str]] = field(default_factory=set)
    """UID of a node that went back, the version of the spec, and the retry that the node bore."""
    apart: set[str] = field(default_factory=set)
    """UIDs of nodes whose last change began while nobody counted on them, or by another spec than it was proven by."""
    begun: dict[str, SpecVersion] = field(default_factory=dict)
    """By UID of a node: what its change began by."""

    def copy(self) -> "Ledger":
        """For a twin that goes its own way."""
        failed = {version: set(nodes) for version, nodes in self.failed.items()}
        return replace(
            self,
            approved=dict(self.approved),
            seen=dict(self.seen),
            failed=failed,
            retries=dict(self.retries),
            waves=dict(self.waves),
            proofs=dict(self.proofs),
            specs=dict(self.specs),
            turns=set(self.turns),
            apart=set(self.apart),
            begun=dict(self.begun),
        )

    def write_down(self, policy: PolicyView) -> None:
        """What this policy asks for. What failed while it asked for something else is over."""
        if policy.spec is not None and policy.version not in self.specs:
            wire = policy.spec.model_dump()
            del wire["cost"], wire["deletion_policy"]
            wire["rollout"] = wire["rollout"]["timeouts"]
            self.specs[policy.version] = {**wire, "resetting": policy.resetting}
        self.failed = {
            version: nodes
            for version, nodes in self.failed.items()
            if version.uid != policy.uid or self.asks_for(version, policy)
        }
        self.turns = {turn for turn in self.turns if turn[1].uid != policy.uid or self.asks_for(turn[1], policy)}

    def is_of(self, record: Fence | Verified, policy: PolicyView) -> bool:
        """The change went by what this policy asks for now."""
        return self.asks_for(record.version, policy)

    def asks_for(self, then: SpecVersion, policy: PolicyView) -> bool:
        now, said = policy.version, self.specs.get(then)
        return then == now or (then.uid == now.uid and said is not None and said == self.specs.get(now))


def approve(world: "World", policy: PolicyView, plan: RolloutPlan, plan_hash: str = "") -> None:
    """A person writes the annotation, having seen which nodes the plan is about, and what each needs."""
    plan_hash = plan_hash or propose(plan.pools[policy.name]).hash
    world.policies = tuple(
        replace(one, approved=plan_hash) if one.name == policy.name else one for one in world.policies
    )
    seen = {node.uid: plan.verdicts[node.name].disruption for node in pool(world, policy.name)}
    world.ledger.approved[policy.version, plan_hash] = seen


def resume(world: "World", policy: PolicyView, halt: str) -> None:
    """A person writes the annotation, having seen which nodes have failed."""
    world.policies = tuple(replace(one, resumed=halt) if one.name == policy.name else one for one in world.policies)
    world.ledger.seen[policy.version, halt] = _failed(world, policy)


def _failed(world: "World", policy: PolicyView) -> frozenset[str]:
    known = world.ledger.failed.items()
    return frozenset(uid for version, uids in known if world.ledger.asks_for(version, policy) for uid in uids)


# --- every call -------------------------------------------------------------------------------------------------


def check(world: "World", action: Action) -> None:
    for known in world.policies:
        world.ledger.write_down(known)
    match action:
        case FenceNode():
            policy = _policy(world, action.fence.policy)
            world.ledger.begun[action.node.uid] = action.fence.version
            _foreign_untouched(action)
            if policy is not None and policy.spec is not None:
                _may_start(world, action, policy, policy.spec)
        case Evict():
            _not_held(world, action)
            _gang_ended(world, action)
        case ForceDelete():
            _not_held(world, action)
            _gang_ended(world, action)
            lastresorts.deleted(world, action)
        case Actuate() | UpdateFence() | Release() | LabelNode():
            _foreign_untouched(action)
            if isinstance(action, Actuate | UpdateFence):
                lastresorts.went_on(world, action)
            elif isinstance(action, Release):
                lastresorts.given_back(action)
            if isinstance(action, Release | LabelNode):
                _note_proof(world, action)
        case _:
            pass


def _policy(world: "World", name: str) -> PolicyView | None:
    return next((policy for policy in world.policies if policy.name == name), None)


def _foreign_untouched(action: FenceNode | Actuate | UpdateFence | Release | LabelNode) -> None:
    asked = isinstance(action, LabelNode) and action.requests is not None
    strange = action.labels.keys() - ({names.LABEL_SKIP} if asked else OUR_LABELS)
    hold(not strange, f"(i) writes labels that are not ours: {sorted(strange)}")
    if isinstance(action, Actuate | LabelNode):
        return
    node, fence = action.node, action.node.fence
    ours = set() if isinstance(action, FenceNode) or fence is None else set(fence.added)
    for mark in names.NEIGHBOR_ANNOTATIONS:
        if action.annotations.get(mark, "") is None:
            hold(mark in ours, f"(i) takes {mark} away, which somebody else has set")
    for mark in names.NEIGHBOR_LABELS:
        if action.labels.get(mark, "") is None:
            hold(mark in ours, f"(i) takes {mark} away, which somebody else has set")
    if isinstance(action, FenceNode):
        theirs = (node.neighbor_marks | node.labels.keys()) & set(action.fence.added)
        hold(not theirs, f"(i) records {sorted(theirs)} as ours, which was there before")


def _may_start(world: "World", action: FenceNode, policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    _approved(world, action, policy, spec)
    _in_window(world, policy, spec)
    _canaries_first(world, action, policy, spec)
    _not_halted(world, action.node, policy, spec)
    if action.fence.disruption in NEEDS_IDLE:
        _nobody_kept(world, action, spec)


def _approved(world: "World", action: FenceNode, policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    if spec.rollout.approval != "Manual":
        return
    seen = world.ledger.approved.get((policy.version, policy.approved))
    hold(seen is not None, "(l) a node starts before a plan of this revision was approved")
    was, needs = (seen or {}).get(action.node.uid), action.fence.disruption
    hold(was is not None, "(l) a node starts that the approved plan did not name")
    graver = was is not None and needs.severity > was.severity
    hold(not graver, f"(l) a node starts with {needs}, and {was} was approved")


def _in_window(world: "World", policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    rollout = spec.rollout
    proofs = [node.verified for node in pool(world, policy.name)]
    most = parse_duration(rollout.timeouts.actuation) + parse_duration(rollout.timeouts.verification)
    known = [proof.took for proof in proofs if proof is not None and proof.changed_at and proof.took]
    took = [seconds for seconds in known if seconds <= 2 * most.total_seconds()]
    slowest = min(timedelta(seconds=max(took)) if took else UNKNOWN, most)
    needed = parse_duration(spec.drain.timeout) + slowest
    minute = timedelta(minutes=1)
    moments = [world.now + minute * step for step in range(int(needed / minute))]
    shut = [moment for moment in moments if not _is_open(rollout.windows, rollout.blackouts, moment)]
    hold(not shut, f"(m) a node starts at {world.now}, and its window is shut at {shut[:1]}")


def _is_open(windows: Iterable[Window], blackouts: Iterable[Window], moment: datetime) -> bool:
    allowed = list(windows)
    inside = not allowed or any(_covers(window, moment) for window in allowed)
    return inside and not any(_covers(window, moment) for window in blackouts)


def _covers(window: Window, moment: datetime) -> bool:
    minute, hour = map(int, window.schedule.split()[:2])
    start = moment.replace(hour=hour, minute=minute, second=0, microsecond=0)
    lasts = parse_duration(window.duration)
    return any(begin <= moment < begin + lasts for begin in (start, start - timedelta(days=1)))


def _note_proof(world: "World", action: Release | LabelNode) -> None:
    record, uid = action.verified, action.node.uid
    if record is None:
        return
    if not record.rolled_back and world.ledger.retries.pop(uid, None) == action.node.retry:
        for failed in world.ledger.failed.values():
            failed.discard(uid)
    if isinstance(action, Release) and action.node.fence is not None:
        begun = world.ledger.specs.get(world.ledger.begun.get(uid, UNRECORDED))
        same = begun is not None and begun == world.ledger.specs.get(record.version)
        apart = action.node.fence.newcomer or not same
        world.ledger.apart = world.ledger.apart | {uid} if apart else world.ledger.apart - {uid}
    if record.changed_at == world.now and not record.rolled_back:
        world.ledger.proofs[uid] = (record.version, world.now)
    elif uid in world.ledger.proofs and world.ledger.proofs[uid][0].uid != record.version.uid:
        del world.ledger.proofs[uid]


def _not_halted(world: "World", node: NodeView, policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    failed = _failed(world, policy)
    if node.uid in failed and node.retry:
        return  # a person wants this very node tried again
    still = failed & {one.uid for one in pool(world, policy.name)}
    unseen = still - world.ledger.seen.get((policy.version, policy.resumed), frozenset())
    hold(
        len(unseen) < spec.rollout.max_failures,
        f"(o) a node starts after {len(unseen)} failures that no person has seen",
    )


def _nobody_kept(world: "World", action: FenceNode, spec: GPUSharingPolicySpec) -> None:
    """P20: a node with a pod that nobody may evict is not cordoned, nor one of a gang with such a member."""
    reboot = action.fence.disruption is DisruptionClass.REBOOT
    terms = podkinds.Terms(spec.drain, reboot, world.now, by_dra=world.stack.by_dra)
    pods = [world.readable(pod) for pod in world.pods[action.node.name].values()]
    name, gpus = action.node.name, emptied(action.fence)
    leaving = [p for p in pods if podkinds.must_leave(p, reboot=reboot) and world.is_touched(name, p.uid, gpus)]
    kept = [world.kinds[pod.uid] for pod in leaving if podkinds.is_kept(pod, terms)]
    hold(not kept, f"(k) cordons a node with {kept}, which nobody may evict")
    gangs = {pod.gang for pod in leaving if pod.gang is not None}
    for pod in world.everywhere():
        if pod.gang in gangs and podkinds.must_leave(pod, reboot=True):
            fine = not podkinds.is_kept(world.readable(pod), terms)
            hold(fine, f"(k) begins with a gang of which {world.kinds[pod.uid]} must stay")


def _not_held(world: "World", action: Evict | ForceDelete) -> None:
    fence = world.nodes[action.node].fence
    policy = _policy(world, fence.policy) if fence is not None else None
    if fence is None or fence.stage != "fenced" or policy is None or policy.spec is None:
        return
    rollout = policy.spec.rollout
    hold(not rollout.paused or rollout.when_paused == "Finish", f"(p) evicts while {rollout.when_paused}")


# --- every plan -------------------------------------------------------------------------------------------------


def check_plan(world: "World", plan: RolloutPlan) -> None:
    """Whether what is decided of several nodes together keeps what was promised."""
    _note_failures(world, plan)
    starts = [a for verdict in plan.verdicts.values() for a in verdict.actions if isinstance(a, FenceNode)]
    for start in starts:
        _whole_gangs(world, plan, start, {one.node.name for one in starts})
    _returned_together(world, plan)
    _namespaces_read(world, plan)
    hold(max(plan.memory.vain_passes.values(), default=0) < MOST_VAIN, "passes make no progress")
    for verdict in plan.verdicts.values():
        all_are_values(verdict.message, verdict.commands)
    for objection in plan.objections.values():
        all_are_values(objection.message, objection.commands)


_PRINTED = re.compile(r"\b(?:helm |kubectl (?:-n \S+ )?(?!gpusharing |describe |get |logs |-n ))\w.*")


def all_are_values(message: str, commands: Iterable[Command]) -> None:
    """Whether whatever the text says that a person should run, except to read, is one of its commands."""
    rest = message
    for command in commands:
        hold(str(command) in message, f"{command} is not in: {message}")
        rest = rest.replace(str(command), "")
    printed = _PRINTED.search(rest)
    hold(printed is None, f"no command: {printed and printed[0]}")


def _note_failures(world: "World", plan: RolloutPlan) -> None:
    """What is about to be written down counts when it is: who is killed before that has told nobody. While an agent that is up has not answered, nobody knows what the node has become (ADR 44)."""
    for name, verdict in plan.verdicts.items():
        node = world.nodes[name]
        fence = node.fence
        if fence is None or fence.stage != "actuating" or fence.node_uid != node.uid:
            continue
        awaited = verdict.reason is Reason.OBSERVATION_PENDING and name not in world.agents_down
        writing = any(
            isinstance(action, UpdateFence) or (isinstance(action, Actuate) and action.fence.failed is not None)
            for action in verdict.actions
        )
        if verdict.phase is Phase.FAILED and not writing and not awaited:
            world.ledger.failed.setdefault(fence.version, set()).add(node.uid)
            world.ledger.retries.setdefault(node.uid, node.retry)


def _whole_gangs(world: "World", plan: RolloutPlan, start: FenceNode, starting: set[str]) -> None:
    """Nodes of one pool that share a gang start in one pass where the budget has room for all of them."""
    policy = _policy(world, start.fence.policy)
    if start.fence.disruption not in NEEDS_IDLE or policy is None or policy.spec is None:
        return
    if policy.spec.rollout.canary is not None:
        return
    gangs = _gangs_on(world, start.node.name, emptied(start.fence))
    behind = [
        name
        for name, verdict in plan.verdicts.items()
        if name not in starting and verdict.policy == policy.name and gangs & _gangs_on(world, name, verdict.gpus)
        if verdict.candidate
        and verdict.reason in (Reason.BUDGET_FULL, Reason.PROGRESSING)
        and verdict.disruption in NEEDS_IDLE
    ]
    mine = [node for node in pool(world, policy.name) if not is_newcomer(world, node)]
    limit = allowance(policy.spec.rollout.max_unavailable, len(mine))
    taken = sum(node.fence is not None for node in world.nodes.values())
    used = sum(map(is_away, mine)) + len(joining(world, policy.name))
    room = min(limit - used, world.settings.max_in_flight - taken)
    together = [name for name in starting if gangs & _gangs_on(world, name, plan.verdicts[name].gpus)]
    others = len(starting) - len(together)
    hold(
        not behind or len(together) + len(behind) > room - others,
        f"(q) a gang is torn apart: {together} start and {behind} do not, with room for {room}",
    )


def _gangs_on(world: "World", name: str, gpus: Collection[int]) -> set[Gang]:
    """The gangs of which a change that empties these GPUs of the node, or all if there are none, takes a pod."""
    pods: Mapping[str, PodView] = world.pods.get(name, {})
    holding = (pod for pod in pods.values() if podkinds.must_leave(pod, reboot=False))
    return {pod.gang for pod in holding if pod.gang is not None and world.is_touched(name, pod.uid, gpus)}


def _returned_together(world: "World", plan: RolloutPlan) -> None:
    """A wave is given back in one pass, or when `timeouts.verification` is over, or a member is Failed or goes back."""
    waves: dict[str, list[NodeView]] = {}
    for node in world.nodes.values():
        fence = node.fence
        if fence is not None and fence.wave and fence.stage != "yielded" and fence.node_uid == node.uid:
            waves.setdefault(fence.wave, []).append(node)
    for wave, nodes in waves.items():
        back = [node for node in nodes if _is_given_back(plan, node, proven=True)]
        left = [node for node in nodes if not _is_given_back(plan, node, proven=False)]
        if back or any(plan.verdicts[node.name].reason is Reason.WAITS_FOR_WAVE for node in nodes):
            world.ledger.waves.setdefault(wave, world.now)
        policy = _policy(world, nodes[0].fence.policy) if nodes[0].fence is not None else None
        if not back or not left or policy is None or policy.spec is None:
            continue
        waited = world.now - world.ledger.waves[wave]
        failed = any(plan.verdicts[node.name].phase is Phase.FAILED or _goes_back(node) for node in left)
        enough = waited >= parse_duration(policy.spec.rollout.timeouts.verification)
        hold(failed or enough, f"(r) gives {back[0].name} back, and {left[0].name} of its wave is not")


def _goes_back(node: NodeView) -> bool:
    """Its change failed, and it is on the way to what was proven there before."""
    return node.fence is not None and node.fence.rolls_back


def _is_given_back(plan: RolloutPlan, node: NodeView, *, proven: bool) -> bool:
    actions = plan.verdicts[node.name].actions
    return any(isinstance(a, Release) and (not proven or a.verified is not None) for a in actions)


# --- gangs: a part of the invariants (c), (k) and (t) --------------------------------------------------------------


def _gang_ended(world: "World", action: Evict | ForceDelete) -> None:
    """Nobody ends a gang of which a member must stay, on whatever node: a rank that leaves ends all of them.

    It must stay by the policy of the change, or by that of its own node.
    """
    node, pod = world.nodes[action.node], world.pods[action.node].get(action.uid)
    if node.fence is None or pod is None or pod.gang is None:
        return
    reboot, row = node.fence.disruption is DisruptionClass.REBOOT, "(c) evicts"
    row = "(t) deletes" if isinstance(action, ForceDelete) else row
    for where, mate in _mates(world, pod):
        for drain in (_drain_of(world, node), _drain_of(world, world.nodes[where])):
            if drain is None:
                continue
            terms = podkinds.Terms(drain, reboot, world.now, by_dra=world.stack.by_dra)
            hold(
                not podkinds.is_kept(mate, terms),
                f"{row} {world.kinds[pod.uid]} while {world.kinds[mate.uid]} of its gang must stay on {where}",
            )


def _namespaces_read(world: "World", plan: RolloutPlan) -> None:
    """Nobody is told that labels of a namespace cannot be read while they can, of a node whose pods were listed in this pass: not even of members of gangs that hold no GPU."""
    listed = world.memory.passed.wants_pods - world.unlisted if world.namespace is not None else ()
    for verdict in plan.verdicts.values():
        undecided = any(one.reason is Reason.NAMESPACE_UNREADABLE for one in verdict.blockers)
        hold(not (undecided and verdict.node in listed), f"(k) a namespace was not read: {verdict.blockers}")


def _mates(world: "World", pod: PodView) -> Iterator[tuple[str, PodView]]:
    """The other members of its gang that run, GPU or not, and their nodes."""
    for node, pods in world.pods.items():
        for other in pods.values():
            if other.gang == pod.gang and other.uid != pod.uid and podkinds.must_leave(other, reboot=True):
                yield node, world.readable(other)


def _drain_of(world: "World", node: NodeView) -> Drain | None:
    """What the policy that the node follows says: that of its change, else the one that owns it."""
    policies = {policy.name: policy for policy in world.policies}
    owner = policies.get(Owners(find_contenders(world.policies)).owner(node))
    policy = policies.get(node.fence.policy, owner) if node.fence is not None else owner
    return policy.spec.drain if policy is not None and policy.spec is not None else None


# --- canaries: the invariant (n) -------------------------------------------------------------------------------------


def _canaries_first(world: "World", action: FenceNode, policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    """No node starts beside canaries that are not proven, or have not served for long enough, or cannot all be, or do not serve; a canary that drifted is put right all the same."""
    canary = spec.rollout.canary
    if canary is None:
        return
    mine = pool(world, policy.name)
    if canary.nodes == len(mine) or (policy.resetting and canary.nodes > len(mine)):
        return  # nobody can correct the canary of a policy that is being deleted
    same, outnumbers = partial(world.ledger.is_of, policy=policy), canary.nodes > len(mine)
    if policy.resetting:
        _soaks_beyond_its_reset(world, policy, spec)
    proven = sorted(
        (one.verified.changed_at, one.name)
        for one in mine
        if one.verified is not None and one.verified.changed_at is not None and same(one.verified)
        if not one.verified.rolled_back and not (outnumbers and one.uid in world.ledger.apart)
    )
    if not policy.resetting and action.node.name in {name for _, name in proven}:
        return
    if not policy.resetting and not (outnumbers and action.fence.newcomer):
        _serve(world, mine, [name for _, name in proven], 1 if outnumbers else canary.nodes, action)
    proofs = [at for at, _ in proven]
    if outnumbers:
        served = any(world.now - at >= parse_duration(canary.soak) for at in proofs)
        hold(
            served or action.fence.newcomer,
            f"(n) a node in service starts in a pool of {len(mine)}, for {canary.nodes} canaries",
        )
        return
    if len(proofs) >= canary.nodes:
        since = world.now - proofs[canary.nodes - 1]
        hold(since >= parse_duration(canary.soak), f"(n) the canaries have served for {since} only")
        return
    begun = [one for one in mine if one.fence is not None and _has_begun(one, same) and one is not action.node]
    hold(
        len(proofs) + len(begun) < canary.nodes,
        f"(n) more nodes than {canary.nodes} canaries start before these are proven",
    )


def _serve(world: "World", mine: list[NodeView], proven: list[str], most: int, action: FenceNode) -> None:
    """The canaries serve what was proven on them. Once another node has started, nobody asks any more."""
    fences = (one.fence for one in mine if one.name not in proven and one is not action.node)
    if len(proven) > most or any(fence is not None and fence.stage != "yielded" for fence in fences):
        return
    for name in proven:
        node, health = world.nodes[name], find_health(world.gpunodes.get(name))
        healthy = health is None or is_healthy(health)
        key = node.labels.get(names.LABEL_PLUGIN_CONFIG, "")
        as_proven = node.verified is not None and node.verified.plugin_config == key
        hold(healthy and as_proven and not is_away(node), f"(n) {name}, a canary, does not serve")


def _soaks_beyond_its_reset(world: "World", policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    """Canaries that nothing is remembered of have served all the same."""
    here = {node.uid for node in world.nodes.values()}
    known, generation = world.ledger.proofs.items(), policy.version
    proofs = sorted(at for uid, (of, at) in known if of == generation and uid in here)
    canary = spec.rollout.canary
    if canary is not None and len(proofs) >= canary.nodes:
        served = world.now - proofs[canary.nodes - 1]
        hold(served >= parse_duration(canary.soak), f"(n) nodes that were reset have served for {served} only")


def _has_begun(node: NodeView, same: Callable[[Fence | Verified], bool]) -> bool:
    fence = node.fence
    if fence is None or fence.stage == "yielded":
        return False
    proof = node.verified
    if proof is not None and proof.changed_at is not None and same(proof):
        return False  # counted as proven
    return same(fence)
