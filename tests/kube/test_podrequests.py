"""What a pod requests of one node, as the scheduler adds it up (kube/pods.py)."""

from typing import Any

import pytest

from gpusharing.kube.pods import largest_requests, pod_requests

JSON = dict[str, Any]
GPU = "nvidia.com/gpu"


def container(count: object, **more: Any) -> JSON:
    return {"name": "c", "resources": {"limits": {GPU: count, "cpu": "2"}}, **more}


def sidecar(count: int) -> JSON:
    return container(count, restartPolicy="Always")


PODS: dict[str, tuple[JSON, int, int]] = {
    "one container": ({"containers": [container("1")]}, 1, 1),
    "two containers run side by side": ({"containers": [container(1), container("2")]}, 3, 2),
    "requests alone": ({"containers": [{"resources": {"requests": {GPU: "2"}}}]}, 2, 2),
    "limits and requests are one thing": (
        {"containers": [{"resources": {"requests": {GPU: "2"}, "limits": {GPU: "2"}}}]},
        2,
        2,
    ),
    "nothing": ({"containers": [container("0"), {"name": "plain"}]}, 0, 0),
    "a quantity that cannot be read": ({"containers": [container("many")]}, 1, 1),
    "an init container gives its GPU back": ({"initContainers": [container(1)], "containers": [container(1)]}, 1, 1),
    "an init container may need most": (
        {"initContainers": [container(1), container(4)], "containers": [container(2)]},
        4,
        4,
    ),
    "a sidecar stays": ({"initContainers": [sidecar(1)], "containers": [container(2)]}, 3, 2),
    "an init container runs beside the sidecars above it": (
        {"initContainers": [sidecar(1), container(3), sidecar(1)], "containers": [container(1)]},
        4,
        3,
    ),
    "a sidecar below it has not started yet": ({"initContainers": [container(3), sidecar(2)], "containers": []}, 3, 3),
    "overhead of the runtime": ({"containers": [container(1)], "overhead": {GPU: "1", "cpu": "1"}}, 2, 1),
}


@pytest.mark.parametrize("pod", PODS)
def test_what_a_pod_requests_of_its_node_and_in_its_largest_container_with(pod: str) -> None:
    spec, together, largest = PODS[pod]
    assert pod_requests({"spec": spec}) == ({GPU: together} if together else {})
    assert largest_requests({"spec": spec})[GPU] == largest
