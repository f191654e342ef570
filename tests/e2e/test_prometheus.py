"""A real Prometheus scrapes the shipped agents and operator in their pods, on real kubelets. SIMULATED: the GPUs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hack.cluster.api import Object
from hack.launch import AGENT_NAMESPACE, NAMESPACE
from hack.promtool import ensure
from hack.realnode.machine import Machine
from hack.realnode.runtime import MEMORY_MIB
from tests.e2e.pool import NODES, Walk, reader_token

pytestmark = pytest.mark.e2e
PORT = 9090
ASK = """
import sys, urllib.parse as p, urllib.request as r
print(r.urlopen(f"http://127.0.0.1:{sys.argv[1]}/api/v1/query?" + p.urlencode({"query": sys.argv[2]})).read().decode())
"""
PARTS = ("slice", "idle_slice", "stranded_slice", "transition_slice")
METERED = f"sum by (node) ({{__name__=~'gpusharing_({'|'.join(PARTS)})_seconds_total'}})"
WHOLE = "sum by (node) (gpusharing_gpu_seconds_total)"


@dataclass(frozen=True)
class Seen:
    walk: Walk
    machine: Machine
    pods: frozenset[str]

    def ask(self, query: str) -> list[Any]:
        said = self.machine.run(sys.executable, "-c", ASK, str(PORT), query)
        found: list[Any] = json.loads(said)["data"]["result"]
        return found

    def is_up(self) -> bool:
        try:
            return self.ask("vector(1)") != []
        except subprocess.CalledProcessError:
            return False

    def values(self, query: str, label: str) -> dict[str, float]:
        return {one["metric"].get(label, ""): float(one["value"][1]) for one in self.ask(query)}


def listening(walk: Walk, namespace: str) -> list[Object]:
    pods = walk.site.api.list(f"/api/v1/namespaces/{namespace}/pods")
    return [pod for pod in pods if pod["status"].get("phase") == "Running"]


def address(pod: Object) -> str:
    ports = [port for one in pod["spec"]["containers"] for port in one.get("ports", [])]
    (port,) = [port["containerPort"] for port in ports if port["name"] == "metrics"]
    return f"{pod['status']['podIP']}:{port}"


@pytest.fixture(scope="module")
def seen(walk: Walk) -> Iterator[Seen]:
    """One that scrapes every agent and every replica of the operator each second."""
    first, *others = (walk.site.nodes[name].machine for name in NODES)
    for other in others:
        first.run("ip", "route", "replace", f"10.244.{other.number}.0/24", "via", other.address)
    jobs, pods = [], set[str]()
    for namespace in (AGENT_NAMESPACE, NAMESPACE):
        targets: list[Object] = [
            # The two labels that the chart's PodMonitor sees to.
            {"targets": [address(pod)], "labels": {"pod": pod["metadata"]["name"], "node": pod["spec"]["nodeName"]}}
            for pod in listening(walk, namespace)
        ]
        pods |= {one["labels"]["pod"] for one in targets}
        secure = {"scheme": "https", "tls_config": {"insecure_skip_verify": True}}
        secure |= {"authorization": {"credentials": reader_token(walk.site.api)}}
        how = secure if namespace == AGENT_NAMESPACE else {}
        jobs.append({"job_name": namespace, "honor_labels": True, "static_configs": targets, **how})
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (first.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
        str(ensure("prometheus")),
        f"--config.file={first.folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={first.folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{PORT}",
    ]
    running = first.spawn("prometheus", command)
    try:
        made = Seen(walk, first, frozenset(pods))
        walk.wait(made.is_up, "Prometheus to answer")
        yield made
    finally:
        running.stop()


def test_every_agent_and_every_operator_is_scraped(seen: Seen) -> None:
    assert len(seen.pods) >= len(NODES) + 1
    seen.walk.wait(lambda: seen.values("up", "pod") == dict.fromkeys(seen.pods, 1.0), "all to be scraped")


def test_it_holds_what_each_pod_uses_and_what_the_operator_counts(seen: Seen) -> None:
    used = "sum by (pod) (gpusharing_pod_memory_used_bytes)"
    pods = dict.fromkeys(seen.walk.running(), float(MEMORY_MIB * 2**20))
    seen.walk.wait(lambda: seen.values(used, "pod") == pods, "the memory of the Deployment's pods")
    allowed = "max by (policy) (gpusharing_policy_budget_allowed_nodes)"
    assert seen.values(allowed, "policy") == {"real": 1.0}


def test_the_meters_of_both_nodes_add_up(seen: Seen) -> None:
    seen.walk.wait(lambda: min(seen.values(f"{WHOLE} > 0", "node").get(node, 0.0) for node in NODES) > 0, "the meters")
    # One query, so that both sides are of one scrape.
    apart = seen.values(f"abs({METERED} - {WHOLE})", "node")
    assert apart.keys() == set(NODES)
    assert max(apart.values()) < 1
    held = "sum by (namespace) (gpusharing_slice_seconds_total)"
    seen.walk.wait(lambda: seen.values(f"{held} > 0", "namespace").keys() == {"default"}, "the tenant's share")
    assert seen.values(held, "namespace").keys() == {"default"}
