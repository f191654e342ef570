"""How long the operator takes in the root file system of its image from its start until it is Ready.

In a cluster, the time of the container runtime and the interval of the kubelet's probes are added.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hack import launch
from hack.bench.machine import cpu_ms
from hack.cluster import install
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import free_ports, responds
from hack.images import local
from hack.images.contents import Image

LIMIT = 3.0
"""The largest CPU time of a start in seconds, from the start of the process to the first success of /readyz."""
STARTS = 3
PATIENCE = 60.0
UID = 65532
ACCOUNT = "run/secrets/account"


@dataclass(frozen=True, slots=True)
class Start:
    """One start, measured from the start of the process to the first success of /readyz."""

    seconds: float
    """The elapsed time, which grows with the load of the machine."""
    cpu_seconds: float
    """CPU time of the process."""


def lay(image: Image, root: Path) -> None:
    """Copy the image's layers on top of each other into `root`."""
    for tree in image.tree:
        shutil.copytree(tree, root, symlinks=True, dirs_exist_ok=True)


def environment(root: Path, plane: ControlPlane, port: int) -> dict[str, str]:
    """Write the account's files below `root`, and return the environment of image and pod."""
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
    """Start the operator with `root` as its root file system, wait until it is Ready, and stop it."""
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
                if responds(f"http://127.0.0.1:{port}/readyz"):
                    return Start(time.monotonic() - begin, cpu_ms(process.pid) / 1000)
                time.sleep(0.01)
            log.seek(0)
            raise RuntimeError(f"the operator did not become Ready:\n{log.read().decode()}")
        finally:
            process.terminate()
            process.wait(PATIENCE)


def measure_starts(image: Image) -> list[Start]:
    """Start the operator STARTS times in the image of this machine's architecture."""
    with tempfile.TemporaryDirectory() as scratch, ControlPlane(Path(scratch) / "plane") as plane:
        root = Path(scratch) / "root"
        lay(image, root)
        install.install_all(plane.api)
        launch.install_chart(plane.kubeconfig)
        root.chmod(0o755)
        Path(scratch).chmod(0o755)
        return [measure(root, plane) for _ in range(STARTS)]


def is_soon(starts: Sequence[Start]) -> bool:
    return statistics.median(item.cpu_seconds for item in starts) <= LIMIT


def summary(starts: Sequence[Start]) -> str:
    """Return one line with the seconds that each start took, the median of their CPU seconds, and LIMIT."""
    times = ", ".join(f"{item.seconds:.2f}" for item in starts)
    median = statistics.median(item.cpu_seconds for item in starts)
    return f"start to Ready: {times} s; median CPU {median:.2f} s, at most {LIMIT:.0f} s are allowed"
