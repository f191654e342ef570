"""The CPU time of the planner alone, in this process, with 5000 nodes and 50 policies.

The fleet consists of views, as the planner receives them: nodes with whole H100s, proven to be so, each under one of
the policies.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.controller.leading import settle_heap
from gpusharing.kube.convert import find_zones
from gpusharing.planning.gpus.cards import Card, find_card
from gpusharing.planning.gpus.geometry import find_misfit, normalize
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, Operand, Program, StackView
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import (
    ClusterSnapshot,
    GPUNodeView,
    GpuView,
    Hardware,
    NodeView,
    ObservedView,
    PlanSettings,
    PolicyView,
)
from gpusharing.planning.wanted.migfile import parse as parse_mig_file
from gpusharing.planning.wanted.objects import plan_config
from gpusharing.planning.wanted.target import PolicyTargets, Target, find_request
from hack.bench.results import Measured
from hack.cluster.nodes import LABEL_POOL, gpu_labels

PRODUCT = "NVIDIA H100 80GB HBM3"
GPUS, POLICIES = 8, 50
NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
SETTINGS = PlanSettings()


def fleet(count: int, **spec: object) -> ClusterSnapshot:
    """Return a snapshot of `count` nodes that were adopted under POLICIES policies of mode Full."""
    policies = [_policy(index, **spec) for index in range(POLICIES)]
    before = [_policy(index, mode="Full") for index in range(POLICIES)]
    nodes = [_node(index, before[index % POLICIES]) for index in range(count)]
    return ClusterSnapshot(
        nodes={node.name: node for node in nodes},
        gpunodes={node.name: _gpunode(node.name) for node in nodes},
        policies=tuple(policies),
        stack=_stack(policies),
        agents=frozenset(node.name for node in nodes),
        operands={
            Program.MIG_MANAGER: {
                node.name: Operand(
                    "gpu-operator", f"nvidia-mig-manager-{node.name}", f"uid-mig-{node.name}", ready=True
                )
                for node in nodes
            }
        },
        claims={},
        work={},
    )


def card() -> Card:
    card = find_card(PRODUCT)
    assert card is not None, "in the table"
    return card


def _policy(index: int, **spec: object) -> PolicyView:
    name = f"pool-{index:02}"
    wire = {"nodeSelector": {"matchLabels": {LABEL_POOL: name}}, **spec}
    parsed = GPUSharingPolicySpec.model_validate(wire)
    return PolicyView(
        name=name,
        uid=f"uid-{name}",
        generation=1,
        created="2026-11-01T00:00:00Z",
        deleting=False,
        finalizer=False,
        force_release=False,
        spec=parsed,
        zones=find_zones(parsed),
    )


def _node(index: int, owner: PolicyView) -> NodeView:
    assert owner.spec is not None, "valid"
    request = find_request(owner.name, owner.spec)
    (plugin_key,) = request.plugins
    ours = {
        LABEL_POOL: owner.name,
        names.LABEL_POLICY: owner.name,
        names.LABEL_MODE: "full",
        names.LABEL_PLUGIN_CONFIG: plugin_key,
    }
    name = f"gpu-{index:04}"
    return NodeView(
        name=name,
        uid=f"uid-{name}",
        labels={**gpu_labels(card(), PRODUCT, GPUS), **ours},
        resources={names.RESOURCE_GPU: GPUS},
        ready=True,
        unschedulable=False,
        deleting=False,
        fence=None,
        fence_error="",
        deferred=None,
        verified=Verified(owner.name, request.mig_config, plugin_key, layout="1x full", gpus=GPUS),
        hold_cordon=False,
        retry="",
        foreign="",
    )


def _gpu(index: int) -> GpuView:
    row = card()
    return GpuView(
        index=index,
        product=PRODUCT,
        mig_capable=bool(row.profiles),
        mig_enabled=False,
        mig_pending=False,
        compute_mode="Default",
        layout=None,
        profiles=row.profiles,
        processes=(),
    )


def _gpunode(name: str) -> GPUNodeView:
    report = ObservedView(
        request_id="", quiet=False, error="", gpus=tuple(_gpu(index) for index in range(GPUS)), allocated={}, pods=0
    )
    return GPUNodeView(name, f"uid-gpunode-{name}", request_id="", quiet=False, observed=report)


def _stack(policies: list[PolicyView]) -> StackView:
    cluster_policy = ClusterPolicyView(SETTINGS.plugin_config_map, "", SETTINGS.mig_config_map)
    empty = StackView(
        cluster_policy=cluster_policy,
        gpu_cluster=False,
        plugin_configs={},
        mig_file="",
        written={},
        serves_our_mig_file=True,
    )
    gpu, plugins = _gpu(0), {}
    for policy in policies:
        assert policy.spec is not None, "valid"
        targets = PolicyTargets(policy, find_request(policy.name, policy.spec), empty)
        target = targets.find("gpu-0000", Hardware.of((gpu,)))
        assert isinstance(target, Target), "an H100 can do what the bench asks for"
        plugins[target.plugin_key] = target.plugin
    requests = [find_request(policy.name, policy.spec) for policy in policies if policy.spec is not None]
    change, _ = plan_config(requests, {PRODUCT: gpu}, plugins, empty)
    assert change is not None, "an empty stack lacks everything"
    keys = [*change.plugin_configs, *parse_mig_file(change.mig_file)]
    written = dict.fromkeys(keys, NOW - timedelta(days=1))
    return replace(empty, plugin_configs=change.plugin_configs, mig_file=change.mig_file, written=written)


REPEATS, CHANGES = 5, 20
_TIER = {"podSelector": {"matchLabels": {"tier": "training"}}}
RULED: Mapping[str, object] = {
    "drain": {
        "rules": [
            {**_TIER, "namespaceSelector": {"matchLabels": {"team": "a"}}, "behavior": "Block"},
            {**_TIER, "behavior": "WaitCompleted", "timeout": "8h"},
            {"podSelector": {"matchLabels": {"tier": "serving"}}, "behavior": "Evict", "order": 5},
        ]
    },
    "rollout": {
        "windows": [
            {"schedule": "0 8 * * *", "duration": "10h", "timeZone": "Europe/Berlin"},
            {"schedule": "0 22 * * 6", "duration": "8h"},
        ],
        "blackouts": [{"schedule": "0 0 24 12 *", "duration": "72h", "timeZone": "America/New_York"}],
    },
}
"""Fields with drain rules and windows, for every policy of a second fleet; a window is open at NOW."""


def planning(count: int) -> Iterator[Measured]:
    """Measure passes with and without a memo, settled and rolling, with and without windows and rules."""
    shared = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}
    settled, rolling = fleet(count, mode="Full"), fleet(count, **shared)
    settled_ruled, rolling_ruled = fleet(count, mode="Full", **RULED), fleet(count, **shared, **RULED)
    settle_heap()  # as the operator does after it has read the cluster
    size = f"{count} nodes x {GPUS} GPUs, {POLICIES} policies"
    how = f"plan_rollout, {size}, empty memo, every node has to change; median of {REPEATS}, CPU time"
    full = [_cpu_ms(lambda: plan_rollout(rolling, NOW, Memo())) for _ in range(REPEATS)]
    yield Measured("plan_5000_nodes_full_ms", statistics.median(full), how)
    how = f"{size}, settled, one node changed since the last pass; median of {CHANGES}, CPU time"
    yield Measured("plan_5000_nodes_incremental_ms", _incremental(settled), how)
    how = "the same while every node waits for its turn"
    yield Measured("plan_5000_nodes_incremental_rolling_ms", _incremental(rolling), how)
    how = f"{size} with windows, a blackout and rules each, empty memo, every node has to change; CPU time"
    full = [_cpu_ms(lambda: plan_rollout(rolling_ruled, NOW, Memo())) for _ in range(REPEATS)]
    yield Measured("plan_5000_nodes_windows_full_ms", statistics.median(full), how)
    how = "the same policies, settled, one node changed since the last pass"
    yield Measured("plan_5000_nodes_windows_incremental_ms", _incremental(settled_ruled), how)
    how = "the same policies while every node waits for its turn"
    yield Measured("plan_5000_nodes_windows_incremental_rolling_ms", _incremental(rolling_ruled), how)
    yield fits()


def fits() -> Measured:
    """Measure how much CPU time it takes, on average, to decide whether a GPU can hold a layout."""
    profiles = card().profiles
    counts = product(*(range(profile.max_count + 1) for profile in profiles))
    layouts = [
        normalize({profile.name: number for profile, number in zip(profiles, numbers, strict=True)})
        for numbers in counts
    ]

    def fit_all() -> None:
        for layout in layouts:
            find_misfit(layout, profiles)

    how = f"mean of {len(layouts)} layouts of an H100, possible or not, CPU time"
    return Measured("layout_fit_ms", _cpu_ms(fit_all) / len(layouts), how)


def _incremental(snapshot: ClusterSnapshot) -> float:
    """Return the median CPU milliseconds of CHANGES passes, before each of which one more node has changed."""
    memo = Memo()
    plan = plan_rollout(snapshot, NOW, memo)
    assert {verdict.phase for verdict in plan.verdicts.values()} <= {Phase.SYNCED, Phase.PENDING, Phase.PREFLIGHT}
    order = sorted(snapshot.nodes)
    times = []
    for index in range(CHANGES):
        snapshot = _changed(snapshot, order[index * 37 % len(order)])
        times.append(_cpu_ms(partial(plan_rollout, snapshot, NOW + timedelta(seconds=index + 1), memo)))
    return statistics.median(times)


def _changed(snapshot: ClusterSnapshot, name: str) -> ClusterSnapshot:
    before = snapshot.nodes[name]
    after = replace(before, labels={**before.labels, "team": "other"})
    return replace(snapshot, nodes={**snapshot.nodes, name: after})


def _cpu_ms(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1000
