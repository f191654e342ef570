"""NVIDIA's real DRA driver on the SIMULATED library and a real API server: what it publishes of static partitions, and changes where it serves the GPUs, with the shipped operator and agent, mig-manager and the real scheduler.
SIMULATED: the GPUs, the kubelets (kwok) and Node Feature Discovery."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.nvidia.dradriver import kubelet_plugin
from hack.nvidia.installations import DRA
from hack.nvidia.loop import FULL, HALVES, MIXED, PODS, NvidiaLoop, is_cordoned
from hack.nvidia.sandbox import Sandbox
from hack.nvmlsim.simulator import Simulator
from hack.sim.dra import KUBELET_PLUGIN, LABEL_DRA
from tests.nvidia.conftest import short_loop

from gpusharing.planning.gpus.geometry import Layout

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

RESOURCES = "/apis/resource.k8s.io/v1"
SLICES, CLAIMS = f"{RESOURCES}/resourceslices", f"{RESOURCES}/namespaces/default/resourceclaims"
SECONDS = 60.0
SEVEN: Layout = (("1g.10gb", 7),)
SOME: Layout = (("1g.10gb", 4), ("3g.40gb", 1))


def configuration(*layouts: Layout | None) -> list[object]:
    return [
        {"devices": [index], "mig-enabled": layout is not None, "mig-devices": dict(layout or ())}
        for index, layout in enumerate(layouts)
    ]


CONFIGURATIONS = {
    "whole": configuration(None, None),
    "seven": configuration(SEVEN, SEVEN),
    "mixed": configuration(None, SOME),
}


class DraNode:
    """A Node whose two H100 the DRA driver's kubelet plugin publishes."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.api, self.name, self._folder = plane.api, f"dra-{os.getpid()}", folder
        machine = Simulator.create(folder / "nvml.state", ["h100-80gb"] * 2, seed="dra")
        self._sandbox = Sandbox(machine, folder / "box")
        self._plugin = kubelet_plugin(self._sandbox, self.name, plane.kubeconfig)
        (folder / "mig.yaml").write_text(yaml.safe_dump({"version": "v1", "mig-configs": CONFIGURATIONS}))
        self.api.create("/api/v1/nodes", {"metadata": {"name": self.name}})

    def divide(self, name: str) -> None:
        ended = self._sandbox.run("nvidia-mig-parted", "apply", "-f", str(self._folder / "mig.yaml"), "-c", name)
        assert ended.returncode == 0, ended.stderr

    @contextmanager
    def kubelet_plugin(self) -> Iterator[None]:
        self._plugin.start()
        try:
            yield
        finally:
            self._plugin.stop()

    def slices(self) -> list[Object]:
        found = self.api.list(SLICES, fieldSelector="spec.driver=gpu.nvidia.com")
        return [one for one in found if one["spec"].get("nodeName") == self.name]

    def published(self) -> list[Layout | None]:
        """The layouts of the GPUs in the slices, sorted; None for a GPU with MIG off."""
        divided: dict[str, Counter[str]] = {}
        whole = 0
        for device in (each for one in self.slices() for each in one["spec"].get("devices", ())):
            facts = {key: value.get("string") for key, value in device["attributes"].items()}
            if facts["type"] == "mig":
                divided.setdefault(facts["parentUUID"], Counter())[facts["profile"]] += 1
            else:
                whole += 1
        return [None] * whole + sorted(tuple(sorted(counts.items())) for counts in divided.values())

    def wait_published(self, *layouts: Layout | None) -> None:
        try:
            wait_until(lambda: self.published() == list(layouts), SECONDS, "the layouts to be published")
        except TimeoutError:
            pytest.fail(f"{self.published()} is published: {self._plugin.log.read_text()[-2000:]}")


@pytest.fixture
def node(plane: ControlPlane) -> Iterator[DraNode]:
    """A node whose kubelet plugin does not run yet. Its folder has a short name, because the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gpusharing-") as folder:
        yield DraNode(plane, Path(folder))


def test_partitions_are_published_at_the_start_of_the_kubelet_plugin_only(node: DraNode) -> None:
    with node.kubelet_plugin():
        node.wait_published(None, None)
        node.divide("seven")
        assert node.published() == [None, None], "a running plugin does not look again"
    with node.kubelet_plugin():
        node.wait_published(SEVEN, SEVEN)
    node.divide("mixed")
    assert node.published() == [SEVEN, SEVEN], "a slice outlives its pod, so that it alone proves nothing"
    with node.kubelet_plugin():
        node.wait_published(None, SOME)
        (one,) = node.slices()
        assert (one["spec"]["pool"]["name"], one["spec"]["driver"]) == (node.name, "gpu.nvidia.com")
    node.divide("whole")
    with node.kubelet_plugin():
        node.wait_published(None, None)


@pytest.fixture
def loop(nvidia_programs: None) -> Iterator[NvidiaLoop]:
    with short_loop("one", installation=DRA) as made:
        yield made


def published(loop: NvidiaLoop) -> Counter[str]:
    """What the real driver publishes: profiles, and `gpu` for whole GPUs."""
    slices = loop.api.list(SLICES, fieldSelector="spec.driver=gpu.nvidia.com")
    devices = [device for one in slices for device in one["spec"].get("devices", ())]
    return Counter(device["attributes"].get("profile", {"string": "gpu"})["string"] for device in devices)


def plugin(loop: NvidiaLoop) -> str:
    where = {"labelSelector": f"{LABEL_DRA}={KUBELET_PLUGIN}"}
    (pod,) = loop.api.list("/api/v1/namespaces/gpu-operator/pods", **where)
    return str(pod["metadata"]["uid"])


def place(loop: NvidiaLoop, resource: str) -> tuple[str, str]:
    """Create a pod with an old pod spec; returns its name and the device that the scheduler gave it."""
    container = {"name": "main", "image": "simulated", "resources": {"limits": {resource: "1"}}}
    manifest = {"metadata": {"generateName": "work-"}, "spec": {"containers": [container]}}
    name = str(loop.api.create(PODS, manifest)["metadata"]["name"])
    loop.wait(lambda: loop.api.get(f"{PODS}/{name}")["spec"].get("nodeName"), f"{name} to be placed")
    status = loop.api.get(f"{PODS}/{name}")["status"]["extendedResourceClaimStatus"]
    claim = loop.api.get(f"{CLAIMS}/{status['resourceClaimName']}")
    (result,) = claim["status"]["allocation"]["devices"]["results"]
    return name, str(result["device"])


def test_each_change_is_proven_by_what_the_real_driver_publishes(loop: NvidiaLoop) -> None:
    loop.bring(**FULL)
    assert published(loop) == {"gpu": 2}
    work, device = place(loop, "nvidia.com/gpu")
    assert device in ("gpu-0", "gpu-1")
    walk = (
        (HALVES, {"3g.40gb": 4}, "nvidia.com/mig-3g.40gb"),
        (MIXED, {"1g.10gb": 4, "2g.20gb": 2, "3g.40gb": 2}, "nvidia.com/mig-1g.10gb"),
        (FULL, {"gpu": 2}, "nvidia.com/gpu"),
    )
    for spec, wanted, resource in walk:
        before, evicted = plugin(loop), work
        loop.bring(**spec)
        assert published(loop) == wanted
        assert plugin(loop) != before
        assert loop.served("one") == {}
        assert not is_cordoned(loop, "one")
        assert loop.evicted()[-1] == evicted
        work, device = place(loop, resource)
