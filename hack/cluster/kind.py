"""DRIVER=kind: a kind cluster for developers who have Docker. kwok runs alongside it and plays the GPU nodes of NODES=.

hack/kind.yaml defines its real kubelets. One of them has SIMULATED GPUs, and hack/kind-values.yaml makes our agent
read these.
"""

import shutil
import subprocess
from pathlib import Path

from hack.cluster import commands, process, state, toolchain
from hack.cluster.api import Api
from hack.cluster.kubeconfig import CLUSTER_NAME, open_api
from hack.nvmlsim import build
from hack.nvmlsim.simulator import Simulator

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "hack" / "kind.yaml"
DRIVER = ROOT / "build" / "kind" / "driver"
"""The folder that hack/kind.yaml mounts into the node with SIMULATED GPUs."""
GPUS = ("h100-80gb", "h100-80gb")
LEASE_SECONDS = 40
"""The lease of simulated nodes, which kwok renews: kind's controller-manager has the usual grace period."""
INSTEAD = "Or use our own control plane, which needs no Docker: make cluster"


class KindError(Exception):
    """kind cannot run here, or failed. The message says what is missing, why, and which command helps."""


def check() -> None:
    """Raise KindError unless Docker is installed and answers."""
    if shutil.which("docker") is None:
        raise KindError(
            "DRIVER=kind runs Kubernetes in Docker, but there is no `docker` on PATH.\n"
            f"Install it (https://docs.docker.com/engine/install). {INSTEAD}"
        )
    info = _run("docker", "info")
    if info.returncode != 0:
        why = (info.stderr.strip().splitlines() or ["docker info failed"])[-1]
        raise KindError(
            f"DRIVER=kind runs Kubernetes in Docker, but Docker does not answer: {why}\n"
            f"Start it (on Linux: sudo systemctl start docker) and check: docker info. {INSTEAD}"
        )


def program() -> str:
    """Return the `kind` on PATH, or else the pinned version, which is built if it is not cached."""
    return shutil.which("kind") or str(toolchain.program("kind"))


def put_driver(folder: Path = DRIVER) -> None:
    """Write the SIMULATED library and a new machine's state to the folder that a node mounts."""
    library = build.library_directory() / build.LIBRARY
    (folder / "state").mkdir(parents=True, exist_ok=True)
    shutil.copy(library, folder / build.LIBRARY)
    Simulator.create(folder / "state" / "nvml.state", GPUS)


def up(directory: Path, kubeconfig: Path) -> Api:
    """Create the kind cluster unless it exists, and start kwok for its simulated nodes."""
    check()
    kwok, kind = toolchain.program("kwok"), program()
    named = ("--name", CLUSTER_NAME, "--kubeconfig", str(kubeconfig))
    if CLUSTER_NAME not in _run(kind, "get", "clusters").stdout.split():
        put_driver()
        _must(kind, "create", "cluster", *named, "--config", str(CONFIG), "--wait", "180s")
    else:
        _must(kind, "export", "kubeconfig", *named)
    api = open_api(kubeconfig)
    command = commands.kwok(kwok, kubeconfig, LEASE_SECONDS)
    component = process.start("kwok", command, directory / "kwok.log")
    state.ClusterState(None, api.url, {"kwok": component.pid}, driver="kind").write(directory)
    return api


def down() -> None:
    _must(program(), "delete", "cluster", "--name", CLUSTER_NAME)


def load(archive: Path) -> None:
    _must(program(), "load", "image-archive", str(archive), "--name", CLUSTER_NAME)


def _must(*command: str) -> None:
    done = _run(*command)
    if done.returncode != 0:
        raise KindError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    # The folders in hack/kind.yaml are relative to the root of the repository.
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
