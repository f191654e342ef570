"""The whole product on a real control plane: chart, SIMULATED node software, and the operator as a process.

The operator runs with the ServiceAccount and the roles that the chart ships, never as admin.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.api import Api, ApiError, is_true
from hack.cluster.audit import PROBE
from hack.cluster.kubeconfig import open_api, service_account_token, write_token_kubeconfig
from hack.cluster.process import wait_until
from hack.cluster.toolchain import program

ROOT = Path(__file__).resolve().parent.parent
PYTHONPATH = f"{ROOT / 'operator'}:{ROOT}"
CHART = ROOT / "deploy" / "helm" / "gpu-sharing-operator"
DEBUG = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
STOP_SECONDS = 30.0
ENFORCED_SECONDS = 60.0
READY_POLL = 0.1
"""Seconds between two reads of a policy that is waited for, so that the reads are not a load on the API server."""
NAMESPACE = "gpusharing"
AGENT_NAMESPACE = "gpusharing-agent"
SERVICE_ACCOUNT = "gpusharing-operator"
WAITS = {
    "SETTLE": 5.0,
    "IDLE": 3.0,
    "CONFIG_PROPAGATION": 120.0,
    "WEDGE_PENDING": 1200.0,
    "WEDGE_PAUSED": 15.0,
    "ABORT_BACKOFF": 300.0,
    "POLL": 5.0,
    "EVICTION_WAIT": 5.0,
    "RESTART_GRACE": 30.0,
    "DRIFT_GRACE": 60.0,
}
"""The operator's waits in seconds. On simulated hardware they are divided by the factor of the hardware."""


class LaunchError(Exception):
    """The product could not be installed or started; the message has the output of helm or of the process."""


def install_chart(kubeconfig: Path, *arguments: str) -> str:
    """Install our chart with helm, taking over what exists, and wait until its admission counts. Raises LaunchError."""
    with open_api(kubeconfig) as api:
        runtime_class(api)
    done = helm(
        {**os.environ, "KUBECONFIG": str(kubeconfig)},
        *("upgrade", "--install", "gpusharing", str(CHART), "-n", NAMESPACE, "--create-namespace"),
        "--take-ownership",  # `make cluster` may have applied the CRDs
        *("--set", "image.repository=gpu-sharing-operator"),  # kwok plays the pods, so nothing is pulled
        *arguments,
    )
    if done.returncode:
        raise LaunchError(f"helm could not install the chart: {done.stderr.strip()}")
    with open_api(kubeconfig) as api, api.as_token(service_account_token(api, NAMESPACE, SERVICE_ACCOUNT)) as operator:
        wait_until(lambda: _refuses(operator), ENFORCED_SECONDS, "the admission policies to be enforced")
    return done.stdout


def _refuses(operator: Api) -> bool:
    """Whether admission refuses a write of the operator that RBAC allows; the server takes policies up a moment later."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    try:
        operator.request("POST", path, {"metadata": {"name": PROBE}}, dryRun="All")
    except ApiError as error:
        return "ValidatingAdmissionPolicy" in error.message
    return False


def runtime_class(api: Api) -> None:
    """Create the RuntimeClass that the GPU Operator would install, unless it exists."""
    metadata = {"name": "nvidia"}
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": metadata, "handler": "nvidia"}
    api.ensure("/apis/node.k8s.io/v1/runtimeclasses", runtime)


def helm(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the helm that we build, in exactly this environment, which must name the cluster."""
    command = [str(program("helm")), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def operator_kubeconfig(kubeconfig: Path, directory: Path) -> Path:
    """Write a kubeconfig with a token for the shipped ServiceAccount to `directory`, and return its path."""
    path = directory / "operator.kubeconfig"
    with open_api(kubeconfig) as api:
        write_token_kubeconfig(api, path, NAMESPACE, SERVICE_ACCOUNT)
    return path


AT_A_DESK = ("-m", "gpusharing.controller.main")
"""The arguments that run the operator of this checkout with all packages that are installed here."""
IN_A_POD = ("-m", "hack.inpod", "gpusharing.controller.main")
"""The arguments that run the operator without packages that its image lacks; it reads no kubeconfig."""


@dataclass(frozen=True)
class Door:
    """An address at which clients reach the API server: the server's own, or that of a proxy."""

    url: str
    """The address as https://HOST:PORT."""
    authority: str
    """The certificate (PEM) of the authority that signed the server's certificate."""


def operator_account(kubeconfig: Path, directory: Path, door: Door | None = None) -> dict[str, str]:
    """Write the files that a pod gets from the shipped ServiceAccount, and return its variables."""
    with open_api(kubeconfig) as api:
        token = service_account_token(api, NAMESPACE, SERVICE_ACCOUNT)
        return write_account(directory / "serviceaccount", door or Door(api.url, api.ca_pem), token)


def write_account(folder: Path, door: Door, token: str) -> dict[str, str]:
    """Write `token` and `ca.crt` as a pod gets them, and return the variables that lead there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(token)
    (folder / "ca.crt").write_text(door.authority)
    server = urlsplit(door.url)
    return {
        "KUBECONFIG": "",
        "SERVICE_ACCOUNT": str(folder),
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port or 443),
    }


def operator_environment(factor: float) -> dict[str, str]:
    """Return the operator's settings for hardware `factor` times as fast as we assume real hardware to be."""
    waits = {f"GPUSHARING_{name}": f"{seconds / factor}s" for name, seconds in WAITS.items()}
    return waits | {
        "GPUSHARING_NAMESPACE": NAMESPACE,
        "GPUSHARING_AGENT_NAMESPACE": AGENT_NAMESPACE,
        "GPUSHARING_LISTEN": "127.0.0.1",
        "GPUSHARING_PROBE_PORT": "0",
        "GPUSHARING_METRICS_PORT": "0",
        "GPUSHARING_PENDING_PERIOD": f"{max(60.0 / factor, 2.0)}s",
        "GPUSHARING_PUBLISH_PERIOD": f"{2.0 / factor}s",
    }


def own_environment() -> dict[str, str]:
    """Return our environment without GPUSHARING_*: the operator refuses what is not its setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GPUSHARING_")}


@dataclass
class LaunchedProcess:
    """A Python program of ours that runs in the background."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    around: tuple[str, ...] = ()
    """A command that runs the program, such as one that takes away rights or creates a namespace."""
    tied: bool = False
    """Whether its standard input is a pipe that closes when we end for any reason. The program must end then."""
    _running: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> "LaunchedProcess":
        """Start the program in a session of its own, so that Ctrl-C here does not reach it."""
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                [*self.around, sys.executable, *self.arguments],
                env={**own_environment(), "PYTHONPATH": PYTHONPATH, **DEBUG, **self.environment},
                stdout=output,
                stderr=output,
                stdin=subprocess.PIPE if self.tied else subprocess.DEVNULL,
                start_new_session=True,
                cwd=ROOT,
            )
        return self

    @property
    def pid(self) -> int:
        assert self._running is not None, "not started"
        return self._running.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, or the negative number of the signal that ended the program."""
        return self._running.poll() if self._running else None

    def alive(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._running is not None, "not started"
        self._running.send_signal(number)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        """End the program. After STOP_SECONDS make Python log where it hangs, and raise TimeoutExpired."""
        if self._running is None:
            return
        try:
            if self._running.poll() is None:
                self._running.send_signal(number)
                self._running.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # With PYTHONFAULTHANDLER set, SIGABRT makes Python print where it hangs.
            self._running.send_signal(signal.SIGABRT)
            self._running.wait(timeout=STOP_SECONDS)
            raise
        finally:
            if self._running.stdin is not None:
                self._running.stdin.close()

    def __enter__(self) -> "LaunchedProcess":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def operator(
    kubeconfig: Path, directory: Path, factor: float, door: Door | None = None, /, **settings: str
) -> LaunchedProcess:
    """Return the shipped operator with the shipped rights, as a process that is not started yet."""
    environment = operator_environment(factor) | {
        f"GPUSHARING_{name.upper()}": value for name, value in settings.items()
    }
    return LaunchedProcess(
        IN_A_POD, environment | operator_account(kubeconfig, directory, door), directory / "operator.log"
    )


def node_software(kubeconfig: Path, directory: Path, factor: float, *arguments: str) -> LaunchedProcess:
    """Return a process, not started yet, that plays the SIMULATED node software and runs the agents."""
    options = ("--kubeconfig", str(kubeconfig), "--time-factor", str(factor), "--agents", "--with-parent")
    return LaunchedProcess(("-m", "hack.sim", *options, *arguments), {}, directory / "sim.log", tied=True)


def wait_ready(api: Api, policy: str, seconds: float = 120.0) -> None:
    path = f"/apis/gpusharing.dev/v1alpha1/gpusharingpolicies/{policy}"
    what = f"policy {policy} to be Ready"
    wait_until(lambda: is_true(api.get(path), "Ready"), seconds, what, poll=READY_POLL)
