"""Shows what a plan would do to the pool of one policy before anything is done, with the nodes in the order of their
changes.

The decisions are those of `plan_rollout`; this module only collects them.

Terms: docs/design/glossary.md#class, docs/design/glossary.md#fence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta

from gpusharing.api.names import RESOURCE_GPU, ConditionType, DisruptionClass, Phase
from gpusharing.api.validation import parse_duration
from gpusharing.planning.drain.holders import gpu_resources, has_finished, is_reservation
from gpusharing.planning.drain.stranded import Afterwards, DeviceDemand
from gpusharing.planning.gpus.capacity import client_memory, client_threads
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.pools.canary import find_canary
from gpusharing.planning.pools.candidates import Order, find_candidate
from gpusharing.planning.pools.hours import foresee_end
from gpusharing.planning.pools.ledger import Ledger
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.previews import preview_of
from gpusharing.planning.report.counts import count_devices
from gpusharing.planning.report.members import members
from gpusharing.planning.report.status import tell_status
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import FenceNode, WriteConfig
from gpusharing.planning.snapshot.looks import Preview
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.assess import Assessed


@value
class Step:
    """One node that would change."""

    verdict: Verdict
    """The verdict on the node now."""
    starts: bool
    """Whether this pass would fence the node, so that its change begins at once."""
    preview: Preview | None
    """What its change would disturb, or None if its pods were not listed."""


@value
class Vanishing:
    """A resource of which the pool would have fewer devices after the changes, and the pods that request it."""

    resource: str
    """Name of the resource."""
    before: int
    """How many devices the pool serves now."""
    after: int
    """How many it would serve after all changes."""
    demand: DeviceDemand
    """How many devices the pods of the whole cluster request, and how many the cluster will have after all changes."""
    pods: tuple[str, ...]
    """Pods that request the resource and run on nodes that change, as `namespace/name`. Only nodes whose pods were
    listed are included."""
    pending: int
    """How many Pending pods without a node request the resource."""


@value
class Proposal:
    """What would happen to the pool of one policy."""

    policy: str
    """Name of the policy."""
    accepted: bool
    """Whether the policy is accepted, which means that it can be carried out."""
    about: str
    """Message of its condition Accepted: why the policy is refused, or which nodes can serve it, with any doubts."""
    reason: str
    """The reason of its condition Accepted."""
    steps: tuple[Step, ...]
    """The nodes that change, in order: nodes in flight, then nodes that start now, then nodes that wait."""
    left_out: tuple[Verdict, ...]
    """Verdicts of the nodes that differ from the policy but do not change, because a person or another program has to
    act first."""
    unread: tuple[Verdict, ...]
    """The verdicts in `left_out` on nodes of which it is unknown whether they match the policy: nobody has read their
    GPUs, or their agent or kubelet is away."""
    lost: Mapping[str, str]
    """Nodes that the policy selects but another policy owns, with that policy. Only filled in if the policy has no
    nodes of its own."""
    coming: tuple[str, ...]
    """Nodes that the policy owns but that are still in a change which another policy began."""
    adopted: tuple[str, ...]
    """Nodes that already match the policy but are not governed by it yet. They only get labels."""
    settled: int
    """How many nodes match the policy and are governed by it."""
    before: Mapping[str, int]
    """Devices that the pool serves now, by resource name."""
    after: Mapping[str, int]
    """Devices that the pool would serve after all changes, by resource name."""
    vanishing: tuple[Vanishing, ...]
    """The resources of which the pool would have fewer devices."""
    hash: str
    """The hash of the plan, which a person sets to approve it. Empty if nothing changes, or if the policy has no UID
    yet."""
    windows: tuple[str, ...]
    """The next times at which nodes may start. Empty if they may start at any time, or never."""
    at_once: int
    """How many nodes may be unavailable at the same time."""
    single_keeps_name: bool = False
    """Whether mig.strategy single would suit the layouts and would keep the resource name nvidia.com/gpu, which pods
    request."""
    client_memory: Mapping[str, float] = field(default_factory=dict)
    """GiB of one MPS client, by product. Empty in other modes; cards that our table does not have are left out."""
    client_threads: int = 0
    """Percentage of a GPU's threads that one MPS client may use. 0 in other modes."""
    lasts: tuple[timedelta, ...] = ()
    """How long all changes together take at least and at most, counted from now (`foresee`). Empty if that is
    unknown."""

    @property
    def disruption(self) -> DisruptionClass:
        """The worst class of disruption of all steps, or DisruptionClass.NONE if there are none."""
        return max(
            (step.verdict.disruption for step in self.steps),
            key=lambda disruption: disruption.severity,
            default=DisruptionClass.NONE,
        )


def configured(snapshot: ClusterSnapshot, plan: RolloutPlan, since: datetime) -> ClusterSnapshot | None:
    """Return a copy of the snapshot in which our ConfigMaps exist, have our label, and already have the contents that
    the plan wants to write, with every entry written at `since`. A plan for the original snapshot would have every node
    wait for that write. None if the plan writes no ConfigMaps."""
    change = next((action for action in plan.shared if isinstance(action, WriteConfig)), None)
    if change is None:
        return None
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


def tell_proposal(
    policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot, now: datetime
) -> Proposal:
    """Return what the plan means for this policy and its pool: whether the policy is accepted, which nodes change, are
    adopted or are left out, and the devices of the pool before and after, sorted by resource name. Blocked and skipped
    nodes that have a target and differ from it count as nodes that change. `lasts` is left empty. `plan` must have been
    made from this snapshot, with this policy. Nothing is written."""
    pool = members(policy, plan, snapshot)
    status = tell_status(policy, plan, snapshot, {}, now)
    accepted = next(row for row in status["conditions"] if row["type"] == ConditionType.ACCEPTED)
    plan_status = status.get("plan") or {}
    changing = [
        v for v in pool.verdicts if v.disruption is not DisruptionClass.NONE and v.phase is not Phase.SYNCED
    ]
    adopted = tuple(v.node for v in pool.verdicts if v.reason is Reason.ADOPTABLE)
    names = {verdict.node for verdict in changing}
    told = {*names, *adopted}
    before, after = count_devices(pool.nodes, plan.targets)
    vanishing = tuple(_vanishing(before, after, names, snapshot, plan.afterwards))
    left_out = tuple(v for v in pool.verdicts if v.node not in told and v.phase is not Phase.SYNCED)
    members_ = plan.pools[policy.name].members
    unseen = {
        one.node.name
        for one in members_
        if not isinstance(one.assessment, Assessed) and (one.assessment is None or one.assessment.unobserved)
    }
    return Proposal(
        policy=policy.name,
        accepted=accepted["status"] == "True",
        about=accepted["message"],
        reason=accepted["reason"],
        steps=tuple(_steps(policy, changing, plan, snapshot, now)),
        left_out=left_out,
        unread=tuple(v for v in left_out if v.node in unseen or v.reason.keeper in ("agent", "kubelet")),
        lost={name: plan.verdicts[name].policy for name in pool.lost},
        coming=pool.coming,
        adopted=adopted,
        settled=sum(verdict.phase is Phase.SYNCED for verdict in pool.verdicts),
        before=dict(sorted(before.items())),
        after=dict(sorted(after.items())),
        vanishing=vanishing,
        hash=plan_status.get("hash", "") if policy.uid else "",
        windows=tuple(plan_status.get("windows", ())),
        at_once=plan.pools[policy.name].limit,
        single_keeps_name=_single_would_do(
            policy, [plan.targets[name] for name in names & plan.targets.keys()], vanishing
        ),
        client_threads=client_threads(policy.spec.mps.replicas) if policy.spec and policy.spec.mps else 0,
        client_memory=dict(_client_memory(policy, plan.pools[policy.name].names, snapshot)),
    )


def foresee(
    pool: Pool, snapshot: ClusterSnapshot, now: datetime, count: int, past: Sequence[timedelta]
) -> tuple[timedelta, ...]:
    """Return how long the changes of `count` nodes of the pool take at least and at most, counted from `now`, if each
    takes as long as the fastest or the slowest of the `past` changes. If canaries hold back the other nodes until a
    known time (`find_canary`), the changes begin at that time. Both limits on nodes at once, the windows and the soak
    of the canaries are considered; other holds, such as a missing approval, are not. Empty if `count` is 0, `past` is
    empty, a limit allows no node, the spec cannot be read, or the windows that can be foreseen do not suffice."""
    at_once = min(pool.limit, snapshot.settings.max_in_flight)
    if not past or not count or not at_once or pool.policy.spec is None:
        return ()
    canary, first, soak, begins = find_canary(pool), 0, timedelta(0), now
    if isinstance(canary, Finding):
        begins = max(now, canary.until or now)
    elif canary is not None and pool.spec.rollout.canary is not None and canary < count:
        first, soak = -(-canary // at_once), parse_duration(pool.spec.rollout.canary.soak)
        count -= canary
    nodes, ends = [member.node for member in pool.members], []
    for took in (min(past), max(past)):
        lengths = [took] * (first + -(-count // at_once))
        if first:
            lengths[first - 1] += soak
        ends.append(foresee_end(pool.spec, pool.policy.zones, nodes, begins, lengths))
    return tuple(end - now for end in ends if end is not None) if all(ends) else ()


def _single_would_do(
    policy: PolicyView, targets: Iterable[Mapping[str, int]], vanishing: Iterable[Vanishing]
) -> bool:
    """Whether MIG strategy single would keep the name nvidia.com/gpu for pods that request it, while strategy mixed
    leaves fewer devices of that name (`vanishing`). Single keeps it if each of `targets`, the resources of one node
    that changes, has exactly one resource and that is not nvidia.com/gpu. False if no pod requests nvidia.com/gpu, or
    unless the policy asks for strategy mixed."""
    if policy.spec is None or policy.spec.mig is None or policy.spec.mig.strategy != "mixed":
        return False
    asked = any(one.resource == RESOURCE_GPU and (one.pods or one.pending) for one in vanishing)
    return asked and all(len(target) == 1 and RESOURCE_GPU not in target for target in targets)


def _client_memory(
    policy: PolicyView, nodes: Iterable[str], snapshot: ClusterSnapshot
) -> Iterator[tuple[str, float]]:
    """Yield the product name of each card on these nodes, sorted, with the GiB that one MPS client may use there.
    Cards that our table does not have, or that share their memory with the CPU, are left out. Yields nothing unless
    the policy has mode MPS and a readable spec."""
    reports = [snapshot.gpunodes[name].observed for name in nodes if name in snapshot.gpunodes]
    products = {gpu.product for seen in reports if seen is not None for gpu in seen.hardware.models}
    for product in sorted(products):
        card = find_card(product)
        if policy.spec is not None and policy.spec.mps is not None and card is not None and card.memory_gb:
            yield product, client_memory(card, policy.spec.mps.replicas)


def _steps(
    policy: PolicyView,
    changing: list[Verdict],
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    now: datetime,
) -> Iterator[Step]:
    """Yield a Step for each verdict in `changing`: first the nodes that have a fence, then those that this pass
    fences, then the others. Each group is in the order in which the planner would start the nodes, with nodes that
    are not candidates last. The preview (`preview_of`) is None if no LIST of the node's pods was tried, or if the
    spec cannot be read."""
    ledger = Ledger(plan.afterwards, now, snapshot.memory.looks)
    order = {
        case.node.name: find_candidate(case, policy, ledger).order
        for case in plan.pools[policy.name].candidates
        if policy.spec is not None
    }
    ranked = []
    for verdict in changing:
        work = snapshot.work.get(verdict.node)
        preview = None
        if work is not None and policy.spec is not None:
            preview = preview_of(policy, verdict, work, plan.afterwards, snapshot)
        fences = any(isinstance(action, FenceNode) for action in verdict.actions)
        rank = 0 if snapshot.nodes[verdict.node].fence is not None else 1 if fences else 2
        place = order.get(verdict.node, _LAST)
        ranked.append(((rank, *place, verdict.node), Step(verdict, fences, preview)))
    for _, step in sorted(ranked, key=lambda row: row[0]):
        yield step


_LAST: Order = (True, True, True, True, 1_000_000, "")
"""The sort key of a node that is not a candidate; it follows those of all candidates."""


def _vanishing(
    before: Mapping[str, int],
    after: Mapping[str, int],
    nodes: set[str],
    snapshot: ClusterSnapshot,
    afterwards: Afterwards,
) -> Iterator[Vanishing]:
    """Yield each resource that has fewer devices in `after` than in `before`; those with the fewest devices left come
    first, and of equals the first by name. Each names the unfinished pods that request it, except KAI's reservation
    pods, but only those on `nodes` whose pods were listed."""
    fewer = [name for name, count in before.items() if after.get(name, 0) < count]
    for name in sorted(fewer, key=lambda name: (after.get(name, 0), name)):
        pods = [
            pod.ref
            for node, work in sorted(snapshot.work.items())
            if node in nodes
            for pod in work.pods
            if name in gpu_resources(pod) and not is_reservation(pod) and not has_finished(pod)
        ]
        yield Vanishing(
            resource=name,
            before=before[name],
            after=after.get(name, 0),
            demand=afterwards.find_demand(name),
            pods=tuple(sorted(pods)),
            pending=snapshot.pending.get(name, 0),
        )
