"""`kubectl gpusharing` asks several contexts at once: two lead to the real API server, with the rights of two people, one to a port that accepts connections and never answers, and one to a port where nothing listens. Its `ui` is asked with the rights of a planner, with those of a viewer, and with none."""

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from hack.cluster.process import free_ports
from tests.cli.schema import check
from tests.cli.served import Browsed, serving
from tests.integration.product import FULL, H100, MIXED, POLICIES, Pool, Product
from tests.integration.test_output import PLANNER, account, lodger, plugin
from tests.integration.workloads import Workload

pytestmark = pytest.mark.usefixtures("operator")

GENEROUS = 110.0
"""Seconds within which a command must have ended on a busy machine; `plugin` itself gives up after 120."""


@pytest.fixture(scope="module")
def pool(product: Product, operator: object) -> Iterator[Pool]:
    with product.pool(H100, name="pool-many") as pool:
        pool.serve(FULL)
        yield pool


@pytest.fixture(scope="module")
def kubeconfig(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    configs = {
        "admin": account(product, "fleet-admin", "view", PLANNER),
        "viewer": account(product, "fleet-viewer", "view"),
    }
    told: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []}
    with socket.create_server(("127.0.0.1", 0)) as hung:
        (closed,) = free_ports(1)
        for name, port in (("hung", hung.getsockname()[1]), ("refused", closed)):
            told["clusters"].append({"name": name, "cluster": {"server": f"https://127.0.0.1:{port}"}})
            told["users"].append({"name": name, "user": {"token": "nobody"}})
        for name, path in configs.items():
            own = yaml.safe_load(path.read_text())
            told["clusters"].append({"name": name, "cluster": own["clusters"][0]["cluster"]})
            told["users"].append({"name": name, "user": own["users"][0]["user"]})
        names = [one["name"] for one in told["clusters"]]
        told["contexts"] = [{"name": name, "context": {"cluster": name, "user": name}} for name in names]
        path = tmp_path_factory.mktemp("fleet") / "kubeconfig"
        path.write_text(json.dumps(told))
        yield path


def rows(said: str) -> dict[str, list[str]]:
    """The rows of a table by the cluster in their first column, with the rest of each."""
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        cluster, _, rest = line.partition(" ")
        found.setdefault(cluster, []).append(rest.strip())
    return found


def test_one_table_shows_the_clusters_that_answer_and_why_the_others_do_not(pool: Pool, kubeconfig: Path) -> None:
    began = time.monotonic()
    said = plugin(kubeconfig, "status", pool.name, "--all-contexts", errors=False)
    assert time.monotonic() - began < GENEROUS
    found = rows(said)
    assert found["CLUSTER"][0].split()[:4] == ["POOL", "MODE", "LAYOUT", "STATUS"]
    for name in ("admin", "viewer"):
        (row,) = [row for row in found[name] if row.startswith(pool.name)]
        assert row.split()[:5] == [pool.name, "Full", "1x", "full", "Synced"]
    for name in ("hung", "refused"):
        assert found[name][0].startswith(f"no answer: the API server of context {name} does not respond")
    assert "viewer is the same cluster as admin, so its rows appear twice." in said
    assert said.endswith("exit status 1\n")


def test_doctor_finds_the_same_beside_dead_clusters_as_alone(pool: Pool, kubeconfig: Path) -> None:
    said = plugin(kubeconfig, "doctor", "--contexts", "admin,hung,refused")
    single = plugin(kubeconfig, "doctor", "--context", "admin", "-o", "json", errors=False)
    symptoms = json.loads(single.rpartition("exit status")[0])["symptoms"]
    found = rows(said)
    assert len([row for row in found["admin"] if row.startswith(("ERROR", "WARNING"))]) == len(symptoms)
    assert found["hung"][0].startswith("no answer: the API server of context hung does not respond")
    assert "error: 2 of 3 clusters did not respond. hung: " in said
    assert said.endswith("exit status 1\n")
    assert pool.name


def test_names_templates_and_selectors_are_answered_as_by_kubectl(
    product: Product, pool: Pool, kubeconfig: Path
) -> None:
    """Both programs ask the same API server."""

    def out(*words: str) -> str:
        said, _, status = plugin(kubeconfig, *words, "--context", "admin").rpartition("exit status ")
        assert status == "0\n"
        return said

    product.api.merge_patch(f"{POLICIES}/{pool.name}", {"metadata": {"labels": {"team": "a"}}})
    kubectl = product.plane.kubectl
    name = f"gpusharingpolicy.gpusharing.dev/{pool.name}"
    assert out("status", "-o", "name") == kubectl("get", "gsp", "-o", "name")
    assert out("status", "-l", "team=a", "-o", "name").split() == [name]
    assert out("status", "--selector", "team=b", "-o", "name") == ""
    node = f"no/{pool.nodes[0]}"
    assert out("why", f"gsp/{pool.name}", node, "-o", "name").split() == [name, f"node/{pool.nodes[0]}"]
    theirs = "jsonpath={.status.summary.mode} {.status.summary.gpus}"
    (shown,) = json.loads(out("status", pool.name, "-o", "json"))["pools"]
    assert kubectl("get", "gsp", pool.name, "-o", theirs) == f"{shown['mode']} {shown['gpus']}"
    assert check(out("plan", "-o", "json")) == ["Plan"]
    assert check(out("why", node, "-o", "json")) == ["NodeExplanation"]


def follow(served: Browsed, *words: str) -> None:
    """Wait until a page that is open has each of these words, one after the other."""
    with urlopen(f"{served.url}events?policy=pool-u", timeout=120) as events:
        for word in words:
            assert any(word.encode() in line for line in events), word


def test_the_ui_shows_pools_tenants_and_why_follows_the_cluster_and_writes_nothing(product: Product) -> None:
    person = account(product, "reader-of-pages", "view", PLANNER)
    viewer = lodger(product, "viewer-of-pages", "gpusharing-viewer")
    with product.pool(H100, name="pool-u") as pool:
        pool.serve(FULL)
        Workload(pool, pool.nodes[0], 1).wait_running(1)
        since = product.mark()
        environment = {**os.environ, "PYTHONUTF8": "1"}
        with serving({**environment, "KUBECONFIG": str(person)}) as served:
            assert "pool-u" in served.read("?policy=pool-u").text
            (pod,) = {str(one["href"]) for one in served.read("?by=pod").all("a") if "pool-u-on" in str(one["href"])}
            text = served.read(pod).text
            assert f"This pod is on node {pool.nodes[0]}, which the operator is not changing now." in text
            assert "default" in served.read("?by=namespace").text
            pool.cordon(pool.nodes[0])
            pool.apply(MIXED)
            follow(served, "AlreadyCordoned")
            why = served.read(f"?subject=no/{pool.nodes[0]}").text
            assert "AlreadyCordoned" in why
            assert "NVML" in why, "with the proofs, which this person may read"
            assert served.end() == (130, "")
        asked = product.requests(since, "system:serviceaccount:default:reader-of-pages")
        assert {one.verb for one in asked} == {"get", "list", "watch"}
        with serving({**environment, "KUBECONFIG": str(viewer)}) as served:
            assert "AlreadyCordoned" in served.read("?policy=pool-u").text
            assert 'cannot list resource "nodes"' in served.read("?by=namespace").text
            assert "No proof to show: the right to list nodes" in served.read(f"?subject={pool.nodes[0]}").text


def test_without_any_right_the_ui_ends_with_one_sentence(product: Product) -> None:
    said = plugin(account(product, "nobody-of-pages"), "ui")
    assert said.startswith("error: you lack a permission in context ")
    assert 'cannot list resource "gpu' in said
    assert said.endswith("exit status 1\n")
    assert said.count("\n") == 2
