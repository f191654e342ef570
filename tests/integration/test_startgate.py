"""Nodes join behind the start-up taint (docs/design/way.md#gate): a real API server, scheduler and node life cycle,
under the shipped rights and admission policies; node software and hardware are SIMULATED."""

import json
from collections.abc import Iterator

import pytest
from hack.cluster.api import Object
from hack.cluster.nodes import create_nodes, node_manifest
from tests.integration.product import CLUSTER_POLICY, FULL, H100, NODES, SLICED, Pool, Product
from tests.integration.workloads import PODS, pod_spec

GATE: Object = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
UNREGISTERED: Object = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
POOLS: Object = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATIONS = [
    {"key": "nvidia.com/gpu", "operator": "Exists"},
    {"key": "gpusharing.dev/unproven", "operator": "Exists"},
]


@pytest.fixture(scope="module", autouse=True)
def operator(product: Product) -> Iterator[None]:
    """One operator for this module."""
    with product.operator("startgate") as process:
        yield
        assert process.exit_status is None, process.log.read_text()[-3000:]
        product.api.merge_patch(CLUSTER_POLICY, {"spec": {"daemonsets": None}})


def prepare(product: Product) -> None:
    """NVIDIA's operands tolerate the taint."""
    product.api.merge_patch(CLUSTER_POLICY, {"spec": {"daemonsets": {"tolerations": TOLERATIONS}}})


def join(pool: Pool, *more: Object) -> str:
    """A node registers with the taint, as a kubelet with --register-with-taints does."""
    name = f"{pool.name}-{len(pool.nodes)}"
    manifest = node_manifest(name, product=H100, gpus=2, pool=pool.name)
    manifest["spec"] = {"taints": [*more, GATE]}
    create_nodes(pool.api, [manifest])
    pool.nodes.append(name)
    return name


def taints(pool: Pool, name: str) -> set[str]:
    """Keys of the taints of a node."""
    return {taint["key"] for taint in pool.node(name)["spec"].get("taints", [])}


def waiting_pod(pool: Pool) -> str:
    """A pod for one GPU of this pool, which the scheduler places; returns its path."""
    spec = pod_spec("")
    spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    spec["nodeSelector"] = {"gpusharing.dev/pool": pool.name}
    pool.create(PODS, {"metadata": {"name": f"{pool.name}-llm"}, "spec": spec})
    return f"{PODS}/{pool.name}-llm"


def test_a_node_gets_its_layout_before_a_pod_lands_and_loses_only_that_taint_in_the_release(
    product: Product,
) -> None:
    prepare(product)
    with product.pool(empty=True) as pool:
        pod = waiting_pod(pool)
        since = product.mark()
        name = join(pool, POOLS, UNREGISTERED)  # as Karpenter lets it join
        assert "nodeName" not in pool.api.get(pod)["spec"]
        product.api.merge_patch(f"{NODES}/{name}", {"spec": {"taints": [POOLS, GATE]}})  # it has registered
        message = pool.wait_phase("Skipped", "Unowned", name)
        assert message.startswith(
            "no workload starts here before it is proven (taint gpusharing.dev/unproven)"
        )
        pool.apply(SLICED)
        pool.wait(lambda: GATE["key"] not in taints(pool, name), "the taint to go")
        assert POOLS["key"] in taints(pool, name), "the pool's own taint stays"
        pool.wait_synced()
        assert len(product.writes("nodes", name, since)) == 3, "fence, point of no return, release"
        pool.wait(lambda: pool.api.get(pod)["spec"].get("nodeName") == name, "the scheduler to place the pod")
        assert [request.path for request in product.requests(since) if request.status == 403] == []


def test_newcomers_that_are_as_wanted_are_let_in_by_one_write_each_while_the_budget_is_full(
    product: Product,
) -> None:
    prepare(product)
    with product.pool() as pool:
        pool.apply(FULL)
        pool.wait_synced()
        pool.cordon(pool.nodes[0])
        since = product.mark()
        joined = [join(pool), join(pool)]
        for name in joined:
            pool.wait(lambda name=name: GATE["key"] not in taints(pool, name), "the taint to go")
            told = f"the write of {name} in the audit log"
            pool.wait(lambda name=name: len(product.writes("nodes", name, since)) > 0, told)
            assert len(product.writes("nodes", name, since)) == 1
        pool.cordon(pool.nodes[0], lifted=True)
        pool.wait_synced()


def test_operands_that_do_not_tolerate_it_are_named_with_a_command_that_mends_it(product: Product) -> None:
    product.api.merge_patch(CLUSTER_POLICY, {"spec": {"daemonsets": None}})
    with product.pool(empty=True) as pool:
        name = join(pool)
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "TaintNotTolerated", name)
        command = message.partition(" -p '")[2].removesuffix("'")
        assert "kubectl patch clusterpolicy cluster-policy --type merge" in message
        assert product.writes("nodes", name) == []
        product.api.merge_patch(CLUSTER_POLICY, json.loads(command))
        pool.wait_synced()
        assert GATE["key"] not in taints(pool, name)


def test_without_a_policy_the_taint_stays_and_nothing_is_written_to_the_node(product: Product) -> None:
    prepare(product)
    with product.pool(empty=True) as pool:
        name = join(pool)
        message = pool.wait_phase("Skipped", "Unowned", name)
        assert "gpusharing.dev/unproven" in message
        assert GATE["key"] in taints(pool, name)
        assert product.writes("nodes", name) == []
