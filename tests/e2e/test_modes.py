"""A pool goes through the modes while Deployments hold its GPUs: on real kubelets, with NVIDIA's programs in pods.
MIG alone, with strategy single, is what tests/e2e/test_uninstall.py looks at."""

from dataclasses import replace

import pytest
from tests.e2e.pool import FULL, GPU, MIXED, MPS, NODES, PODS, PoolMode, Walk, holding, holds

pytestmark = pytest.mark.e2e
WALK = (MIXED, MPS, replace(FULL, text="Full again"))


def test_a_fresh_pool_is_adopted_in_mode_full_while_pods_hold_its_gpus(walk: Walk) -> None:
    holds(walk, FULL)
    assert walk.evicted() == []


@pytest.mark.parametrize("stop", [pytest.param(stop, id=stop.text) for stop in WALK])
def test_real_kubelets_end_the_evicted_pods_and_run_them_again_on_the_other_node(walk: Walk, stop: PoolMode) -> None:
    before, walk.moved = walk.mark(), set()
    walk.bring(stop)
    assert walk.evicted(before)
    assert {(NODES[0], NODES[1]), (NODES[1], NODES[0])} <= walk.moved, "one node took the pods while the other changed"
    holds(walk, stop)
    for resource in stop.offered.keys() - {GPU}:
        a_pod_gets_one(walk, resource)


def a_pod_gets_one(walk: Walk, resource: str) -> None:
    path = f"{PODS}/asks"
    walk.site.api.create(PODS, {"metadata": {"name": "asks"}, "spec": holding(resource)})
    walk.wait(lambda: walk.site.api.get(path)["status"].get("phase") == "Running", f"a pod with {resource}")
    assert "asks" in walk.computing(walk.site.api.get(path)["spec"]["nodeName"])
    walk.site.api.delete(path)
    walk.wait(lambda: "asks" not in walk.site.kubectl("get", "pods", "-o", "name"), "the pod to be gone")
