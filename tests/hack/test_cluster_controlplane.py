"""hack/cluster on rung 2: the control plane does what the operator's tests take for granted."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hack.cluster import audit, install, nodes, process
from hack.cluster.api import Api, ApiError
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import node_bound_token, open_api, pod_bound_token, service_account_token
from hack.cluster.process import ComponentError, wait_until
from hack.launch import ROOT

pytestmark = pytest.mark.cluster

PODS = "/api/v1/namespaces/default/pods"
SECONDS = 60.0
PROC = Path("/proc")


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(options=Options(audit=True)) as running:
        install.install_all(running.api)
        created = nodes.create_nodes(running.api, nodes.fleet(4))
        nodes.wait_nodes_ready(running.api, created)
        yield running


def a_pod(name: str, grace: int = 2, **metadata: Any) -> dict[str, Any]:
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    container = {"name": "main", "image": "example/none", "resources": limits}
    spec = {"containers": [container], "terminationGracePeriodSeconds": grace}
    return {"metadata": {"name": name, **metadata}, "spec": spec}


def wait_running(api: Api, *names: str) -> None:
    for name in names:
        wait_until(lambda: api.get(f"{PODS}/{name}")["status"]["phase"] == "Running", SECONDS, name)  # noqa: B023 - waited for before the next round


def exists(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def refusal(api: Api, path: str) -> int:
    """The HTTP status with which a GET is refused."""
    with pytest.raises(ApiError) as raised, api:
        api.get(path)
    return raised.value.status


def test_nobody_and_a_service_account_without_a_role_are_denied(plane: ControlPlane) -> None:
    token = service_account_token(plane.api, "gpusharing", "default")
    assert refusal(plane.api.as_nobody(), "/api/v1/nodes") == 403
    assert refusal(plane.api.as_token(token), "/api/v1/nodes") == 403
    assert refusal(plane.api.as_token("made-up"), "/api/v1/nodes") == 401


def test_a_kubeconfig_of_a_service_account_acts_as_that_account(plane: ControlPlane) -> None:
    path = plane.service_account_kubeconfig("gpusharing", "default")
    assert plane.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", kubeconfig=path) == (
        "system:serviceaccount:gpusharing:default"
    )
    with open_api(path) as api:
        assert refusal(api, "/api/v1/nodes") == 403


def node_name_seen(api: Api) -> list[str]:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    with api:
        seen = api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    claim: list[str] = seen["status"]["userInfo"]["extra"]["authentication.kubernetes.io/node-name"]
    return claim


def test_tokens_bound_to_a_node_or_to_its_pod_carry_the_node_s_name(plane: ControlPlane) -> None:
    plane.api.create(PODS, a_pod("bound") | {"spec": a_pod("bound")["spec"] | {"nodeName": "gpu-02"}})
    wait_running(plane.api, "bound")
    with_node = node_bound_token(plane.api, "default", "default", "gpu-02")
    with_pod = pod_bound_token(plane.api, "default", "bound")
    assert node_name_seen(plane.api.as_token(with_node)) == ["gpu-02"]
    assert node_name_seen(plane.api.as_token(with_pod)) == ["gpu-02"]


def test_kwok_leaves_the_gpus_of_a_node_to_whoever_plays_the_device_plugin(plane: ControlPlane) -> None:
    status = "/api/v1/nodes/gpu-03/status"
    mine = {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "56"}
    plane.api.merge_patch(status, {"status": {"allocatable": mine, "capacity": mine}})
    # Losing the condition makes kwok play the node's start once more.
    plane.api.merge_patch(status, {"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    nodes.wait_nodes_ready(plane.api, ["gpu-03"])
    allocatable = plane.api.get("/api/v1/nodes/gpu-03")["status"]["allocatable"]
    assert {key: allocatable[key] for key in mine} == mine
    assert allocatable["cpu"] == nodes.CPU


def test_pods_are_scheduled_run_and_end_as_their_annotation_says(plane: ControlPlane) -> None:
    stop = "simulate.gpusharing.dev/stop"
    pods = {"quick": ("quick", 2), "grace": ("grace", 2), "patient": ("grace", 3600), "never": ("never", 2)}
    for name, (word, grace) in pods.items():
        plane.api.create(PODS, a_pod(name, grace, annotations={stop: word}))
    wait_running(plane.api, *pods)
    for name in pods:
        plane.api.delete(f"{PODS}/{name}")
    for name in ("quick", "grace"):
        wait_until(lambda: not exists(plane.api, f"{PODS}/{name}"), SECONDS, f"the {name} pod to go")  # noqa: B023 - as above
    for name in ("patient", "never"):
        assert "deletionTimestamp" in plane.api.get(f"{PODS}/{name}")["metadata"], name


def test_the_changes_of_an_object_tell_states_that_have_passed(plane: ControlPlane) -> None:
    maps = "/api/v1/namespaces/default/configmaps"
    version = plane.api.create(maps, {"metadata": {"name": "passing"}})["metadata"]["resourceVersion"]
    for number in ("1", "2", "3"):
        plane.api.merge_patch(f"{maps}/passing", {"data": {"number": number}})
    with closing(plane.api.changes(maps, version, 60, fieldSelector="metadata.name=passing")) as told:
        assert [next(told)["data"]["number"] for _ in range(3)] == ["1", "2", "3"]


def test_the_gpu_operator_s_stand_ins_are_what_the_operator_checks(plane: ControlPlane) -> None:
    policy = plane.api.get("/apis/nvidia.com/v1/clusterpolicies/cluster-policy")
    assert policy["spec"]["devicePlugin"]["config"]["name"] == "gpusharing-device-plugin"
    assert "mig" not in policy["spec"]
    assert policy["status"]["state"] == "ready"
    assert plane.api.list("/apis/nvidia.com/v1alpha1/gpuclusters") == []


def test_the_audit_log_tells_who_did_what_how_often(plane: ControlPlane) -> None:
    user = "system:serviceaccount:gpu-operator:default"
    api = plane.api.as_token(service_account_token(plane.api, "gpu-operator", "default"))
    assert [refusal(api, path) for path in (PODS, PODS, f"{PODS}/x/log")] == [403, 403, 403]
    audit.wait_logged(plane.audit_log, plane.api)
    seen = list(audit.read_requests(plane.audit_log, user))
    counts = Counter((request.group, request.resource, request.verb) for request in seen)
    assert counts == {("", "pods", "list"): 2, ("", "pods/log", "get"): 1}
    assert [request.status for request in seen] == [403, 403, 403]
    assert not any(request.is_write for request in seen)


def test_it_survives_its_api_server_reports_a_crash_and_leaves_nothing_behind() -> None:
    small = ControlPlane(options=Options(kwok=False, scheduler=False, environment={"GOGC": "300"}))
    with small:
        if PROC.is_dir():
            told = [(PROC / str(pid) / "environ").read_bytes().split(b"\0") for pid in small.pids().values()]
            assert [environment.count(b"GOGC=300") for environment in told] == [1] * len(told)
        small.api.create("/api/v1/namespaces", {"metadata": {"name": "kept"}})
        small.kill_component("kube-apiserver")
        with pytest.raises(OSError, match="refused"):
            small.api.get("/readyz")
        small.start_component("kube-apiserver")
        small.wait_ready()
        assert exists(small.api, "/api/v1/namespaces/kept")
        pids, folder = small.pids(), small.directory
        os.kill(pids["kube-controller-manager"], signal.SIGKILL)
        with pytest.raises(ComponentError, match="kube-controller-manager ended"):
            wait_until(lambda: False, SECONDS, "the crash to be noticed", small.check)
    assert not any(process.pid_exists(pid) for pid in pids.values())
    assert not folder.exists()


def test_a_measurement_that_is_ended_leaves_no_program_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "hack.bench",
        "--only",
        "idle_writes_60s",
        "--output",
        str(tmp_path / "bench.json"),
    ]
    bench = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "GPUSHARING_STATE": str(tmp_path)}, stderr=subprocess.DEVNULL
    )

    def programs() -> str:
        return subprocess.run(["pgrep", "-af", f"={tmp_path}/"], capture_output=True, text=True, check=False).stdout

    try:
        wait_until(lambda: "kube-scheduler" in programs(), SECONDS, "the last program of a control plane")
    finally:
        bench.terminate()
    assert bench.wait(SECONDS) == 128 + signal.SIGTERM
    assert programs() == ""
