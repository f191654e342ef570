"""Changes where NVIDIA's real DRA driver v0.5.0 serves the GPUs: the shipped operator and agent, mig-manager, the kubelet plugin, and the real scheduler.
SIMULATED: the GPUs, the kubelets (kwok) and Node Feature Discovery."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.nvidia.installations import DRA
from hack.nvidia.loop import FULL, HALVES, MIXED, PODS, NvidiaLoop, is_cordoned, running_loop
from hack.sim.dra import KUBELET_PLUGIN, LABEL_DRA

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

RESOURCES = "/apis/resource.k8s.io/v1"
CLAIMS = f"{RESOURCES}/namespaces/default/resourceclaims"


@pytest.fixture
def loop(nvidia_programs: None) -> Iterator[NvidiaLoop]:
    with (
        tempfile.TemporaryDirectory(prefix="gpusharing-") as folder,
        running_loop(Path(folder), "one", installation=DRA) as made,
    ):
        yield made


def published(loop: NvidiaLoop) -> Counter[str]:
    """What the real driver publishes: profiles, and `gpu` for whole GPUs."""
    slices = loop.api.list(f"{RESOURCES}/resourceslices", fieldSelector="spec.driver=gpu.nvidia.com")
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
