"""NVIDIA's device-plugin chart without the GPU Operator and none of its labels, without and with mig-manager (stack/requirements.py), and two stacks at once (stack/plugins.py)."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hack.sim.workloads import SimWorkload
from tests import plainchart
from tests.embedded.oracle import difference
from tests.embedded.plainscene import GPU_OPERATORS, bare, plain, with_mig_manager
from tests.embedded.scene import FULL, H100, HOUR, L40S, MIXED, MPS, SLICED, Scene, node, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_PLUGIN_CONFIG
from gpusharing.kube.client import DAEMON_SETS, JSON, PODS

MODES = {"Full": FULL, "TimeSlicing": SLICED, "MPS": MPS}
MORE_CLIENTS: JSON = {"mode": "MPS", "mps": {"replicas": 8}}


def proven(scene: Scene, spec: JSON) -> None:
    """Both machines are as the spec wants, and nobody wrote a label that only the GPU Operator reads."""
    for name in ("gpu-1", "gpu-2"):
        assert difference(spec, scene.e.node(name), scene.e.software.nodes[name]) == ""
        assert [key for key in scene.labels(name) if key.startswith(GPU_OPERATORS)] == []


@pytest.mark.parametrize("way", list(itertools.permutations(MODES, 2)), ids=" to ".join)
@pytest.mark.parametrize("product", [H100, L40S], ids=["with MIG", "without MIG"])
@virtually
async def test_a_mode_that_needs_no_mig_manager_works(way: tuple[str, str], product: str) -> None:
    async with plain(product) as scene:
        for mode in way:
            await scene.serve(MODES[mode])
            proven(scene, MODES[mode])


@virtually
async def test_another_number_of_mps_clients_goes_through_whole_gpus_because_no_pod_may_be_deleted() -> None:
    async with plain() as scene:
        await scene.serve(MPS)
        since = scene.mark()
        await scene.serve(MORE_CLIENTS, seconds=1200)
        proven(scene, MORE_CLIENTS)
        assert [w for w in scene.writes(since, "pods") if w.call.verb == "delete"] == []
        configs = {
            write.call.body["metadata"]["labels"][LABEL_PLUGIN_CONFIG]
            for write in scene.writes(since, "nodes")
            if write.call.body and LABEL_PLUGIN_CONFIG in write.call.body["metadata"].get("labels", {})
        }
        assert len(configs) == 2, "the stop, and then the new number"


LEAVING = {"whole GPUs": FULL, "another number of clients": MORE_CLIENTS}


@pytest.mark.parametrize("spec", LEAVING.values(), ids=LEAVING)
@virtually
async def test_while_the_mps_daemon_of_the_chart_does_not_run_no_node_is_drained_to_leave_mps(spec: JSON) -> None:
    async with plain(workloads=[SimWorkload("client", 1)]) as scene:
        await scene.serve(MPS)
        await scene.running("client", 1)
        daemons = scene.e.cluster.objects(PODS, label_selector="app.kubernetes.io/name=nvidia-device-plugin")
        pods = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in daemons}
        for name, pod in pods.items():
            scene.e.software.inject(name, "kill-mps-daemon")
            crashing = {"name": "mps-control-daemon-ctr", "ready": False, "restartCount": 7}
            not_ready = {"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [crashing]}
            scene.e.cluster.patch(PODS, pod, {"status": not_ready}, plainchart.NAMESPACE, subresource="status")
        mark, evicted = scene.mark(), scene.evicted()
        scene.apply(spec)
        for name, pod in pods.items():
            transition = await scene.reason(name, "MPSDaemonNotReady")
            assert "GPUs 0, 1 would stay in compute mode ExclusiveProcess" in transition["message"]
            command = f"kubectl -n {plainchart.NAMESPACE} delete pod {pod}."
            assert command in transition["message"]
        await asyncio.sleep(1800)
        assert (scene.node_writes(mark), scene.evicted()) == ({}, evicted)
        for pod in pods.values():
            scene.e.cluster.delete(PODS, pod, plainchart.NAMESPACE)
        await scene.ready(seconds=1200)
        proven(scene, spec)


@virtually
async def test_mig_says_what_is_missing_and_touches_nothing() -> None:
    async with plain() as scene:
        since = scene.mark()
        await scene.reject(MIXED, reason="MigManagerMissing")
        command = "; run: kubectl apply -k deploy/mig-manager"
        await scene.e.until(
            lambda: scene.condition("Accepted").get("message", "").endswith(command),
            "the command, once the agents have reported",
            HOUR,
        )
        assert scene.node_writes(since) == {}


WITH_MIG = {"MIG": MIXED, "Full": FULL, "TimeSlicing": SLICED, "MPS": MPS}


@pytest.mark.parametrize("way", list(itertools.permutations(WITH_MIG, 2)), ids=" to ".join)
@virtually
async def test_with_mig_manager_beside_the_chart_every_mode_works(way: tuple[str, str]) -> None:
    async with with_mig_manager() as scene:
        for mode in way:
            await scene.serve(WITH_MIG[mode], seconds=1200)
            for name in ("gpu-1", "gpu-2"):
                machine = scene.e.software.nodes[name]
                assert difference(WITH_MIG[mode], scene.e.node(name), machine) == ""
                assert scene.labels(name)[LABEL_DEPLOY_CLIENT] == "true"


@virtually
async def test_without_gpu_feature_discovery_nothing_begins_until_it_is_there() -> None:
    async with plain(discovery=False) as scene:
        row = await scene.reject(SLICED, reason="FeatureDiscoveryMissing")
        assert "--set gfd.enabled=true" in row["message"]
        scene.e.cluster.add(DAEMON_SETS, plainchart.discovery())
        await scene.ready()
        proven(scene, SLICED)


@virtually
async def test_without_any_stack_the_policy_says_so() -> None:
    async with open_scene(bare(node("gpu-1")), cluster_policy=None, sim={"plain_config": "x"}) as scene:
        row = await scene.reject(FULL, reason="ClusterPolicyMissing")
        assert "gpuOperator.namespace" in row["message"]
        assert scene.e.cluster.objects(PODS, label_selector="app=nvidia-mig-manager") == []


CHART = [
    plainchart.running(plainchart.plugin(client="true")),
    plainchart.discovery(client="true"),
    plainchart.mps(client="true"),
    plainchart.running(plainchart.mig_manager()),
]
OLD = plainchart.running(plainchart.mig_manager(version="v0.13.1"), "zz-mig-manager")
THEIRS = plainchart.running(plainchart.gpu_operators("gpu-operators-mig-manager", "nvidia-mig-manager", "mig-manager"))
NARROW = {LABEL_DEPLOY_CLIENT: "true", "pool": "b"}


@asynccontextmanager
async def with_sets(sets: list[JSON], *, cluster_policy: bool) -> AsyncIterator[Scene]:
    """Two nodes with these DaemonSets, of NVIDIA's chart alone or beside the GPU Operator."""
    if not cluster_policy:
        async with with_mig_manager(sets=sets) as scene:
            yield scene
        return
    async with open_scene(*nodes(2), start=False) as scene:
        for one in sets:
            scene.e.cluster.add(DAEMON_SETS, one)
        scene.e.start_operator()
        yield scene


TWINS = {
    "two mig-managers beside the chart": ([*CHART, OLD], False, ("zz-mig-manager", "nvidia-mig-manager")),
    "two charts": (
        [*CHART, plainchart.running(CHART[0], "zz-plugin")],
        False,
        ("zz-plugin", "nvdp-nvidia-device-plugin"),
    ),
    "a chart for some of the nodes of another": (
        [*CHART, plainchart.running(CHART[0], "zz-plugin", selector=NARROW, wanted=1)],
        False,
        ("zz-plugin", "nvdp-nvidia-device-plugin"),
    ),
    "a mig-manager beside the GPU Operator's": (
        [THEIRS, *CHART],
        True,
        ("nvidia-mig-manager", "gpu-operators-mig-manager"),
    ),
}


@pytest.mark.parametrize(("sets", "cluster_policy", "named"), TWINS.values(), ids=TWINS)
@virtually
async def test_two_that_do_the_same_on_the_same_nodes_are_refused_before_any_drain(
    sets: list[JSON], cluster_policy: bool, named: tuple[str, str]
) -> None:
    async with with_sets(sets, cluster_policy=cluster_policy) as scene:
        since = scene.mark()
        row = await scene.reject(MIXED, reason="SeveralStacks")
        assert all(f"DaemonSet gpu-operator/{name}" in row["message"] for name in named)
        await asyncio.sleep(HOUR)
        assert scene.node_writes(since) == {}
        scene.e.cluster.delete(DAEMON_SETS, named[0], plainchart.NAMESPACE)
        await scene.ready()


APART = {
    "one chart for each pool": [
        plainchart.running(plainchart.plugin(client="true"), selector={LABEL_DEPLOY_CLIENT: "true", "pool": "a"}),
        plainchart.running(plainchart.plugin(client="true"), "zz-plugin", selector=NARROW),
        *CHART[1:],
    ],
    "a mig-manager that should run nowhere": [*CHART, plainchart.running(OLD, wanted=0)],
    "a mig-manager that is being deleted": [
        *CHART,
        {**OLD, "metadata": {**OLD["metadata"], "deletionTimestamp": "2026-11-27T12:00:00Z"}},
    ],
}


@pytest.mark.parametrize("sets", APART.values(), ids=APART)
@virtually
async def test_two_that_may_well_be_apart_are_let_be(sets: list[JSON]) -> None:
    async with with_sets(sets, cluster_policy=False) as scene:
        await scene.serve(MIXED)
