"""The agent's process: `gpusharing-agent`, one per GPU node."""

import argparse
import asyncio
import fcntl
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from prometheus_client.registry import CollectorRegistry

from gpusharing.agent.access import MetricsAccess, guarded
from gpusharing.agent.certificate import self_signed
from gpusharing.agent.kubelet import SOCKET, KubeletPodResources
from gpusharing.agent.loop import AgentLoop, LoopSettings, RestartNeeded
from gpusharing.agent.metrics import AgentCollector, UsageCollector
from gpusharing.agent.nvml import NVML
from gpusharing.agent.processes import Processes, pod_names, pod_uids
from gpusharing.agent.rest import RestClient
from gpusharing.api.times import parse_duration
from gpusharing.kube.background import new_worker
from gpusharing.kube.errors import Unauthorized
from gpusharing.kube.login import SERVICE_ACCOUNT, find_login
from gpusharing.kube.pageserver import Answer, Page, PageServer, metrics_page

_NO_EXTRAS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JSONLines(logging.Formatter):
    """Formats a record as one line of JSON. Only by the standard library: structlog would cost the agent 3 MiB."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "node": self._node,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _NO_EXTRAS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


log = logging.getLogger(__name__)

NO_LOGIN = 2
"""Exit status if the credentials cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until a signal; return 0, 1 if only a new container can read the GPUs, or NO_LOGIN."""
    options = parse(arguments, os.environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines(options.node_name))
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler], force=True)
    return asyncio.run(_serve(options))


def address(text: str) -> tuple[str, int]:
    """Parse HOST:PORT, with brackets around an IPv6 host."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, for example 0.0.0.0:8080 or [::]:8080")
    return host.strip("[]"), int(port)


def duration(text: str) -> float:
    with suppress(ValueError):
        if seconds := parse_duration(text).total_seconds():
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a duration of more than 0, for example 30s")


def log_level(text: str) -> str:
    if text.upper() not in logging.getLevelNamesMapping():
        raise argparse.ArgumentTypeError(f"{text!r} is not a log level: use debug, info, warning or error")
    return text


def switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


_FLAGS: tuple[tuple[str, str, Callable[[str], object], str], ...] = (
    ("--interval", "30s", duration, "time between two readings of the GPUs when no event occurs"),
    ("--hung-after", "40s", duration, "time after which a reading is reported as hung"),
    ("--pod-resources-socket", str(SOCKET), Path, "the kubelet's podresources socket"),
    (
        "--pod-logs",
        "/var/log/pods",
        Path,
        "directory where the kubelet stores pod logs; the names in it show which pod a process belongs to",
    ),
    ("--metrics-addr", "127.0.0.1:8081", address, "address at which /metrics, /healthz and /readyz are served"),
    (
        "--metrics-secure",
        "false",
        switch,
        "true to serve with TLS, and /metrics only to those whom the API server allows to get it",
    ),
    ("--kubeconfig", "", str, "kubeconfig to use instead of the pod's service account, for development"),
    ("--service-account", str(SERVICE_ACCOUNT), Path, "directory with `token` and `ca.crt`"),
    ("--log-level", "info", log_level, "debug, info, warning or error"),
)


def _variable(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


def parse(arguments: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Parse the flags. A flag's default is its environment variable, if that is not empty."""
    parser = argparse.ArgumentParser(
        "gpusharing-agent", description="Reports the state of this node's GPUs in its GPUNode."
    )
    node = environ.get("NODE_NAME")
    parser.add_argument("--node-name", default=node, required=not node, help="this node's name ($NODE_NAME)")
    for flag, default, kind, text in _FLAGS:
        variable = _variable(flag)
        parser.add_argument(
            flag,
            type=kind,
            default=environ.get(variable) or default,  # argparse applies `type` to a string default too
            metavar=kind.__name__.upper(),
            help=f"{text} (${variable}, default {default or 'none'})",
        )
    return parser.parse_args(arguments)


def lock_node(directory: Path) -> Callable[[], str]:
    """Return a function that returns why this is not the only agent of its node; empty if it is, or nobody can tell.

    Two would both hold NVML open, and each would answer for the other's silence. It locks a directory of the host that
    every agent mounts; the kernel drops the lock when a process ends.
    """
    is_locked = False

    def why_not_alone() -> str:
        nonlocal is_locked
        if is_locked:
            return ""
        try:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                return ""
            return (
                f"another agent runs on this node (it has locked {directory}), so this one reads no GPU; remove the other"
                " one's DaemonSet or pod"
            )
        is_locked = True
        return ""

    return why_not_alone


def probe(why_not: Callable[[], str]) -> Page:
    """Return the page of a probe; `why_not` returns an empty string while everything is fine."""

    def answer(_: str) -> Answer:
        problem = why_not()
        return Answer(503 if problem else 200, f"{problem or 'ok'}\n".encode())

    return answer


async def _serve(options: argparse.Namespace) -> int:
    login = find_login(os.environ, options.kubeconfig, options.service_account)
    try:
        await login.access()
        await login.token()
    except Unauthorized as error:
        log.error("cannot log in to the API server", extra={"error": str(error)})
        return NO_LOGIN
    library = NVML(Processes(pod_named=pod_names(options.pod_logs)))
    api, pods = RestClient(login), KubeletPodResources(options.pod_resources_socket)
    settings = LoopSettings(interval=options.interval, hung_after=options.hung_after)
    loop = AgentLoop(
        options.node_name,
        api,
        library,
        pods,
        settings,
        background=new_worker(),
        why_not_alone=lock_node(options.pod_resources_socket.parent),
        pod_uids=partial(pod_uids, options.pod_logs),
    )
    registry = CollectorRegistry()
    registry.register(AgentCollector(loop))
    registry.register(UsageCollector(loop))
    metrics: Page = metrics_page(registry)
    if options.metrics_secure:
        metrics = guarded(metrics, MetricsAccess(api).decide)
    pages = {"/healthz": probe(loop.why_not_alive), "/readyz": probe(loop.why_not_ready), "/metrics": metrics}
    tls = self_signed("gpusharing-agent") if options.metrics_secure else None
    server = PageServer(options.metrics_addr, pages, tls=tls)
    server.start()
    log.info("agent started", extra={"probes": f"{options.metrics_addr[0]}:{server.port}"})
    task = asyncio.create_task(loop.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("agent stopped")
        return 0
    except RestartNeeded as error:
        log.error(
            "the agent is exiting, because only a new container can read the GPUs again", extra={"error": str(error)}
        )
    finally:
        server.stop()
        pods.close()
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
