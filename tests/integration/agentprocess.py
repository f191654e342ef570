"""The shipped agent as a process on one node of the control plane, with the token that its pod would have."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.kubeconfig import node_bound_token
from hack.nvmlsim.simulator import Simulator
from tests.integration.product import SECONDS, Product

from hack import launch


@contextmanager
def agent_process(product: Product, node: str, directory: Path, **variables: str) -> Iterator[int]:
    """Run it on SIMULATED GPUs with these variables besides its own; yields the port of its metrics."""
    machine = Simulator.create(directory / "nvml.state", ["h100-80gb"], seed="rights")
    (directory / "token").write_text(node_bound_token(product.api, launch.AGENT_NAMESPACE, "gpusharing-agent", node))
    (directory / "ca.crt").write_text(product.api.ca_pem)
    server = urlsplit(product.api.url)
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"} | {
        **machine.environment("root"),
        "NODE_NAME": node,
        "SERVICE_ACCOUNT": str(directory),
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "METRICS_ADDR": "127.0.0.1:0",
        "PYTHONPATH": launch.PYTHONPATH,
        **variables,
    }
    command = [sys.executable, "-m", "gpusharing.agent.main"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        yield int(json.loads(process.stderr.readline())["probes"].rpartition(":")[2])
        process.terminate()
        process.communicate(timeout=SECONDS)
