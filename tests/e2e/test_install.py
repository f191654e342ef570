"""Our chart with its default values and our image, on real kubelets, and `helm test` as a user runs it."""

import json
from functools import partial

import pytest
from hack.cluster.api import Object
from hack.cluster.process import wait_until
from hack.launch import AGENT_NAMESPACE, NAMESPACE, ROOT
from hack.realnode.runtime import STATE, state_file
from hack.realnode.site import Site
from tests.chart.cluster import find_object
from tests.e2e.pool import NODES, PODS, can_work, helm_test

pytestmark = pytest.mark.e2e
SECONDS = 240.0
ASK_NVML = """
import pynvml as n
def ask(call, *given):
    try:
        call(*given)
        return "ok"
    except n.NVMLError as error:
        return str(error)
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
print("gpus", n.nvmlDeviceGetCount())
print("set MIG mode:", ask(n.nvmlDeviceSetMigMode, gpu, 1))
print("create instance:", ask(n.nvmlDeviceCreateGpuInstance, gpu, 9))
"""
WHO_COMPUTES = """
import pynvml as n
n.nvmlInit()
print("processes", len(n.nvmlDeviceGetComputeRunningProcesses(n.nvmlDeviceGetHandleByIndex(0))), flush=True)
"""
READ_RIGHTS = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
try:
    open("/written", "w")
    root = "writable"
except OSError as error:
    root = error.strerror
print(json.dumps({
    "uid": os.getuid(), "caps": status["CapEff"], "namespaces": len(status["NSpid"].split()), "root": root,
    "first": open("/proc/1/comm").read().strip(), "seccomp": status["Seccomp"],
}))
"""


def test_helm_install_waits_until_operator_and_agents_are_ready(site: Site, notes: str) -> None:
    assert "is installed in namespace gpusharing" in notes
    operator = site.api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator")["status"]
    agents = site.api.get(f"/apis/apps/v1/namespaces/{AGENT_NAMESPACE}/daemonsets/gpusharing-agent")["status"]
    assert (operator["readyReplicas"], agents["numberReady"]) == (2, len(NODES))


def test_every_agent_reads_its_gpus_and_the_real_kubelet(site: Site, notes: str) -> None:
    for node in NODES:
        wait_until(partial(reports, site, node), SECONDS, f"the agent of {node} to report")
        seen = observed(site, node)
        assert ("error" in seen, seen["allocated"]) == (False, {})
        assert [gpu.get("access", "Ok") for gpu in seen["gpus"]] == ["Ok", "Ok"]
        assert all(gpu["uuid"] for gpu in seen["gpus"])


def test_the_operator_runs_without_root_without_capabilities_on_a_read_only_root(site: Site, notes: str) -> None:
    told = rights(site, NAMESPACE, "deployment/gpusharing-operator")
    assert told["uid"] == 65532
    assert int(told["caps"], 16) == 0
    assert told["root"] == "Read-only file system"
    assert told["seccomp"] == "2"


def test_the_agent_is_privileged_sees_the_hosts_processes_and_cannot_write_its_root(site: Site, notes: str) -> None:
    told = rights(site, AGENT_NAMESPACE, "daemonset/gpusharing-agent")
    assert told["uid"] == 0
    assert int(told["caps"], 16) & 1 << 21, "SYS_ADMIN, by which NVML knows an administrator"
    assert told["first"] == "sleep", "the first process of the node itself"
    assert told["root"] == "Read-only file system"


def test_nvml_refuses_a_container_without_rights_what_a_driver_would(site: Site, notes: str) -> None:
    said = run_to_end(site, "asks-nvml", {"NVIDIA_VISIBLE_DEVICES": "0"}, ASK_NVML)
    assert said.splitlines() == [
        "gpus 1",
        "set MIG mode: Insufficient Permissions",
        "create instance: Insufficient Permissions",
    ]


def test_who_computes_is_seen_from_the_hosts_pid_namespace_only(site: Site, notes: str) -> None:
    create(site, "computes", {"NVIDIA_VISIBLE_DEVICES": "0"}, WHO_COMPUTES + "import time; time.sleep(3600)")
    wait_until(lambda: phase(site, "computes") == "Running", SECONDS, "a pod to compute")
    try:
        wait_until(lambda: bool(site.kubectl("logs", "computes")), SECONDS, "the pod to say whom it sees")
        assert site.kubectl("logs", "computes") == "processes 0\n", "not even itself"
        here = site.api.get(f"{PODS}/computes")["spec"]["nodeName"]
        for pod in site.api.list(f"/api/v1/namespaces/{AGENT_NAMESPACE}/pods"):
            expected = int(pod["spec"]["nodeName"] == here)
            assert asked(site, pod["metadata"]["name"]) == f"processes {expected}\n"
    finally:
        site.api.delete(f"{PODS}/computes", {"gracePeriodSeconds": 0})


def asked(site: Site, agent: str) -> str:
    """Whom a program in this agent's container sees. An exec has the pod's variables, not the runtime's."""
    found = f"import os; os.environ['NVMLSIM_STATE'] = '{STATE}/{state_file(ROOT).name}'\n{WHO_COMPUTES}"
    return site.kubectl("-n", AGENT_NAMESPACE, "exec", agent, "--", "python3", "-c", found)


def test_the_runtime_refuses_rights_over_mig_to_a_container_that_is_not_privileged(site: Site) -> None:
    create(site, "wants-mig", {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_MIG_CONFIG_DEVICES": "all"}, "")

    def told() -> str:
        waiting = [
            one["state"].get("waiting", one["state"].get("terminated", {})).get("message", "")
            for one in site.api.get(f"{PODS}/wants-mig")["status"].get("containerStatuses", ())
        ]
        return " ".join(waiting)

    said = "cannot set MIG_CONFIG_DEVICES in non privileged container"
    wait_until(lambda: said in told(), SECONDS, f"the pod to say {said!r}")
    site.api.delete(f"{PODS}/wants-mig")


def observed(site: Site, node: str) -> Object:
    found = find_object(site.api, f"/apis/gpusharing.dev/v1alpha1/gpunodes/{node}") or {}
    return dict(found.get("status", {}).get("observed") or {})


def reports(site: Site, node: str) -> bool:
    """Whether the agent of a node has read all there is; its first reading may come before the kubelet listens."""
    seen = observed(site, node)
    return bool(seen) and not seen.get("error") and seen.get("allocated") is not None


def rights(site: Site, namespace: str, what: str) -> Object:
    """What a program in this container may do, as the kernel tells it."""
    told: Object = json.loads(site.kubectl("-n", namespace, "exec", what, "--", "python3", "-c", READ_RIGHTS))
    return told


def create(site: Site, name: str, environ: dict[str, str], script: str) -> None:
    container = {
        "name": "main",
        "image": site.image.reference,
        "command": ["python3", "-c", script],
        "env": [{"name": key, "value": value} for key, value in environ.items()],
    }
    spec = {"runtimeClassName": "nvidia", "restartPolicy": "Never", "containers": [container]}
    site.api.create(PODS, {"metadata": {"name": name}, "spec": spec})


def phase(site: Site, name: str) -> str:
    return str(site.api.get(f"{PODS}/{name}")["status"].get("phase"))


def run_to_end(site: Site, name: str, environ: dict[str, str], script: str) -> str:
    create(site, name, environ, script)
    wait_until(lambda: phase(site, name) in ("Succeeded", "Failed"), SECONDS, f"pod {name} to end")
    said = site.kubectl("logs", name)
    site.api.delete(f"{PODS}/{name}")
    return said


ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"


def test_helm_test_says_on_one_screen_that_the_installation_can_work_and_leaves_no_account(
    site: Site, notes: str
) -> None:
    can_work(site)
    assert [one for one in site.api.list(ROLES) if one["metadata"]["name"] == "gpusharing-checks"] == []
    accounts = site.api.list(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts")
    assert "gpusharing-checks" not in {one["metadata"]["name"] for one in accounts}


def test_it_says_what_is_wrong_and_the_command_and_helm_fails(site: Site, notes: str) -> None:
    name = {"spec": {"devicePlugin": {"config": {"name": None}}}}
    site.api.merge_patch(CLUSTER_POLICY, name)
    try:
        status, said = helm_test(site)
    finally:
        back = {"spec": {"devicePlugin": {"config": {"name": "gpusharing-device-plugin"}}}}
        site.api.merge_patch(CLUSTER_POLICY, back)
    assert status != 0
    assert "devicePlugin.config.name is not set" in said
    assert "-> kubectl patch clusterpolicy cluster-policy" in said
