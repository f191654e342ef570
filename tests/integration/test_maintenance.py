"""Somebody else maintains a SIMULATED node: NodeMaintenance objects on a real API server, under the shipped rights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster.api import Object
from hack.cluster.install import install_crds
from tests.integration.product import HELD, MIXED, NODES, SLICED, Pool, Product
from tests.integration.workloads import PODS, pod_spec

CRDS = Path(__file__).with_name("maintenance-crds.yaml")
MEDIK8S = "/apis/nodemaintenance.medik8s.io/v1beta1/nodemaintenances"
NVIDIA = "/apis/maintenance.nvidia.com/v1alpha1/namespaces/default/nodemaintenances"
KEY = "example.com/maintenance"
KINDS: dict[str, tuple[str, Object, str]] = {
    "medik8s": (MEDIK8S, {"apiVersion": "nodemaintenance.medik8s.io/v1beta1"}, "medik8s NodeMaintenance {}"),
    "NVIDIA": (
        NVIDIA,
        {"apiVersion": "maintenance.nvidia.com/v1alpha1"},
        "NVIDIA NodeMaintenance default/{} for fabric.example.com",
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def operator(product: Product) -> Iterator[None]:
    """One operator for this module, started where both kinds are installed."""
    install_crds(product.api, CRDS)
    with product.operator("maintenance", maintenance_keys=KEY, **HELD) as process:
        yield
        assert process.exit_status is None, process.log.read_text()[-3000:]


def begin(pool: Pool, kind: str, *, chosen: bool = True) -> str:
    """Create a NodeMaintenance for the first node; returns who is at work then. `chosen`: by NVIDIA's operator, which
    may let many wait; medik8s's begins at once."""
    path, head, who = KINDS[kind]
    spec = {"nodeName": pool.nodes[0], "requestorID": "fabric.example.com"}
    pool.create(path, {**head, "kind": "NodeMaintenance", "metadata": {"name": pool.name}, "spec": spec})
    if chosen and kind == "NVIDIA":
        condition = {"type": "Ready", "status": "False", "reason": "Scheduled"}
        pool.api.merge_patch(f"{path}/{pool.name}/status", {"status": {"conditions": [condition]}})
    return who.format(pool.name)


def hanging_pod(pool: Pool) -> str:
    """A pod on the first node that ignores its eviction; returns its path."""
    path, metadata = f"{PODS}/{pool.name}-hangs", {"annotations": {"simulate.gpusharing.dev/stop": "never"}}
    pool.create(
        PODS, {"metadata": {"name": f"{pool.name}-hangs", **metadata}, "spec": pod_spec(pool.nodes[0])}
    )
    pool.wait(lambda: pool.api.get(path)["status"]["phase"] == "Running", "the pod")
    return path


def end(pool: Pool, kind: str) -> None:
    """Delete it, as its operator does after it has lifted the cordon."""
    pool.cordon(pool.nodes[0], lifted=True)
    pool.api.delete(f"{KINDS[kind][0]}/{pool.name}")


@kinds
def test_before_the_start_the_node_is_not_touched_and_the_change_starts_when_it_is_gone(
    product: Product, kind: str
) -> None:
    with product.pool() as pool:
        since = product.mark()
        who = begin(pool, kind)
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "ForeignMaintenance")
        assert message == f"{who} works on {pool.nodes[0]}; waiting until it is done"
        assert product.writes("nodes", pool.nodes[0], since) == []
        end(pool, kind)
        pool.wait_synced()
        refused = [r.path for r in product.requests(since) if r.status == 403]
        assert refused == [], "the shipped rights suffice"
        asked = {(r.group, r.verb) for r in product.requests() if r.resource == "nodemaintenances"}
        group = KINDS[kind][1]["apiVersion"].partition("/")[0]
        assert {verb for where, verb in asked if where == group} == {"list", "watch"}, "all that is granted"


@kinds
def test_during_the_drain_the_node_is_left_to_it_and_our_cordon_lifted_when_it_is_done(
    product: Product, kind: str
) -> None:
    with product.pool() as pool:
        hangs = hanging_pod(pool)
        pool.apply({**SLICED, "drain": {"unmanagedPods": "Evict"}})
        pool.wait_phase("Draining")
        who = begin(pool, kind)
        pool.wait(lambda: pool.fence().get("stage") == "yielded", "the operator to stand aside")
        assert pool.node()["spec"]["unschedulable"] is True
        assert pool.wait_phase("Blocked", "ForeignMaintenance").startswith(who)
        assert pool.transition()["cordon"] == "ours"
        product.api.delete(hangs, {"gracePeriodSeconds": 0})
        end(pool, kind)
        pool.wait_synced()
        assert "unschedulable" not in pool.node()["spec"]


@kinds
def test_after_the_point_of_no_return_the_change_goes_on_and_leaves_the_cordon(
    product: Product, kind: str
) -> None:
    with product.pool() as pool, product.pool() as another:
        pool.hold()
        pool.apply(MIXED)
        pool.wait_held()
        begin(pool, kind)
        # Seen in the order of their creation: who knows of a later one knows of this one.
        begin(another, kind)
        another.apply(SLICED)
        another.wait_phase("Blocked", "ForeignMaintenance")
        pool.let_go()
        pool.wait_synced()
        assert pool.node()["spec"]["unschedulable"] is True
        pool.wait(lambda: pool.transition().get("cordon") == "foreign", "kubectl get gpun to say whose it is")
        since = product.mark()
        end(pool, kind)
        pool.wait(lambda: not pool.transition().get("cordon"), "no cordon of anybody")
        assert product.writes("nodes", pool.nodes[0], since) == []


@pytest.mark.parametrize(
    ("body", "lift", "kind"),
    [
        ({"metadata": {"labels": {KEY: "planned"}}}, {"metadata": {"labels": {KEY: None}}}, "label"),
        (
            {"spec": {"taints": [{"key": KEY, "effect": "PreferNoSchedule"}]}},
            {"spec": {"taints": None}},
            "taint",
        ),
    ],
    ids=["label", "taint"],
)
def test_a_key_that_the_admin_named_keeps_the_operator_away(
    product: Product, body: Object, lift: Object, kind: str
) -> None:
    with product.pool() as pool:
        node = pool.nodes[0]
        product.api.merge_patch(f"{NODES}/{node}", body)
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "ForeignMaintenance")
        assert message.startswith(f"somebody ({kind} {KEY}) works on {node}")
        assert product.writes("nodes", node) == []
        product.api.merge_patch(f"{NODES}/{node}", lift)
        pool.wait_synced()


NEIGHBOURS: dict[str, tuple[Object, str]] = {
    "kured": ({"annotations": {"weave.works/kured-reboot-in-progress": "2026-11-24"}}, "kured reboot"),
    "NVSentinel": ({"labels": {"dgxc.nvidia.com/nvsentinel-state": "draining"}}, "NVIDIA NVSentinel"),
    "MCO": (
        {"annotations": {"machineconfiguration.openshift.io/desiredDrain": "drain-a"}},
        "OpenShift machine-config-operator",
    ),
    "SR-IOV": ({"annotations": {"sriovnetwork.openshift.io/state": "Draining"}}, "SR-IOV network operator"),
}
"""By whom: the mark that it sets on a Node, and its name for people."""


@pytest.mark.parametrize("who", NEIGHBOURS)
def test_whoever_marks_a_node_has_it_and_keeps_its_mark(product: Product, who: str) -> None:
    metadata, name = NEIGHBOURS[who]
    lifted = {kind: dict.fromkeys(keys) for kind, keys in metadata.items()}
    with product.pool() as pool:
        path = f"{NODES}/{pool.nodes[0]}"
        product.api.merge_patch(path, {"metadata": metadata})
        pool.apply(SLICED)
        message = pool.wait_phase("Blocked", "ForeignMaintenance")
        assert message.startswith(f"{name} works on {pool.nodes[0]}")
        assert product.writes("nodes", pool.nodes[0]) == []
        kept = pool.node()["metadata"]
        for kind, keys in metadata.items():
            assert keys.items() <= kept[kind].items()
        product.api.merge_patch(path, {"metadata": lifted})
        pool.wait_synced()
