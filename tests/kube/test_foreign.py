"""Who else works on a Node (kube/maintenance.py), as the planner sees it."""

from typing import Any

import pytest
from tests.kube.objects import node

from gpusharing.kube import convert
from gpusharing.kube.maintenance import find_problem

JSON = dict[str, Any]
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
