"""`kubectl gpusharing free` against a real API server and scheduler: with all rights, with the token of a user of one namespace, and with none. No operator runs: `free` needs none."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.api import Object
from hack.cluster.nodes import create_nodes, node_manifest
from tests.integration.product import Pool, Product
from tests.integration.test_output import account, lodger, plugin, same_as_golden
from tests.integration.workloads import PODS, Workload

GPU = "nvidia.com/gpu"
SELECTOR = "gpusharing.dev/pool=stock"


@pytest.fixture(scope="module")
def stock(product: Product) -> Iterator[Pool]:
    """Three nodes with two GPUs each: one pod holds a GPU, one node is cordoned, one is tainted, one pod waits. Without NVIDIA's labels no SIMULATED device plugin serves them, so that what is allocatable stays as it was written."""
    with product.pool(name="stock", empty=True) as pool:
        for number in range(3):
            manifest = node_manifest(f"stock-{number}", gpus=2, pool="stock")
            labels = manifest["metadata"]["labels"]
            manifest["metadata"]["labels"] = {
                key: value for key, value in labels.items() if not key.startswith("nvidia.com/")
            }
            create_nodes(product.api, [manifest])
            pool.nodes.append(f"stock-{number}")
        Workload(pool, pool.nodes[0], 1).wait_running(1)
        pool.cordon(pool.nodes[1])
        taint = {"key": "team", "value": "b", "effect": "NoSchedule"}
        product.api.merge_patch(f"/api/v1/nodes/{pool.nodes[2]}", {"spec": {"taints": [taint]}})
        wanting = {"name": "main", "image": "simulated", "resources": {"limits": {GPU: "2"}}}
        waiting = Workload(pool, pool.nodes[0], 1, app="stock-waits", more={"spec": {"containers": [wanting]}})
        pool.wait(lambda: bool(unplaced(waiting)), "the scheduler to find no place", waiting.pods)
        yield pool


def unplaced(workload: Workload) -> list[str]:
    conditions = [row for pod in workload.pods() for row in pod.get("status", {}).get("conditions", [])]
    return [row["message"] for row in conditions if row["type"] == "PodScheduled" and row["status"] == "False"]


def words(said: str) -> str:
    return " ".join(said.split())


def free(kubeconfig: Path, *arguments: str) -> Object:
    """The answer for programs, about the nodes of this module where they may be chosen."""
    said = plugin(kubeconfig, "free", *arguments, "-o", "json", errors=False)
    found: Object = json.loads(said.rpartition("exit status")[0])
    return found


def test_who_may_read_everything_sees_what_is_held_free_closed_and_waiting(product: Product, stock: Pool) -> None:
    said = plugin(product.plane.kubeconfig, "free", "-l", SELECTOR)
    same_as_golden("plugin-free", re.sub(r"\bstock(-waits)?-on-stock-0-\w{5}\b", r"stock\1-on-stock-0-POD", said))
    (row,) = free(product.plane.kubeconfig, "-l", SELECTOR)["rows"]
    assert row == {
        "resource": GPU,
        "device": None,
        "requested": 1,
        "allocatable": 6,
        "free": 3,
        "largest": 2,
        "closed": 2,
        "waiting": 2,
    }


def test_a_user_of_a_namespace_gets_their_own_pods_and_why_the_rest_is_unknown(product: Product, stock: Pool) -> None:
    tenant = lodger(product, "tenant")
    since = product.mark()
    data = free(tenant)
    (row,) = (row for row in data["rows"] if row["resource"] == GPU)
    assert row["requested"] >= 1, "beside pods of other tests"
    assert row["waiting"] >= 2
    assert (row["allocatable"], row["free"], row["largest"]) == (None, None, None)
    assert {GPU: 2} in [pod["requests"] for pod in data["waiting"]], "beside pods of other tests"
    said = plugin(tenant, "free", "--by", "pod", "--usage")
    assert said.endswith("exit status 2\n")
    assert "what is allocatable and free is unknown, because you lack a permission in" in words(said)
    assert "only the pods of namespace default are counted (-n NAME chooses another namespace)" in words(said)
    assert 'cannot list resource "pods" in API group "" at the cluster scope' in words(said)
    assert "memory and SM use are unknown: no pod of the agent" in words(said)
    asked = product.requests(since, "system:serviceaccount:default:tenant")
    assert {request.verb for request in asked} == {"list"}


def test_without_any_right_there_is_one_sentence(product: Product, stock: Pool) -> None:
    nobody = account(product, "nobody")
    said = plugin(nobody, "free")
    assert said.startswith("error: you lack a permission in context ")
    assert 'cannot list resource "nodes"' in said
    assert (
        "You are not allowed to list pods in namespace default either; choose another namespace with -n NAME\n" in said
    )
    assert said.endswith("exit status 1\n")
    assert said.count("\n") == 2


def test_a_selector_that_the_api_server_cannot_parse_is_refused_in_its_words(product: Product, stock: Pool) -> None:
    said = plugin(product.plane.kubeconfig, "free", "-l", "pool in")
    assert said.startswith("error: the API server of context ")
    assert "unable to parse requirement" in said
    assert said.endswith("exit status 1\n")


def test_agents_are_asked_through_the_proxy_and_one_that_cannot_be_reached_is_named(
    product: Product, stock: Pool
) -> None:
    """The simulated agents are no pods, so one is put in their place, which no kubelet has given an address."""
    container = {"name": "agent", "image": "simulated", "ports": [{"name": "metrics", "containerPort": 8080}]}
    agent = {
        "metadata": {"name": "agent-of-stock", "labels": {"app.kubernetes.io/name": "gpusharing-agent"}},
        "spec": {"nodeName": stock.nodes[0], "containers": [container]},
    }
    product.api.create(PODS, agent)
    try:
        since = product.mark()
        said = plugin(product.plane.kubeconfig, "free", "--usage", "-l", SELECTOR)
        product.wait_logged()
    finally:
        product.remove(f"{PODS}/agent-of-stock")
    assert "memory and SM use are unknown: the agent on stock-0 did not respond" in words(said)
    assert "Prometheus could not be used instead: no Service in context" in words(said)
    assert said.endswith("exit status 2\n")
    assert "/pods/agent-of-stock:8080/proxy/metrics" in product.plane.audit_log.read_bytes()[since:].decode()
