"""The shipped agent process against a real API server, on the SIMULATED libnvidia-ml.so.1 (rung 2)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import service_account_token
from hack.nvmlsim.simulator import Simulator
from pydantic import TypeAdapter
from tests.fakes.gpus import programs_on

from gpusharing.api.gpunode import Observed

REPORT = TypeAdapter(Observed)

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
NODE = "agent-process-test"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
RSS_LIMIT_MIB = 45
SECONDS = 60.0
"""Patience of every wait: far above what a step takes, for a machine that does other things too."""
RULES = [
    # The verbs of deploy/helm/gpu-sharing-operator/templates/rbac-agent.yaml.
    {"apiGroups": ["gpusharing.dev"], "resources": ["gpunodes"], "verbs": ["list", "watch"]},
    {"apiGroups": ["gpusharing.dev"], "resources": ["gpunodes/status"], "verbs": ["patch"]},
]


class Agent:
    def __init__(self, plane: ControlPlane, process: subprocess.Popen[str], port: int) -> None:
        self.plane = plane
        self.process = process
        self._port = port

    def ask(self, request_id: str, *, quiet: bool = False) -> Observed:
        spec = {"request": {"id": request_id, "quiet": quiet}}
        self.plane.api.merge_patch(f"{GPUNODES}/{NODE}", {"spec": spec})
        return self.until(lambda observed: observed.request_id == request_id)

    def until(self, holds: Any) -> Observed:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = self.gpunode().get("status", {}).get("observed")
            if found and holds(observed := REPORT.validate_python(found)):
                return observed
            time.sleep(0.02)
        raise AssertionError(f"not within {SECONDS:.0f} s; last: {json.dumps(found)}")

    def gpunode(self) -> Any:
        return self.plane.api.get(f"{GPUNODES}/{NODE}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}") as answer:
            body: str = answer.read().decode()
            return body

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match
        return int(match[1]) / 1024


@pytest.fixture
def machine(tmp_path: Path) -> Simulator:
    return Simulator.create(tmp_path / "nvml.state", ["h100-80gb"] * 8, seed="test")


@pytest.fixture
def agent(control_plane: ControlPlane, machine: Simulator, tmp_path: Path) -> Iterator[Agent]:
    """`gpusharing-agent` with a service account of the shipped rights and a GPUNode."""
    api = control_plane.api
    account = {"kind": "ServiceAccount", "name": NODE, "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NODE}
    named: dict[str, Any] = {"metadata": {"name": NODE}}
    made: list[tuple[str, dict[str, Any]]] = [
        ("/api/v1/namespaces/default/serviceaccounts", named),
        (f"{RBAC}/clusterroles", named | {"rules": RULES}),
        (f"{RBAC}/clusterrolebindings", named | {"roleRef": role, "subjects": [account]}),
        (GPUNODES, named | {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "spec": {}}),
    ]
    for path, manifest in made:
        api.create(path, manifest)
    (tmp_path / "token").write_text(service_account_token(api, "default", NODE))
    (tmp_path / "ca.crt").write_text(api.ca_pem)
    server = urlsplit(api.url)
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"} | {
        **machine.environment("root"),
        "NODE_NAME": NODE,
        "SERVICE_ACCOUNT": str(tmp_path),
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "METRICS_ADDR": "127.0.0.1:0",
        "INTERVAL": "0.05s",
        "PYTHONPATH": str(ROOT / "operator"),
    }
    command = [sys.executable, "-m", "gpusharing.agent.main"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        started = json.loads(process.stderr.readline())
        yield Agent(control_plane, process, int(started["probes"].rpartition(":")[2]))
        process.terminate()
        process.communicate(timeout=SECONDS)
    for path, _ in made:
        api.delete(f"{path}/{NODE}")


def test_the_process_answers_stays_quiet_and_stays_small(agent: Agent, machine: Simulator) -> None:
    observed = agent.ask("r1")
    assert (observed.error, len(observed.gpus), observed.simulated) == ("", 8, False)
    assert agent.get("/readyz") == agent.get("/healthz") == "ok\n"

    machine.add_process(3, 4_000_001, "python3")
    agent.until(lambda observed: programs_on(observed, 3) == ["python3"])
    version = agent.gpunode()["metadata"]["resourceVersion"]
    readings = _readings(agent)
    while _readings(agent) < readings + 5:
        time.sleep(0.05)
    assert agent.gpunode()["metadata"]["resourceVersion"] == version  # five readings, no write

    assert agent.ask("r2", quiet=True).quiet
    assert machine.show()["clients"] == []
    readings = _readings(agent)
    machine.remove_process(4_000_001)
    time.sleep(0.3)  # six turns: what must not happen has no event
    assert _readings(agent) == readings
    assert programs_on(agent.ask("r3"), 3) == []

    rss = agent.rss_mib()
    print(f"agent RSS {rss:.1f} MiB")
    assert rss <= RSS_LIMIT_MIB
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(SECONDS) == 0


def test_the_process_ends_after_a_driver_upgrade_and_the_server_knows_why(agent: Agent, machine: Simulator) -> None:
    agent.ask("r1")
    machine.upgrade_driver("590.10.01")
    assert agent.process.wait(SECONDS) == 1
    observed = agent.until(lambda observed: bool(observed.error))
    assert observed.error.startswith("NVMLReplaced: ")
    assert (observed.request_id, len(observed.gpus)) == ("r1", 8)
    assert agent.process.stderr is not None
    last = json.loads(agent.process.stderr.read().splitlines()[-1])
    assert last["error"] == observed.error
    assert "exiting" in last["event"]


def _readings(agent: Agent) -> float:
    match = re.search(r'readings_total\{outcome="ok"\} (\S+)', agent.get("/metrics"))
    assert match
    return float(match[1])
