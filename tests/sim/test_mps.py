"""The MPS control daemon on FakeCluster: what it does to the GPUs, and what the plugin serves meanwhile (docs/design/nvidia.md#b5)."""

import pytest
from hack.cluster.nodes import node_manifest
from hack.sim.fakecluster import FakeCluster
from hack.sim.gpu import InUse
from hack.sim.manifests import daemon_set, install, mps_daemon_set
from hack.sim.mps import most_clients
from hack.sim.mpsset import is_notified, mps_pod_spec
from hack.sim.settings import SimSettings
from tests.sim.build import L40S
from tests.sim.stage import (
    FACTOR,
    GPU,
    MIG_CONFIG,
    NAMESPACE,
    PLUGIN_CONFIG,
    STATE,
    TIMESTAMP,
    SimulatedCluster,
    playing,
    policy,
)

from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, JSON, PODS
from gpusharing.kube.daemonsets import daemon_set_view
from gpusharing.planning.wanted.target import find_deafness

CAPABLE = "nvidia.com/mps.capable"
PRODUCT = "nvidia.com/gpu.product"


def daemons(stage: SimulatedCluster) -> list[JSON]:
    return stage.cluster.objects(PODS, label_selector="app=nvidia-device-plugin-mps-control-daemon")


def modes(stage: SimulatedCluster) -> list[str]:
    return [gpu.compute_mode for gpu in stage.software.nodes["n1"].gpus.look()]


def processes(stage: SimulatedCluster) -> list[list[str]]:
    return [[process.name for process in gpu.processes] for gpu in stage.software.nodes["n1"].gpus.look()]


async def configured(stage: SimulatedCluster, key: str) -> None:
    """Label the node, and wait until the plugin or its crash-loop has followed."""
    before = stage.labels().get(TIMESTAMP)
    stage.patch(labels={PLUGIN_CONFIG: key})
    await stage.until(lambda: stage.labels().get(TIMESTAMP) != before)


async def to_mps(stage: SimulatedCluster, key: str = "mps4", devices: str = "8") -> None:
    await configured(stage, key)
    await stage.until(lambda: stage.offered() == {GPU: devices})


async def test_the_daemon_comes_with_gfds_label_and_makes_every_gpu_exclusive() -> None:
    async with playing() as stage:
        await to_mps(stage)
        assert stage.labels()[CAPABLE] == "true"
        assert stage.labels()["nvidia.com/gpu.sharing-strategy"] == "mps"
        assert stage.labels()["nvidia.com/gpu.replicas"] == "4"
        assert stage.labels()[PRODUCT] == "NVIDIA-H100-80GB-HBM3-SHARED"
        assert len(daemons(stage)) == 1
        assert daemons(stage)[0]["metadata"]["namespace"] == NAMESPACE
        assert modes(stage) == ["ExclusiveProcess"] * 2
        assert processes(stage) == [["nvidia-cuda-mps-server"]] * 2


async def test_the_plugin_serves_nothing_until_the_daemon_does() -> None:
    async with playing() as stage:
        seen: list[dict[str, str]] = []
        stage.cluster.store.on_commit.append(lambda resource, change: seen.append(stage.offered()))
        await to_mps(stage)
        while seen[0] == {GPU: "2"}:
            seen.pop(0)
        assert seen[0] == {GPU: "0"}, "whole GPUs go before shares of them come"


async def test_under_an_older_gpu_operator_the_daemon_hears_of_no_configuration() -> None:
    """docs/design/nvidia.md#b5; the panic was seen on a real kubelet, in a pod as the GPU Operator makes it."""
    old = SimSettings(time_factor=FACTOR, agents=False, play_daemon_sets=True, plugin="0.19.3")
    async with playing(settings=old) as stage:
        await configured(stage, "mps4")
        await stage.until(lambda: stage.said("waits for ever: config-manager never signals it"))
        await stage.until(lambda: stage.offered() == {GPU: "0"})
        assert modes(stage) == ["Default"] * 2


async def test_a_daemon_whose_daemonset_is_mended_gets_a_new_pod_and_serves() -> None:
    """As `kubectl set env` does it: each pod is replaced."""
    released = "/usr/bin/mps-control-daemon"
    settings = SimSettings(time_factor=FACTOR, agents=False, play_daemon_sets=True, mps_signals=released)
    async with playing(settings=settings) as stage:
        made = mps_daemon_set(settings, stage.cluster.get(CLUSTER_POLICIES, "cluster-policy"))
        stage.cluster.add(DAEMON_SETS, made)
        await configured(stage, "mps4")
        await stage.until(lambda: stage.said("waits for ever: config-manager never signals it"))
        before = daemons(stage)[0]["metadata"]["uid"]
        mended = {"spec": {"template": {"spec": mps_pod_spec(SimSettings())}}}
        stage.cluster.patch(DAEMON_SETS, made["metadata"]["name"], mended, NAMESPACE)
        await stage.until(lambda: stage.offered() == {GPU: "8"})
        assert [pod["metadata"]["uid"] for pod in daemons(stage)] != [before]


async def test_a_daemonset_that_shows_no_daemon_leaves_it_to_the_settings() -> None:
    async with playing() as stage:
        name = "nvidia-device-plugin-mps-control-daemon"
        stage.cluster.add(DAEMON_SETS, daemon_set(name, NAMESPACE, {"app": name}, {}))
        await to_mps(stage)


@pytest.mark.parametrize("version", ["0.18.1", "0.18.2", "0.19.3", "0.20.0", "0.20.1", "0.21.0", "1.0.0"])
@pytest.mark.parametrize("signalled", ["mps-control-daemon", "/usr/bin/mps-control-daemon", "mps-control-deamon", ""])
@pytest.mark.parametrize("sees_host", [True, False])
def test_the_operator_believes_of_a_daemon_what_the_simulated_one_does(
    version: str, signalled: str, sees_host: bool
) -> None:
    made = mps_daemon_set(SimSettings(mps_signals=signalled), {"metadata": {"name": "cluster-policy", "uid": "x"}})
    spec = made["spec"]["template"]["spec"]
    spec["hostPID"] = sees_host
    for container in spec["containers"]:
        container["image"] = f"simulated/k8s-device-plugin:v{version}"
    seen = daemon_set_view(made).mps_daemon
    assert seen is not None
    assert is_notified(spec) == (find_deafness(seen) == "")


@pytest.mark.parametrize("state", ["a ClusterPolicy", "no ClusterPolicy", "the kind is not served"])
async def test_hack_sim_creates_the_daemonset_as_the_gpu_operator_does_where_there_is_one(state: str) -> None:
    cluster = FakeCluster()
    if state == "a ClusterPolicy":
        cluster.add(CLUSTER_POLICIES, policy())
    elif state == "the kind is not served":
        cluster.uninstalled.add(CLUSTER_POLICIES)
    created = await install(cluster.client("sim"), SimSettings(agents=False))
    assert f"{NAMESPACE}/nvidia-device-plugin-mps-control-daemon" in created
    made = cluster.get(DAEMON_SETS, "nvidia-device-plugin-mps-control-daemon", NAMESPACE)
    assert (daemon_set_view(made).mps_daemon is not None) == (state == "a ClusterPolicy")
    assert await install(cluster.client("sim"), SimSettings(agents=False)) == []


async def test_leaving_mps_ends_the_daemon_which_frees_the_gpus() -> None:
    async with playing() as stage:
        await to_mps(stage)
        await configured(stage, "full")
        await stage.until(lambda: modes(stage) == ["Default"] * 2 and not daemons(stage))
        await stage.until(lambda: stage.offered() == {GPU: "2"})
        assert processes(stage) == [[], []]
        assert stage.labels()[CAPABLE] == "false"


async def test_a_killed_daemon_leaves_the_gpus_exclusive_even_when_its_pod_goes() -> None:
    async with playing() as stage:
        await to_mps(stage)
        stage.software.inject("n1", "kill-mps-daemon")
        assert processes(stage) == [[], []]
        await configured(stage, "full")
        await stage.until(lambda: not daemons(stage))
        await stage.until(lambda: stage.offered() == {GPU: "2"})
        assert modes(stage) == ["ExclusiveProcess"] * 2


async def test_another_number_of_clients_reaches_a_running_daemon_only_when_its_pod_is_deleted() -> None:
    async with playing() as stage:
        await to_mps(stage)
        daemon = stage.software.nodes["n1"].mps
        await to_mps(stage, "mps8", devices="16")
        assert daemon.clients == 4
        pod = daemons(stage)[0]["metadata"]
        stage.cluster.delete(PODS, pod["name"], NAMESPACE)
        await stage.until(lambda: daemon.clients == 8)
        assert [found["metadata"]["uid"] for found in daemons(stage)] != [pod["uid"]]
        assert modes(stage) == ["ExclusiveProcess"] * 2


async def test_more_clients_than_the_card_takes_end_the_daemon_and_the_plugin_serves_nothing() -> None:
    async with playing() as stage:
        await configured(stage, "mps49")
        await stage.until(lambda: stage.said("maximum allowed replicas exceeded: 49 > 48"))
        await stage.until(lambda: stage.offered() == {GPU: "0"})
        assert modes(stage) == ["Default"] * 2
        await to_mps(stage)


async def test_mps_on_gpus_with_mig_ends_plugin_and_gfd_and_the_labels_are_gone() -> None:
    async with playing() as stage:
        stage.patch(labels={MIG_CONFIG: "all-1g.10gb", STATE: None, PLUGIN_CONFIG: "single"})
        await stage.until(lambda: stage.offered() == {GPU: "14"})
        stage.patch(labels={PLUGIN_CONFIG: "mps4"})
        await stage.until(lambda: stage.said("using MPS is not supported for MIG devices"))
        await stage.until(lambda: stage.said("MPS sharing is not supported for mig devices"))
        await stage.until(lambda: PRODUCT not in stage.labels() and stage.offered() == {GPU: "0"})
        assert not daemons(stage)


async def test_the_driver_refuses_another_mig_mode_while_the_daemon_serves() -> None:
    """Why MPS to MIG takes two steps: mig-manager does not wait for the daemon."""
    async with playing() as stage:
        await to_mps(stage)
        gpus = stage.software.nodes["n1"].gpus
        with pytest.raises(InUse):
            gpus.set_mig_mode(0, True)
        await configured(stage, "full")
        await stage.until(lambda: modes(stage) == ["Default"] * 2)
        assert gpus.set_mig_mode(0, True) == "Applied"


async def test_a_reboot_frees_the_gpus_and_the_daemon_takes_them_again() -> None:
    async with playing() as stage:
        await to_mps(stage)
        stage.software.inject("n1", "reboot-now")
        await stage.until(lambda: modes(stage) == ["Default"] * 2)
        await stage.until(lambda: stage.offered() == {GPU: "8"} and modes(stage) == ["ExclusiveProcess"] * 2)
        assert stage.software.nodes["n1"].mps.clients == 4


async def test_cards_without_mig_take_mps_too() -> None:
    async with playing(node_manifest("n1", product=L40S, gpus=2)) as stage:
        await to_mps(stage)
        assert modes(stage) == ["ExclusiveProcess"] * 2
        assert MIG_CONFIG not in stage.labels()


@pytest.mark.parametrize(
    ("capability", "most"),
    [
        pytest.param((7, 0), 16, id="V100"),
        pytest.param((7, 5), 48, id="T4"),
        pytest.param((9, 0), 48, id="H100"),
        pytest.param((10, 0), 48, id="B200"),
    ],
)
def test_how_many_clients_a_card_takes(capability: tuple[int, int], most: int) -> None:
    assert most_clients(capability) == most
