"""Only the GPU whose layout changes is emptied, on a real kubelet: a pod on the other one keeps running and its device.
Meanwhile the kubelet is killed, NVIDIA's device plugin starts anew (mig-manager pauses it), and the pod's container does. In the order of the files it is the last one with the GPU Operator's device plugin: the next one clears the pool."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hack.cluster.api import Object
from tests.e2e.pool import MIG, NODES, PODS, POLICY, Walk, holding, policy_of
from tests.e2e.pool import SLICE as HALF

from gpusharing.api.names import LABEL_DEPLOY_PREFIX

pytestmark = pytest.mark.e2e

NODE, SEVENTH, THIRD = NODES[0], "nvidia.com/mig-1g.10gb", "nvidia.com/mig-2g.20gb"


def divide(walk: Walk, second: dict[str, int]) -> None:
    """Ask NODE alone for GPU 0 in halves and GPU 1 as given; pods on GPUs that stay as they are not disturbed."""
    layouts = [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": second}]
    policy = policy_of(MIG)
    policy["spec"] |= {
        "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": NODE}},
        "mig": {"strategy": "mixed", "layouts": layouts},
        "drain": {"scope": "Changed", "unmanagedPods": "Evict", "strandedPods": "Allow"},
    }
    walk.site.api.apply(POLICY, policy)


@pytest.fixture
def empty(walk: Walk) -> Iterator[Walk]:
    """The pool without the Deployment; in the end without pods on its GPUs."""
    walk.site.kubectl("delete", "deployment", "holder", "--ignore-not-found", "--wait")
    walk.wait(lambda: not walk.running(), "the Deployment's pods to be gone")
    yield walk
    walk.site.kubectl("delete", "pods", "keeps", "leaves", "--ignore-not-found", "--wait")


def run(walk: Walk, name: str, resource: str) -> Object:
    spec = {**holding(resource), "nodeSelector": {"kubernetes.io/hostname": NODE}, "restartPolicy": "Always"}
    walk.site.api.create(PODS, {"metadata": {"name": name}, "spec": spec})
    walk.wait(lambda: name in walk.computing(NODE), f"{name} to compute")
    pod: Object = walk.site.api.get(f"{PODS}/{name}")
    return pod


def place(walk: Walk, name: str) -> list[tuple[int, int]]:
    rows = walk.shown(NODE)["processes"]
    return [(row["gpu"], row["gpu_instance"]) for row in rows if row["name"] == f"SIMULATED-{name}"]


def kill_container(walk: Walk, pod: Object) -> None:
    (status,) = walk.site.api.get(f"{PODS}/{pod['metadata']['name']}")["status"]["containerStatuses"]
    identifier = status["containerID"].rpartition("/")[2]
    walk.site.nodes[NODE].ctr("task", "kill", "--signal", "SIGKILL", identifier)


def restarts(walk: Walk, name: str) -> int:
    return int(walk.site.api.get(f"{PODS}/{name}")["status"]["containerStatuses"][0]["restartCount"])


def test_a_pod_on_another_gpu_keeps_running_and_keeps_its_device(empty: Walk) -> None:
    walk = empty
    divide(walk, {"1g.10gb": 7})
    walk.wait(walk.is_ready, f"{NODE} to be divided")
    kept, leaves = run(walk, "keeps", HALF), run(walk, "leaves", SEVENTH)
    before, since = place(walk, "keeps"), walk.mark()
    assert before[0][0] == 0
    node = walk.site.nodes[NODE]
    divide(walk, {"2g.20gb": 3})

    def cordoned() -> bool:
        return bool(walk.site.api.get(f"/api/v1/nodes/{NODE}")["spec"].get("unschedulable"))

    walk.wait(cordoned, f"{NODE} to be cordoned")
    node.kill_program("kubelet")
    node.start_kubelet()
    node.wait_ready()
    kill_container(walk, kept)
    walk.wait(lambda: restarts(walk, "keeps") == 1, "the container to start again")
    walk.wait(walk.is_ready, f"{NODE} to have its new layout")
    assert walk.evicted(since) == [leaves["metadata"]["name"]]
    after = walk.site.api.get(f"{PODS}/keeps")
    assert after["metadata"]["uid"] == kept["metadata"]["uid"]
    assert after["status"]["phase"] == "Running"
    walk.wait(lambda: place(walk, "keeps") == before, "the pod to compute on the device that it had")
    offered = walk.site.api.get(f"/api/v1/nodes/{NODE}")["status"]["allocatable"]
    assert {name: offered.get(name) for name in (HALF, THIRD)} == {HALF: "2", THIRD: "3"}
    kill_container(walk, kept)
    walk.wait(lambda: restarts(walk, "keeps") == 2, "the container to start once more")
    walk.wait(lambda: place(walk, "keeps") == before, "the pod to have its device still")


# --- a kubelet without the plugin (docs/design/nvidia.md#b10) -----------------------------------------------------


@contextmanager
def without_plugin(walk: Walk) -> Iterator[None]:
    """NVIDIA's device plugin is away from NODE, as during a run of mig-manager, which would be over too soon."""
    show_plugin(walk, "false")
    walk.wait(lambda: offered(walk, "allocatable") == "0", "the kubelet to notice that the plugin is away")
    yield
    show_plugin(walk, "true")
    walk.wait(lambda: offered(walk, "allocatable") == "2", "the plugin to serve again")


def show_plugin(walk: Walk, value: str) -> None:
    labels = {f"{LABEL_DEPLOY_PREFIX}device-plugin": value}
    walk.site.api.merge_patch(f"/api/v1/nodes/{NODE}", {"metadata": {"labels": labels}})


def offered(walk: Walk, kind: str) -> str:
    """How many halves of a GPU the node has in `capacity` or `allocatable`."""
    return str(walk.site.api.get(f"/api/v1/nodes/{NODE}")["status"][kind].get(HALF))


def waiting(walk: Walk, name: str) -> str:
    (status,) = walk.site.api.get(f"{PODS}/{name}")["status"]["containerStatuses"]
    return str(status["state"].get("waiting", {}).get("reason"))


def test_a_kubelet_that_restarts_without_the_plugin_fails_pods_whose_container_is_not_running(empty: Walk) -> None:
    walk = empty
    divide(walk, {"2g.20gb": 3})
    walk.wait(walk.is_ready, f"{NODE} to be divided")
    runs, crashes = run(walk, "keeps", HALF), run(walk, "leaves", HALF)
    node, since = walk.site.nodes[NODE], walk.mark()
    with without_plugin(walk):
        kill_container(walk, crashes)  # another one follows at once, and the next after ten seconds
        walk.wait(lambda: restarts(walk, "leaves") == 1, "the container to start again")
        kill_container(walk, crashes)
        walk.wait(lambda: waiting(walk, "leaves") == "CrashLoopBackOff", "the container to wait")
        node.kill_program("kubelet")
        node.start_kubelet()
        node.wait_ready()
        walk.wait(lambda: walk.site.api.get(f"{PODS}/leaves")["status"]["phase"] == "Failed", "the pod to be refused")
        status = walk.site.api.get(f"{PODS}/leaves")["status"]
        assert status["reason"] == "UnexpectedAdmissionError"
        assert "no healthy devices present" in status["message"]
    after = walk.site.api.get(f"{PODS}/keeps")
    assert (after["metadata"]["uid"], after["status"]["phase"]) == (runs["metadata"]["uid"], "Running")
    assert restarts(walk, "keeps") == 0
    assert not walk.evicted(since)


@pytest.mark.thorough
def test_after_five_minutes_without_the_plugin_a_container_starts_again_only_when_it_is_back(empty: Walk) -> None:
    walk = empty
    divide(walk, {"2g.20gb": 3})
    walk.wait(walk.is_ready, f"{NODE} to be divided")
    kept = run(walk, "keeps", HALF)
    before, since = place(walk, "keeps"), walk.mark()
    with without_plugin(walk):
        assert offered(walk, "capacity") == "2"
        walk.wait(lambda: offered(walk, "capacity") == "0", "the kubelet to drop the resource")
        assert place(walk, "keeps") == before
        kill_container(walk, kept)
        walk.wait(lambda: waiting(walk, "keeps") == "CreateContainerConfigError", "the container to wait")
    walk.wait(lambda: place(walk, "keeps") == before, "the pod to compute on the device that it had")
    assert walk.site.api.get(f"{PODS}/keeps")["metadata"]["uid"] == kept["metadata"]["uid"]
    assert not walk.evicted(since)
