"""MIG without the GPU Operator on a real API server, with the how-to's files (deploy/mig-manager; stack/plainmig.py).

The DaemonSet controller, the scheduler and RBAC are real; the pods' programs are SIMULATED.
"""

from collections.abc import Iterator

import pytest
from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import service_account_token
from tests import plainchart
from tests.integration.product import FACTOR, FULL, H100, HELD, MIXED, Pool, Product

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_GPU_PRESENT, PAUSED_FOR_MIG
from hack import launch

NAMESPACE = "nvidia-device-plugin"
KUSTOMIZATION = launch.ROOT / "deploy" / "mig-manager"
PLATFORM = launch.CHART / "platforms" / "device-plugin-chart.yaml"
PCI = "feature.node.kubernetes.io/pci-10de.present"
PLAYED = (
    *("--gpu-operator-namespace", NAMESPACE),
    *("--plain-config", "gpusharing-device-plugin"),
    *("--plain-mig", "gpusharing-mig-parted"),
)


def deployable(raw: Object) -> Object:
    """A DaemonSet of tests/plainchart.py with what an API server wants besides."""
    labels = {"name": raw["metadata"]["name"]}
    template = raw["spec"]["template"]
    for container in template["spec"]["initContainers"]:
        container["image"] = "k8s-device-plugin:v0.19.3"
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, **template}}
    return {**raw, "metadata": {**raw["metadata"], "namespace": NAMESPACE}, "spec": spec}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """NVIDIA's chart with the selector, mig-manager and our chart with the platform's values; no GPU Operator."""
    directory = tmp_path_factory.mktemp("plain")
    with ControlPlane(options=Options(audit=True)) as plane:
        plane.api.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        launch.install_chart(plane.kubeconfig, "-f", str(PLATFORM), "--set", "operator.replicas=0")
        sets = (plainchart.plugin(client="true"), plainchart.discovery(client="true"))
        install.apply_documents(plane.api, map(deployable, sets))
        plane.kubectl("apply", "-k", str(KUSTOMIZATION))
        with launch.node_software(plane.kubeconfig, directory, FACTOR, "--agent-interval", "1", *PLAYED):
            product = Product(plane, directory)
            with product.operator("plain", **HELD, gpu_operator_namespace=NAMESPACE):
                yield product
            assert product.refused() == []


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    """One node with the labels that the how-to sets, and none of the GPU Operator's."""
    with product.pool(empty=True) as pool:
        labels = {PCI: "true", LABEL_DEPLOY_CLIENT: "true", LABEL_GPU_PRESENT: None}
        node = pool.add_node(f"{pool.name}-0", H100)
        pool.api.merge_patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}})
        yield pool


def plugin_pods(pool: Pool) -> list[str]:
    """UIDs of the device plugin's pods on the node."""
    where = {
        "fieldSelector": f"spec.nodeName={pool.nodes[0]}",
        "labelSelector": "name=nvdp-nvidia-device-plugin",
    }
    return [pod["metadata"]["uid"] for pod in pool.api.list(f"/api/v1/namespaces/{NAMESPACE}/pods", **where)]


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
    pool.apply(FULL)
    pool.wait_synced()
    assert pool.offered() == {"nvidia.com/gpu": 2}
    assert pool.labels()[LABEL_DEPLOY_CLIENT] == "true"


ALLOWED = (
    ("get", "nodes", "", None),
    ("list", "nodes", "", None),
    ("watch", "nodes", "", None),
    ("patch", "nodes", "", None),
    ("list", "pods", "", None),
    ("get", "pods", "", NAMESPACE),
    ("delete", "pods", "", NAMESPACE),
)
REFUSED = (
    ("update", "nodes", "status", None),
    ("delete", "nodes", "", None),
    ("create", "pods", "", NAMESPACE),
    ("create", "pods", "exec", NAMESPACE),
    ("delete", "pods", "", "default"),
    ("list", "secrets", "", NAMESPACE),
    ("list", "configmaps", "", NAMESPACE),
)


def test_mig_managers_account_may_do_what_it_needs_and_no_more(product: Product) -> None:
    token = service_account_token(product.api, NAMESPACE, "nvidia-mig-manager")
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    with product.api.as_token(token) as api:

        def may(verb: str, resource: str, subresource: str, namespace: str | None) -> bool:
            asked = {"verb": verb, "resource": resource, "subresource": subresource, "namespace": namespace}
            review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
            return bool(
                api.create(path, {**review, "spec": {"resourceAttributes": asked}})["status"]["allowed"]
            )

        assert [row for row in ALLOWED if not may(*row)] == []
        assert [row for row in REFUSED if may(*row)] == []
