"""What a person has requested on the GPUNode is moved to the Node before anything else is done there (planning/transition/requests.py, docs/adr/0082-requests-on-the-gpunode.md)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_fence
from tests.planning.cases import MIXED, judged, make_case

from gpusharing.api import names
from gpusharing.planning.snapshot.actions import Actuate, ClearRequests, LabelNode, Release
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

RETRY, ABORT, SKIP = names.REQUESTS


def with_requests(case: NodeCase, **requests: str) -> NodeCase:
    """The case after `kubectl annotate gpunode`."""
    assert case.gpunode is not None
    asked = {names.PREFIX + key: value for key, value in requests.items()}
    return replace(case, gpunode=replace(case.gpunode, requests=asked))


Moved = tuple[NodeCase, Mapping[str, str | None], Mapping[str, str]]
MOVED: dict[str, Moved] = {
    "a retry": (with_requests(make_case(), retry="again"), {}, {RETRY: "again"}),
    "a retry, over another value of the Node": (
        with_requests(make_case(node={"retry": "once-more"}), retry="again"), {}, {RETRY: "again"},
    ),
    "an abort": (with_requests(make_case(MIXED, fence=make_fence()), abort="op-1"), {}, {ABORT: "op-1"}),
    "a skip": (with_requests(make_case(), skip="true"), {SKIP: "true"}, {}),
    "the end of a skip": (with_requests(make_case(labels={SKIP: "true"}), skip="false"), {SKIP: None}, {}),
    "the end of a skip, by an empty value": (
        with_requests(make_case(labels={SKIP: "yes"}), skip=""), {SKIP: None}, {},
    ),
    "a skip, in another spelling": (with_requests(make_case(), skip="True"), {SKIP: "true"}, {}),
    "a skip, over a label that skips nothing": (
        with_requests(make_case(labels={SKIP: "false"}), skip="1"), {SKIP: "true"}, {},
    ),
    "all at once, without what the Node has already": (
        with_requests(make_case(node={"retry": "again"}), retry="again", abort="op-1", skip="true"),
        {SKIP: "true"},
        {ABORT: "op-1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "labels", "annotations"), MOVED.values(), ids=MOVED)
def test_a_request_is_written_to_the_node_and_then_removed(
    case: NodeCase, labels: Mapping[str, str | None], annotations: Mapping[str, str]
) -> None:
    assert case.gpunode is not None
    assert judged(case).actions == (
        LabelNode(case.node, labels, requests=annotations),
        ClearRequests("gpu-07", case.gpunode.requests),
    )


HAD: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a retry": ({"node": {"retry": "again"}}, {"retry": "again"}),
    "an abort": ({"node": {"abort": "op-1"}}, {"abort": "op-1"}),
    "a skip": ({"labels": {SKIP: "true"}}, {"skip": "true"}),
    "a skip, which comes once more in another spelling": ({"labels": {SKIP: "true"}}, {"skip": "True"}),
    "a skip, which comes once more as yes": ({"labels": {SKIP: "true"}}, {"skip": "yes"}),
    "a skip, which comes once more as 1": ({"labels": {SKIP: "true"}}, {"skip": "1"}),
    "a skip, which the Node has in another spelling": ({"labels": {SKIP: "True"}}, {"skip": "true"}),
    "the end of a skip that nobody wanted": ({}, {"skip": "false"}),
    "the end of a skip whose label skips nothing": ({"labels": {SKIP: "false"}}, {"skip": "false"}),
}


@pytest.mark.parametrize(("fields", "requests"), HAD.values(), ids=HAD)
def test_a_request_that_the_node_has_already_is_only_removed(fields: dict[str, Any], requests: dict[str, str]) -> None:
    case = with_requests(make_case(**fields), **requests)
    assert case.gpunode is not None
    assert judged(case).actions == (ClearRequests("gpu-07", case.gpunode.requests),)


def test_no_node_starts_before_its_request_is_known() -> None:
    pending = make_case(MIXED)
    assert judged(pending).candidate
    asked = judged(with_requests(pending, skip="true"))
    assert (asked.candidate, asked.reason, asked.phase) == (
        False,
        judged(pending).reason,
        judged(pending).phase,
    )


def test_no_step_of_a_change_is_taken_before_its_abort_is_known() -> None:
    released = make_case(MIXED, fence=make_fence(), node={"unschedulable": False})
    assert any(isinstance(action, Release) for action in judged(released).actions)
    asked = judged(with_requests(released, abort="op-1")).actions
    assert not any(isinstance(action, Release | Actuate) for action in asked)


@pytest.mark.parametrize(
    ("node", "reason"),
    [({"fence_error": "not JSON"}, Reason.FENCE_UNREADABLE), ({"deleting": True}, None)],
    ids=["its fence cannot be read", "it is being deleted"],
)
def test_a_request_stays_where_it_is_on_a_node_where(node: dict[str, Any], reason: Reason | None) -> None:
    verdict = judged(with_requests(make_case(MIXED, node=node), retry="again"))
    assert verdict.actions == ()
    assert reason in (None, verdict.reason)
