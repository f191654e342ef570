"""DRIVER=kind: a kind cluster for those who have Docker; kwok runs beside it and plays the GPU nodes."""

import shutil
import subprocess
from pathlib import Path

from hack.cluster import commands, process, state, toolchain
from hack.cluster.api import Api
from hack.cluster.kubeconfig import CLUSTER_NAME, open_api

LEASE_SECONDS = 40
"""kind's controller-manager has the usual grace period, so the fake nodes must renew their leases."""
INSTEAD = "Or use our own control plane, which needs neither: make cluster"


class KindError(Exception):
    """kind cannot run here, or failed. The text says what is missing, why, and the command that helps."""


def check() -> None:
    """Raise KindError unless Docker and kind are here and Docker answers."""
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
    if shutil.which("kind") is None:
        raise KindError(
            "DRIVER=kind needs the program `kind`, which is not on PATH.\n"
            f"Install it: go install sigs.k8s.io/kind@latest. {INSTEAD}"
        )


def up(directory: Path, kubeconfig: Path) -> Api:
    """Create the kind cluster (or find it), start kwok against it, and return a client for it."""
    check()
    kwok = toolchain.program("kwok")
    if CLUSTER_NAME not in _run("kind", "get", "clusters").stdout.split():
        _must("kind", "create", "cluster", "--name", CLUSTER_NAME, "--kubeconfig", str(kubeconfig))
    else:
        _must("kind", "export", "kubeconfig", "--name", CLUSTER_NAME, "--kubeconfig", str(kubeconfig))
    api = open_api(kubeconfig)
    command = commands.kwok(kwok, kubeconfig, LEASE_SECONDS)
    component = process.start("kwok", command, directory / "kwok.log")
    state.State(None, api.url, {"kwok": component.pid}, driver="kind").write(directory)
    return api


def down() -> None:
    """Delete the kind cluster; harmless when there is none."""
    _must("kind", "delete", "cluster", "--name", CLUSTER_NAME)


def _must(*command: str) -> None:
    done = _run(*command)
    if done.returncode != 0:
        raise KindError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
