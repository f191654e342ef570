"""Which Nodes a stolen token of the operator reaches, on a real API server: those with a label that it cannot write, and those in the middle of a change."""

import json
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
UNCORDONED = '{"op":"1","priorUnschedulable":false,"added":[]}'
"""A fence of a Node that nobody had cordoned."""
FENCE: Object = {"metadata": {"annotations": {names.ANNOTATION_FENCE: UNCORDONED}}, "spec": {"unschedulable": True}}
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
    marked = {names.ANNOTATION_FENCE: UNCORDONED.replace("[]", f'["{names.LABEL_UPGRADE_SKIP}"]')}
    patched(operator, {**FENCE, "metadata": {"annotations": marked, "labels": {names.LABEL_UPGRADE_SKIP: "true"}}})
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
    assert "may lift the cordon of a Node only if" in denied(
        lambda: operator.merge_patch(PATH, {"spec": {"unschedulable": None}})
    )


# --- what others have set on a GPU node --------------------------------------------------------------------

POOL, AUTOSCALER = "gpusharing.dev/pool", names.NEIGHBOR_ANNOTATIONS[0]
OF_OTHERS: Object = {
    "labels": {names.LABEL_GPU_PRESENT: "true", POOL: "a", names.LABEL_UPGRADE_SKIP: "true"},
    "annotations": {AUTOSCALER: "true", names.ANNOTATION_HOLD_CORDON: "true"},
}


def fence(*added: str, prior: bool = False) -> str:
    return json.dumps({"op": "1", "priorUnschedulable": prior, "added": added}, separators=(",", ":"))


def written(*, cordon: bool | None = None, labels: Object | None = None, **annotations: str | None) -> Object:
    """A patch; the annotation `fence` is the operator's, and the others have the prefix of names of ours."""
    keys = {names.PREFIX + key: value for key, value in annotations.items()}
    spec: Object = {} if cordon is None else {"spec": {"unschedulable": cordon or None}}
    return {"metadata": {"labels": labels or {}, "annotations": keys}, **spec}


@pytest.fixture
def used(plain: Api) -> Api:
    """The admin, while the Node is a GPU node with a cordon and marks of people and other programs."""
    plain.merge_patch(PATH, {"metadata": OF_OTHERS, "spec": {"unschedulable": True}})
    return plain


THEFTS: dict[str, tuple[list[Object], str]] = {
    "remove the label of a pool": ([written(labels={POOL: None})], f", not {POOL}"),
    "record the label of a pool in a fence": ([written(fence=fence(POOL, prior=True))], f"not {POOL}"),
    "record it beside an annotation with its key": ([written(fence=fence(POOL, prior=True), pool="x")], POOL),
    "remove a mark that a person set for the driver upgrade": (
        [written(labels={names.LABEL_UPGRADE_SKIP: None})],
        f", not {names.LABEL_UPGRADE_SKIP}",
    ),
    "change such a mark": ([written(labels={names.LABEL_UPGRADE_SKIP: "false"})], f", not {names.LABEL_UPGRADE_SKIP}"),
    "remove the annotation of an autoscaler": (
        [{"metadata": {"annotations": {AUTOSCALER: None}}}],
        f"records them, not {AUTOSCALER}",
    ),
    "record it in a fence": ([written(fence=fence(AUTOSCALER, prior=True))], f"not {AUTOSCALER}"),
    "record it beside a label with its key": (
        [written(fence=fence(AUTOSCALER, prior=True), labels={AUTOSCALER: "x"})],
        AUTOSCALER,
    ),
    "lift a cordon without a fence": ([written(cordon=False)], "may lift the cordon of a Node only if"),
    "lift it with a fence of the same write": ([written(cordon=False, fence=fence())], "may lift the cordon"),
    "lift it with a true fence": ([written(fence=fence(prior=True)), written(cordon=False)], "may lift the cordon"),
    "say in a fence that it was not cordoned": ([written(fence=fence())], "whether the Node was cordoned before"),
    "say nothing of it": ([written(fence='{"op":"1"}')], "whether the Node was cordoned before"),
    "say both": (
        [written(fence=fence(prior=True)[:-1] + ',"priorUnschedulable":false}')],
        "whether the Node was cordoned before",
    ),
    "change what a fence said": (
        [written(fence=fence(prior=True)), written(fence=fence())],
        "whether the Node was cordoned before",
    ),
    "take a person's wish for a cordon away": (
        [{"metadata": {"annotations": {names.ANNOTATION_HOLD_CORDON: None}}}],
        "",
    ),
    "annotate it with any name of ours": ([written(any="x")], "not gpusharing.dev/any"),
    "fill its annotations by a fence": (
        [written(fence=fence(prior=True)[:-1] + f',"x":"{"y" * 65536}"}}')],
        "gpusharing.dev/fence (65536 bytes)",
    ),
    "fill them by letters of several bytes": (
        [written(verified="\N{EURO SIGN}" * 3000)],
        "not gpusharing.dev/verified",
    ),
    "fill them by a request": ([written(retry="x" * 1025)], "not gpusharing.dev/retry"),
}
"""Writes of which the server refuses the last one, and what it says."""


@pytest.mark.parametrize("what", THEFTS)
def test_of_what_others_set_on_a_gpu_node_the_operator_may_not(used: Api, operator: Api, what: str) -> None:
    *before, last = THEFTS[what][0]
    for patch in before:
        patched(operator, patch)
    message = denied(lambda: patched(operator, last))
    assert "ValidatingAdmissionPolicy 'gpusharing-operator-node-fields'" in message
    assert THEFTS[what][1] in message
    metadata = used.get(PATH)["metadata"]
    assert {key: metadata[key] | values for key, values in OF_OTHERS.items()} == {
        key: metadata[key] for key in OF_OTHERS
    }
    assert used.get(PATH)["spec"]["unschedulable"]


def test_a_wish_for_a_cordon_keeps_one_that_the_operator_has_set(plain: Api, operator: Api) -> None:
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
    patched(operator, FENCE)
    plain.merge_patch(PATH, {"metadata": {"annotations": {names.ANNOTATION_HOLD_CORDON: "true"}}})
    assert "hold-cordon" in denied(lambda: patched(operator, RELEASE))
    patched(operator, {"metadata": RELEASE["metadata"]})
    assert plain.get(PATH)["spec"]["unschedulable"]


def test_what_the_operator_set_for_others_it_may_take_away_again(plain: Api, operator: Api) -> None:
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}}})
    labels, annotations = dict.fromkeys(names.NEIGHBOR_LABELS, "x"), dict.fromkeys(names.NEIGHBOR_ANNOTATIONS, "true")
    text = fence(*labels, *annotations)
    patched(operator, {"metadata": {"labels": labels, "annotations": {**annotations, names.ANNOTATION_FENCE: text}}})
    gone = {"labels": dict.fromkeys(labels), "annotations": dict.fromkeys(annotations)}
    metadata = patched(operator, {"metadata": gone})["metadata"]
    assert metadata["labels"] == {names.LABEL_GPU_PRESENT: "true"}
    assert not metadata["annotations"].keys() & {*names.NEIGHBOR_ANNOTATIONS}


MANY = 10_000
"""Annotations of others with which the operator can still write its largest fence; a Node may have 256 KiB of them."""


def test_ten_thousand_annotations_of_others_keep_the_operator_from_nothing(plain: Api, operator: Api) -> None:
    """The API server ends an expression whose cost at run time exceeds its limit, and the request with it."""
    others = {f"a{number:05}": "" for number in range(MANY)}
    plain.merge_patch(PATH, {"metadata": {"labels": {names.LABEL_GPU_PRESENT: "true"}, "annotations": others}})
    largest = fence()[:-1] + f',"x":"{"y" * 65000}"}}'
    patched(operator, written(cordon=True, fence=largest))
    assert not patched(operator, written(cordon=False, fence=None))["spec"].get("unschedulable")


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
