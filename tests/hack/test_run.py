"""`make cluster` and `make run` as people use them: up in time, and the operator under the shipped rights."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hack.cluster import install
from hack.cluster.api import ApiError
from hack.cluster.audit import read_requests
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.nodes import create_nodes, node_manifest
from hack.cluster.process import wait_until

from hack import launch

pytestmark = pytest.mark.cluster

ACCOUNT = f"system:serviceaccount:{launch.NAMESPACE}:{launch.SERVICE_ACCOUNT}"
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"
SECONDS = 60.0


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """One for this file alone: what is started with its kubeconfig is counted, and what is asked of it is read."""
    with ControlPlane(options=Options(audit=True)) as plane:
        install.install_all(plane.api)
        yield plane


@contextmanager
def run(plane: ControlPlane, log: Path, *shell: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m hack.run` on that control plane, behind a shell if any; it has asked for a policy."""
    environment = launch.own_environment() | {"KUBECONFIG": str(plane.kubeconfig), "FACTOR": "60"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*shell, sys.executable, "-m", "hack.run"],
            cwd=launch.ROOT,
            env=environment | {"PYTHONPATH": launch.PYTHONPATH},
            stderr=output,
            stdout=output,
        )
        try:
            wait_until(partial(plays, log), SECONDS, f"the invitation in {log}")
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=SECONDS)


def test_the_operator_on_a_control_plane_is_no_admin(plane: ControlPlane, tmp_path: Path) -> None:
    create_nodes(plane.api, [node_manifest("gpu-01", product="NVIDIA L40S", gpus=2, pool="d")])
    log = tmp_path / "run.log"
    with run(plane, log) as process:
        plane.api.apply(f"{POLICIES}/pool-d", policy())
        wait_until(partial(is_ready, plane), SECONDS, "pool-d to be Ready")
    assert process.returncode == 0, log.read_text()[-2000:]
    asked = list(read_requests(plane.audit_log, ACCOUNT))
    assert {"leases", "nodes", "configmaps"} <= {request.resource for request in asked if request.is_write}
    assert [request for request in asked if request.status == 403] == []


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and /proc are Linux's")
@pytest.mark.parametrize("victim", ["make", "its program"])
def test_killed_with_9_it_leaves_nothing_behind(plane: ControlPlane, tmp_path: Path, victim: str) -> None:
    """Neither make, of which a shell plays the part, nor the process that it started can say farewell."""
    with run(plane, tmp_path / "run.log", "sh", "-c", '"$@"; exit $?', "make") as make:
        try:
            wait_until(lambda: len(running(plane)) == 3, SECONDS, "make, the operator and the simulator")
            os.kill(make.pid if victim == "make" else child_of(make.pid), signal.SIGKILL)
            wait_until(lambda: not running(plane), SECONDS, f"the others to end with {victim}")
        finally:
            for pid in running(plane):
                os.kill(pid, signal.SIGKILL)


def plays(log: Path) -> bool:
    return b"apply a policy in another shell" in log.read_bytes()


def running(plane: ControlPlane) -> list[int]:
    """Processes that were started with this control plane's kubeconfig, but for those that nobody has waited for."""
    mine = f"KUBECONFIG={plane.kubeconfig}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mine in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is not ours
            continue
    return sorted(found)


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def policy() -> dict[str, object]:
    selector = {"matchLabels": {"gpusharing.dev/pool": "d"}}
    return {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUSharingPolicy",
        "metadata": {"name": "pool-d"},
        "spec": {"nodeSelector": selector, "mode": "Full"},
    }


def is_ready(plane: ControlPlane) -> bool:
    """Whether the policy is Ready; not yet while its CRD was just replaced by the chart's."""
    try:
        rows = plane.api.get(f"{POLICIES}/pool-d").get("status", {}).get("conditions") or ()
    except ApiError:
        return False
    return any(row["type"] == "Ready" and row["status"] == "True" for row in rows)
