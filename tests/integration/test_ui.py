"""`kubectl gpusharing ui` against a real API server and the operator: with the rights of a planner, with those of a viewer, and with none."""

import os
from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.cli.served import Browsed, serving
from tests.integration.product import FULL, H100, MIXED, Product
from tests.integration.test_output import PLANNER, account, lodger, plugin
from tests.integration.workloads import Workload

pytestmark = pytest.mark.usefixtures("operator")


def environment(kubeconfig: Path) -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONUTF8": "1"}


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
        with serving(environment(person)) as served:
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
        with serving(environment(viewer)) as served:
            assert "AlreadyCordoned" in served.read("?policy=pool-u").text
            assert 'cannot list resource "nodes"' in served.read("?by=namespace").text
            assert "No proof to show: the right to list nodes" in served.read(f"?subject={pool.nodes[0]}").text


def test_without_any_right_the_ui_ends_with_one_sentence(product: Product) -> None:
    said = plugin(account(product, "nobody-of-pages"), "ui")
    assert said.startswith("error: you lack a permission in context ")
    assert 'cannot list resource "gpu' in said
    assert said.endswith("exit status 1\n")
    assert said.count("\n") == 2
