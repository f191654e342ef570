"""The golden scenarios of the crash matrix: what people and NVIDIA's software do while the operator works."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from hack.embedded import CLUSTER_POLICY
from hack.sim.workloads import SimWorkload
from tests.embedded.mpsset import RIGHT, overwrite, signalled
from tests.embedded.scene import FULL, HOUR, MIXED, MPS, OTHER_MIXED, SLICED, Scene, at_once, gpu_pod, pdb
from tests.fakes.virtualtime import virtual_now

from gpusharing.api import names
from gpusharing.api.times import to_rfc3339
from gpusharing.kube.client import CLUSTER_POLICIES, DEVICE_TAINT_RULES, GPUNODES, JSON, NODES, PDBS, PODS, POLICIES

SOFTWARE_UP = 10.0
"""Seconds until NVIDIA's pods run and can be disturbed."""


@dataclass(frozen=True)
class Golden:
    """What people do while the operator works; `script` returns when they see what they wait for."""

    script: Callable[[Scene], Awaitable[None]]
    nodes: int = 1
    gpus: int = 2
    workloads: tuple[SimWorkload, ...] = ()
    budgets: tuple[JSON, ...] = ()
    cluster_policy: JSON | None = None
    """The one that the operator is asked to point at its ConfigMaps; None: one that is pointed at them."""
    forces: bool = False
    """The operator may delete pods at the end of a drain."""
    plain: bool = False
    """NVIDIA's device-plugin chart with mig-manager beside it, and no GPU Operator."""
    repairs: bool = False
    """The operator may repair the MPS DaemonSet, which does not follow labels as it is released."""
    dra: bool = False
    tainted: bool = False
    """Nodes are fenced by DeviceTaintRules, which the scheduler obeys."""


async def create(scene: Scene) -> None:
    await scene.serve(MIXED, seconds=HOUR)


async def behind_a_rule(scene: Scene) -> None:
    """The scheduler was tested; the pods leave within their budget, and the rule goes at the end."""
    await scene.running("free", 1)
    await scene.running("kept", 2)
    await asyncio.sleep(120)
    await scene.begin(MIXED, drain={"strandedPods": "Allow"})
    await asyncio.sleep(120)
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
    await scene.ready(seconds=HOUR)
    gone = lambda: not scene.e.cluster.objects(DEVICE_TAINT_RULES)  # noqa: E731 - a condition
    await scene.e.until(gone, "the rule to be removed", HOUR)


async def create_with_pods(scene: Scene) -> None:
    """Some pods may be evicted at once; the budget of the others allows one at a time, and none for a while."""
    await scene.running("free", 1)
    await scene.running("kept", 2)
    await scene.begin(SLICED, drain={"strandedPods": "Allow"})
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 2}}, "default")
    await asyncio.sleep(60)
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
    await scene.ready(seconds=HOUR)
    await scene.e.until(lambda: "3/16" in str(scene.e.policy("pool-b")["status"]), "all pods back", HOUR)


async def retarget(scene: Scene) -> None:
    scene.apply(MIXED)
    await scene.any_fenced("actuating")
    await scene.serve(OTHER_MIXED, seconds=HOUR)


async def node_deleted(scene: Scene) -> None:
    """The node in flight vanishes, which is a failure of the change. A kill decides whether it was on record in time, so here the policy takes one more than that."""
    name = await scene.begin_any(MIXED, rollout={"maxFailures": 2}, stage="actuating")
    scene.e.cluster.delete(NODES, name)
    await asyncio.sleep(1)
    await scene.ready(seconds=HOUR)


async def policy_deleted(scene: Scene) -> None:
    scene.apply(MIXED)
    await scene.any_fenced("fenced")
    scene.e.cluster.delete(POLICIES, "pool-b")
    await scene.e.until(lambda: not scene.e.cluster.objects(POLICIES), "the policy gone", HOUR)
    await scene.released("gpu-1")


async def policy_reset(scene: Scene) -> None:
    await scene.serve(MIXED, deletionPolicy="Reset", seconds=HOUR)
    scene.e.cluster.delete(POLICIES, "pool-b")
    await scene.e.until(lambda: not scene.e.cluster.objects(POLICIES), "the policy gone", HOUR)
    for raw in scene.e.cluster.objects(NODES):
        ours = {names.LABEL_POLICY, names.LABEL_MODE, names.LABEL_PLUGIN_CONFIG}
        assert not ours & raw["metadata"]["labels"].keys()


async def gpunodes_deleted(scene: Scene) -> None:
    scene.apply(MIXED)
    for moment in ("fenced", "actuating"):
        await scene.any_fenced(moment)
        for raw in scene.e.cluster.objects(GPUNODES):
            scene.e.cluster.delete(GPUNODES, raw["metadata"]["name"])
    await scene.ready(seconds=HOUR)


async def two_steps(scene: Scene) -> None:
    await scene.serve(MPS, seconds=HOUR)
    await scene.serve(MIXED, seconds=HOUR)


# --- NVIDIA's software goes wrong ------------------------------------------------------------------


async def wedged(scene: Scene, fault: str) -> None:
    """The next run of mig-manager ends in one of its two bugs: it stays pending, or leaves the operands paused; its restart helps."""
    await asyncio.sleep(SOFTWARE_UP)
    scene.e.software.inject("gpu-1", fault)
    await scene.serve(MIXED, seconds=HOUR)


async def success_paused(scene: Scene) -> None:
    """mig-manager fails and leaves the operands paused; what it is told then is still applied, so it says success."""
    await asyncio.sleep(SOFTWARE_UP)
    scene.e.software.inject("gpu-1", "wedge-paused")
    await scene.begin(MIXED, stage="actuating")
    scene.apply(FULL)
    await scene.e.until(lambda: says_success_while_paused(scene.labels("gpu-1")), "the wedge", HOUR)
    await scene.ready(seconds=HOUR)


def says_success_while_paused(labels: Mapping[str, str]) -> bool:
    """The second wedge of docs/design/nvidia.md#a7, seen at the labels of a Node."""
    return labels.get(names.LABEL_MIG_STATE) == "success" and names.PAUSED_FOR_MIG in labels.values()


async def failed_and_retried(scene: Scene) -> None:
    await asyncio.sleep(SOFTWARE_UP)
    scene.e.software.inject("gpu-1", "failed")
    await scene.reach(MIXED, phase="Failed")
    scene.annotate("gpu-1", retry="again")
    await scene.ready(seconds=HOUR)


async def requested(scene: Scene) -> None:
    """Somebody who may not change Nodes gives a drain up, leaves the node out, takes it in again and has it tried, all by annotations of the GPUNode."""
    fence = await scene.begin(MIXED)
    scene.request("gpu-1", abort=fence.op, skip="true")
    await scene.reason("gpu-1", "SkipLabel")
    await scene.e.until(lambda: not scene.requests("gpu-1"), "the requests moved to the Node", HOUR)
    scene.request("gpu-1", skip="false", retry="again")
    await scene.ready(seconds=HOUR)
    await scene.e.until(lambda: not scene.requests("gpu-1"), "the requests moved to the Node", HOUR)
    scene.annotate("gpu-1", abort=None)  # the name of a change is another one in each run


async def rolled_back(scene: Scene) -> None:
    await scene.serve(OTHER_MIXED, seconds=HOUR)
    scene.e.software.inject("gpu-1", "refuse")
    await scene.reach(MIXED, rollout={"onFailure": "Rollback"}, reason="RolledBack")


async def drifted(scene: Scene) -> None:
    await scene.serve(MIXED, seconds=HOUR)
    scene.e.software.inject("gpu-1", "lose-instances")
    await scene.fenced("gpu-1")
    await scene.ready(seconds=HOUR)


# --- people and budgets are in the way --------------------------------------------------------------


async def drain_timed_out(scene: Scene) -> None:
    await scene.running("kept", 2)
    await scene.begin(SLICED, drain={"strandedPods": "Allow", "timeout": "2m"})
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 2}}, "default")
    await scene.released("gpu-1")
    scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
    await scene.ready(seconds=HOUR)
    await scene.e.until(lambda: "2/16" in str(scene.e.policy("pool-b")["status"]), "all pods back", HOUR)


async def uncordoned_before(scene: Scene) -> None:
    await scene.begin(MIXED)
    scene.cordon("gpu-1", on=False)
    await scene.released("gpu-1")
    await scene.ready(seconds=HOUR)


async def uncordoned_after(scene: Scene) -> None:
    await scene.begin(MIXED, stage="actuating")
    scene.cordon("gpu-1", on=False)
    await scene.ready(seconds=HOUR)


async def three_of_four(scene: Scene) -> None:
    await scene.running("free", 6)
    await scene.serve(SLICED, drain={"strandedPods": "Allow"}, rollout=at_once(3), seconds=HOUR)
    await scene.e.until(lambda: "6/32" in str(scene.e.policy("pool-b")["status"]), "all pods back", HOUR)


async def gang(scene: Scene) -> None:
    """Two nodes that share a gang change as one wave, also where an operator ends that has begun with one of them."""
    await scene.running("free", 2)
    scene.apply(SLICED, drain={"strandedPods": "Allow"}, rollout=at_once(2))
    pair = ("gpu-1", "gpu-2")
    await scene.e.until(lambda: all(map(scene.fence, pair)), "both nodes fenced", HOUR)
    waves = [fence.wave for fence in map(scene.fence, pair) if fence is not None]
    assert waves[0], waves
    assert waves[0] == waves[1], waves
    await scene.ready(seconds=HOUR)
    await scene.e.until(lambda: "4/16" in str(scene.e.policy("pool-b")["status"]), "all pods back", HOUR)


OWNED: JSON = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": True}
JOB: JSON = {"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "job", "controller": True}


async def every_manner(scene: Scene) -> None:
    """One node with a pod that is marked, one that a rule lets end, a job, one that goes last by its order, and two of which a budget keeps one for ever, so that it is deleted by force."""
    await scene.running("kept", 2)
    for name, owner, labels, more in (
        ("marked", OWNED, {}, {"gpusharing.dev/do-not-disrupt": "2m"}),
        ("ends", OWNED, {"end": "well"}, {}),
        ("train-0", JOB, {}, {}),
        ("late", OWNED, {"late": "yes"}, {}),
    ):
        metadata = {"labels": labels, "annotations": more, "ownerReferences": [owner]}
        spec = {"restartPolicy": "Never"} if owner is JOB else {}
        pod = gpu_pod(name, "gpu-1", metadata=metadata, spec=spec)
        pod["status"]["startTime"] = to_rfc3339(virtual_now())
        scene.e.cluster.add(PODS, pod)
    rules = [
        {"podSelector": {"matchLabels": {"end": "well"}}, "behavior": "WaitCompleted", "timeout": "30m"},
        {"podSelector": {"matchLabels": {"late": "yes"}}, "behavior": "Evict", "order": 5},
    ]
    await scene.reach(
        SLICED,
        drain={"strandedPods": "Allow", "onTimeout": "ForceDelete", "timeout": "3m", "rules": rules},
        phase="WaitingForJobs",
    )
    await asyncio.sleep(60)
    for name in ("ends", "train-0"):
        scene.e.cluster.patch(PODS, name, {"status": {"phase": "Succeeded"}}, "default", subresource="status")
    await scene.ready(seconds=HOUR)
    await scene.e.until(lambda: "2/32" in str(scene.e.policy("pool-b")["status"]), "the others back", HOUR)


# --- the operator points ClusterPolicy at its ConfigMaps itself ------------------------------------

PLUGIN, MIG = "gpusharing-device-plugin", "gpusharing-mig-parted"


def pointed_at(plugin: str, mig: str) -> JSON:
    """A ClusterPolicy with these two names; empty: as NVIDIA's chart leaves it."""
    spec = {"devicePlugin": {"config": {"name": plugin}}, "migManager": {"config": {"name": mig}}}
    return {**CLUSTER_POLICY, "spec": spec}


def pointers(scene: Scene) -> tuple[str, str]:
    spec = scene.e.cluster.get(CLUSTER_POLICIES, CLUSTER_POLICY["metadata"]["name"])["spec"]
    return spec["devicePlugin"]["config"]["name"], spec["migManager"]["config"]["name"]


def point_plugin(scene: Scene, name: str) -> None:
    body = {"spec": {"devicePlugin": {"config": {"name": name}}}}
    scene.e.cluster.patch(CLUSTER_POLICIES, CLUSTER_POLICY["metadata"]["name"], body)


async def pointers_of_somebody_else(scene: Scene) -> None:
    """One names the ConfigMap of somebody else, who hands it over in the end."""
    scene.apply(MIXED)
    await scene.e.until(lambda: pointers(scene) == ("theirs", MIG), "the other pointer", HOUR)
    await left_alone(scene, "theirs")


async def pointers_set_back(scene: Scene) -> None:
    """A person takes one back once both are set, and sets it again in the end."""
    await scene.e.until(lambda: pointers(scene) == (PLUGIN, MIG), "both pointers", HOUR)
    point_plugin(scene, "")
    scene.apply(MIXED)
    await left_alone(scene, "")


async def left_alone(scene: Scene, name: str) -> None:
    """The operator says that the pointer is not its own and does nothing to it; then a person makes it so."""
    await scene.until_condition("Accepted", "False", "PluginConfigNotOurs")
    await asyncio.sleep(60)
    assert pointers(scene) == (name, MIG)
    point_plugin(scene, PLUGIN)
    await scene.ready(seconds=HOUR)


# --- other installations than a GPU Operator that follows labels ----------------------------------


async def there_and_back(scene: Scene) -> None:
    for spec in (MIXED, FULL):
        await scene.serve(spec, seconds=HOUR)


async def repaired_and_overwritten(scene: Scene) -> None:
    await scene.serve(MPS, seconds=HOUR)
    overwrite(scene)
    await scene.e.until(lambda: signalled(scene) == RIGHT, "the repair", HOUR)
    await asyncio.sleep(120)  # the daemons restart, which may be seen as drift
    await scene.ready(seconds=HOUR)


GOLDEN: Mapping[str, Golden] = {
    "a policy on an idle node": Golden(create),
    "a policy on nodes with pods that may and pods that may not be evicted": Golden(
        create_with_pods,
        gpus=4,
        workloads=(SimWorkload("free", 1), SimWorkload("kept", 2)),
        budgets=(pdb("keep", "kept", minAvailable=1),),
    ),
    "a policy on an idle node whose GPUs the DRA driver serves": Golden(create, dra=True),
    "a drain behind a DeviceTaintRule": Golden(
        behind_a_rule,
        gpus=4,
        workloads=(SimWorkload("free", 1), SimWorkload("kept", 2)),
        budgets=(pdb("keep", "kept", minAvailable=1),),
        dra=True,
        tainted=True,
    ),
    "another layout in the middle": Golden(retarget),
    "a node deleted in the middle": Golden(node_deleted, nodes=2),
    "the policy deleted in the middle": Golden(policy_deleted),
    "a policy deleted that resets its nodes": Golden(policy_reset, nodes=2),
    "all GPUNodes deleted in the middle": Golden(gpunodes_deleted),
    "from MPS to MIG in two steps": Golden(two_steps),
    "mig-manager stays pending for ever": Golden(partial(wedged, fault="wedge-pending")),
    "mig-manager fails and leaves the operands paused": Golden(partial(wedged, fault="wedge-paused")),
    "mig-manager says success and the operands are paused": Golden(success_paused),
    "mig-manager fails and a person asks for a retry": Golden(failed_and_retried),
    "requests on the GPUNode": Golden(requested),
    "mig-manager fails and the node goes back to what it was": Golden(rolled_back),
    "a drain that is given up at its time-out": Golden(
        drain_timed_out, gpus=4, workloads=(SimWorkload("kept", 2),), budgets=(pdb("keep", "kept", minAvailable=1),)
    ),
    "the cordon lifted before the point of no return": Golden(uncordoned_before),
    "the cordon lifted after the point of no return": Golden(uncordoned_after),
    "drift that is put right": Golden(drifted),
    "ClusterPolicy pointed at our ConfigMaps": Golden(create, cluster_policy=pointed_at("", "")),
    "ClusterPolicy pointed at theirs by somebody else": Golden(
        pointers_of_somebody_else, cluster_policy=pointed_at("theirs", "")
    ),
    "ClusterPolicy's pointer set back by a person": Golden(pointers_set_back, cluster_policy=pointed_at("", "")),
    "two nodes that share a gang": Golden(
        gang, nodes=2, workloads=(SimWorkload("free", 2, count=2, labels={"jobset.sigs.k8s.io/jobset-name": "train"}),)
    ),
    "pods that leave in every manner": Golden(
        every_manner,
        gpus=8,
        workloads=(SimWorkload("kept", 2),),
        budgets=(pdb("keep", "kept", minAvailable=1),),
        forces=True,
    ),
    "MIG beside NVIDIA's device-plugin chart": Golden(there_and_back, plain=True),
    "the MPS DaemonSet is repaired and overwritten": Golden(repaired_and_overwritten, repairs=True),
    "three of four nodes at once": Golden(three_of_four, nodes=4, workloads=(SimWorkload("free", 6),)),
}
