"""The MPS DaemonSet on a real API server: what gpuOperator.repairMps writes and may not write, and when it gives up."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hack.cluster.api import MERGE_PATCH, Api, ApiError, Object
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from tests.chart.cluster import forbidden
from tests.integration.product import H100, MPS, SECONDS, SLICED, Pool, Product
from tests.integration.stages import (
    ASKED,
    CONFIG_MAP,
    DAEMON_SET,
    DAEMON_SETS,
    NAME,
    NAMESPACE,
    RELEASED,
    RIGHT,
    containers,
    overwrite,
    repairing_product,
    signal,
    signalled,
    template,
    told,
)

from hack import launch


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with repairing_product(tmp_path_factory.mktemp("repair")) as product:
        yield product


@pytest.fixture(scope="module")
def token(product: Product) -> Iterator[Api]:
    with product.api.as_token(service_account_token(product.api, launch.NAMESPACE, "gpusharing-operator")) as api:
        wait_until(
            lambda: "may only change containers" in refusal(api, {"spec": {"minReadySeconds": 1}}),
            SECONDS,
            "the admission policy to be enforced",
        )
        yield api


def refusal(api: Api, body: Object, path: str = DAEMON_SET) -> str:
    """Why the server would not do this patch; empty when it would."""
    return forbidden(lambda: api.request("PATCH", path, body, MERGE_PATCH, dryRun="All"))


def forget(product: Product) -> None:
    if product.exists(CONFIG_MAP):
        mark: Object = {"metadata": {"annotations": {"gpusharing.dev/mps-repairs": None}}}
        product.api.merge_patch(CONFIG_MAP, mark)


# --- what the token may write ---------------------------------------------------------------------------


def changed(product: Product, where: str, **fields: Any) -> Object:
    found = containers(product)
    found[where] |= fields
    return template(found)


def renamed(product: Product, **more: Any) -> Object:
    """The row of the environment replaced by another, which also says PROCESS_TO_SIGNAL's value."""
    found = containers(product)
    found["config-manager"]["env"] = [
        {**row, **more} if row["name"] == "PROCESS_TO_SIGNAL" else row for row in found["config-manager"]["env"]
    ]
    return template(found)


def test_a_token_of_the_operator_may_set_that_one_value_and_change_nothing_else(product: Product, token: Api) -> None:
    overwrite(product)
    more = containers(product)
    more["evil"] = {"name": "evil", "image": "evil"}
    fewer = containers(product)
    del fewer["config-manager"]
    refused: dict[str, Object] = {
        "another value": signal(product, "sh"),
        "no value": signal(product, ""),
        "another variable": signal(product, RIGHT, "SIGNAL"),
        "another variable in place of it": renamed(product, name="LD_PRELOAD", value=RIGHT),
        "a value from elsewhere": renamed(product, value=None, valueFrom={"fieldRef": {"fieldPath": "spec.nodeName"}}),
        "the variable in another container": signal(product, RIGHT, where="mps-control-daemon-ctr"),
        "another image": changed(product, "config-manager", image="evil"),
        "the image of another container": changed(product, "mps-control-daemon-ctr", image="evil"),
        "another command": changed(product, "config-manager", command=["sh"]),
        "more rights": changed(product, "config-manager", securityContext={"privileged": True}),
        "one more container": template(more),
        "one container less": template(fewer),
        "an init container": template(containers(product), initContainers=[{"name": "evil", "image": "evil"}]),
        "a volume": template(containers(product), volumes=[{"name": "root", "hostPath": {"path": "/"}}]),
        "other nodes": template(containers(product), nodeSelector={"a": "b"}),
        "a label of the pods": {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}},
        "another strategy": {"spec": {"updateStrategy": {"type": "OnDelete"}}},
        "a label": {"metadata": {"labels": {"app": "mine"}}},
        "an annotation": {"metadata": {"annotations": {"nvidia.com/last-applied-hash": "x"}}},
        "a finalizer": {"metadata": {"finalizers": ["gpusharing.dev/forever"]}},
        "no owner": {"metadata": {"ownerReferences": None}},
    }
    assert refusal(token, signal(product)) == ""
    allowed = [what for what, body in refused.items() if "ValidatingAdmissionPolicy" not in refusal(token, body)]
    assert allowed == []
    both = {**signal(product), "metadata": {"labels": {"app": "mine"}}}
    assert "may not change labels" in refusal(token, both)
    assert refusal(product.api, refused["another image"]) == "", "whoever else may write it still may"
    assert refusal(token, {"status": {"numberReady": 9}}, f"{DAEMON_SET}/status")
    assert refusal(token, signal(product), f"{DAEMON_SETS}/nvidia-mig-manager-daemonset")
    assert forbidden(lambda: token.delete(DAEMON_SET))


# --- what the operator does -----------------------------------------------------------------------------


def message(pool: Pool) -> str:
    return str(pool.transition().get("message", ""))


def test_the_operator_repairs_it_says_so_and_a_policy_with_mps_goes_on(product: Product, token: Api) -> None:
    overwrite(product)
    forget(product)
    since, events = product.mark(), len(told(product))
    with product.pool(H100) as pool, product.operator("repair", **ASKED) as process:
        pool.apply(MPS)
        pool.wait(lambda: signalled(product) == RIGHT, "the repair")
        pool.wait_synced()
        wait_until(lambda: len(told(product)) > events, SECONDS, "the Event")
        assert told(product)[events:] == [
            f"set PROCESS_TO_SIGNAL={RIGHT} in the config-manager container of DaemonSet {NAMESPACE}/{NAME}"
            " (repair 1 of 3 under device plugin v0.20.0); chart value gpuOperator.repairMps."
            " This restarts all MPS daemons"
        ]
        assert process.exit_status is None, process.log.read_text()[-3000:]
        assert len(product.writes("daemonsets", since=since)) == 1
        pool.serve(SLICED)


def test_it_waits_while_a_node_serves_mps_and_names_the_node(product: Product, token: Api) -> None:
    product.api.merge_patch(DAEMON_SET, signal(product, RIGHT))
    forget(product)
    with product.pool(H100) as serving, product.pool(H100) as other, product.operator("waits", **ASKED):
        serving.apply(MPS)
        serving.wait_synced()
        # As an edit of ClusterPolicy does it, but the pods that run stay: nobody's clients end.
        product.api.merge_patch(DAEMON_SET, {"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}})
        overwrite(product)
        since = product.mark()
        other.apply(MPS)
        words = f"The operator will set it once no node uses MPS; {serving.nodes[0]} still does"
        other.wait(lambda: words in message(other), "the node to be named", other.transition)
        assert product.writes("daemonsets", since=since) == []
        assert signalled(product) == RELEASED
        serving.apply(SLICED)
        serving.wait_synced()
        other.wait(lambda: signalled(product) == RIGHT, "the repair")
        other.wait_synced()
        other.serve(SLICED)


UNDOING = "undoes-the-repair"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
EXPRESSION = f"""Object{{spec: Object.spec{{template: Object.spec.template{{spec: Object.spec.template.spec{{
    containers: [Object.spec.template.spec.containers{{name: 'config-manager', env: [
        Object.spec.template.spec.containers.env{{name: 'PROCESS_TO_SIGNAL', value: '{RELEASED}'}}]}}]}}}}}}}}"""


@pytest.fixture
def undone(product: Product) -> Iterator[None]:
    """Somebody's admission policy puts the released value back within each request."""
    policy: Object = {
        "metadata": {"name": UNDOING},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["apps"],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["daemonsets"],
                        "resourceNames": [NAME],
                    }
                ]
            },
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": EXPRESSION}}],
        },
    }
    api = product.api
    api.create(f"{ADMISSION}/mutatingadmissionpolicies", policy)
    api.create(
        f"{ADMISSION}/mutatingadmissionpolicybindings", {"metadata": {"name": UNDOING}, "spec": {"policyName": UNDOING}}
    )

    def in_force() -> bool:
        stored = api.request("PATCH", DAEMON_SET, signal(product), MERGE_PATCH, dryRun="All")
        found = {one["name"]: one for one in stored["spec"]["template"]["spec"]["containers"]}
        return {"name": "PROCESS_TO_SIGNAL", "value": RELEASED} in found["config-manager"]["env"]

    wait_until(in_force, SECONDS, "the mutating policy to be in force")
    yield
    lift(api)


def lift(api: Api) -> None:
    for kind in ("mutatingadmissionpolicybindings", "mutatingadmissionpolicies"):
        with suppress(ApiError):
            api.delete(f"{ADMISSION}/{kind}/{UNDOING}")


def test_a_value_that_is_undone_in_the_same_request_is_no_repair_and_the_node_says_why(
    product: Product, token: Api, undone: None
) -> None:
    overwrite(product)
    forget(product)
    events = len(told(product))
    with product.pool(H100) as pool, product.operator("undone", **ASKED):
        pool.apply(MPS)
        words = "find the mutating webhook or admission policy that changes it"
        pool.wait(lambda: words in message(pool), "the node to say why", pool.transition)
        assert pool.transition()["phase"] == "Blocked"
        assert len(told(product)) == events
        lift(product.api)
        pool.wait(lambda: signalled(product) == RIGHT, "the repair")
        pool.wait_synced()
        wait_until(lambda: len(told(product)) > events, SECONDS, "the Event")
        assert "repair 1 of 3" in told(product)[-1]
        pool.serve(SLICED)
