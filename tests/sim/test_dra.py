"""The kubelet plugin of NVIDIA's DRA driver on FakeCluster, and the devices that pods get there."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.sim.dra import DRA_SET, device_classes, published_devices
from hack.sim.dradevices import DraDevices, matches
from hack.sim.gpu import SimulatedGPUs
from hack.sim.manifests import dra_daemon_set, install
from hack.sim.settings import SimSettings
from hack.sim.workloads import SimWorkload, Workloads
from tests.fakes.running import running
from tests.sim.stage import FACTOR, MIG_CONFIG, NAMESPACE, STATE, SimulatedCluster, playing, policy

from gpusharing.agent.library import LibraryError
from gpusharing.kube.client import DEVICE_CLASSES, JSON, PODS, RESOURCE_CLAIMS, RESOURCE_SLICES
from gpusharing.kube.daemonsets import daemon_set_view
from gpusharing.kube.errors import NotFound

H100 = "NVIDIA H100 80GB HBM3"
RECORDED = Path(__file__).parents[1] / "foreign" / "dra-slices.yaml"
SETTINGS = SimSettings(time_factor=FACTOR, agents=False, play_daemon_sets=True, dra=True)
WITHOUT_PLUGIN = policy(devicePlugin={"enabled": False, "config": {"name": "plugin-configs"}})
PLUGIN = "dra-driver-nvidia-gpu-component=kubelet-plugin"
SMALL: JSON = {
    "metadata": {"name": "small"},
    "spec": {
        "extendedResourceName": "nvidia.com/mig-1g.10gb",
        "selectors": [{"cel": {"expression": "device.attributes['gpu.nvidia.com'].profile == '1g.10gb'"}}],
    },
}


def published(stage: SimulatedCluster) -> list[str]:
    return [one["name"] for raw in stage.cluster.objects(RESOURCE_SLICES) for one in raw["spec"]["devices"]]


def plugin_pods(stage: SimulatedCluster) -> list[JSON]:
    pods = stage.cluster.objects(PODS, label_selector=PLUGIN)
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


async def divided(stage: SimulatedCluster) -> None:
    stage.patch(labels={MIG_CONFIG: "all-3g.40gb"})
    gpus = stage.software.nodes["n1"].gpus
    await stage.until(lambda: sum(len(gpu.instances) for gpu in gpus.look()) == 4)
    await stage.until(lambda: stage.labels()[STATE] == "success")


async def test_partitions_are_published_when_the_plugins_pod_is_replaced_and_not_before() -> None:
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        await stage.until(lambda: published(stage) == ["gpu-0", "gpu-1"])
        (pod,) = plugin_pods(stage)
        await divided(stage)
        assert published(stage) == ["gpu-0", "gpu-1"]
        stage.cluster.delete(PODS, pod["metadata"]["name"], NAMESPACE)
        await stage.until(lambda: len(published(stage)) == 4)
        assert published(stage)[0] == "gpu-0-mig-3g40gb-9-0"
        (after,) = plugin_pods(stage)
        assert after["metadata"]["uid"] != pod["metadata"]["uid"]
        (raw,) = stage.cluster.objects(RESOURCE_SLICES)
        assert raw["spec"]["pool"] == {"name": "n1", "generation": 1, "resourceSliceCount": 1}
        assert not stage.said("wipes")


async def test_the_kubelet_wipes_the_slice_of_a_plugin_that_stays_away() -> None:
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        await stage.until(lambda: published(stage))
        stage.patch(labels={"nvidia.com/gpu.present": "false"})
        await stage.until(lambda: not stage.cluster.objects(RESOURCE_SLICES))
        assert plugin_pods(stage) == []
        stage.patch(labels={"nvidia.com/gpu.present": "true"})
        await stage.until(lambda: published(stage) == ["gpu-0", "gpu-1"])


async def test_a_reboot_starts_the_plugin_again_in_its_pod() -> None:
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        await stage.until(lambda: published(stage))
        await divided(stage)
        (pod,) = plugin_pods(stage)
        stage.software.inject("n1", "reboot-now")
        await stage.until(lambda: stage.said("has rebooted"))
        await stage.until(lambda: published(stage) == ["gpu-0", "gpu-1"])
        assert [one["metadata"]["uid"] for one in plugin_pods(stage)] == [pod["metadata"]["uid"]]


async def test_a_gpu_that_nvml_cannot_reach_ends_the_plugin_again_and_again() -> None:
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        await stage.until(lambda: published(stage))
        stage.software.inject("n1", "lose-gpu")
        stage.cluster.delete(PODS, plugin_pods(stage)[0]["metadata"]["name"], NAMESPACE)
        await stage.until(lambda: stage.said("gpu-kubelet-plugin: crash-loops"))
        stage.software.inject("n1", "find-gpu")
        await stage.until(lambda: stage.lines[-1].endswith("publishes gpu-0, gpu-1"))


def test_devices_look_as_the_real_driver_published_them() -> None:
    (recorded,) = yaml.safe_load(RECORDED.read_text())["items"]
    gpus = SimulatedGPUs("n", [H100, H100])
    gpus.set_mig_mode(1, True)
    for profile, start in (("1g.10gb", 3), ("3g.40gb", 4), ("1g.10gb", 0), ("1g.10gb", 1), ("1g.10gb", 2)):
        gpus.create(1, profile, start)
    simulated = {one["name"]: one["attributes"] for one in published_devices(gpus.look())}
    real = {one["name"]: one["attributes"] for one in recorded["spec"]["devices"]}
    assert simulated.keys() == real.keys()
    for name, attributes in simulated.items():
        assert attributes.keys() <= real[name].keys()
        for key in ("type", "profile", "productName"):
            assert attributes.get(key) == real[name].get(key)


def test_a_gpu_with_mig_on_and_without_instances_has_no_device_and_a_lost_one_ends_the_program() -> None:
    gpus = SimulatedGPUs("n", [H100, H100])
    gpus.set_mig_mode(1, True)
    assert [one["name"] for one in published_devices(gpus.look())] == ["gpu-0"]
    gpus.lose(0)
    with pytest.raises(LibraryError, match="GPU 0"):
        published_devices(gpus.look())


async def test_the_daemonset_is_recognized_as_nvidias_driver_and_installed_with_its_classes() -> None:
    view = daemon_set_view(dra_daemon_set(SETTINGS)).dra
    assert view is not None
    assert (view.name, view.release, view.serves_gpus) == (DRA_SET, "dra", True)
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        client = stage.cluster.client("installer")
        assert f"{NAMESPACE}/{DRA_SET}" in await install(client, SETTINGS)
        await install(client, SETTINGS)
        names = {raw["metadata"]["name"] for raw in stage.cluster.objects(DEVICE_CLASSES)}
        assert {"gpu.nvidia.com", "mig.nvidia.com"} <= names
        assert len(names) == len(device_classes())


# --- devices for pods --------------------------------------------------------------------------------------


async def test_the_kubelet_keeps_a_pod_with_a_claim_waiting_until_the_plugin_runs() -> None:
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        asks, other = SimWorkload("asks", 1).body("0"), SimWorkload("asks-nothing", 1, resource="").body("0")
        asks["spec"]["nodeName"] = other["spec"]["nodeName"] = "n1"

        def is_published() -> bool:
            if "n1" not in stage.software.nodes:
                return False
            serves = stage.software.nodes["n1"].kubelet_plugin.serves
            assert stage.software.keeps_waiting(asks) is not serves
            assert not stage.software.keeps_waiting(other)
            return bool(published(stage)) and serves

        await stage.until(is_published)


async def test_a_pod_gets_a_device_by_the_class_of_its_extended_resource_or_of_its_claim() -> None:
    async with playing(settings=SETTINGS, cluster_policy=WITHOUT_PLUGIN) as stage:
        for raw in device_classes():
            stage.cluster.add(DEVICE_CLASSES, raw)
        workloads = Workloads(stage.cluster.client("workloads"), SETTINGS)
        workloads.apply(SimWorkload("old", 2))
        workloads.apply(SimWorkload("new", 1, resource="", device_class="gpu.nvidia.com"))
        async with running(workloads.run()):
            await stage.until(lambda: len(placed(stage)) == 2)
            devices = {device for _, device in placed(stage)}
            assert devices == {"gpu-0", "gpu-1"}, "one each, and the third pod pends"
            app, _ = placed(stage)[0]
            for pod in stage.cluster.objects(PODS, label_selector=f"app={app}"):
                stage.cluster.delete(PODS, pod["metadata"]["name"], "default")
            await stage.until(lambda: {one for one, _ in placed(stage)} == {"old", "new"})


def placed(stage: SimulatedCluster) -> list[tuple[str, str]]:
    """Workload and device of each pod on a node that names its claim."""
    found = []
    for pod in stage.cluster.objects(PODS):
        status = pod.get("status") or {}
        names = [row["resourceClaimName"] for row in status.get("resourceClaimStatuses", ())]
        if "extendedResourceClaimStatus" in status:
            names.append(status["extendedResourceClaimStatus"]["resourceClaimName"])
        if not pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            continue
        for name in names:
            try:
                claim = stage.cluster.get(RESOURCE_CLAIMS, name, "default")
            except NotFound:
                continue
            (result,) = claim["status"]["allocation"]["devices"]["results"]
            found.append((pod["metadata"]["labels"]["app"], result["device"]))
    return found


def stored(raw: JSON, uid: str, created: str = "2026-11-27T00:00:00Z") -> JSON:
    return {**raw, "metadata": {**raw["metadata"], "uid": uid, "creationTimestamp": created}}


def test_of_two_classes_with_an_extended_resource_the_newer_one_serves_it() -> None:
    devices = DraDevices(lambda: None)
    assert devices.class_for("nvidia.com/mig-1g.10gb") == ""
    devices.take(DEVICE_CLASSES, stored(SMALL, "1"), False)
    devices.take(DEVICE_CLASSES, stored({**SMALL, "metadata": {"name": "another"}}, "2"), False)
    assert devices.class_for("nvidia.com/mig-1g.10gb") == "another"
    devices.take(DEVICE_CLASSES, stored({**SMALL, "metadata": {"name": "newer"}}, "3", "2026-11-28T00:00:00Z"), False)
    assert devices.class_for("nvidia.com/mig-1g.10gb") == "newer"
    assert devices.allocate("n1", {"small": 1}) is None, "nothing is published"
    assert devices.allocate("n1", {}) == []


MIG: dict[str, Any] = {"attributes": {"type": {"string": "mig"}, "profile": {"string": "1g.10gb"}, "id": {"int": 0}}}
OWN = "device.attributes['gpu.nvidia.com']"


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("device.driver == 'gpu.nvidia.com'", True),
        (f"device.driver == 'gpu.nvidia.com' && {OWN}.type == 'mig' && {OWN}.profile == '1g.10gb'", True),
        (f"{OWN}.profile == '1g.10gb+me'", False),
        (f"{OWN}.id == 0", True),
        ("device.attributes['other.com'].type == 'mig'", False),
        (f"{OWN}.missing == 'x'", False),
    ],
)
def test_a_selector_compares_driver_and_attributes(expression: str, answer: bool) -> None:
    assert matches(expression, "gpu.nvidia.com", MIG) is answer


def test_a_selector_of_another_form_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="cannot evaluate 'true'"):
        matches("true", "gpu.nvidia.com", MIG)
