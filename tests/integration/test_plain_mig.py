"""MIG without the GPU Operator on a real API server, with the how-to's files (deploy/mig-manager; stack/requirements.py).
The DaemonSet controller, the scheduler and RBAC are real; the pods' programs are SIMULATED."""

from collections.abc import Iterator

import pytest
from hack.cluster.kubeconfig import service_account_token
from hack.nvidia.installations import PLAIN_NAMESPACE
from tests.integration.product import FULL, H100, HELD, MIXED, Pool, Product
from tests.integration.stages import plain_product

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, PAUSED_FOR_MIG


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with (
        plain_product(tmp_path_factory.mktemp("plain")) as product,
        product.operator("plain", **HELD, gpu_operator_namespace=PLAIN_NAMESPACE),
    ):
        yield product


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    with product.pool(H100) as pool:
        yield pool


def plugin_pods(pool: Pool) -> list[str]:
    where = {"fieldSelector": f"spec.nodeName={pool.nodes[0]}", "labelSelector": "name=nvdp-nvidia-device-plugin"}
    return [pod["metadata"]["uid"] for pod in pool.api.list(f"/api/v1/namespaces/{PLAIN_NAMESPACE}/pods", **where)]


def test_a_node_goes_to_mig_and_back_while_the_chart_stops_for_mig_manager(pool: Pool) -> None:
    pool.wait(lambda: len(plugin_pods(pool)) == 1, "the plugin's pod")
    (before,) = plugin_pods(pool)
    pool.hold()
    pool.apply(MIXED)
    pool.wait_held()
    assert pool.labels()[LABEL_DEPLOY_CLIENT] == PAUSED_FOR_MIG
    pool.wait(lambda: plugin_pods(pool) == [], "the DaemonSet controller to take the plugin off the node")
    pool.let_go()
    pool.wait_synced()
    assert pool.offered() == {"nvidia.com/mig-3g.40gb": 4}
    pool.wait(lambda: len(plugin_pods(pool)) == 1, "the plugin's new pod")
    assert plugin_pods(pool) != [before]
    pool.serve(FULL)
    assert pool.offered() == {"nvidia.com/gpu": 2}
    assert pool.labels()[LABEL_DEPLOY_CLIENT] == "true"


ALLOWED = (
    ("get", "nodes", "", None),
    ("list", "nodes", "", None),
    ("watch", "nodes", "", None),
    ("patch", "nodes", "", None),
    ("list", "pods", "", None),
    ("delete", "pods", "", PLAIN_NAMESPACE),
)
REFUSED = (
    ("update", "nodes", "", None),
    ("get", "pods", "", PLAIN_NAMESPACE),
    ("get", "secrets", "", PLAIN_NAMESPACE),
    ("get", "configmaps", "", PLAIN_NAMESPACE),
    ("update", "nodes", "status", None),
    ("delete", "nodes", "", None),
    ("create", "pods", "", PLAIN_NAMESPACE),
    ("create", "pods", "exec", PLAIN_NAMESPACE),
    ("delete", "pods", "", "default"),
    ("list", "secrets", "", PLAIN_NAMESPACE),
    ("list", "configmaps", "", PLAIN_NAMESPACE),
)


def test_mig_managers_account_may_do_what_it_needs_and_no_more(product: Product) -> None:
    token = service_account_token(product.api, PLAIN_NAMESPACE, "nvidia-mig-manager")
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    with product.api.as_token(token) as api:

        def may(verb: str, resource: str, subresource: str, namespace: str | None) -> bool:
            asked = {"verb": verb, "resource": resource, "subresource": subresource, "namespace": namespace}
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
            return bool(api.create(path, {**review, "spec": {"resourceAttributes": asked}})["status"]["allowed"])

        assert [row for row in ALLOWED if not may(*row)] == []
        assert [row for row in REFUSED if may(*row)] == []
