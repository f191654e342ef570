"""What people see when the chart's admission policies refuse the operator, and that a change which has begun goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hack.cluster.api import Object
from hack.cluster.kubeconfig import service_account_token
from hack.nvidia.installations import PLAIN_NAMESPACE, PLATFORM
from tests.chart.cluster import dry
from tests.integration.product import FULL, H100, HELD, MIXED, NODES, SLICED, Pool, Product
from tests.integration.stages import plain_product

from hack import launch

LABEL = "example.com/gpu"
MAPS = f"/api/v1/namespaces/{PLAIN_NAMESPACE}/configmaps"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The operator may change Nodes with a label that no simulated program writes; agents run everywhere."""
    with plain_product(tmp_path_factory.mktemp("admission")) as product:
        values = f"operator.replicaCount=0,agent.nodeSelector=null,admission.nodeLabels={{{LABEL}}}"
        launch.install_chart(product.plane.kubeconfig, "-f", str(PLATFORM), "--set", values)
        yield product


@contextmanager
def refusals(product: Product) -> Iterator[None]:
    """While it is open, the API server may refuse requests of the operator."""
    began = datetime.now(UTC)
    yield
    product.outages.append((began, datetime.now(UTC) + timedelta(seconds=10)))


def wait_enforced(product: Product, pool: Pool) -> None:
    cordon: Object = {"spec": {"unschedulable": True}}
    token = service_account_token(product.api, launch.NAMESPACE, "gpusharing-operator")
    with product.api.as_token(token) as operator:
        path = f"{NODES}/{pool.nodes[0]}"
        pool.wait(lambda: dry(operator, path, cordon) == 403, "the label to count")


def label(pool: Pool, value: str | None) -> None:
    pool.api.merge_patch(f"{NODES}/{pool.nodes[0]}", {"metadata": {"labels": {LABEL: value}}})


def test_a_node_without_the_label_says_so_and_one_that_loses_it_is_brought_to_the_end_of_its_change(
    product: Product,
) -> None:
    settings = {**HELD, "gpu_operator_namespace": PLAIN_NAMESPACE}
    with refusals(product), product.pool(H100) as pool:
        wait_enforced(product, pool)
        with product.operator("label", **settings):
            pool.hold()
            pool.apply(MIXED)
            message = pool.wait_phase("Pending", "CallFailed")
            assert f"Node {pool.nodes[0]} has no label {LABEL}, or it is false, so the operator" in message
            assert "name a label that your GPU nodes have in chart value admission.nodeLabels" in message
            assert not pool.node()["spec"].get("unschedulable")
            assert not pool.fence()
            label(pool, "true")
            pool.wait_held()
            label(pool, None)
            pool.let_go()
            pool.wait_synced()
            assert not pool.node()["spec"].get("unschedulable")
            assert not pool.fence()
            label(pool, "true")
            pool.serve(FULL)


THEIRS = "version: v1\nflags:\n  migStrategy: none\n  nvidiaDriverRoot: /\n"


def test_an_entry_of_an_admin_with_a_path_of_the_node_is_named_until_the_line_is_gone(product: Product) -> None:
    settings = {"gpu_operator_namespace": PLAIN_NAMESPACE, "admin_plugin_config_map": "theirs"}
    product.api.create(MAPS, {"metadata": {"name": "theirs"}, "data": {"old": THEIRS}})
    with refusals(product), product.pool(H100) as pool, product.operator("merge", **settings):
        label(pool, "true")
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "ConfigNotWritten")
        assert 'entry old has the line "  nvidiaDriverRoot: /", which the operator may not write' in message
        assert message.endswith("add the field to chart value admission.pluginFields")
        sound = THEIRS.replace("  nvidiaDriverRoot: /\n", "")
        product.api.merge_patch(f"{MAPS}/theirs", {"data": {"old": sound}})
        pool.wait_synced()
        assert product.api.get(f"{MAPS}/gpusharing-device-plugin")["data"]["old"] == sound
    product.api.delete(f"{MAPS}/theirs")
