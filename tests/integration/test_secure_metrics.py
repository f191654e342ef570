"""The agent's metrics are for those alone whom a real API server lets read them; a real Prometheus is one of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hack.cluster.kubeconfig import node_bound_token, service_account_token
from hack.cluster.process import wait_until
from hack.nvmlsim.simulator import Simulator
from tests.agent.test_access import get
from tests.chart.cluster import create_account
from tests.chart.scraping import scraping
from tests.integration.product import AGENT, SECONDS, Product

from hack import launch

READER, OTHER = "prometheus", "somebody"


@dataclass(frozen=True)
class Secured:
    """An agent that protects its metrics, and two accounts, one of which may read them."""

    product: Product
    port: int

    def token(self, account: str) -> str:
        return service_account_token(self.product.api, "default", account)

    def get(self, path: str, token: str = "") -> tuple[int, str]:
        url = f"https://127.0.0.1:{self.port}{path}"
        return get(url, f"Bearer {token}" if token else "")[:2]


@pytest.fixture(scope="module")
def secured(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The role is the chart's; the binding is what its value monitoring.readers makes."""
    (binding,) = create_account(product.api, READER, "gpusharing-metrics-reader")
    create_account(product.api, OTHER)
    folder = tmp_path_factory.mktemp("secured")
    with product.pool() as pool, agent_process(product, pool.nodes[0], folder, METRICS_SECURE="true") as port:
        yield Secured(product, port)
    product.remove(binding)


def test_the_api_server_decides_who_reads_the_metrics(secured: Secured) -> None:
    since = secured.product.mark()
    assert secured.get("/healthz") == (200, "ok\n"), "the kubelet sends no token"
    assert secured.get("/metrics")[0] == 401
    assert secured.get("/metrics", "no.such.token")[0] == 401
    status, said = secured.get("/metrics", secured.token(OTHER))
    assert (status, said.strip()) == (
        403,
        f"user system:serviceaccount:default:{OTHER} may not get /metrics: bind ClusterRole"
        " gpusharing-metrics-reader to that user",
    )
    token = secured.token(READER)
    for _ in range(3):
        status, page = secured.get("/metrics", token)
        assert status == 200
        assert "gpusharing_agent_ready" in page
    asked = [(one.resource, one.verb) for one in secured.product.requests(since, AGENT)]
    assert asked.count(("tokenreviews", "create")) == 3, "an answer is used again"
    assert asked.count(("subjectaccessreviews", "create")) == 2


def test_a_prometheus_with_the_settings_of_the_how_to_scrapes_it_and_one_without_a_token_does_not(
    secured: Secured, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(secured.token(READER))
    target: dict[str, Any] = {
        "scheme": "https",
        "tls_config": {"insecure_skip_verify": True},
        "static_configs": [{"targets": [f"127.0.0.1:{secured.port}"]}],
    }
    reader = {"authorization": {"credentials_file": str(tmp_path / "token")}}
    jobs = [{"job_name": "reader", **target, **reader}, {"job_name": "stranger", **target}]
    with scraping(tmp_path, jobs) as seen:

        def ups() -> dict[str, str]:
            return {one["metric"]["job"]: one["value"][1] for one in seen.ask("up")}

        wait_until(lambda: ups() == {"reader": "1", "stranger": "0"}, SECONDS, "a scrape of both")
        assert {one["job"] for one in seen.series("gpusharing_agent_ready")} == {"reader"}


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
