"""Who else works on a Node (kube/maintenance.py), by marks on it or by NodeMaintenance objects, as the planner sees it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from tests.build import make_node
from tests.kube.objects import node

from gpusharing.kube import convert
from gpusharing.kube.client import JSON
from gpusharing.kube.maintenance import (
    Maintenance,
    find_maintained,
    find_problem,
    medik8s_maintenance,
    nvidia_maintenance,
    with_maintenance,
)
from gpusharing.planning.snapshot.views import NodeView

KURED: JSON = {"weave.works/kured-reboot-in-progress": "2026"}
FOREIGN: list[tuple[str, JSON, str]] = [
    ("labels", {"nvidia.com/gpu-driver-upgrade-state": "drain-required"}, "NVIDIA driver upgrade"),
    ("labels", {"nvidia.com/gpu-driver-upgrade-state": "upgrade-required"}, "NVIDIA driver upgrade"),
    ("labels", {"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}, ""),
    ("labels", {"nvidia.com/gpu-driver-upgrade.skip": "true"}, ""),
    ("annotations", KURED, "kured reboot"),
    ("annotations", {"machineconfiguration.openshift.io/desiredDrain": "drain-1"}, "machine-config"),
    ("annotations", {"sriovnetwork.openshift.io/state": "Draining"}, "SR-IOV"),
    ("annotations", {"sriovnetwork.openshift.io/state": "Idle"}, ""),
    ("annotations", {"skyhook.nvidia.com/cordon_tuning": "true"}, "nodewright"),
    ("annotations", {"nodewright.nvidia.com/cordon_tuning": "true"}, "nodewright"),
    ("annotations", {"nodewright.nvidia.com/runtimeRequiredCordon": "true"}, "nodewright"),
    ("annotations", {"nodewright.nvidia.com/status_tuning": "complete"}, ""),
    ("labels", {"dgxc.nvidia.com/nvsentinel-state": "quarantined"}, "NVSentinel"),
    ("labels", {"dgxc.nvidia.com/nvsentinel-state": "remediation-failed"}, "NVSentinel"),
    ("labels", {"dgxc.nvidia.com/nvsentinel-state": ""}, ""),
    ("labels", {"k8saas.nvidia.com/ManagedByNVSentinel": "false"}, ""),
    ("labels", {"remediation.medik8s.io/exclude-from-remediation": "true"}, ""),
]


@pytest.mark.parametrize("state", ["Drain_Required", "Reboot_Required"])
def test_a_node_that_waits_to_be_drained_for_sr_iov_is_named_and_waits(state: str) -> None:
    marks: JSON = {"annotations": {"sriovnetwork.openshift.io/state": state}}
    found = convert.node_view(node(metadata=marks))
    assert (found.foreign, found.foreign_waits) == ("SR-IOV network operator", True)
    assert found.foreign_works, "only its SriovNetworkNodeState says when the drain begins"


@pytest.mark.parametrize("state", ["upgrade-required", "upgrade-failed", "node-maintenance-required"])
def test_a_driver_upgrade_that_waits_gives_way_to_whoever_works(state: str) -> None:
    waiting: JSON = {"nvidia.com/gpu-driver-upgrade-state": state}
    found = convert.node_view(node(metadata={"labels": waiting}))
    assert (found.foreign, found.foreign_waits) == ("NVIDIA driver upgrade", True)
    both = convert.node_view(node(metadata={"labels": waiting, "annotations": KURED}))
    assert (both.foreign, both.foreign_waits) == ("kured reboot", False)


@pytest.mark.parametrize(
    ("where", "marks"),
    [
        ("labels", {"nvidia.com/gpu-driver-upgrade-state": "drain-required"}),
        ("annotations", {"sriovnetwork.openshift.io/state": "Draining"}),
    ],
    ids=["a driver upgrade", "SR-IOV"],
)
def test_who_has_begun_does_not_wait(where: str, marks: JSON) -> None:
    found = convert.node_view(node(metadata={where: marks}))
    assert (found.foreign_waits, found.foreign_works) == (False, True)


@pytest.mark.parametrize(
    ("state", "works"), [("upgrade-required", False), ("node-maintenance-required", False), ("upgrade-failed", True)]
)
def test_a_driver_upgrade_that_has_not_begun_gives_way_to_whoever_may_have(state: str, works: bool) -> None:
    label: JSON = {"nvidia.com/gpu-driver-upgrade-state": state}
    assert convert.node_view(node(metadata={"labels": label})).foreign_works is works
    asks: JSON = {"sriovnetwork.openshift.io/state": "Drain_Required"}
    both = convert.node_view(node(metadata={"labels": label, "annotations": asks}))
    assert (both.foreign_waits, both.foreign_works) == (True, True)
    assert both.foreign == ("NVIDIA driver upgrade" if works else "SR-IOV network operator")


@pytest.mark.parametrize(
    ("where", "marks", "who"), FOREIGN, ids=[f"{next(iter(m))}={next(iter(m.values()))}" for _, m, _ in FOREIGN]
)
def test_foreign_maintenance_in_labels_and_annotations_is_named(where: str, marks: JSON, who: str) -> None:
    found = convert.node_view(node(metadata={where: marks})).foreign
    assert who in found
    assert bool(who) == bool(found)


@pytest.mark.parametrize(
    "taint",
    [
        "medik8s.io/drain",
        "remediation.medik8s.io/self-node-remediation",
        "node.kubernetes.io/out-of-service",
        "karpenter.sh/disrupted",
        "ToBeDeletedByClusterAutoscaler",
    ],
)
def test_foreign_maintenance_in_taints_is_named(taint: str) -> None:
    assert convert.node_view(node(spec={"taints": [{"key": taint, "effect": "NoSchedule"}]})).foreign


def test_foreign_maintenance_in_conditions_is_named_and_our_cordon_taint_is_not() -> None:
    raw = node(spec={"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]})
    assert not convert.node_view(raw).foreign
    raw["status"]["conditions"].append({"type": "DrainInProgress", "status": "True"})
    assert "DrainInProgress" in convert.node_view(raw).foreign


KEYS = frozenset({"example.com/maintenance", "out-of-order"})


@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"metadata": {"labels": {"out-of-order": ""}}}, "someone (label out-of-order)"),
        (
            {"metadata": {"annotations": {"example.com/maintenance": "false"}}},
            "someone (annotation example.com/maintenance)",
        ),
        (
            {"spec": {"taints": [{"key": "example.com/maintenance", "effect": "NoExecute"}]}},
            "someone (taint example.com/maintenance)",
        ),
        ({"metadata": {"labels": dict.fromkeys(KEYS, "x"), "annotations": KURED}}, "kured reboot"),
    ],
    ids=["as a label", "as an annotation, whatever its value", "as a taint", "beside one of our table"],
)
def test_a_key_that_the_admin_named_is_a_marker_and_without_that_none(changes: JSON, who: str) -> None:
    assert convert.node_view(node(**changes), KEYS).foreign == who
    assert not convert.node_view(node(), KEYS).foreign
    assert "somebody" not in convert.node_view(node(**changes)).foreign


def test_a_key_is_as_long_as_kubernetes_allows_and_no_longer() -> None:
    assert find_problem(f"{'a' * 253}/{'b' * 63}") == ""
    assert "is not a key" in find_problem(f"{'a' * 254}/{'b' * 63}")


def medik8s(name: str = "nm-07", **parts: JSON) -> JSON:
    return {"metadata": {"name": name}, "spec": {"nodeName": "gpu-07", "reason": "new fan"}, **parts}


def nvidia(*conditions: JSON, **metadata: object) -> JSON:
    return {
        "metadata": {"name": "nm", "namespace": "ops", **metadata},
        "spec": {"nodeName": "gpu-07", "requestorID": "nvidia.gpu.operator"},
        "status": {"conditions": list(conditions)},
    }


def joined(node: NodeView, *kinds: Mapping[str, Maintenance]) -> NodeView:
    """The view of a node with the one of these objects that counts for it."""
    return with_maintenance(node, find_maintained(*kinds).get(node.name))


def ready(reason: str) -> JSON:
    return {"type": "Ready", "status": "True" if reason == "Ready" else "False", "reason": reason}


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (medik8s(), ""),
        (medik8s(status={"phase": "Running", "drainProgress": 50}), ""),
        (medik8s(status={"phase": "Succeeded"}), ""),
        (medik8s(status={"phase": "Failed"}), " (failed)"),
        (medik8s(metadata={"name": "nm-07", "deletionTimestamp": "now"}), " (being deleted)"),
    ],
    ids=["just created", "draining", "in maintenance", "given up", "being deleted"],
)
def test_one_of_medik8s_counts_in_every_state(raw: JSON, state: str) -> None:
    assert medik8s_maintenance(raw) == Maintenance(f"medik8s NodeMaintenance nm-07{state}", node="gpu-07")


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        (nvidia(), ""),
        (nvidia(ready("Pending")), ""),
        (nvidia(ready("Ready")), ""),
        (nvidia(ready("Ready"), {"type": "RequestorFailed", "status": "False"}), ""),
        (nvidia(ready("RequestorFailed"), {"type": "RequestorFailed", "status": "True"}), " (failed)"),
        (nvidia(ready("Ready"), deletionTimestamp="now"), " (being deleted)"),
    ],
    ids=["just created", "waiting for its turn", "in maintenance", "not failed", "failed", "being deleted"],
)
def test_one_of_nvidia_counts_in_every_state_and_its_asker_is_named(raw: JSON, state: str) -> None:
    who = f"NVIDIA NodeMaintenance ops/nm for nvidia.gpu.operator{state}"
    found = nvidia_maintenance(raw)
    assert (found.node, found.who) == ("gpu-07", who)


@pytest.mark.parametrize(
    ("raw", "waits"),
    [
        (nvidia(), True),
        (nvidia(ready("Pending")), True),
        (nvidia(ready("Scheduled")), False),
        (nvidia(ready("Ready")), False),
        (nvidia(ready("Pending"), deletionTimestamp="now"), False),
        (nvidia({"type": "RequestorFailed", "status": "True"}), False),
    ],
    ids=["just created", "waiting for its turn", "chosen", "in maintenance", "being deleted", "failed"],
)
def test_one_of_nvidia_waits_until_it_is_chosen(raw: JSON, waits: bool) -> None:
    assert nvidia_maintenance(raw).waits is waits
    assert not medik8s_maintenance(medik8s()).waits, "its operator begins at once"


def test_who_waits_gives_way_to_who_works() -> None:
    waiting = {"a": Maintenance("A", waits=True, queued=True, node="gpu-07")}
    at_rest, driver = make_node("gpu-07"), replace(make_node("gpu-07", foreign="D"), foreign_waits=True)
    busy = make_node("gpu-07", foreign="kured reboot")
    assert [joined(one, waiting).foreign_waits for one in (at_rest, driver)] == [True, True]
    assert joined(busy, waiting) == busy
    assert not joined(at_rest, waiting).foreign_works
    assert joined(driver, waiting) == driver, "it may have begun"
    both = joined(at_rest, waiting, {"b": Maintenance("B", node="gpu-07")})
    assert (both.foreign, both.foreign_waits, both.foreign_works) == ("B", False, True)
    two = joined(at_rest, waiting, {"b": Maintenance("B", waits=True, queued=True, node="gpu-07")})
    assert two.foreign == "A", "of two who wait it is the first, as ever"


@pytest.mark.parametrize(
    "raw", [{}, {"metadata": None, "spec": 7}, {"metadata": {"name": "x"}, "spec": {"nodeName": ["gpu-07"]}}]
)
def test_one_that_cannot_be_read_is_for_no_node(raw: JSON) -> None:
    nodes = {"gpu-07": make_node("gpu-07")}
    found = {"x": medik8s_maintenance(raw), "y": nvidia_maintenance(raw)}
    assert {name: joined(node, found) for name, node in nodes.items()} == nodes


def test_of_several_for_a_node_the_first_kind_and_name_speaks_whatever_their_order() -> None:
    second = {"b": Maintenance("B", node="gpu-07"), "a": Maintenance("A", node="gpu-07")}
    node = make_node("gpu-07", foreign="medik8s node maintenance")
    assert joined(node, {}, second).foreign == "A"
    assert joined(node, {"z": Maintenance("Z", node="gpu-07")}, second).foreign == "Z"


def test_one_for_a_node_that_is_not_there_touches_nothing() -> None:
    node = make_node("gpu-08", foreign="kured reboot")
    assert joined(node, {"a": Maintenance("A", node="gpu-07")}) is node
