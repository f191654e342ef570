"""DeviceTaintRules in place of cordons, with the real scheduler, with its feature gate and without. mig-manager and NVIDIA's DRA driver are SIMULATED."""

import uuid
from collections.abc import Iterator

import pytest
from hack.cluster.api import ApiError, Object
from hack.cluster.controlplane import Options
from hack.cluster.kubeconfig import service_account_token
from tests.chart.rbac import golden
from tests.integration.product import HELD, MIXED, RESOURCES, Pool, Product
from tests.integration.stages import dra_product
from tests.integration.test_dra import published
from tests.integration.workloads import PDBS, Workload, guard, pod_spec

from hack import launch

RULES = "/apis/resource.k8s.io/v1beta2/devicetaintrules"
GATE = "DRADeviceTaintRules=true"
TEST = "gpusharing-taint-test"
TEMPLATES = f"{RESOURCES}/namespaces/default/resourceclaimtemplates"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The DRA stack as in test_dra.py, on a control plane with the feature gate, and the chart's value; no operator."""
    options = Options(
        audit=True, apiserver_flags=("--runtime-config=resource.k8s.io/v1beta2=true",), feature_gates=GATE
    )
    thief = ("create", "devicetaintrules")
    with dra_product(tmp_path_factory.mktemp("taintrules"), "dra.deviceTaints=true", options, thief) as product:
        yield product


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    with product.pool(gpus=4) as pool:
        pool.wait(lambda: published(pool) == {"gpu": 4}, "the whole GPUs", lambda: published(pool))
        yield pool


def rules(pool: Pool) -> list[str]:
    return [one["metadata"]["name"] for one in pool.api.list(RULES)]


def is_cordoned(pool: Pool) -> bool:
    return pool.node().get("spec", {}).get("unschedulable") is True


def claimants(pool: Pool, replicas: int, app: str) -> Workload:
    request: Object = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    template = {"metadata": {"name": app}, "spec": {"spec": {"devices": {"requests": [request]}}}}
    pool.create(TEMPLATES, template)
    spec = pod_spec(pool.nodes[0], "")
    spec["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}
    spec["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": app}]
    return Workload(pool, pool.nodes[0], replicas, app=app, resource="", more={"spec": spec})


def wait_tested(product: Product, pool: Pool, since: int) -> None:
    def ended() -> bool:
        writes = product.writes("devicetaintrules", TEST, since)
        pods = pool.api.list(f"/api/v1/namespaces/{launch.NAMESPACE}/pods", labelSelector=f"app={TEST}")
        return any(one.verb == "delete" for one in writes) and not pods and TEST not in rules(pool)

    pool.wait(ended, "the test of the scheduler to end", lambda: rules(pool))


def test_with_the_gate_gpu_pods_wait_a_cpu_pod_starts_and_holders_leave_within_their_budget(
    pool: Pool, product: Product
) -> None:
    mark, rule = product.mark(), f"gpusharing-node-{pool.nodes[0]}"
    kept, old = claimants(pool, 2, f"{pool.name}-kept"), Workload(pool, pool.nodes[0], 1)
    kept.wait_running(2)
    old.wait_running(1)
    guard(pool, kept.app, 1, minAvailable=1)
    with product.operator(f"on-{uuid.uuid4().hex[:4]}", **HELD, device_taints="true"):
        wait_tested(product, pool, mark)
        pool.apply({**MIXED, "drain": {"strandedPods": "Allow"}})
        left = lambda: len(kept.running()) == 1 and not old.running()  # noqa: E731 - a condition
        pool.wait(left, "one pod of each to leave", lambda: (kept.pods(), old.pods()))
        assert rules(pool) == [rule]
        assert not is_cordoned(pool)
        assert pool.fence()["tainted"] is True
        cpu = Workload(pool, pool.nodes[0], 1, app=f"{pool.name}-cpu", resource="")
        cpu.wait_running(1)

        def pending() -> list[str]:
            pods = (*old.pods(), *kept.pods())
            return [pod["metadata"]["name"] for pod in pods if not pod["spec"].get("nodeName")]

        pool.wait(lambda: len(pending()) == 2, "one to wait by extended resource and one by claim", pending)
        pool.api.delete(f"{RULES}/{rule}")
        pool.wait(lambda: rules(pool) == [rule], "the rule to be written again", lambda: rules(pool))
        pool.api.merge_patch(f"{PDBS}/{kept.app}-guard", {"spec": {"minAvailable": 0}})
        pool.wait_synced()
        pool.wait(lambda: rules(pool) == [], "the rule to be removed", lambda: rules(pool))
        assert published(pool) == {"3g.40gb": 8}
        assert not is_cordoned(pool)
        assert len(cpu.running()) == 1
    used = {one.verb for one in product.requests(mark) if one.resource == "devicetaintrules" and one.status < 400}
    assert used == {grant.verb for grant in golden("dra.deviceTaints") if grant.resource == "devicetaintrules"}


def test_without_the_gate_a_rule_is_shown_to_be_without_effect_and_the_node_is_cordoned(
    pool: Pool, product: Product
) -> None:
    mark, plane = product.mark(), product.plane
    plane.restart_component("kube-scheduler", "--feature-gates=DRADeviceTaintRules=false")
    with product.operator(f"off-{uuid.uuid4().hex[:4]}", **HELD, device_taints="true"):
        wait_tested(product, pool, mark)
        pool.apply(MIXED)
        pool.wait(lambda: is_cordoned(pool), "the cordon", pool.transition)
        pool.wait_synced()

        def told() -> bool:
            return "kube-scheduler ignores DeviceTaintRules" in pool.condition("Accepted")["message"]

        pool.wait(told, "the policy to say why", lambda: pool.condition("Accepted"))
    assert not [one for one in product.writes("devicetaintrules", since=mark) if one.name != TEST]


@pytest.mark.parametrize(
    ("name", "selector", "effect"),
    [
        ("gpusharing-node-a", {"driver": "gpu.nvidia.com", "pool": "a"}, "NoExecute"),
        ("gpusharing-node-a", {"driver": "gpu.nvidia.com"}, "NoSchedule"),
        ("gpusharing-node-a", {"driver": "gpu.nvidia.com", "pool": "b"}, "NoSchedule"),
        ("gpusharing-node-a", {}, "NoSchedule"),
        ("other", {"driver": "gpu.nvidia.com", "pool": "other"}, "NoSchedule"),
    ],
)
def test_a_token_of_the_operator_may_close_the_devices_of_one_node_and_nothing_else(
    product: Product, name: str, selector: Object, effect: str
) -> None:
    token = service_account_token(product.api, launch.NAMESPACE, "gpusharing-operator")
    taint = {"key": "gpusharing.dev/changing", "value": "true", "effect": effect}
    manifest: Object = {
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "gpusharing-operator"}},
        "spec": {"deviceSelector": selector, "taint": taint},
    }
    with product.api.as_token(token) as thief, pytest.raises(ApiError, match="DeviceTaintRule") as refused:
        thief.create(RULES, manifest)
    assert refused.value.status == 403
