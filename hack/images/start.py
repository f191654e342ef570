"""How long the operator takes from its start to Ready, as the image has it: `sudo python -m hack.images.start`.

In the root file system of `make images BASE=local`, as uid 65532 (which has no entry in /etc/passwd), with the files
and variables of a pod, under the shipped rights, against a control plane of its own. A container adds what its runtime
and the kubelet's probes take.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hack import launch
from hack.bench.machine import cpu_ms
from hack.cluster import install
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import free_ports
from hack.images import local
from hack.images.contents import Image

LIMIT = 3.0
"""Seconds of CPU from the start of the process to the first good answer of /readyz; more is a fault."""
STARTS = 3
PATIENCE = 60.0
UID = 65532
ACCOUNT = "run/secrets/account"


@dataclass(frozen=True, slots=True)
class Start:
    """One start, from the process to the first good answer of /readyz."""

    seconds: float
    """By the clock on the wall, to which everything else that runs on the machine adds."""
    cpu_seconds: float
    """Of the process alone."""


def lay(image: Image, root: Path) -> None:
    """The image's layers over each other."""
    for tree in image.tree:
        shutil.copytree(tree, root, symlinks=True, dirs_exist_ok=True)


def environment(root: Path, plane: ControlPlane, port: int) -> dict[str, str]:
    """What a pod of the operator has, with the files of its ServiceAccount below `root`."""
    api = plane.api
    token = service_account_token(api, launch.NAMESPACE, launch.SERVICE_ACCOUNT)
    return {
        **dict(entry.split("=", 1) for entry in local.RUN["Env"]),
        **launch.write_account(root / ACCOUNT, launch.Door(api.url, api.ca_pem), token),
        "SERVICE_ACCOUNT": f"/{ACCOUNT}",
        "GPUSHARING_NAMESPACE": launch.NAMESPACE,
        "GPUSHARING_LISTEN": "127.0.0.1",
        "GPUSHARING_PROBE_PORT": str(port),
        "GPUSHARING_METRICS_PORT": "0",
    }


def measure(root: Path, plane: ControlPlane) -> Start:
    """One start.

    Raises:
        RuntimeError: it ended, or was not Ready in a minute; the text holds its log.
    """
    (port,) = free_ports(1)
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            ["/usr/sbin/chroot", f"--userspec={UID}:{UID}", str(root), local.RUN["Cmd"][0]],
            env=environment(root, plane, port),
            stdout=log,
            stderr=log,
        )
        try:
            while process.poll() is None and time.monotonic() - begin < PATIENCE:
                if _is_ready(port):
                    return Start(time.monotonic() - begin, cpu_ms(process.pid) / 1000)
                time.sleep(0.01)
            log.seek(0)
            raise RuntimeError(f"the operator was never Ready:\n{log.read().decode()}")
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def measure_starts(image: Image) -> list[Start]:
    """STARTS starts of this machine's image, one after another; root is needed, for chroot.

    Raises:
        RuntimeError: the operator was not Ready; the text holds its log.
        UnavailableError, ComponentError: there is no control plane.
    """
    with tempfile.TemporaryDirectory() as scratch, ControlPlane(Path(scratch) / "plane") as plane:
        root = Path(scratch) / "root"
        lay(image, root)
        install.install_all(plane.api)
        launch.install_chart(plane.kubeconfig)
        root.chmod(0o755)
        Path(scratch).chmod(0o755)
        return [measure(root, plane) for _ in range(STARTS)]


def is_soon(starts: Sequence[Start]) -> bool:
    """Whether the median start is within LIMIT."""
    return statistics.median(one.cpu_seconds for one in starts) <= LIMIT


def summary(starts: Sequence[Start]) -> str:
    """What was measured, in one line."""
    told = ", ".join(f"{one.seconds:.2f}" for one in starts)
    median = statistics.median(one.cpu_seconds for one in starts)
    return f"start to Ready: {told} s, median CPU {median:.2f} s, of which at most {LIMIT:.0f} s are fine"


def main() -> int:
    """Exit status 0 when the operator is Ready soon enough."""
    if os.geteuid() != 0:
        print("root is needed for chroot: sudo .venv/bin/python -m hack.images.start", file=sys.stderr)
        return 2
    starts = measure_starts(local.build())
    print(summary(starts))
    return 0 if is_soon(starts) else 1


if __name__ == "__main__":
    sys.exit(main())
