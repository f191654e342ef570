"""Who could not run after the planned changes (drain/stranded.py, pools/afterwards.py)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tests.build import (
    H100,
    NOW,
    at,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_work,
)
from tests.planning.cases import FULL, MIXED, SLICED, pair_of, world_of
from tests.planning.test_assess import futures_of
from tests.planning.test_guard import PoisonedPods
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.selectors import FIELD
from gpusharing.planning.drain.placement import Offer
from gpusharing.planning.drain.stranded import Afterwards, FutureNode
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.pools.afterwards import find_holdings
from gpusharing.planning.report.proposal import tell_proposal
from gpusharing.planning.report.status import policy_status, tell_status
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.memory import DRIFTS, CallFailure
from gpusharing.planning.snapshot.nvidia import NodeDevices
from gpusharing.planning.snapshot.podviews import NodeWork, PodView, Taint, Toleration
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

GPU = names.RESOURCE_GPU
PRODUCT, P = names.LABEL_GPU_PRODUCT, "NVIDIA-H100-80GB-HBM3"
ELSEWHERE = {"gpusharing.dev/pool": "nobody's"}
EIGHT = tuple(make_gpu(index) for index in range(8))
POLICY, ALLOWING = make_policy(), make_policy(drain={"strandedPods": "Allow"})
SHARING = make_policy(mode="TimeSlicing")
POOL_C = {"gpusharing.dev/pool": "c"}
FULL_C = make_policy("pool-c", "Full", nodeSelector={"matchLabels": POOL_C})
SLICED_C = make_policy("pool-c", "TimeSlicing", nodeSelector={"matchLabels": POOL_C})


def full_node(name: str = "gpu-07", devices: int = 8, **fields: Any) -> NodeView:
    return make_node(name, resources={GPU: devices}, **fields)


def other(devices: int, **fields: Any) -> NodeView:
    return full_node("gpu-09", devices, labels=ELSEWHERE, **fields)


LITTLE = full_node("gpu-10", 4, labels=ELSEWHERE)


def full_pods(count: int = 8, **fields: Any) -> NodeWork:
    return make_work(*(make_pod(f"llm-{number}", **fields) for number in range(count)))


def snapshot_of(
    *nodes: NodeView,
    policies: tuple[PolicyView, ...] = (POLICY,),
    work: Mapping[str, NodeWork] | None = None,
    held: Mapping[str, int] | None = None,
    **fields: Any,
) -> ClusterSnapshot:
    """Nodes with eight GPUs each, on which pods hold as many as `held` says; full_pods() run on gpu-07."""
    reports = [make_gpunode(one.name, gpus=EIGHT, allocated={GPU: (held or {}).get(one.name, 0)}) for one in nodes]
    works = {"gpu-07": full_pods()} if work is None else work
    return make_snapshot(nodes, policies, gpunodes=reports, work=works, **fields)


def verdict_of(snapshot: ClusterSnapshot) -> Verdict:
    return plan_rollout(snapshot, NOW).verdicts["gpu-07"]


def begins(snapshot: ClusterSnapshot) -> bool:
    return any(isinstance(action, FenceNode) for action in verdict_of(snapshot).actions)


def held_by(snapshot: ClusterSnapshot) -> str:
    verdict = verdict_of(snapshot)
    assert verdict.reason is Reason.STRANDED_PODS, verdict
    return verdict.message


# --- by count --------------------------------------------------------------------------------------------------


def test_a_node_is_held_while_more_pods_ask_for_its_devices_than_the_cluster_will_have() -> None:
    snapshot = snapshot_of(full_node(), other(16), held={"gpu-09": 16})
    assert not lacks(held_by(snapshot), "nvidia.com/gpu", "request 24", "16")
    assert begins(replace(snapshot, policies=(ALLOWING,)))


def test_the_status_of_the_policy_tells_how_many_will_wait_whether_or_not_that_is_allowed() -> None:
    for policy in (POLICY, ALLOWING):
        snapshot = snapshot_of(full_node(), other(16), policies=(policy,), held={"gpu-09": 16})
        status = policy_status(policy, plan_rollout(snapshot, NOW), snapshot, {}, NOW)
        (shortage,) = status["plan"]["shortages"]
        assert not lacks(shortage, "nvidia.com/gpu", "request 24", "16")
    enough = snapshot_of(full_node(), other(16), held={"gpu-09": 8})
    assert tell_status(POLICY, plan_rollout(enough, NOW), enough, {}, NOW)["plan"]["shortages"] == []


@pytest.mark.parametrize("skip", ["true", "True"])
def test_the_capacity_afterwards_counts_a_skipped_node_with_what_it_keeps_as_the_shortages_do(skip: str) -> None:
    skipped = full_node("gpu-08", labels={**full_node().labels, names.LABEL_SKIP: skip})
    for policy, after in ((ALLOWING, {GPU: 8, "nvidia.com/mig-3g.40gb": 16}), (POLICY, {GPU: 16})):
        snapshot = snapshot_of(full_node(), skipped, policies=(policy,), held={"gpu-08": 8})
        told = policy_status(policy, plan_rollout(snapshot, NOW), snapshot, {}, NOW)["plan"]
        (shortage,) = told["shortages"]
        assert not lacks(shortage, GPU, "request 16", "8")
        assert told["capacityAfter"] == after


GAINS = (POLICY, SLICED_C)
LEFT = (make_pod("a"), make_pod("b", phase="Succeeded"), make_pod("c", deleted_at=at(20)), make_pod("d"), make_pod("e"))
BEGUN = full_node(
    "gpu-08", 0, labels=POOL_C, unschedulable=True, fence=make_fence(policy="pool-c", node_uid="uid-gpu-08")
)
ENOUGH: dict[str, ClusterSnapshot] = {
    "other nodes have as many free devices": snapshot_of(full_node(), other(16), held={"gpu-09": 8}),
    "pods waited before, and the change makes more devices": snapshot_of(
        full_node(), policies=(SHARING,), pending_devices={GPU: 100}
    ),
    "another node gains what this one loses": snapshot_of(
        full_node(), full_node("gpu-08", labels=POOL_C), policies=GAINS, pending_devices={GPU: 100}
    ),
    "pods that have ended or are being deleted ask for nothing": snapshot_of(
        full_node(), other(3), work={"gpu-07": make_work(*LEFT)}
    ),
    "pods ask for a name that the node keeps": snapshot_of(full_node(), policies=(SHARING,)),
    "a node whose change has begun counts with what it will be": snapshot_of(
        full_node(),
        BEGUN,
        policies=GAINS,
        work={"gpu-07": full_pods(), "gpu-08": make_work()},
        pending_devices={GPU: 8},
    ),
}


@pytest.mark.parametrize("case", ENOUGH)
def test_a_node_starts_although_its_pods_have_to_leave_because(case: str) -> None:
    assert begins(ENOUGH[case]), verdict_of(ENOUGH[case])


SHORT: dict[str, tuple[ClusterSnapshot, str]] = {
    "pods wait for a node already": (
        snapshot_of(full_node(), other(16), held={"gpu-09": 4}, pending_devices={GPU: 5}),
        "pods request 17, but only 16 will remain",
    ),
    "another node will give its devices up as well": (
        snapshot_of(full_node(), full_node("gpu-08"), other(8), held={"gpu-08": 1}),
        "pods request 9, but only 8 will remain",
    ),
    "the free devices are on a node that is cordoned": (
        snapshot_of(full_node(), other(24, unschedulable=True), LITTLE, held={"gpu-09": 16, "gpu-10": 4}),
        "pods request 28, but only 20 will remain",
    ),
    "the free devices are on a node that is not Ready": (
        snapshot_of(full_node(), other(24, ready=False), LITTLE, held={"gpu-09": 16, "gpu-10": 4}),
        "pods request 28, but only 20 will remain",
    ),
    "the device plugin of the node is restarting": (
        snapshot_of(full_node(devices=0), other(16), held={"gpu-09": 16}),
        "pods request 24, but only 16 will remain",
    ),
}


@pytest.mark.parametrize(
    "held_up",
    [{"unschedulable": True}, {"other_plugin": "HAMi's device plugin"}, {"foreign": "node-maintenance"}],
    ids=["cordoned by somebody", "served by another plugin", "under maintenance"],
)
def test_pods_are_not_evicted_for_devices_that_a_person_would_have_to_clear_the_way_for(
    held_up: dict[str, Any],
) -> None:
    gains = make_node("gpu-08", labels=POOL_C, resources={"nvidia.com/mig-3g.40gb": 16})
    assert begins(snapshot_of(full_node(), gains, policies=(POLICY, FULL_C)))
    snapshot = snapshot_of(full_node(), replace(gains, **held_up), policies=(POLICY, FULL_C))
    assert "No node would advertise nvidia.com/gpu" in held_by(snapshot)
    both = replace(snapshot, nodes={**snapshot.nodes, "gpu-09": other(8)})
    assert begins(both), "what is there already counts"


# --- by what does not change for now -----------------------------------------------------------------------------

WHOLE, (CONFIG, KEY) = "1x full", pair_of(FULL_C, *EIGHT)
OF_C = {**POOL_C, names.LABEL_POLICY: "pool-c", names.LABEL_MODE: "full", names.LABEL_PLUGIN_CONFIG: KEY}
RESTING = replace(
    world_of(FULL, (H100,) * 8).nodes["gpu-07"],
    name="gpu-08",
    uid="uid-gpu-08",
    labels={**world_of(FULL, (H100,) * 8).nodes["gpu-07"].labels, **OF_C},
    verified=Verified("pool-c", CONFIG, KEY, layout=WHOLE, gpus=8),
)
"""gpu-08 as policy pool-c, which wants whole GPUs, has left it."""
ONE, ALL_EIGHT = make_pod("one"), make_pod("all", resources={GPU: 8}, per_container={GPU: 8})


def beside(node: NodeView, pod: PodView = ONE, policy: PolicyView = FULL_C, **report: Any) -> ClusterSnapshot:
    """gpu-07, which gives up its whole GPUs, with this pod, and gpu-08, the only other place for it."""
    snapshot = snapshot_of(full_node(), node, policies=(POLICY, policy), work={"gpu-07": make_work(pod)})
    found = replace(world_of(FULL, (H100,) * 8).gpunodes["gpu-07"], name="gpu-08", **report)
    return replace(snapshot, gpunodes={**snapshot.gpunodes, "gpu-08": found})


def test_a_node_that_has_what_its_policy_wants_counts_without_its_unhealthy_devices() -> None:
    short = replace(RESTING, resources={GPU: 7}, unhealthy={GPU: 1})
    assert begins(beside(RESTING, ALL_EIGHT))
    assert begins(beside(short))
    assert not lacks(held_by(beside(short, ALL_EIGHT)), "No node", "8 nvidia.com/gpu")


@pytest.mark.parametrize("seconds", [1, 3600], ids=["for a moment", "for an hour"])
def test_a_node_that_offers_none_of_its_devices_is_no_place(seconds: float) -> None:
    snapshot = beside(replace(RESTING, resources={}, unhealthy={GPU: 8}))
    memory = replace(snapshot.memory, seen_since={"gpu-08": {DRIFTS: at(-seconds)}})
    assert "No node would advertise nvidia.com/gpu" in held_by(replace(snapshot, memory=memory))


def test_a_failed_node_that_waits_for_a_person_is_no_place() -> None:
    fence = make_fence(
        "actuating", policy="pool-c", node_uid="uid-gpu-08", since=at(-9000), attempt=9, to_layout=WHOLE,
        target_mig_config=CONFIG, target_plugin_config=KEY, failed=at(-8000),
    )  # fmt: skip
    state = {names.LABEL_MIG_CONFIG: CONFIG, names.LABEL_MIG_STATE: "failed"}
    node = replace(RESTING, labels={**RESTING.labels, **state}, resources={}, unschedulable=True, fence=fence)
    snapshot = beside(node)
    failed = plan_rollout(snapshot, NOW).verdicts["gpu-08"]
    assert (failed.phase, failed.reason) == (Phase.FAILED, Reason.ACTUATOR_FAILED)
    assert "No node would advertise nvidia.com/gpu" in held_by(snapshot)
    trying = beside(replace(node, retry="again"))
    assert plan_rollout(trying, NOW).verdicts["gpu-08"].phase is not Phase.FAILED
    assert begins(trying), "it tries again by itself"
    calling = replace(trying, call_failures={"gpu-08": CallFailure("the server is away", at(8), tries=3)})
    late = plan_rollout(calling, NOW).verdicts["gpu-08"]
    assert (late.phase, late.reason) == (Phase.FAILED, Reason.CALL_FAILED)
    assert begins(calling), "the call is retried"


def test_a_node_behind_the_start_up_taint_that_waits_for_a_person_is_no_place() -> None:
    gpus = tuple(replace(gpu, vitals=Vitals(ecc_errors=True)) for gpu in EIGHT)
    observed = make_gpunode(gpus=gpus).observed
    assert begins(beside(RESTING, observed=observed))
    gated = beside(replace(RESTING, gate="[]"), observed=observed)
    assert plan_rollout(gated, NOW).verdicts["gpu-08"].reason is Reason.GPU_UNHEALTHY
    assert "No node would advertise nvidia.com/gpu" in held_by(gated)


def test_a_place_whose_change_waits_for_a_person_has_the_labels_that_a_pod_requires_with_and_without_it() -> None:
    waiting = replace(RESTING, foreign="node-maintenance")
    for mode in ("full", "time-slicing"):
        pod = make_pod(node_selector={names.LABEL_MODE: mode})
        snapshot = beside(waiting, pod, SLICED_C)
        here = full_node(labels={**full_node().labels, names.LABEL_MODE: mode})
        snapshot = replace(snapshot, nodes={**snapshot.nodes, "gpu-07": here})
        assert f"The pod requires {names.LABEL_MODE}={mode}" in held_by(snapshot)
    assert begins(beside(waiting, make_pod(node_selector=POOL_C), SLICED_C)), "a label that stays"


@pytest.mark.parametrize(("snapshot", "told"), SHORT.values(), ids=SHORT)
def test_a_node_is_held_for_a_shortage_also_where(snapshot: ClusterSnapshot, told: str) -> None:
    assert told in held_by(snapshot)


def test_a_pod_that_needs_more_devices_than_any_node_will_have_is_stranded() -> None:
    work = {"gpu-07": make_work(make_pod(resources={GPU: 4}))}
    snapshot = snapshot_of(full_node(), other(2), replace(other(2), name="gpu-10"), work=work)
    assert not lacks(held_by(snapshot), "No node", "4 nvidia.com/gpu")


def test_pods_that_nobody_can_look_through_on_one_node_do_not_keep_another_from_starting() -> None:
    broken = replace(make_work(), pods=PoisonedPods([make_pod()]))
    snapshot = snapshot_of(full_node(), other(16), work={"gpu-07": full_pods(), "gpu-09": broken})
    assert "No node would advertise nvidia.com/gpu" in held_by(snapshot), "what is unknown serves nobody"
    free = snapshot_of(full_node(), full_node("gpu-08"), policies=(SHARING,), work={**snapshot.work, "gpu-08": broken})
    assert begins(free)


def test_the_labels_of_a_node_are_worked_out_once_however_many_pods_look_for_a_place() -> None:
    asked: list[str] = []

    def labels(name: str) -> tuple[Mapping[str, str], ...]:
        asked.append(name)
        return ({"team": "b"},)

    places = [
        FutureNode(Offer(name, {GPU: 8}, find_labels=partial(labels, name)), {GPU: 8}, {}, kept={}, open=True)
        for name in ("gpu-07", "gpu-08")
    ]
    pods = [make_pod(f"llm-{team}", node_selector={"team": team}) for team in "acd"]
    assert Afterwards(lambda: places).find_stranded("gpu-07", pods) == ()
    assert sorted(asked) == ["gpu-07", "gpu-08"]


# --- by what only one program refuses -------------------------------------------------------------------------------

MPS = make_policy(mode="MPS")
STRICT = make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4, "failRequestsGreaterThanOne": True})
SINGLE = make_policy(mig={"strategy": "single", "config": "all-1g.10gb"})
PARTLY = make_policy(
    mig={"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1, 2, 3, 4, 5, 6, 7], "profiles": {}}]}
)
TWO = {"resources": {GPU: 2}, "per_container": {GPU: 2}}
FRACTION: dict[str, Any] = {"resources": {}, "labels": {"runai-gpu-group": "g"}, "scheduler": "kai-scheduler"}
REFUSED: dict[str, tuple[PolicyView, dict[str, Any], str]] = {
    "MPS": (MPS, TWO, f"A container requests 2 {GPU}, but policy pool-b has mode MPS"),
    "time-slicing": (STRICT, TWO, f"A container requests 2 {GPU}, but policy pool-b sets failRequestsGreaterThanOne"),
    "KAI, strategy single": (SINGLE, FRACTION, "KAI-Scheduler gives no fractions of the MIG devices"),
    "KAI, strategy mixed": (PARTLY, FRACTION, "KAI-Scheduler places only pods that request MIG devices"),
    "KAI and a whole GPU": (PARTLY, {"scheduler": "kai-scheduler"}, "KAI-Scheduler places only pods that request MIG"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pod_that_a_program_would_refuse_afterwards_is_not_evicted_unless_another_node_takes_it(case: str) -> None:
    policy, fields, said = REFUSED[case]
    work = {"gpu-07": make_work(make_pod(**fields))}
    assert said in held_by(snapshot_of(full_node(), policies=(policy,), work=work))
    assert begins(snapshot_of(full_node(), other(8), policies=(policy,), work=work))
    allowing = make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4}, drain={"strandedPods": "Allow"})
    assert begins(snapshot_of(full_node(), policies=(allowing,), work=work))


def test_one_share_in_each_container_is_no_reason_to_hold_a_node() -> None:
    work = {"gpu-07": make_work(make_pod(resources={GPU: 2}, per_container={GPU: 1}))}
    for policy in (MPS, STRICT):
        assert begins(snapshot_of(full_node(), policies=(policy,), work=work))


def test_a_node_with_a_taint_is_a_place_for_pods_that_tolerate_it_only() -> None:
    tainted = replace(other(8), taints=(Taint("team", "b"),))
    alone = {"gpu-07": make_work(make_pod())}
    told = held_by(snapshot_of(full_node(), tainted, work=alone))
    assert not lacks(told, "No node", "1 nvidia.com/gpu")
    tolerant = {"gpu-07": make_work(make_pod(tolerations=(Toleration("team", "Exists"),)))}
    assert begins(snapshot_of(full_node(), tainted, work=tolerant))
    gaining = replace(full_node("gpu-08", labels=POOL_C), taints=(Taint("team", "b"),))
    changes = snapshot_of(full_node(), gaining, policies=GAINS, work=alone)
    assert not lacks(held_by(changes), "No node"), "it keeps its taint while it changes"
    assert begins(replace(changes, work=tolerant))


def test_a_taint_of_its_own_node_holds_nothing_because_the_change_does_not_bring_it() -> None:
    tainted = replace(full_node(), taints=(Taint("team", "b"),))
    assert begins(snapshot_of(tainted, policies=(SHARING,), work={"gpu-07": make_work(make_pod())}))


def test_what_another_plugin_serves_on_the_node_stays() -> None:
    shared = {GPU: 8, "nvidia.com/gpu-memory": 80}
    pod = make_pod(resources={GPU: 1, "nvidia.com/gpu-memory": 4})
    snapshot = snapshot_of(make_node(resources=shared), policies=(SHARING,), work={"gpu-07": make_work(pod)})
    assert begins(snapshot), verdict_of(snapshot)


# --- by ResourceClaim -------------------------------------------------------------------------------------------


def with_claims(*devices: str) -> tuple[str, ...]:
    """Why a pod that holds these devices by ResourceClaims could not run: its node gets MIG instead of whole GPUs, and one other node keeps a whole GPU."""
    published = {"gpu-0": GPU, "gpu-1": GPU, "gpu-2-mig-9-0-4": f"{names.RESOURCE_MIG_PREFIX}3g.40gb"}
    before, after = Counter(published.values()), {f"{names.RESOURCE_MIG_PREFIX}3g.40gb": 6}
    places = [
        FutureNode(Offer("gpu-07", after), before, {}, kept={}, open=True, devices=published),
        FutureNode(Offer("gpu-09", {GPU: 1}), {GPU: 1}, {}, kept={}, open=True),
    ]
    pod = make_pod(resources={}, dra="gpu", devices=devices)
    found = Afterwards(lambda: places).find_stranded("gpu-07", [pod])
    return tuple(blocker.message for blocker in found)


def test_devices_of_resource_claims_are_requested_like_extended_resources() -> None:
    assert with_claims("gpu-2-mig-9-0-4") == ()
    assert with_claims("gpu-0") == ()
    assert with_claims("gpu-9") == (), "the driver no longer publishes it"
    (held,) = with_claims("gpu-0", "gpu-1")
    assert not lacks(held, "No node", f"2 {GPU}")


def test_a_device_that_pods_share_by_one_claim_is_held_once() -> None:
    devices = NodeDevices(layouts=(None,) * 8, names={f"gpu-{index}": GPU for index in range(8)})
    node = replace(full_node(), devices=devices)
    pods = [make_pod(name, resources={}, dra="gpu", devices=("gpu-0",)) for name in ("one", "two")]
    snapshot = make_snapshot([node], [POLICY], work={"gpu-07": make_work(*pods)})
    assert find_holdings(node, snapshot) == {GPU: 1}, "two pods share one claim"


# --- by label --------------------------------------------------------------------------------------------------


def labelled(pod: PodView, *more: NodeView, was: PolicyView = FULL, policy: PolicyView = SHARING) -> ClusterSnapshot:
    """A pod on gpu-07, which is as `was` wants and is to become as `policy` wants."""
    node = replace(world_of(was).nodes["gpu-07"], uid="uid-gpu-07")
    reports = [world_of(was).gpunodes["gpu-07"], *(make_gpunode(one.name) for one in more)]
    return make_snapshot([node, *more], [policy], gpunodes=reports, work={"gpu-07": make_work(pod)})


def test_a_pod_that_requires_a_label_which_the_change_rewrites_holds_the_node_and_is_told_the_new_value() -> None:
    """NVIDIA's README selects GPUs by nvidia.com/gpu.product."""
    pod = make_pod(node_selector={PRODUCT: P})
    assert not lacks(held_by(labelled(pod)), f"requires {PRODUCT}={P}", f"{P}-SHARED")
    allowing = make_policy(mode="TimeSlicing", drain={"strandedPods": "Allow"})
    assert begins(labelled(pod, policy=allowing))


def test_a_change_that_evicts_no_pod_is_shown_without_any_that_it_would_strand() -> None:
    label, node = names.LABEL_PLUGIN_CONFIG, world_of(SLICED).nodes["gpu-07"]
    drifted = replace(node, uid="uid-gpu-07", labels={**node.labels, label: "old"})
    work = {"gpu-07": make_work(make_pod(node_selector={label: "old"}))}
    reports = [world_of(SLICED).gpunodes["gpu-07"]]
    snapshot = make_snapshot([drifted], [SLICED], gpunodes=reports, work=work)
    (step,) = tell_proposal(SLICED, plan_rollout(snapshot, NOW), snapshot, NOW).steps
    verdict, preview = step.verdict, step.preview
    assert verdict.disruption is names.DisruptionClass.PLUGIN_RESTART
    assert preview is not None
    assert (preview.pods, preview.blockers) == ((), ())


def test_another_node_that_still_has_the_label_afterwards_is_a_place_for_the_pod() -> None:
    pod = make_pod(node_selector={PRODUCT: P})
    place = make_node("gpu-09", labels={**ELSEWHERE, PRODUCT: P})
    assert begins(labelled(pod, place))
    for useless in (
        make_node("gpu-09", labels={**ELSEWHERE, PRODUCT: P}, resources={}),
        make_node("gpu-09", labels={**ELSEWHERE, PRODUCT: "Tesla-T4"}),
        make_node("gpu-09", labels={**ELSEWHERE, PRODUCT: P}, unschedulable=True),
        make_node("gpu-09", labels={PRODUCT: P}),
    ):
        assert PRODUCT in held_by(labelled(pod, useless)), useless


def test_a_name_that_is_left_only_where_the_pod_may_not_run_is_no_place() -> None:
    pod = make_pod(node_selector={"gpusharing.dev/pool": "b"})
    snapshot = labelled(pod, make_node("gpu-09", labels=ELSEWHERE), policy=POLICY)
    assert not lacks(held_by(snapshot), "No node", "1 nvidia.com/gpu")


def test_a_label_that_no_change_rewrites_holds_nothing() -> None:
    assert begins(labelled(make_pod(node_selector={"team": "a"})))


ROWS: dict[str, tuple[tuple[str, str, tuple[str, ...]], bool]] = {
    "In with the old value": ((PRODUCT, "In", (P,)), False),
    "In with the old and the new value": ((PRODUCT, "In", (P, f"{P}-SHARED")), True),
    "NotIn with the new value": ((PRODUCT, "NotIn", (f"{P}-SHARED",)), False),
    "NotIn with another value": ((PRODUCT, "NotIn", ("Tesla-T4",)), True),
    "Exists of a label that stays": ((PRODUCT, "Exists", ()), True),
    "Exists of a label that is not there": ((names.LABEL_MIG_STRATEGY, "Exists", ()), False),
    "DoesNotExist of a label that stays away": ((names.LABEL_MIG_STRATEGY, "DoesNotExist", ()), True),
    "DoesNotExist of a label that comes": ((PRODUCT, "DoesNotExist", ()), False),
    "Gt of fewer than the replicas": ((names.LABEL_GPU_REPLICAS, "Gt", ("3",)), True),
    "Gt of as many as the replicas": ((names.LABEL_GPU_REPLICAS, "Gt", ("4",)), False),
    "Lt of fewer than the replicas": ((names.LABEL_GPU_REPLICAS, "Lt", ("2",)), False),
    "Lt of more than the replicas": ((names.LABEL_GPU_REPLICAS, "Lt", ("5",)), True),
    "the sharing strategy": ((names.LABEL_SHARING_STRATEGY, "In", ("none",)), False),
    "our own label": ((names.LABEL_MODE, "In", ("full",)), False),
    "its node's name": ((f"{FIELD}metadata.name", "In", ("gpu-07",)), True),
}


@pytest.mark.parametrize(("row", "fits"), ROWS.values(), ids=ROWS)
def test_required_node_affinity_is_compared_with_the_labels_afterwards(
    row: tuple[str, str, tuple[str, ...]], fits: bool
) -> None:
    assert begins(labelled(make_pod(node_terms=((row,),)))) is fits


TOOLS: dict[str, tuple[str, PolicyView, PolicyView, dict[str, int]]] = {
    "the device plugin": (
        names.LABEL_PLUGIN_CONFIG,
        SLICED,
        make_policy(mode="TimeSlicing", timeSlicing={"replicas": 8}),
        {GPU: 1},
    ),
    "mig-manager": (
        names.LABEL_MIG_CONFIG,
        MIXED,
        make_policy(mig={"layouts": [{"profiles": {"3g.40gb": 1, "1g.10gb": 2}}]}),
        {"nvidia.com/mig-3g.40gb": 1},
    ),
}


@pytest.mark.parametrize(("label", "was", "policy", "asks"), TOOLS.values(), ids=TOOLS)
def test_a_pod_may_require_the_label_that_points_at_a_configuration_of(
    label: str, was: PolicyView, policy: PolicyView, asks: dict[str, int]
) -> None:
    """Kueue's users select nodes by nvidia.com/mig.config."""
    value, now = world_of(was).nodes["gpu-07"].labels[label], futures_of(was, policy)[label]
    pod = make_pod(resources=asks, node_selector={label: value})
    held = held_by(labelled(pod, was=was, policy=policy))
    assert not lacks(held, f"requires {label}={value}", now)
    assert value != now


def test_one_term_of_the_affinity_that_matches_afterwards_is_enough() -> None:
    old, new = (PRODUCT, "In", (P,)), (PRODUCT, "In", (f"{P}-SHARED",))
    assert begins(labelled(make_pod(node_terms=((old,), (new,)))))
    snapshot = labelled(make_pod(node_terms=((old, (PRODUCT, "Exists", ())),)))
    assert f"The pod requires {PRODUCT}={P}" in held_by(snapshot)
