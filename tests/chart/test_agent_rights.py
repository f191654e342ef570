"""The chart gives the agent exactly the rights that agent/fields.py says its fields need, and no other."""

from typing import Any

import pytest
from tests.chart.charts import Helm, find

from gpusharing.agent.fields import Need


def pod_of(helm: Helm, *values: str) -> dict[str, Any]:
    """The agent's pod."""
    arguments = [word for value in values for word in ("--set", value)]
    pod: dict[str, Any] = find(helm.template(*arguments), "DaemonSet", "gpusharing-agent")["spec"][
        "template"
    ]["spec"]
    return pod


def rights(pod: dict[str, Any]) -> set[Need]:
    """What a pod can do, by what the container runtime and the kernel look at."""
    (container,) = pod["containers"]
    environ = {one["name"]: one.get("value") for one in container["env"]}
    found = {Need.NOTHING}
    driver = (environ.get("NVIDIA_VISIBLE_DEVICES"), environ.get("NVIDIA_DRIVER_CAPABILITIES"))
    if driver == ("all", "utility"):
        found.add(Need.DRIVER)
    if container["securityContext"].get("privileged"):
        found.add(Need.MIG_CONFIG)
    if pod.get("hostPID"):
        found.add(Need.HOST_PID)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    if "/var/lib/kubelet/pod-resources" in mounts and pod["securityContext"]["runAsUser"] == 0:
        found.add(Need.POD_RESOURCES)
    return found


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("agent.interval=30", {Need.NOTHING, Need.DRIVER, Need.HOST_PID, Need.POD_RESOURCES}),
        ("agent.privileged=true", set(Need)),
        ("agent.hostPID=false", {Need.NOTHING, Need.DRIVER, Need.POD_RESOURCES}),
    ],
    ids=["by default", "privileged", "without the host's processes"],
)
def test_each_right_comes_with_its_value(helm: Helm, value: str, given: set[Need]) -> None:
    assert rights(pod_of(helm, value)) == given
    key = value.partition("=")[0]
    if key != "agent.interval":
        assert [need for need in Need if f"`{key}:" in need.chart] == [
            Need.MIG_CONFIG if key == "agent.privileged" else Need.HOST_PID
        ]


def test_there_is_no_other_right(helm: Helm) -> None:
    pod = pod_of(helm)
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostIPC", "initContainers"} & pod.keys()
    assert [(v["name"], "hostPath" in v) for v in pod["volumes"]] == [("pod-resources", True)]
    assert [mount["readOnly"] for mount in container["volumeMounts"]] == [True]
    environ = {one["name"] for one in container["env"]}
    assert {name for name in environ if name.startswith("NVIDIA_")} == {
        "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    }, "NVIDIA_MIG_CONFIG_DEVICES and NVIDIA_MIG_MONITOR_DEVICES would be rights"  # fmt: skip
