"""The CPU time of whole `kubectl gpusharing` processes, including the start of Python but not the time spent waiting.

The API server is SIMULATED by a web server on loopback, because the time that a real one takes is not the plugin's.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpusharing.kube.client import GPUNODES, NODES, PODS, POLICIES
from hack.bench.results import Measured

JSON = dict[str, Any]
GPUS, POOLS, STEPS, REPEATS = 8, 4, 12, 5
PODS_EACH = 8
"""How many pods each node of `free` has."""
SECONDS = 60.0


def terminal(count: int) -> Iterator[Measured]:
    """Yield the CPU time of `--help`, of `status` for a fleet in which every tenth node is changing, and of `free`."""
    with tempfile.TemporaryDirectory() as folder, _served(_fleet(count)) as url:
        kubeconfig = _kubeconfig(Path(folder), url)
        how = f"process, median of {REPEATS}, CPU time"
        yield Measured("cli_help_ms", _cpu_ms(kubeconfig, "--help"), how)
        megabytes = len(json.dumps(_fleet(count)[GPUNODES.path()])) / 1e6
        how = f"{count} GPUNodes of {GPUS} GPUs in 7 instances, {megabytes:.0f} MB of JSON, {how}"
        yield Measured("cli_status_1000_nodes_ms", _cpu_ms(kubeconfig, "status"), how)
    yield _free(count)


def _free(count: int) -> Measured:
    lists = {
        NODES.path(): [_node(number) for number in range(count)],
        PODS.path(): [_pod(number) for number in range(count * PODS_EACH)],
    }
    with tempfile.TemporaryDirectory() as folder, _served(lists) as url:
        megabytes = len(json.dumps(lists)) / 1e6
        how = (
            f"{count} Nodes with {PODS_EACH} pods each, {megabytes:.0f} MB of JSON, process, median of {REPEATS},"
            " CPU time"
        )
        return Measured("cli_free_1000_nodes_ms", _cpu_ms(_kubeconfig(Path(folder), url), "free"), how)


def _cpu_ms(kubeconfig: Path, *arguments: str) -> float:
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    program = [sys.executable, "-m", "kubectl_gpusharing", *arguments]
    taken = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(program, env=environment, check=True, capture_output=True, timeout=SECONDS)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken) * 1000


def _kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    sections = {
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "users": [{"name": "bench", "user": {"token": "none"}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    }
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **sections}))
    return path


@contextmanager
def _served(lists: Mapping[str, list[JSON]]) -> Iterator[str]:
    bodies = {
        path: json.dumps({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}).encode()
        for path, items in lists.items()
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = bodies[urlsplit(self.path).path]
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _fleet(count: int) -> dict[str, list[JSON]]:
    return {
        POLICIES.path(): [_policy(f"pool-{number}", count // POOLS) for number in range(POOLS)],
        GPUNODES.path(): [_gpunode(number) for number in range(count)],
    }


def _policy(name: str, nodes: int) -> JSON:
    summary = {"mode": "MIG", "layout": "7x1g.10gb", "nodes": f"{nodes - 1}/{nodes}", "gpus": nodes * GPUS}
    return {
        "metadata": {"name": name, "generation": 1},
        "spec": {"mode": "MIG", "rollout": {"maxUnavailable": 1}},
        "status": {
            "observedGeneration": 1,
            "summary": {**summary, "status": "Draining", "message": "one drains"},
        },
    }


def _gpunode(number: int) -> JSON:
    phase, reason = ("Synced", "Synced") if number % 10 else ("Draining", "PDB")
    at = "2026-11-20T09:{:02}:00Z"
    history = [f"{at.format(step)} {'Synced' if step % 2 else 'Draining'} PDB" for step in range(STEPS)]
    transition = {
        "policy": f"pool-{number % POOLS}",
        "phase": phase,
        "reason": reason,
        "message": "a sentence " * 10,
    }
    transition |= {
        "since": at.format(30),
        "wanted": "7x1g.10gb",
        "observed": "7x1g.10gb",
        "culprit": "team-a/llm-0 +2",
    }
    observed = {
        "models": [{"product": "NVIDIA H100 80GB HBM3", "gpus": "0-7", "profiles": "; ".join([_PROFILE] * 16)}],
        "gpus": [_GPU] * GPUS,
        "pods": 5,
    }
    return {
        "metadata": {"name": f"gpu-{number:04}"},
        "status": {"transition": {**transition, "history": history}, "observed": observed},
    }


def _node(number: int) -> JSON:
    labels = {f"nvidia.com/gpu.deploy.operand-{index}": "true" for index in range(30)}
    conditions = [
        {"type": kind, "status": "True", "reason": "KubeletReports", "message": "a sentence " * 4}
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    ]
    images = [{"names": [f"registry.example/team/image-{index}:v1"], "sizeBytes": 10**9} for index in range(40)]
    amounts = {"cpu": "96", "memory": "1056Gi", "nvidia.com/gpu": str(GPUS)}
    return {
        "metadata": {
            "name": f"gpu-{number:04}",
            "labels": {**labels, "gpusharing.dev/policy": f"pool-{number % POOLS}"},
        },
        "spec": {"unschedulable": number % 50 == 0, "taints": []},
        "status": {"allocatable": amounts, "capacity": amounts, "conditions": conditions, "images": images},
    }


def _pod(number: int) -> JSON:
    mount = {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    amounts = {"cpu": "4", "memory": "64Gi", "nvidia.com/gpu": "1"}
    container = {
        "name": "main",
        "image": "registry.example/team/image:v1",
        "command": ["python", "-m", "train", "--config", "/etc/train/config.yaml"],
        "env": [{"name": f"VARIABLE_{index}", "value": "a value"} for index in range(10)],
        "resources": {"limits": amounts, "requests": amounts},
        "volumeMounts": [mount] * 3,
    }
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": f"train-{number}",
        "uid": "0" * 36,
        "controller": True,
    }
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] * 3
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T09:00:00Z"}
        for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    return {
        "metadata": {
            "name": f"train-{number}",
            "namespace": f"team-{number % 20}",
            "uid": "0" * 36,
            "creationTimestamp": "2026-11-20T09:00:00Z",
            "labels": {"app": "train", "batch.kubernetes.io/job-name": f"train-{number}"},
            "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": f"gpu-{number // PODS_EACH:04}",
            "containers": [container],
            "tolerations": tolerations,
            "volumes": [{"name": f"volume-{index}", "emptyDir": {}} for index in range(3)],
        },
        "status": {"phase": "Running", "conditions": conditions, "podIP": "10.0.0.1"},
    }


_PROFILE = "1g.10gb id=19 max=7 placements={0,1,2,3,4,5,6}:1"


_GPU = {"uuid": "GPU-00000000-0000-0000-0000-000000000000", "mig": "7x1g.10gb@0123456789abcdef"}
