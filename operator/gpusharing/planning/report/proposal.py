"""What would a plan do to the pool of one policy, and what does each source of proof say about a node?

The decisions are those of `plan_rollout` and of `planning/wanted/verify.py`; they are only collected here, for people.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from gpusharing.api import names
from gpusharing.api.names import RESOURCE_GPU, ConditionType, DisruptionClass, Phase
from gpusharing.api.times import parse_duration
from gpusharing.planning.drain.evictions import binding_budgets
from gpusharing.planning.drain.placement import Needs, Offer, could_start, needs_of
from gpusharing.planning.drain.pods import find_leaving, gpu_resources, is_reservation
from gpusharing.planning.drain.stranded import DeviceDemand
from gpusharing.planning.gpus.cards import client_memory, client_threads, find_card
from gpusharing.planning.pools.afterwards import (
    change_scope,
    find_holdings,
    find_obstacle,
    find_present_offer,
    preview_of,
)
from gpusharing.planning.pools.candidates import Order, PassState, find_candidate
from gpusharing.planning.pools.holds import find_canary
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.windows import Course, foresee_course
from gpusharing.planning.report.counts import count_devices
from gpusharing.planning.report.status import members, tell_status
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.memory import Preview
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, ObservedView, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Passes, Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.actuators import find_actuator
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.target import Target, describe_layouts
from gpusharing.planning.wanted.verify import (
    Comparison,
    Source,
    find_disagreements,
    paused_operands,
    served,
    tell_devices,
)


@value
class Step:
    verdict: Verdict
    preview: Preview | None
    """What its change would disturb; None if its pods were not listed."""
    obstacle: Reason | None
    """Why it does not change before somebody acts (`find_obstacle`)."""
    doubt: Reason | None = None
    """Why it may become blocked before its turn or in its drain; None if nothing points to that."""

    @property
    def held(self) -> bool:
        """Whether a person has to let it begin, such as by an approval."""
        verdict = self.verdict
        waits = not (verdict.starts or verdict.blockers)
        return waits and (verdict.stands or verdict.reason.passes is Passes.BY_A_PERSON)

    @property
    def known(self) -> bool:
        return self.preview is not None or not self.verdict.disruption.cordons


@value
class Vanishing:
    """A resource of which the pool would have fewer devices if all its nodes changed, and who requests it."""

    resource: str
    before: int
    after: int
    demand: DeviceDemand
    elsewhere: bool
    """Whether a node outside the pool will advertise it."""
    pods: tuple[str, ...]
    """Listed pods that request the resource and leave nodes of the pool, as `namespace/name`."""
    pending: int


@value
class Proposal:
    """What would happen to the pool of one policy."""

    policy: str
    deleting: bool
    """Whether the policy is being deleted and takes no more nodes."""
    accepted: bool
    about: str
    """The message of its condition Accepted."""
    reason: str
    steps: tuple[Step, ...]
    """The nodes to change, in order: nodes in flight, then nodes that start now, then nodes that wait or are blocked."""
    left_out: tuple[Verdict, ...]
    """Nodes that differ from the policy but do not change. A person or another program has to act first."""
    unread: tuple[Verdict, ...]
    """The verdicts in `left_out` on nodes of which it is unknown whether they match the policy."""
    lost: Mapping[str, str]
    """Nodes that the policy selects but another policy owns, with that policy; only if it has no nodes of its own."""
    coming: tuple[str, ...]
    """Nodes that the policy owns but that are still in a change which another policy began."""
    adopted: tuple[str, ...]
    """Nodes that already match the policy but are not governed by it yet. They only get labels."""
    settled: int
    before: Mapping[str, int]
    """Devices of the pool now, by resource name."""
    after: Mapping[str, int]
    """Devices of the pool once the steps in `going` are done."""
    gpus: Mapping[str, int] | None
    """The GPUs of the pool, which no change makes more, by product; None if those of a node are unknown."""
    vanishing: tuple[Vanishing, ...]
    hash: str
    """The hash of the plan. Empty if nothing changes, or if the policy has no UID yet."""
    windows: tuple[str, ...]
    """The next times at which nodes may start. Empty if they may start at any time, or never."""
    at_once: int
    no_window: Finding | None = None
    """Why the windows never let a node start; None if they do, or if there are none."""
    single_keeps_name: bool = False
    """Whether mig.strategy single would suit the layouts and keep the name nvidia.com/gpu that pods request."""
    client_memory: Mapping[str, float] = field(default_factory=dict)
    """GiB of one MPS client, by product. Empty in other modes; cards that our table does not have are left out."""
    client_threads: int = 0
    """Percentage of a GPU's threads that one MPS client may use. 0 in other modes."""
    courses: tuple[Course, ...] = ()
    """The course of its changes at best and at worst; empty if it is unknown (`foresee`)."""
    evicts_again: bool = False
    """Whether pods that are evicted, or wait, may start on a node that changes later, and be evicted there."""
    leaving: Mapping[str, str] = field(default_factory=dict)
    """Nodes that an edit takes from the policy, with their next one; empty if none owns them then."""

    @property
    def going(self) -> tuple[Step, ...]:
        """The steps that will be made: those without an obstacle or a doubt, whose pods are known."""
        return tuple(step for step in self.steps if step.known and not (step.obstacle or step.doubt))

    @property
    def evicted(self) -> tuple[str, ...]:
        emptied = (
            one
            for one in self.steps
            if (not (one.obstacle or one.doubt) or one.verdict.phase in (Phase.CORDONED, Phase.DRAINING))
            and one.obstacle is not Reason.ROLLING_BACK
            and not (one.verdict.phase.in_flight and one.verdict.reason is Reason.PAUSED)
        )
        return tuple(pod for one in emptied if one.preview is not None for pod in one.preview.pods)

    @property
    def disruption(self) -> DisruptionClass:
        classes = (step.verdict.disruption for step in self.steps)
        return max(classes, key=lambda one: one.severity, default=DisruptionClass.NONE)


def configured(snapshot: ClusterSnapshot, plan: RolloutPlan, since: datetime) -> ClusterSnapshot | None:
    """Return the snapshot as if all that the plan needs in our ConfigMaps was written by `since`, or None if it was."""
    change = next((action for action in plan.shared if isinstance(action, WriteConfig)), None)
    if change is None:
        written = {name: min(moment, since) for name, moment in snapshot.stack.written.items()}
        same = written == snapshot.stack.written
        return None if same else replace(snapshot, stack=replace(snapshot.stack, written=written))
    entries = (*change.plugin_configs, *migfile.parse(change.mig_file))
    stack = replace(
        snapshot.stack,
        plugin_configs=change.plugin_configs,
        mig_file=change.mig_file,
        written=dict.fromkeys(entries, since),
        plugin_map_exists=True,
        marked=True,
    )
    return replace(snapshot, stack=stack)


@value
class Move:
    """A node for which an edit of policies changes the owner, the target, the drain or what it waits for."""

    node: str
    before: Verdict | None
    """Its verdict without the edit; None if it was not judged, such as a node without GPUs."""
    after: Verdict | None
    owners: tuple[str, str]
    """The policy that owns it before and after, also while the change of another policy is in flight; empty if none does."""

    @property
    def leaves(self) -> bool:
        """Whether it leaves a policy, for another one or for none."""
        before, after = self.owners
        return before not in ("", after)


def find_moves(
    before: tuple[RolloutPlan, ClusterSnapshot], after: tuple[RolloutPlan, ClusterSnapshot]
) -> tuple[Move, ...]:
    """Return the difference of two plans for the same nodes, each with its snapshot, sorted by node."""
    was, now = _find_facts(*before), _find_facts(*after)
    none = ("", ())
    return tuple(
        Move(name, before[0].verdicts.get(name), after[0].verdicts.get(name), (old[0], new[0]))
        for name in sorted({*was, *now})
        if (old := was.get(name, none)) != (new := now.get(name, none))
    )


def _find_facts(plan: RolloutPlan, snapshot: ClusterSnapshot) -> dict[str, tuple[str, object]]:
    """Return by node its owner, and all else that makes two plans for it differ."""
    specs = {policy.name: policy.spec for policy in snapshot.policies}
    heirs = {node: policy for policy, nodes in plan.coming.items() for node in nodes}
    facts: dict[str, tuple[str, object]] = {}
    for name, one in plan.verdicts.items():
        spec = specs.get(one.policy) if one.disruption.cordons else None
        drain = None if spec is None else (one.disruption, one.gpus, spec.drain)
        wait = one.phase, one.reason, one.starts, one.pods, one.blockers, one.keeper
        facts[name] = heirs.get(name, one.policy), (one.wanted, plan.targets.get(name), drain, wait)
    return facts


def tell_proposal(
    policy: PolicyView,
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    now: datetime,
    nodes: Container[str] | None = None,
) -> Proposal:
    """Return what the plan, made from this snapshot with this policy, means for its pool. `courses` is left empty.

    With `nodes`, only these nodes of the pool are told of.
    """
    pool, spec = members(policy, plan, snapshot), policy.spec
    verdicts = [one for one in pool.verdicts if nodes is None or one.node in nodes]
    status = tell_status(policy, plan, snapshot, {}, now)
    accepted = next(row for row in status["conditions"] if row["type"] == ConditionType.ACCEPTED)
    plan_status = status.get("plan") or {}
    differing = [verdict for verdict in verdicts if verdict.phase is not Phase.SYNCED]
    changing = [one for one in differing if one.disruption is not DisruptionClass.NONE]
    adopted = tuple(verdict.node for verdict in verdicts if verdict.reason is Reason.ADOPTABLE)
    names = {verdict.node for verdict in changing}
    told = {*names, *adopted}
    left_out = tuple(one for one in differing if one.node not in told)
    vanishing = tuple(_vanishing(count_devices(pool.nodes, plan.targets), names, policy.name, plan, snapshot))
    steps = tuple(_steps(policy, changing, plan, snapshot, now))
    again = tuple(_find_moves(steps, plan, snapshot))
    doubts = _find_doubts(policy, steps, again, plan, snapshot) if spec is not None else {}
    steps = tuple(replace(step, doubt=doubts.get(step.verdict.node)) for step in steps)
    stuck = {step.verdict.node for step in steps if step.obstacle or step.doubt or not step.known}
    stuck.update(verdict.node for verdict in left_out)
    free = _free_offers(steps, snapshot)
    waits = any(offer.devices.get(name, 0) > 0 for offer in free for name in snapshot.pending)
    targets = {name: target for name, target in plan.targets.items() if name not in stuck}
    hours = plan.pools[policy.name].hours
    before, after = count_devices(pool.nodes, targets)
    members_ = plan.pools[policy.name].members
    unseen = {
        one.node.name
        for one in members_
        if not isinstance(one.assessment, Assessed) and (one.assessment is None or one.assessment.unobserved)
    }
    replicas = spec.mps.replicas if spec is not None and spec.mps is not None else 0
    mixed = spec is not None and spec.mig is not None and spec.mig.strategy == "mixed"
    wanted = any(one.resource == RESOURCE_GPU and (one.pods or one.pending) for one in vanishing)
    single = mixed and wanted and _single_serves({one: plan.targets.get(one, {}) for one in names}, plan, snapshot)
    return Proposal(
        policy=policy.name,
        deleting=policy.deleting,
        accepted=accepted["status"] == "True",
        about=accepted["message"],
        reason=accepted["reason"],
        steps=steps,
        evicts_again=bool(again) or waits,
        left_out=left_out,
        unread=tuple(v for v in left_out if v.node in unseen or v.reason.keeper in ("agent", "kubelet")),
        lost={name: plan.verdicts[name].policy for name in pool.lost} if nodes is None else {},
        coming=tuple(name for name in pool.coming if nodes is None or name in nodes),
        adopted=adopted,
        settled=len(verdicts) - len(differing),
        before=dict(sorted(before.items())),
        after=dict(sorted(after.items())),
        gpus=_count_gpus(pool.nodes, snapshot),
        vanishing=vanishing,
        hash=plan_status.get("hash", "") if policy.uid else "",
        windows=tuple(plan_status.get("windows", ())),
        at_once=plan.pools[policy.name].limit,
        no_window=hours.closed if not hours.spans else None,
        single_keeps_name=single,
        client_threads=client_threads(replicas) if replicas else 0,
        client_memory=_client_memory(replicas, plan.pools[policy.name].names, snapshot) if replicas else {},
    )


def foresee(
    pool: Pool, snapshot: ClusterSnapshot, now: datetime, steps: Sequence[Step], past: Sequence[timedelta]
) -> tuple[Course, ...]:
    """Return the course of these changes of the pool at best and at worst; empty if it is unknown.

    Each is assumed to take as long as the fastest or the slowest of the `past` changes. Holds that only a person ends,
    such as a missing approval, are not considered.
    """
    at_once, count = min(pool.limit, snapshot.settings.max_in_flight), len(steps)
    if not past or not count or not at_once or pool.policy.spec is None:
        return ()
    canary, first, soak, begins = find_canary(pool), 0, timedelta(0), now
    if isinstance(canary, Finding):
        begins = max(now, canary.until or now)
    elif canary is not None and pool.spec.rollout.canary is not None and canary < count:
        first, soak = -(-canary // at_once), parse_duration(pool.spec.rollout.canary.soak)
        count -= canary
    # Windows hold back only nodes that have not begun.
    going_on = sum(step.verdict.phase.in_flight for step in steps) if pool.hours.closed is not None else 0
    nodes, courses = [member.node for member in pool.members], []
    for took in (min(past), max(past)):
        lengths = [took] * (first + -(-max(0, count - going_on) // at_once))
        if first:
            lengths[first - 1] += soak
        start = max(begins, now + took) if going_on else begins
        course = foresee_course(pool.spec, pool.policy.zones, nodes, start, lengths)
        if course is None:
            return ()
        courses.append(replace(course, begins=now, spans=course.spans + 1) if going_on else course)
    return tuple(courses)


def _count_gpus(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> Mapping[str, int] | None:
    reports = [snapshot.observed(node.name) for node in nodes]
    if any(seen is None or not seen.gpus for seen in reports):
        return None
    return Counter(gpu.product for seen in reports if seen is not None for gpu in seen.gpus)


def _client_memory(replicas: int, nodes: Iterable[str], snapshot: ClusterSnapshot) -> dict[str, float]:
    reports = map(snapshot.observed, nodes)
    products = {gpu.product for seen in reports if seen is not None for gpu in seen.hardware.models}
    cards = ((product, find_card(product)) for product in sorted(products))
    # A card without a memory of its own shares that of the CPU.
    return {product: client_memory(card, replicas) for product, card in cards if card and card.memory_gb}


def _steps(
    policy: PolicyView, changing: list[Verdict], plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime
) -> list[Step]:
    state = PassState(plan.afterwards, now, snapshot.memory.looks)
    order = {
        case.node.name: find_candidate(case, state).order
        for case in plan.pools[policy.name].candidates
        if policy.spec is not None
    }
    last: Order = (True, True, True, True, 1_000_000, "")  # after all candidates
    ranked = []
    for verdict in changing:
        name, preview = verdict.node, None
        work = snapshot.work.get(name)
        if work is not None and policy.spec is not None:
            preview = preview_of(policy, verdict, work, plan.afterwards.once(policy.name), snapshot)
        obstacle = find_obstacle(verdict, preview, snapshot.nodes[name], candidate=name in order)
        rank = 0 if snapshot.nodes[name].fence is not None else 1 if verdict.starts else 2
        ranked.append(((rank, *order.get(name, last), name), Step(verdict, preview, obstacle)))
    return [step for _, step in sorted(ranked, key=lambda row: row[0])]


def _free_offers(steps: Iterable[Step], snapshot: ClusterSnapshot) -> Iterator[Offer]:
    """Yield what nodes that change later still have for new pods."""
    for verdict in (step.verdict for step in steps if step.obstacle is None):
        node = snapshot.nodes[verdict.node]
        if verdict.disruption.cordons and not (verdict.starts or verdict.phase.in_flight or node.unschedulable):
            offer, held = find_present_offer(node, snapshot.stack), find_holdings(node, snapshot) or {}
            yield replace(offer, devices={name: count - held.get(name, 0) for name, count in offer.devices.items()})


def _find_moves(steps: Iterable[Step], plan: RolloutPlan, snapshot: ClusterSnapshot) -> Iterator[tuple[str, PodView]]:
    """Yield nodes that change later, each with a pod of every kind that may start there after its eviction elsewhere."""
    offers = tuple(_free_offers(steps, snapshot))
    stays = {name for name, one in plan.verdicts.items() if one.phase is Phase.SYNCED or not one.disruption.cordons}
    stays.update(step.verdict.node for step in steps if step.obstacle is not None)
    evicted: dict[Needs, tuple[PodView, set[str]]] = {}
    for verdict in plan.verdicts.values() if offers else ():
        for pod in _find_leaving(verdict, snapshot) if verdict.node not in stays else ():
            evicted.setdefault(needs_of(pod), (pod, set()))[1].add(verdict.node)
    for needs, (pod, nodes) in evicted.items():
        yield from ((one.node, pod) for one in offers if nodes - {one.node} and could_start(needs, one))


def _find_doubts(
    policy: PolicyView,
    steps: Sequence[Step],
    moves: Iterable[tuple[str, PodView]],
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
) -> dict[str, Reason]:
    """Return the nodes that evicted pods or a budget may yet block, with the reason."""
    afterwards, doubts = plan.afterwards.once(policy.name), dict[str, Reason]()
    assert policy.spec is not None, "only a policy with a spec has steps"
    if policy.spec.drain.stranded_pods == "Hold":
        found = (node for node, pod in moves if afterwards.find_stranded(node, [pod]))
        return dict.fromkeys(found, Reason.STRANDED_PODS)
    if policy.spec.drain.on_timeout == "ForceDelete" and snapshot.settings.force_delete:
        return doubts
    # What no node can run any more stays unhealthy, so a budget that allows fewer will refuse the others.
    left: dict[str, int] = {}
    for verdict in (step.verdict for step in steps if step.obstacle is None and step.preview is not None):
        node = verdict.node
        for pod in _find_leaving(verdict, snapshot):
            for budget in binding_budgets(pod, snapshot.work[node].pdbs):
                left.setdefault(budget.ref, budget.disruptions_allowed)
                left[budget.ref] -= bool(afterwards.find_stranded(node, [pod]))
                if left[budget.ref] < 0:
                    doubts[node] = Reason.PDB
    return doubts


def _find_leaving(verdict: Verdict, snapshot: ClusterSnapshot) -> Iterator[PodView]:
    """Yield the listed pods with a GPU that must leave before the change of this node, and may start elsewhere."""
    work = snapshot.work.get(verdict.node)
    for pod in find_leaving(work.pods, change_scope(verdict, snapshot)) if work is not None else ():
        if gpu_resources(pod) and not is_reservation(pod):
            yield pod


def _vanishing(
    counts: tuple[Mapping[str, int], Mapping[str, int]],
    changing: set[str],
    policy: str,
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
) -> Iterator[Vanishing]:
    before, after = counts
    fewer = [name for name, count in before.items() if after.get(name, 0) < count]
    for name in sorted(fewer, key=lambda name: (after.get(name, 0), name)):
        yield Vanishing(
            resource=name,
            before=before[name],
            after=after.get(name, 0),
            demand=plan.afterwards.once(policy).find_demand(name),
            elsewhere=plan.afterwards.once(policy).advertises(name, outside=plan.pools[policy].names),
            pods=tuple(sorted(pod.ref for _, pod in _find_users(name, changing, plan, snapshot))),
            pending=snapshot.pending.get(name, 0),
        )


def _find_users(
    resource: str, nodes: Iterable[str], plan: RolloutPlan, snapshot: ClusterSnapshot
) -> Iterator[tuple[str, PodView]]:
    """Yield the listed pods that request the resource and leave these nodes, each with its node."""
    for node in nodes:
        for pod in _find_leaving(plan.verdicts[node], snapshot):
            if resource in gpu_resources(pod):
                yield node, pod


def _single_serves(targets: Mapping[str, Mapping[str, int]], plan: RolloutPlan, snapshot: ClusterSnapshot) -> bool:
    """Whether MIG strategy single would suit these targets, by node, and the pods that request whole GPUs there."""
    if not all(len(target) == 1 and RESOURCE_GPU not in target for target in targets.values() if target):
        return False
    offers = {node: Offer(node, {RESOURCE_GPU: sum(target.values())}, divided=True) for node, target in targets.items()}
    users = _find_users(RESOURCE_GPU, targets, plan, snapshot)
    return all(could_start(needs_of(pod), offers[node]) for node, pod in users if targets[node])


Proofs: TypeAlias = Mapping[Source, tuple[str, str, Finding | None]]
"""By source: what it says, what it should say (empty if nothing), and why the two disagree, or None."""


def tell_proofs(node: NodeView, observed: ObservedView, target: Target, stack: StackView) -> Proofs:
    """Return what each source of this installation says. The target must have one layout for each observed GPU."""
    actuator = find_actuator(stack)
    wrong = find_disagreements(Comparison(node, observed, target, stack), actuator.checks)
    says = "is quiet" if observed.quiet else f"reads {counted(len(observed.gpus), 'GPU')}"
    labels = node.labels
    mig_manager = ("not asked", "")
    if target.mig_config:
        config, state = labels.get(names.LABEL_MIG_CONFIG), labels.get(names.LABEL_MIG_STATE)
        mig_manager = (f"{config or 'not set'} ({state or 'no state'})", f"{target.mig_config} (success)")
    rows = {
        Source.AGENT: (observed.error or says, "reads GPUs"),
        Source.NVML: (describe_layouts(observed.hardware.layouts), describe_layouts(target.layouts)),
        Source.MIG_MANAGER: mig_manager,
        Source.OPERANDS: (", ".join(paused_operands(node)) or "none paused", "none paused"),
        Source.PLUGIN: (labels.get(names.LABEL_PLUGIN_CONFIG) or "not set", target.plugin_key or "not set"),
        Source.GFD: ("differ" if Source.GFD in wrong else "as configured", "as configured"),
        Source.ALLOCATABLE: (_counts(served(node)), _counts(target.resources)),
        Source.SLICES: (tell_devices(node.devices.layouts) if node.devices else "none", tell_devices(target.layouts)),
    }
    return {one: (*row, wrong.get(one)) for one, row in rows.items() if one in actuator.sources}


def _counts(resources: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items())) or "none"
