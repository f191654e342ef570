"""DRIVER=kind: a kind cluster for those who have Docker; kwok runs beside it and plays the GPU nodes of NODES=.

hack/kind.yaml says which real kubelets it has; one of them has SIMULATED GPUs, which hack/kind-values.yaml gives to our
agent.
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
"""What hack/kind.yaml mounts into the node with SIMULATED GPUs."""
GPUS = ("h100-80gb", "h100-80gb")
LEASE_SECONDS = 40
"""kind's controller-manager has the usual grace period, so the fake nodes must renew their leases."""
INSTEAD = "Or use our own control plane, which needs neither: make cluster"


class KindError(Exception):
    """kind cannot run here, or failed. The text says what is missing, why, and the command that helps."""


def check() -> None:
    """Raise KindError unless Docker is here and answers."""
    if shutil.which("docker") is None:
        raise KindError(
            "DRIVER=kind runs Kubernetes in Docker, but there is no `docker` on PATH.\n"
            f"Install it (https://docs.docker.com/engine/install). {INSTEAD}"
        )
    told = _run("docker", "info")
    if told.returncode != 0:
        why = (told.stderr.strip().splitlines() or ["docker info failed"])[-1]
        raise KindError(
            f"DRIVER=kind runs Kubernetes in Docker, but Docker does not answer: {why}\n"
            f"Start it (on Linux: sudo systemctl start docker) and look: docker info. {INSTEAD}"
        )


def program() -> str:
    """The `kind` on PATH, else the pinned one, built from its module.

    Raises:
        UnavailableError: it must be built and cannot.
    """
    return shutil.which("kind") or str(toolchain.program("kind"))


def put_driver(folder: Path = DRIVER) -> None:
    """Lay the SIMULATED driver where a node mounts it: the library, and the state of a new machine.

    Raises:
        UnavailableError: the library cannot be built.
    """
    library = build.library_directory() / build.LIBRARY
    (folder / "state").mkdir(parents=True, exist_ok=True)
    shutil.copy(library, folder / build.LIBRARY)
    Simulator.create(folder / "state" / "nvml.state", GPUS)


def up(directory: Path, kubeconfig: Path) -> Api:
    """Create the kind cluster (or find it), start kwok against it, and return a client for it."""
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
    """Delete the kind cluster; harmless when there is none."""
    _must(program(), "delete", "cluster", "--name", CLUSTER_NAME)


def load(archive: Path) -> None:
    """Give every node an image from the archive that `make images` wrote.

    Raises:
        KindError: kind refused; what it said is in the text.
    """
    _must(program(), "load", "image-archive", str(archive), "--name", CLUSTER_NAME)


def _must(*command: str) -> None:
    done = _run(*command)
    if done.returncode != 0:
        raise KindError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    # Folders in the configuration are named from the root of the repository.
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
