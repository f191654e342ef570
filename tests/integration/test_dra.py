"""DRA with static partitions on a real API server: real scheduler, DaemonSet controller and RBAC, and the chart's admission policies. mig-manager and NVIDIA's DRA driver are SIMULATED (planning/stack/drastack.py)."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hack.cluster.api import Object
from hack.sim.dra import KUBELET_PLUGIN, LABEL_DRA
from tests.chart.rbac import golden
from tests.integration.product import DEVICE_CLASSES, FULL, HELD, MIXED, RESOURCES, Pool, Product
from tests.integration.stages import dra_product
from tests.integration.workloads import PODS, Workload

CLAIMS = f"{RESOURCES}/namespaces/default/resourceclaims"
HALF = "nvidia.com/mig-3g.40gb"
BY_CLASS = "deviceclass.resource.kubernetes.io/gpusharing"
"""How the extended resource begins that Kubernetes gives to each DeviceClass of ours."""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with dra_product(tmp_path_factory.mktemp("dra")) as product, product.operator("dra", **HELD):
        yield product


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    with product.pool() as pool:
        yield pool


def published(pool: Pool) -> Counter[str]:
    """What the driver publishes for the node: profiles, and `gpu` for whole GPUs."""
    return Counter(device["attributes"].get("profile", {"string": "gpu"})["string"] for device in pool.devices())


def classes(pool: Pool) -> dict[str, str]:
    ours = pool.product.our_classes()
    return {one["metadata"]["name"]: one["spec"]["extendedResourceName"] for one in ours}


def plugin(pool: Pool) -> str:
    """UID of the kubelet plugin's pod on the node; empty while there is none."""
    where = {"fieldSelector": f"spec.nodeName={pool.nodes[0]}", "labelSelector": f"{LABEL_DRA}={KUBELET_PLUGIN}"}
    pods = pool.api.list("/api/v1/namespaces/gpu-operator/pods", **where)
    return str(pods[0]["metadata"]["uid"]) if pods else ""


def devices_of(pool: Pool, names: list[str]) -> set[str]:
    """Names of the devices that the scheduler allocated to these pods."""
    statuses = [pool.api.get(f"{PODS}/{name}")["status"]["extendedResourceClaimStatus"] for name in names]
    claims = [pool.api.get(f"{CLAIMS}/{status['resourceClaimName']}") for status in statuses]
    return {one["device"] for raw in claims for one in raw["status"]["allocation"]["devices"]["results"]}


def test_a_node_goes_to_mig_and_back_and_old_pod_specs_get_its_partitions(pool: Pool) -> None:
    pool.wait(lambda: published(pool) == {"gpu": 2}, "the whole GPUs to be published", lambda: published(pool))
    whole = Workload(pool, pool.nodes[0], 1)
    cpu = Workload(pool, pool.nodes[0], 1, app=f"{pool.name}-cpu", resource="")
    whole.wait_running(1)
    untouched, before = cpu.wait_running(1), plugin(pool)
    pool.serve(MIXED)
    assert published(pool) == {"3g.40gb": 4}
    assert classes(pool) == {"gpusharing-mig-3g.40gb": HALF}
    assert plugin(pool) not in ("", before)
    assert pool.offered() == {}
    assert whole.running() == [], "the new pod waits for a whole GPU"
    halves = Workload(pool, pool.nodes[0], 2, app=f"{pool.name}-half", resource=HALF)
    named = Workload(pool, pool.nodes[0], 1, app=f"{pool.name}-class", resource=f"{BY_CLASS}-mig-3g.40gb")
    allocated = devices_of(pool, [*halves.wait_running(2), *named.wait_running(1)])
    assert len(allocated) == 3
    assert all("mig-3g40gb" in name for name in allocated)
    pool.serve(FULL)
    assert published(pool) == {"gpu": 2}
    assert halves.running() == named.running() == []
    whole.wait_running(1)
    assert cpu.running() == untouched
    pool.wait(lambda: classes(pool) == {}, "the unused class to be removed", lambda: classes(pool))


def test_a_class_of_ours_that_somebody_changed_is_corrected_and_every_granted_right_was_used(
    pool: Pool, product: Product
) -> None:
    pool.serve(MIXED)
    wrong: Object = {"spec": {"extendedResourceName": "example.com/other"}}
    pool.api.merge_patch(f"{DEVICE_CLASSES}/gpusharing-mig-3g.40gb", wrong)
    right = {"gpusharing-mig-3g.40gb": HALF}
    pool.wait(lambda: classes(pool) == right, "the class to be corrected", lambda: classes(pool))
    pool.apply(FULL)
    pool.wait(lambda: classes(pool) == {}, "the unused class to be removed", lambda: classes(pool))
    granted = {grant.verb for grant in golden() if grant.resource == "deviceclasses"}
    used = {one.verb for one in product.requests() if one.resource == "deviceclasses" and one.status < 400}
    assert used == granted
