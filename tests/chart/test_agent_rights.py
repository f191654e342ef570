"""The chart gives the agent exactly the rights that hack/agentfields.py says its fields need, and no other."""

from typing import Any

import pytest
from hack.agentfields import NeededRight
from tests.chart.charts import Helm, find


def pod_of(helm: Helm, *values: str) -> dict[str, Any]:
    arguments = [word for value in values for word in ("--set", value)]
    pod: dict[str, Any] = find(helm.template(*arguments), "DaemonSet", "gpusharing-agent")["spec"]["template"]["spec"]
    return pod


def rights(pod: dict[str, Any]) -> set[NeededRight]:
    """What a pod can do, by what the container runtime and the kernel look at."""
    (container,) = pod["containers"]
    environ = {one["name"]: one.get("value") for one in container["env"]}
    found = {NeededRight.NOTHING}
    driver = (environ.get("NVIDIA_VISIBLE_DEVICES"), environ.get("NVIDIA_DRIVER_CAPABILITIES"))
    if driver == ("all", "utility"):
        found.add(NeededRight.DRIVER)
    if container["securityContext"].get("privileged"):
        found.add(NeededRight.MIG_CONFIG)
    if pod.get("hostPID"):
        found.add(NeededRight.HOST_PID)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    if "/var/lib/kubelet/pod-resources" in mounts and pod["securityContext"]["runAsUser"] == 0:
        found.add(NeededRight.POD_RESOURCES)
    if "/var/log/pods" in mounts and environ.get("POD_LOGS") == "/var/log/pods":
        found.add(NeededRight.POD_LOGS)
    return found


DEFAULT = set(NeededRight)


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("agent.interval=30s", DEFAULT),
        ("agent.privileged=false", DEFAULT - {NeededRight.MIG_CONFIG, NeededRight.POD_LOGS}),
        ("agent.podLogsPath=", DEFAULT - {NeededRight.POD_LOGS}),
    ],
    ids=["by default", "unprivileged", "without the pods' logs"],
)
def test_each_right_comes_with_its_value(helm: Helm, value: str, given: set[NeededRight]) -> None:
    assert rights(pod_of(helm, value)) == given
    key = value.partition("=")[0]
    if key == "agent.privileged":
        assert [need for need in NeededRight if f"`{key}:" in need.chart] == [NeededRight.MIG_CONFIG]
