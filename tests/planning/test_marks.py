"""Marks for neighbours on a fenced Node (docs/design/drain.md#c6)."""

from dataclasses import replace

from tests.build import make_fence, make_node

from gpusharing.api import names
from gpusharing.planning.way.marks import marks_for, unmarked

KARPENTER, AUTOSCALER = names.NEIGHBOUR_ANNOTATIONS


def test_a_fence_keeps_driver_upgrades_and_autoscalers_away() -> None:
    labels, annotations = marks_for(make_node())

    assert labels == {names.LABEL_UPGRADE_SKIP: "true"}
    assert annotations == {KARPENTER: "true", AUTOSCALER: "true"}


def test_marks_that_somebody_else_set_are_neither_set_nor_taken_away() -> None:
    theirs = make_node(labels={names.LABEL_UPGRADE_SKIP: "true"})
    theirs = replace(theirs, neighbour_marks=frozenset({KARPENTER}))

    labels, annotations = marks_for(theirs)
    released = unmarked(make_fence(added=(*labels, *annotations)))

    assert (labels, annotations) == ({}, {AUTOSCALER: "true"})
    assert released == ({}, {AUTOSCALER: None})


def test_a_release_takes_away_exactly_what_the_fence_lists() -> None:
    labels, annotations = unmarked(make_fence(added=(names.LABEL_UPGRADE_SKIP, KARPENTER)))

    assert labels == {names.LABEL_UPGRADE_SKIP: None}
    assert annotations == {KARPENTER: None}
