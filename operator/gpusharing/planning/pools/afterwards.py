"""What will the cluster offer after all changes, and what would the changes of waiting nodes disturb?

The pods on the first waiting nodes are listed too, but seldom and only a few at a time over all pools, for people who
approve a plan (docs/design/drain.md#preview).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import islice

from gpusharing.api.names import (
    LABEL_GPU_PRODUCT,
    LABEL_MIG_STRATEGY,
    LABEL_MODE,
    LABEL_POLICY,
    LABEL_SHARING_STRATEGY,
    LABEL_SKIP,
    Phase,
    is_skip,
)
from gpusharing.api.selectors import FIELD
from gpusharing.planning.drain.placement import Offer
from gpusharing.planning.drain.plan import ending_gangs, examine
from gpusharing.planning.drain.pods import count_staying, has_finished, scope_of
from gpusharing.planning.drain.standing import describe_gang
from gpusharing.planning.drain.stranded import Afterwards, FutureNode, claimed
from gpusharing.planning.pools.candidates import standing_look
from gpusharing.planning.pools.holds import find_canary, find_capped, find_full, find_stop, wait_for_canaries
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.memory import LOOKS, Preview
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.podviews import NodeWork, Part, Scope
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.cases import Member, calls_fail, explain_error
from gpusharing.planning.transition.gates import find_other_divider
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Blocker, Finding, main_reason, merge
from gpusharing.planning.vocabulary.reasons import Passes, Reason
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Target, is_plugin_resource
from gpusharing.planning.wanted.verify import effective_plugin_config, future_labels, served, tell_stuck


def find_afterwards(
    snapshot: ClusterSnapshot, members: Mapping[str, Member], pools: Mapping[str, Pool], *, reserved: int
) -> Afterwards:
    """Return the cluster after all changes that wait for nobody else, without nodes whose state cannot be computed."""

    @cache
    def find_hold_of(policy: str) -> Finding | None:
        pool = pools.get(policy)
        if pool is None:
            return None
        full = next((one for one in (find_full(pool), capped()) if one.stands), None)
        return find_stop(pool) or full

    @cache
    def find_behind(policy: str) -> tuple[frozenset[str], Finding | None]:
        """The nodes that come after the canaries that have yet to start, whichever these will be."""
        pool = pools.get(policy)
        canaries = find_canary(pool) if pool is not None and pool.policy.spec is not None else None
        if pool is None or not isinstance(canaries, int):
            return frozenset(), None
        return frozenset(sorted(pool.to_go)[canaries:]), wait_for_canaries(pool)

    @cache
    def capped() -> Finding:
        return find_capped(snapshot, members, reserved=reserved)

    def places() -> Iterator[FutureNode]:
        for name, node in snapshot.nodes.items():
            with suppress(Exception):  # an error about one node must not hide the others (transition/cases.py)
                member = members.get(name)
                now, case = find_present_offer(node, snapshot.stack), member.case if member is not None else None
                future = _future(node, now, case, snapshot)
                wait, held = _find_wait(member, snapshot) if member is not None else None, ""
                if wait is None and member is not None and _is_to_start(member):
                    behind, canaries = find_behind(member.policy)
                    wait = find_hold_of(member.policy) or (canaries if name in behind else None)
                    held = member.policy
                if wait is not None:
                    wait = replace(wait, message=f"{name} has changed, which waits ({wait.reason})")
                    future = replace(_as_sure(node, now, future), wait=wait, held=held)
                elif tell_stuck(node, snapshot.stack):
                    future = _as_sure(node, now, future)
                yield future

    return Afterwards(places, snapshot.pending_devices)


def is_skipped(node: NodeView) -> bool:
    """Whether the skip label keeps a change from beginning on the node; a change that has begun continues."""
    return node.fence is None and is_skip(node.labels.get(LABEL_SKIP))


def find_present_offer(node: NodeView, stack: StackView) -> Offer:
    config, labels = effective_plugin_config(node, stack), node.labels
    devices = {**node.resources, **served(node)}
    limited = _limits(config, labels.get(LABEL_POLICY, "")) if config is not None else {}
    if config is None and labels.get(LABEL_SHARING_STRATEGY) == "mps":
        limited = dict.fromkeys(devices, "its device plugin uses MPS")
    divided = labels.get(LABEL_MIG_STRATEGY) == "single" and "-MIG-" in labels.get(LABEL_GPU_PRODUCT, "")
    return Offer(node.name, devices, limited, node.taints, divided, partial(_labels, node, None))


def find_target_offer(node: str, target: Target, policy: str) -> Offer:
    """Return what the node will have for new pods with this target of the policy, as far as the target says."""
    divided = target.with_mig and target.plugin.mig_strategy == "single"
    return Offer(node, target.resources, _limits(target.plugin, policy), divided=divided)


def _limits(plugin: PluginConfig, policy: str) -> Mapping[str, str]:
    """Return `Offer.limited`. `policy` is empty for a configuration that no policy has made."""
    if not plugin.one_each or plugin.sharing is None:
        return {}
    whose = f"policy {policy}" if policy else "its device plugin's configuration"
    how = "has mode MPS, which implies" if plugin.sharing.strategy == "mps" else "sets"
    return dict.fromkeys(plugin.one_each, f"{whose} {how} failRequestsGreaterThanOne")


def _find_wait(member: Member, snapshot: ClusterSnapshot) -> Finding | None:
    """Return why a change does not reach its target before somebody else acts, whatever its pool allows.

    Pods that would be stranded are no such reason, or two pools that swap would hold each other for ever.
    """
    verdict, fence, case = member.verdict, member.node.fence, member.case
    found = Finding(verdict.reason, verdict.message)
    if calls_fail(verdict):  # calls are retried
        return None
    if fence is not None:
        leaves = case.owner_name != fence.policy
        goes = verdict.phase.in_flight and verdict.phase not in (Phase.FAILED, Phase.ABORTING)
        stays = verdict.reason in (Reason.PAUSED, Reason.DRAIN_HELD)
        return None if goes and not (leaves or stays or fence.rolls_back) else found
    # A budget, for example, may wait for devices of the very pool that waits for this.
    if verdict.phase is Phase.BLOCKED:
        return found if verdict.reason.passes is Passes.BY_A_PERSON else None
    if not verdict.candidate:
        return None
    look = standing_look(case, snapshot.memory.looks)
    found_there = {blocker.reason for blocker in look.blockers} if look is not None else set()
    others = [one for one in sorted(found_there - {Reason.STRANDED_PODS}) if one.passes is Passes.BY_A_PERSON]
    return Finding(others[0], "") if others else None


def _is_to_start(member: Member) -> bool:
    waits = member.node.fence is None and member.verdict.phase is Phase.PENDING
    return waits and member.case.assessed is not None and member.case.assessed.mismatch is not None


def _future(node: NodeView, now: Offer, case: NodeCase | None, snapshot: ClusterSnapshot) -> FutureNode:
    fence, offer = node.fence, now
    assessed = case.assessed if case is not None and not is_skipped(node) else None
    part = case.scope.part if case is not None and assessed is not None else None
    if assessed is not None:
        offer = find_target_offer(node.name, assessed.target, assessed.policy.name)
        # A change does not touch what other plugins serve, and none mends unhealthy devices (docs/design/nvidia.md#b9).
        others = {name: count for name, count in now.devices.items() if not is_plugin_resource(name)}
        devices = {**others, **offer.devices} if assessed.mismatch is not None else now.devices
        labels = partial(_labels, node, assessed)
        offer = replace(offer, devices=devices, taints=node.taints, find_labels=labels)
    emptied = assessed is not None and (fence or assessed).disruption.cordons
    in_use = find_holdings(node, snapshot, remaining=True) or {}
    return FutureNode(
        offer,
        before=now.devices if fence is None else offer.devices,
        in_use=in_use,
        kept=in_use if not emptied else {} if part is None else find_holdings(node, snapshot, part=part) or {},
        open=not node.deleting and (emptied or (node.ready and not node.unschedulable)),
        devices=node.devices.names if node.devices is not None else {},
    )


def _as_sure(node: NodeView, now: Offer, future: FutureNode) -> FutureNode:
    """Return the node with what it has for new pods whether or not its change takes place."""
    fence = node.fence
    closed = node.unschedulable or node.gate is not None or (fence is not None and fence.tainted)
    keeps = now.devices if node.ready and not closed else {}
    devices = {
        name: min(count, max(keeps.get(name, 0), future.in_use.get(name, 0))) for name, count in future.after.items()
    }
    sure = replace(
        future.offer,
        devices={name: count for name, count in devices.items() if count},
        limited={**now.limited, **future.offer.limited},
        divided=now.divided or future.offer.divided,
    )
    unchanged = replace(sure, find_labels=now.find_labels)
    return replace(future, offer=sure, unchanged=unchanged, planned=future.offer, before=now.devices)


def _labels(node: NodeView, assessed: Assessed | None) -> tuple[Mapping[str, str], ...]:
    label_sets: tuple[Mapping[str, str], ...] = (node.labels,)
    if assessed is not None:
        target, policy = assessed.target, assessed.policy.name
        if node.fence is None and assessed.mismatch is None:
            label_sets = ({**node.labels, LABEL_MODE: target.routing, LABEL_POLICY: policy},)
        else:
            label_sets = future_labels(node, target, assessed.observed, policy)
    return tuple({**labels, f"{FIELD}metadata.name": node.name} for labels in label_sets)


def find_holdings(
    node: NodeView, snapshot: ClusterSnapshot, *, remaining: bool = False, part: Part | None = None
) -> Mapping[str, int] | None:
    """Return how many devices of each resource the node's pods hold, or None if that is unknown.

    Without a LIST, the agent's report counts, which is up to 30 s old and knows no devices of NVIDIA's DRA driver.
    `remaining` leaves out pods that are being deleted, and distrusts that report during a change. `part` leaves out pods
    that its change takes from their GPUs, or may.
    """
    work = snapshot.work.get(node.name)
    if work is not None and not work.error:
        counts, devices = Counter[str](), set[str]()
        for pod in work.pods:
            leaves = remaining and pod.deleted_at is not None
            leaves = leaves or (part is not None and part.takes(pod.uid) is not False)
            if not (has_finished(pod) or leaves):
                counts.update(pod.resources)
                devices.update(pod.devices)
        return counts + claimed(node.devices.names if node.devices is not None else {}, devices)
    unknown = part is not None or node.devices is not None or (remaining and node.fence is not None)
    gpunode = None if unknown else snapshot.gpunodes.get(node.name)
    return gpunode.observed.allocated if gpunode is not None and gpunode.observed is not None else None


AGAIN = timedelta(minutes=5)
"""The time between two looks at one node."""
MAX_NODES = 20
"""The most nodes of a pool that are looked at; `status.plan` does not name more nodes."""


def find_previews(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    snapshot: ClusterSnapshot,
    afterwards: Afterwards,
    now: datetime,
) -> tuple[Mapping[str, Preview], frozenset[str], datetime | None]:
    """Return what the changes of waiting nodes would disturb, the nodes to list for the next pass, and when to wake."""
    known: dict[str, Preview] = {}
    missing: list[str] = []
    ours: dict[str, datetime] = {}
    for policy, verdict in _to_go(pools, verdicts):
        name = verdict.node
        before = snapshot.memory.previews.get(name)
        if before is not None and before.version != policy.version:
            before = None
        work = snapshot.work.get(name)
        if work is not None and (before is None or work.listed_at > before.at):
            try:
                known[name] = preview_of(policy, verdict, work, afterwards.once(policy.name), snapshot)
            except Exception as error:  # noqa: BLE001 - one node must not hide the others
                why = Blocker(Reason.NODE_NOT_JUDGED, message=explain_error(error))
                known[name] = Preview(policy.version, work.listed_at, blockers=(why,))
        elif before is not None:
            known[name] = before
        elif not verdict.blockers:
            missing.append(name)
        if name in known and not verdict.blockers:  # memory.py has the pods of blocked nodes listed
            ours[name] = known[name].at
    poll = timedelta(seconds=snapshot.settings.poll)
    old = sorted((at, name) for name, at in ours.items() if at + AGAIN <= now)
    due = [*missing, *(name for _, name in old)]
    left = max(0, LOOKS - sum(now - poll < at for at in ours.values()))
    # Any change to pods starts a pass anyway, so an old preview is no reason to wake.
    return known, frozenset(due[:left]), now + poll if missing else None


def _to_go(pools: Mapping[str, Pool], verdicts: Mapping[str, Verdict]) -> Iterator[tuple[PolicyView, Verdict]]:
    for _, pool in sorted(pools.items()):
        if pool.policy.spec is None or pool.policy.deleting:
            continue
        waiting = (verdicts[name] for name in pool.to_go)
        yield from islice(((pool.policy, verdict) for verdict in waiting if not verdict.phase.in_flight), MAX_NODES)


def preview_of(
    policy: PolicyView, verdict: Verdict, work: NodeWork, afterwards: Afterwards, snapshot: ClusterSnapshot
) -> Preview:
    """Return what the change of a node would disturb, by the last LIST of its pods. The policy must have a spec."""
    assert policy.spec is not None, "only a policy with a spec has a preview"
    if not verdict.disruption.cordons:
        return Preview(policy.version, work.listed_at)
    drain, scope = policy.spec.drain, change_scope(verdict, snapshot)
    pods, blockers = examine(work, drain, work.listed_at, scope=scope, afterwards=afterwards)
    observed = snapshot.observed(verdict.node)
    node = snapshot.nodes.get(verdict.node)
    if node is not None and (divider := find_other_divider(node, observed, work, snapshot.stack)) is not None:
        blockers = merge((divider, *blockers))
    return Preview(
        policy.version,
        work.listed_at,
        tuple(sorted(one.pod.ref for one in pods.remaining if not one.waits)),
        tuple(sorted(one.pod.ref for one in pods.remaining if one.waits)),
        tuple(sorted({budget.ref for one in pods.remaining for budget in one.budgets})),
        tuple(describe_gang(view) for view in ending_gangs(work, scope) if not view.error),
        blockers,
        count_staying(work.pods, scope),
    )


def change_scope(verdict: Verdict, snapshot: ClusterSnapshot) -> Scope:
    node, gpunode = snapshot.nodes.get(verdict.node), snapshot.gpunodes.get(verdict.node)
    return scope_of(node, snapshot.settings, snapshot.stack, verdict.disruption, gpunode=gpunode, gpus=verdict.gpus)


def find_obstacle(verdict: Verdict, preview: Preview | None, node: NodeView, *, candidate: bool) -> Reason | None:
    """Return why a node does not change before somebody acts on it or its pods; a candidate awaits its policy alone."""
    stays = verdict.phase in (Phase.BLOCKED, Phase.FAILED, Phase.SKIPPED)
    kept = stays and verdict.reason.passes is not Passes.SOON
    if (kept and not candidate) or verdict.phase is Phase.ABORTING or verdict.reason is Reason.CALL_FAILED:
        return verdict.reason
    if node.fence is not None and node.fence.rolls_back:
        return Reason.ROLLING_BACK
    # Once a drain has begun, pods that will be stranded do not stop it.
    blockers = verdict.blockers if preview is None or verdict.phase.in_flight else preview.blockers
    passing = (Passes.SOON, Passes.DONE)
    return main_reason(one for one in blockers if one.until is None and one.reason.passes not in passing)
