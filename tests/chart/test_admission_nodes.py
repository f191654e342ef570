"""Which Nodes a stolen token of the operator reaches, on a real API server: those with a label that it cannot write, and those in the middle of a change."""

from collections.abc import Iterator
from typing import Any

import pytest
from hack.bench.large import RAW_PATCH
from hack.cluster.api import MERGE_PATCH, Api, ApiError, Object
from hack.cluster.process import wait_until
from tests.chart.charts import CHART
from tests.chart.cluster import NODES, SECONDS, Installed, denied, dry

from gpusharing.api import names

pytestmark = pytest.mark.cluster

CONTROL_PLANE = "control-plane"
PATH = f"{NODES}/{CONTROL_PLANE}"
FENCE: Object = {"metadata": {"annotations": {names.ANNOTATION_FENCE: '{"op":"1"}'}}, "spec": {"unschedulable": True}}
RELEASE: Object = {
    "metadata": {
        "annotations": {names.ANNOTATION_FENCE: None, names.ANNOTATION_VERIFIED: '{"v":1}'},
        "labels": {names.LABEL_MODE: "mig", names.LABEL_POLICY: "pool-b", names.LABEL_UPGRADE_SKIP: None},
    },
    "spec": {"unschedulable": None},
}


@pytest.fixture
def plain(installed: Installed) -> Iterator[Api]:
    """The admin, while there is a Node without a GPU, which nothing runs."""
    installed.admin.create(NODES, {"metadata": {"name": CONTROL_PLANE}})
    yield installed.admin
    installed.admin.delete(PATH)


ADDITIONS: dict[str, tuple[Object, str]] = {
    "cordon it": ({"spec": {"unschedulable": True}}, "spec.unschedulable"),
    "fence it": (FENCE, "spec.unschedulable, gpusharing.dev/fence"),
    "say that it is proven": (
        {"metadata": {"annotations": {names.ANNOTATION_VERIFIED: "{}"}}},
        names.ANNOTATION_VERIFIED,
    ),
    "hold back its autoscaler": (
        {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}},
        "karpenter.sh/do-not-disrupt",
    ),
    "route pods to it": ({"metadata": {"labels": {names.LABEL_MODE: "full"}}}, names.LABEL_MODE),
    "configure it": ({"metadata": {"labels": {names.LABEL_MIG_CONFIG: "x"}}}, names.LABEL_MIG_CONFIG),
    "keep its repair away": (
        {"metadata": {"labels": {names.LABEL_NO_REMEDIATION: "true"}}},
        names.LABEL_NO_REMEDIATION,
    ),
}


@pytest.mark.parametrize("present", [None, "false"], ids=["no label", "a label that says false"])
@pytest.mark.parametrize("what", ADDITIONS)
def test_on_a_node_without_the_label_of_gpu_nodes_the_operator_may_not(
    plain: Api, operator: Api, what: str, present: str | None
) -> None:
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: present}}})
    patch, added = ADDITIONS[what]
    message = denied(lambda: operator.merge_patch(PATH, patch))
    assert "ValidatingAdmissionPolicy 'gpusharing-operator-node-fields'" in message
    assert f"Node {CONTROL_PLANE} has no label nvidia.com/gpu.present" in message
    assert f"it may not set {added}. Wait until the label is set" in message
    assert "chart value admission.nodeLabels" in message


@pytest.mark.parametrize("what", [*ADDITIONS, "be measured"])
def test_on_a_node_with_the_label_the_operator_may(plain: Api, operator: Api, what: str) -> None:
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
    patch = ADDITIONS[what][0] if what in ADDITIONS else RAW_PATCH
    assert dry(operator, PATH, patch) == 200


def test_the_operator_may_not_write_the_label_itself(plain: Api, operator: Api) -> None:
    both = {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}, "spec": {"unschedulable": True}}
    label: Object = {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}}
    pool: Object = {"metadata": {"labels": {"gpusharing.dev/pool": "a"}}}
    for patch in (both, label, pool):
        denied(lambda patch=patch: operator.merge_patch(PATH, patch))  # type: ignore[misc]  # a default binds the loop's value
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
    for key, value in ((names.LABEL_GPU_PRESENT, None), ("gpusharing.dev/pool", "a")):
        patch = {"metadata": {"labels": {key: value}}}
        assert f", not {key}" in denied(lambda patch=patch: operator.merge_patch(PATH, patch))  # type: ignore[misc]  # a default binds the loop's value


def test_on_a_node_that_lost_the_label_a_change_is_brought_to_its_end_and_no_other_begins(
    plain: Api, operator: Api
) -> None:
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
    neighbors: Object = {"metadata": {"labels": {names.LABEL_UPGRADE_SKIP: "true"}}}
    patched(operator, {**FENCE, "metadata": {**FENCE["metadata"], **neighbors["metadata"]}})
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: None}}})
    patched(operator, {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "pool-b-1", names.LABEL_MODE: None}}})
    node = patched(operator, RELEASE)
    assert not node["spec"].get("unschedulable")
    assert node["metadata"]["labels"][names.LABEL_MODE] == "mig"
    assert names.LABEL_UPGRADE_SKIP not in node["metadata"]["labels"]
    assert "has no label" in denied(lambda: operator.merge_patch(PATH, FENCE))


def test_from_a_node_that_lost_the_label_the_operator_may_remove_all_that_it_set(plain: Api, operator: Api) -> None:
    ours = {names.LABEL_MODE: "mig", names.LABEL_POLICY: "pool-b", names.LABEL_MIG_CONFIG: "x"}
    notes = {names.ANNOTATION_VERIFIED: "{}", names.ANNOTATION_DEFERRED: "{}"}
    plain.merge_patch(PATH, {"metadata": {"labels": ours, "annotations": notes}})
    gone = {"labels": dict.fromkeys(ours), "annotations": dict.fromkeys(notes)}
    node = patched(operator, {"metadata": gone})
    assert not ours.keys() & node["metadata"].get("labels", {}).keys()
    assert not notes.keys() & node["metadata"].get("annotations", {}).keys()


def test_the_cordon_of_somebody_else_on_a_node_without_the_label_stays(plain: Api, operator: Api) -> None:
    plain.merge_patch(PATH, {"spec": {"unschedulable": True}})
    assert "may not set spec.unschedulable" in denied(
        lambda: operator.merge_patch(PATH, {"spec": {"unschedulable": None}})
    )


def patched(api: Api, patch: Object) -> Any:
    """Patch the Node without a condition on its version, and return it."""
    return api.request("PATCH", PATH, patch, MERGE_PATCH)


PCI = "feature.node.kubernetes.io/pci-10de.present"


def test_another_label_may_take_the_place_of_nvidias(installed: Installed, plain: Api, operator: Api) -> None:
    """As on a cluster without the GPU Operator; each of several labels is enough."""
    plain.merge_patch(PATH, {"metadata": {"labels": {PCI: "true"}}})
    values = ("-f", str(CHART / "platforms" / "no-labels.yaml"))
    try:
        installed.must("upgrade", str(CHART), *values)
        wait_until(lambda: dry(operator, PATH, FENCE) == 200, SECONDS, "the new label to count")
        plain.merge_patch(PATH, {"metadata": {"labels": {PCI: None, "gpusharing.dev/pool": "a"}}})
        assert dry(operator, PATH, FENCE) == 200
        plain.merge_patch(PATH, {"metadata": {"labels": {"gpusharing.dev/pool": None}}})
        message = denied(lambda: operator.merge_patch(PATH, FENCE))
        assert f"no label {PCI} or feature.node.kubernetes.io/pci-0302_10de.present or gpusharing" in message
    finally:
        installed.must("upgrade", str(CHART))
    plain.merge_patch(PATH, {"metadata": {"labels": {PCI: "true"}}})
    wait_until(lambda: dry(operator, PATH, FENCE) == 403, SECONDS, "NVIDIA's label to count again")


def test_the_pod_of_an_eviction_is_not_seen_so_one_on_a_node_without_the_label_may_be_evicted(
    installed: Installed, plain: Api, operator: Api
) -> None:
    """What docs/explanation/security.md says that admission cannot see (kubernetes#110169)."""
    spec: Object = {"nodeName": CONTROL_PLANE, "containers": [{"name": "main", "image": "x"}]}
    pods = "/api/v1/namespaces/default/pods"
    pod = plain.create(pods, {"metadata": {"name": "bystander"}, "spec": spec})
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "bystander"},
        "deleteOptions": {"preconditions": {"uid": pod["metadata"]["uid"]}},
    }
    try:
        assert operator.request("POST", f"{pods}/bystander/eviction", eviction, dryRun="All")
    except ApiError as error:
        pytest.fail(f"admission refused the eviction, so the page may claim more: {error}")
    finally:
        plain.delete(f"{pods}/bystander", {"gracePeriodSeconds": 0})
