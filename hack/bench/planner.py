"""The planner alone, in this process: 5000 nodes, 50 policies. CPU time, so that neighbours do not count."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from tests.build import NOW, make_gpu, make_gpunode, make_node, make_policy, make_snapshot

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.controller.main import settle_heap
from gpusharing.planning.cards import find_card
from gpusharing.planning.records import Verified
from gpusharing.planning.rollout import Memo, plan_rollout
from gpusharing.planning.target import find_wish
from gpusharing.planning.views import ClusterSnapshot, GPUNodeView, NodeView, PolicyView
from hack.bench.results import Measured
from hack.cluster.nodes import LABEL_POOL, gpu_labels

PRODUCT = "NVIDIA H100 80GB HBM3"
GPUS, POLICIES = 8, 50
REPEATS, CHANGES = 5, 20


def planning(count: int) -> Iterator[Measured]:
    """A pass that knows nothing yet, and passes after one node changed: in a settled fleet and in one that rolls."""
    settled, rolling = (
        world(count, mode="Full"),
        world(count, mode="TimeSlicing", timeSlicing={"replicas": 4}),
    )
    settle_heap()  # as the operator does when it has read the cluster
    size = f"{count} nodes x {GPUS} GPUs, {POLICIES} policies"
    how = f"plan_rollout, {size}, empty memo, every node has to change; median of {REPEATS}, CPU time"
    full = [_cpu_ms(lambda: plan_rollout(rolling, NOW, Memo())) for _ in range(REPEATS)]
    yield Measured("plan_5000_nodes_full_ms", statistics.median(full), how)
    how = f"{size}, settled, one node changed since the last pass; median of {CHANGES}, CPU time"
    yield Measured("plan_5000_nodes_incremental_ms", _incremental(settled), how)
    how = "the same while every node waits for its turn"
    yield Measured("plan_5000_nodes_incremental_rolling_ms", _incremental(rolling), how)


def world(count: int, **spec: object) -> ClusterSnapshot:
    """A fleet of whole H100s, proven as such, under policies that want `spec`."""
    policies = [policy(index, **spec) for index in range(POLICIES)]
    known = [policy(index, mode="Full") for index in range(POLICIES)]
    nodes = [node(index, known[index % POLICIES]) for index in range(count)]
    return make_snapshot(nodes, policies, gpunodes=[gpunode(view) for view in nodes])


def policy(index: int, **spec: object) -> PolicyView:
    """One of the policies, for a pool of its own."""
    selector = {"matchLabels": {LABEL_POOL: f"pool-{index:02}"}}
    return make_policy(f"pool-{index:02}", nodeSelector=selector, **spec)  # type: ignore[arg-type] # spec fields as on the wire


def node(index: int, owner: PolicyView) -> NodeView:
    """A node that `owner`, a Full policy, has adopted."""
    card = find_card(PRODUCT)
    assert card is not None, "in the table"
    assert owner.spec is not None, "valid"
    wish = find_wish(owner.name, owner.spec)
    (plugin_key,) = wish.plugins
    ours = {
        LABEL_POOL: owner.name,
        names.LABEL_POLICY: owner.name,
        names.LABEL_MODE: "full",
        names.LABEL_PLUGIN_CONFIG: plugin_key,
    }
    return make_node(
        f"gpu-{index:04}",
        labels={**gpu_labels(card, PRODUCT, GPUS), **ours},
        resources={names.RESOURCE_GPU: GPUS},
        verified=Verified(owner.name, wish.mig_config, plugin_key),
    )


def gpunode(of: NodeView) -> GPUNodeView:
    """Its agent's report."""
    gpus = [make_gpu(index, product=PRODUCT) for index in range(GPUS)]
    return make_gpunode(of.name, gpus=gpus)


def _incremental(snapshot: ClusterSnapshot) -> float:
    memo = Memo()
    plan = plan_rollout(snapshot, NOW, memo)
    assert {verdict.phase for verdict in plan.verdicts.values()} <= {
        Phase.SYNCED,
        Phase.PENDING,
        Phase.PREFLIGHT,
    }
    order = sorted(snapshot.nodes)
    times = []
    for index in range(CHANGES):
        snapshot = _changed(snapshot, order[index * 37 % len(order)])
        times.append(_cpu_ms(partial(plan_rollout, snapshot, NOW, memo)))
    return statistics.median(times)


def _changed(snapshot: ClusterSnapshot, name: str) -> ClusterSnapshot:
    before = snapshot.nodes[name]
    after = replace(before, labels={**before.labels, "team": "other"})
    return replace(snapshot, nodes={**snapshot.nodes, name: after})


def _cpu_ms(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1000
