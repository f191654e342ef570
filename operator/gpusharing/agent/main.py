"""The agent's process: `gpusharing-agent`, one per GPU node."""

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client.registry import CollectorRegistry

from gpusharing.agent.credentials import (
    SERVICE_ACCOUNT,
    Credentials,
    NoCredentials,
    from_kubeconfig,
    in_cluster,
)
from gpusharing.agent.kubelet import SOCKET, KubeletPodResources
from gpusharing.agent.logs import log_as_json
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.nvml import NVML
from gpusharing.agent.probes import ProbeServer
from gpusharing.agent.rest import RestClient

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    options = parse(arguments, os.environ)
    log_as_json(options.node_name, options.log_level)
    try:
        credentials = credentials_of(options.kubeconfig, options.service_account)
    except NoCredentials as error:
        log.error("cannot log in to the API server", extra={"error": str(error)})
        return 2
    settings = LoopSettings(interval=options.interval, hung_after=options.hung_after)
    pods = KubeletPodResources(options.pod_resources_socket)
    return asyncio.run(_serve(options, credentials, settings, pods))


def address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, an IPv6 host in brackets; raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


_FLAGS: tuple[tuple[str, str, str, Callable[[str], object], str], ...] = (
    ("--interval", "INTERVAL_SECONDS", "30", float, "seconds between two readings without an event"),
    ("--hung-after", "HUNG_AFTER_SECONDS", "10", float, "seconds after which a reading is reported as hung"),
    (
        "--pod-resources-socket",
        "POD_RESOURCES_SOCKET",
        str(SOCKET),
        Path,
        "the kubelet's podresources socket",
    ),
    (
        "--metrics-addr",
        "METRICS_ADDR",
        "127.0.0.1:8081",
        address,
        "where /metrics, /healthz and /readyz listen",
    ),
    ("--kubeconfig", "KUBECONFIG", "", str, "for development, instead of the pod's service account"),
    ("--service-account", "SERVICE_ACCOUNT", str(SERVICE_ACCOUNT), Path, "folder with `token` and `ca.crt`"),
    ("--log-level", "LOG_LEVEL", "info", str, "debug, info, warning or error"),
)


def parse(arguments: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Flags, each with a variable of the environment as its default."""
    parser = argparse.ArgumentParser(
        "gpusharing-agent", description="Reports what the GPUs of this node are into its GPUNode."
    )
    node = environ.get("NODE_NAME")
    parser.add_argument("--node-name", default=node, required=not node, help="this node's name ($NODE_NAME)")
    for flag, variable, default, kind, text in _FLAGS:
        parser.add_argument(
            flag,
            type=kind,
            default=environ.get(variable, default),  # argparse passes a text through `type` too
            metavar=kind.__name__.upper(),
            help=f"{text} (${variable}, default {default or 'none'})",
        )
    return parser.parse_args(arguments)


def credentials_of(kubeconfig: str, service_account: Path) -> Credentials:
    """From the kubeconfig that is named, else from the pod; raises NoCredentials."""
    return from_kubeconfig(Path(kubeconfig)) if kubeconfig else in_cluster(os.environ, service_account)


async def _serve(
    options: argparse.Namespace, credentials: Credentials, settings: LoopSettings, pods: KubeletPodResources
) -> int:
    loop = AgentLoop(options.node_name, RestClient(credentials), NVML(), pods, settings)
    registry = CollectorRegistry()
    registry.register(AgentCollector(loop))
    probes = ProbeServer(options.metrics_addr, loop.why_not_alive, loop.why_not_ready, registry)
    probes.start()
    log.info("agent started", extra={"probes": f"{options.metrics_addr[0]}:{probes.port}"})
    task = asyncio.create_task(loop.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("agent stopped")
        return 0
    finally:
        probes.stop()
    return 1  # run() never returns


if __name__ == "__main__":
    raise SystemExit(main())
