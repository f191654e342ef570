"""Mode MPS under a GPU Operator whose MPS daemon hears of no label (docs/design/nvidia.md#b5)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hack.cluster.api import Object
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from tests.integration.product import CLUSTER_POLICY, L40S, MPS, SLICED, Product

pytestmark = pytest.mark.usefixtures("operator")


@contextmanager
def their_mps_daemon(product: Product) -> Iterator[None]:
    """The GPU Operator's DaemonSet of MPS daemons, as assets/state-mps-control-daemon of v26.7.0 has it, on no node."""
    policy = product.api.get(CLUSTER_POLICY)
    owner = {"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy"}
    metadata = {"name": "theirs", "ownerReferences": [{**owner, **only(policy["metadata"], "name", "uid")}]}
    name, labels = "mps-control-daemon", {"app": "theirs"}
    image = "example.com/k8s-device-plugin:v0.20.0"
    signal = [{"name": "PROCESS_TO_SIGNAL", "value": f"/usr/bin/{name}"}]
    containers = [
        {"name": f"{name}-ctr", "image": image, "command": [name]},
        {"name": "config-manager", "image": image, "env": signal},
    ]
    pod = {"hostPID": True, "nodeSelector": {"example.com/none": "true"}, "containers": containers}
    template = {"metadata": {"labels": labels}, "spec": pod}
    path = f"/apis/apps/v1/namespaces/{GPU_OPERATOR_NAMESPACE}/daemonsets"
    product.api.create(
        path, {"metadata": metadata, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    )
    try:
        yield
    finally:
        product.api.delete(f"{path}/theirs")


def only(raw: Object, *keys: str) -> Object:
    """Some of its fields."""
    return {key: raw[key] for key in keys}


def test_an_mps_daemon_that_would_not_hear_of_its_configuration_costs_no_pod(product: Product) -> None:
    """Before any drain: that it does not hear would show after one only (docs/design/nvidia.md#b5)."""
    with product.pool(L40S) as pool:
        with their_mps_daemon(product):
            pool.apply(SLICED)
            pool.wait_synced()  # by then the operator has seen the DaemonSet
            since = product.mark()
            pool.apply(MPS)
            message = pool.wait_phase("Blocked", "MPSNotSwitchable")
            assert "looks for a process /usr/bin/mps-control-daemon" in message
            assert product.writes("nodes", pool.nodes[0], since) == []
        pool.wait_synced()
