"""A fleet that somebody configured by hand, on NVIDIA's own programs: they are the judges of `import | apply`.

SIMULATED: the GPUs, the kubelets, Node Feature Discovery, and the GPU Operator, which makes its operands' pods anew
when ClusterPolicy changes.
"""

import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.audit import read_requests, wait_logged
from hack.nvidia.loop import OPERATOR, WAITS, Loop, is_cordoned, mig_state, running_loop
from hack.nvidia.operands import SELECTORS
from tests.integration.test_output import plugin
from tests.recipes import BALANCED, MIG, PLUGIN, parted, time_slicing

from hack import stage

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

OPERANDS = "/api/v1/namespaces/gpu-operator"
CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"
NODES = "/api/v1/nodes"
MIXED = "flags:\n  migStrategy: mixed\n"
SERVED = {
    "one": {"nvidia.com/mig-3g.40gb": 4},
    "two": {"nvidia.com/gpu": 8},
    "three": {"nvidia.com/gpu": 2},
    "four": {"nvidia.com/mig-1g.10gb": 8, "nvidia.com/mig-2g.20gb": 4, "nvidia.com/mig-3g.40gb": 4},
}
LABELS: dict[str, dict[str, str]] = {
    "one": {MIG: "halves", PLUGIN: "h100"},
    "two": {PLUGIN: "ts-4"},
    "three": {},
    "four": {MIG: "all-balanced", PLUGIN: "shared-instances"},
}
"""MIG, time-slicing, whole GPUs, and both on top of each other."""
INSTANCES = tuple(f"nvidia.com/mig-{profile}" for profile in ("1g.10gb", "2g.20gb", "3g.40gb"))
MAPS = {
    "time-slicing-config": {
        "h100": time_slicing({"nvidia.com/gpu": 8, "nvidia.com/mig-1g.10gb": 2}, MIXED),
        "ts-4": time_slicing({"nvidia.com/gpu": 4}),
        "shared-instances": time_slicing(dict.fromkeys(INSTANCES, 2), MIXED),
    },
    "custom-mig-config": {"config.yaml": parted({"halves": {"3g.40gb": 2}, "all-balanced": BALANCED})},
}
WELL = "exit status 0\n"
VALUES = (
    "gpuOperator.adminPluginConfigMap=time-slicing-config,gpuOperator.adminMigConfigMap=custom-mig-config"
)


@pytest.fixture(scope="module")
def loop(nvidia_programs: None) -> Iterator[Loop]:
    with (
        tempfile.TemporaryDirectory(prefix="gpusharing-") as folder,
        running_loop(Path(folder), *LABELS) as made,
    ):
        yield made


def roll(loop: Loop) -> None:
    """What the GPU Operator does when ClusterPolicy changes: every operand's pod is made anew."""
    old = {pod["metadata"]["uid"] for pod in loop.api.list(f"{OPERANDS}/pods")}
    loop.plane.kubectl("-n", "gpu-operator", "delete", "pods", "--all", "--wait=false")

    def anew() -> bool:
        pods = loop.api.list(f"{OPERANDS}/pods")
        running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
        apps = [pod["metadata"]["labels"]["app"] for pod in running]
        return not old & {pod["metadata"]["uid"] for pod in pods} and all(
            apps.count(app) == len(loop.nodes) for app in list(SELECTORS)[:3]
        )

    loop.wait(anew, "the operands to be made anew")


def point(loop: Loop, plugin_map: str, mig_map: str) -> None:
    """Somebody edits ClusterPolicy."""
    names = {"devicePlugin": {"config": {"name": plugin_map}}, "migManager": {"config": {"name": mig_map}}}
    loop.api.merge_patch(CLUSTER_POLICY, {"spec": names})
    roll(loop)


def wait_as_by_hand(loop: Loop) -> None:
    """Until NVIDIA's programs serve what their owner asked for."""
    for node, served in SERVED.items():
        loop.wait(lambda n=node, s=served: loop.served(n) == s, f"{node} to offer {served}")
        loop.wait(lambda n=node: mig_state(loop, n) == "success", f"mig-manager on {node}")


def for_all_nodes(loop: Loop) -> str:
    """What `import` proposes as soon as it leaves no node out: a mig-manager that was started anew applies its label
    once more, and until then it says to ask again."""
    said = [""]

    def complete() -> bool:
        said.append(plugin(loop.plane.kubeconfig, "import"))
        return said[-1].endswith(WELL)

    try:
        loop.wait(complete, "a policy for each node")
    except TimeoutError:
        assert said[-1].endswith(WELL), said[-1]
    return said[-1].removesuffix(WELL)


def instances(loop: Loop) -> dict[str, list[object]]:
    """The instances of each node with their ids: another one would have another."""
    return {
        node: [gpu["instances"] for gpu in loop.nodes[node].simulator.show()["gpus"]] for node in loop.nodes
    }


def computing(loop: Loop) -> set[str]:
    """Names of the processes that use a GPU."""
    return {one["name"] for node in loop.nodes.values() for one in node.simulator.show()["processes"]}


def node_writes(loop: Loop) -> dict[str, int]:
    """How often the operator has written to each Node, in both of its lives."""
    wait_logged(loop.plane.audit_log, loop.api)
    asked = read_requests(loop.plane.audit_log, OPERATOR)
    return Counter(one.name for one in asked if one.is_write and one.resource == "nodes" and one.status < 300)


def test_nvidias_programs_find_everything_in_place_when_a_fleet_is_taken_over(loop: Loop) -> None:
    for name, data in MAPS.items():
        loop.api.create(f"{OPERANDS}/configmaps", {"metadata": {"name": name}, "data": data})
    point(loop, *MAPS)
    for node, labels in LABELS.items():
        loop.api.merge_patch(f"{NODES}/{node}", {"metadata": {"labels": labels}})
    wait_as_by_hand(loop)
    pods = {loop.run_pod("one", "nvidia.com/mig-3g.40gb"), loop.run_pod("two", "nvidia.com/gpu")}
    before, working = instances(loop), computing(loop)

    said = plugin(loop.plane.kubeconfig, "import")
    assert f"--set {VALUES}" in said
    (patch,) = {line.strip() for line in said.splitlines() if line.strip().startswith("kubectl patch")}
    loop.operator.stop()
    stage.install_chart(loop.plane.kubeconfig, "--set", f"operator.replicas=0,{VALUES}")
    maps = dict(zip(("admin_plugin_config_map", "admin_mig_config_map"), MAPS, strict=True))
    loop.operator = stage.operator(loop.plane.kubeconfig, loop.operator.log.parent, 1.0, **WAITS, **maps)
    with loop.operator:
        ours, parted_by_us = (
            f"{OPERANDS}/configmaps/gpusharing-{name}" for name in ("device-plugin", "mig-parted")
        )
        loop.wait(lambda: "ts-4" in loop.api.get(ours)["data"], "the entries to be merged")
        loop.wait(
            lambda: "halves:" in loop.api.get(parted_by_us)["data"]["config.yaml"],
            "those of mig-manager, too",
        )
        loop.plane.kubectl(*shlex.split(patch)[1:])
        roll(loop)
        wait_as_by_hand(loop)
        proposed = for_all_nodes(loop)
        loop.plane.kubectl("apply", "-f", "-", stdin=proposed)
        policies = [str(one["metadata"]["name"]) for one in loop.api.list(POLICIES)]
        assert len(policies) == len(LABELS)
        for policy in policies:
            stage.wait_ready(loop.api, policy)

    assert (instances(loop), computing(loop)) == (before, working)
    assert all(f"SIMULATED-{pod}" in working for pod in pods)
    assert loop.evicted() == []
    assert node_writes(loop) == dict.fromkeys(LABELS, 1), "each is told its policy and mode, and nothing else"
    for node, labels in LABELS.items():
        assert loop.labels(node).items() >= labels.items(), "the names that they had"
        assert not is_cordoned(loop, node)
