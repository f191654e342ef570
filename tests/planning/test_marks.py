"""Marks for neighbors on a fenced Node (docs/design/drain.md#c6)."""

from dataclasses import replace

from tests.build import make_fence, make_node
from tests.planning.test_pool import candidate, chosen

from gpusharing.api import names
from gpusharing.kube.maintenance import TAINT_MARKERS
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.transition.fencing import marks_for, unmarked

KARPENTER, AUTOSCALER = names.NEIGHBOR_ANNOTATIONS


def test_a_fence_keeps_driver_upgrades_autoscalers_and_who_repairs_nodes_away() -> None:
    labels, annotations = marks_for(make_node())

    assert labels == {
        "nvidia.com/gpu-driver-upgrade.skip": "true",
        "nvsentinel.dgxc.nvidia.com/managed": "false",
        "k8saas.nvidia.com/ManagedByNVSentinel": "false",
        "remediation.medik8s.io/exclude-from-remediation": "true",
    }
    assert annotations == {KARPENTER: "true", AUTOSCALER: "true"}


def test_a_cluster_may_have_more_marks_and_may_not_change_ours() -> None:
    more = ("example.com/hands-off=true", "nvidia.com/gpu-driver-upgrade.skip=false")
    labels, _ = marks_for(make_node(labels={"gpusharing.dev/pool": "b"}), more)
    assert labels == {**names.NEIGHBOR_LABELS, "example.com/hands-off": "true"}
    there = make_node(labels={"example.com/hands-off": "for ever"})
    labels, annotations = marks_for(there, more)
    assert "example.com/hands-off" not in labels
    assert "example.com/hands-off" not in unmarked(make_fence(added=(*labels, *annotations)), there)[0]


def test_marks_that_somebody_else_set_are_neither_set_nor_taken_away() -> None:
    theirs = make_node(labels={**names.NEIGHBOR_LABELS, "nvsentinel.dgxc.nvidia.com/managed": "true"})
    theirs = replace(theirs, neighbor_marks=frozenset({KARPENTER}))

    labels, annotations = marks_for(theirs)
    released = unmarked(make_fence(added=(*labels, *annotations)), theirs)

    assert (labels, annotations) == ({}, {AUTOSCALER: "true"})
    assert released == ({}, {AUTOSCALER: None})


def test_a_release_takes_away_exactly_what_the_fence_lists() -> None:
    labels, annotations = unmarked(make_fence(added=(names.LABEL_UPGRADE_SKIP, KARPENTER)), make_node())

    assert labels == {names.LABEL_UPGRADE_SKIP: None}
    assert annotations == {KARPENTER: None}


def test_the_mark_that_medik8s_sets_too_is_left_to_it_while_it_maintains_the_node() -> None:
    fence = make_fence(added=tuple(names.NEIGHBOR_LABELS))
    maintained = make_node(foreign="medik8s NodeMaintenance nm")

    assert names.LABEL_NO_REMEDIATION not in unmarked(fence, maintained)[0]
    assert names.LABEL_NO_REMEDIATION not in unmarked(fence, make_node(foreign=TAINT_MARKERS["medik8s.io/drain"]))[0]
    for other in ("kured reboot", TAINT_MARKERS["remediation.medik8s.io/self-node-remediation"]):
        assert unmarked(fence, make_node(foreign=other))[0].keys() == names.NEIGHBOR_LABELS.keys()


def test_the_marks_of_a_cluster_come_with_the_fence_and_go_with_it() -> None:
    case = candidate("n1")
    case = replace(case, settings=replace(case.settings, neighbor_labels=("example.com/hands-off=true",)))
    (action,) = chosen(case).verdicts["n1"].actions
    assert isinstance(action, FenceNode)
    assert action.labels["example.com/hands-off"] == "true"
    held = replace(case.node, labels={**case.node.labels, "example.com/hands-off": "true"}, fence=action.fence)
    assert unmarked(action.fence, held)[0]["example.com/hands-off"] is None
