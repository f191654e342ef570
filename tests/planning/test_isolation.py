"""What the guard for tenants admits (drain/stranded.py), and which changes it holds back."""

from typing import Any

import pytest
from tests.build import make_pod, make_policy, make_work
from tests.planning.test_stranded import ELSEWHERE, SHARING, begins, full_node, held_by, snapshot_of
from tests.wording import lacks

from gpusharing.api.names import LABEL_ISOLATION, LABEL_MODE, Mode
from gpusharing.planning.drain.stranded import ADMITTED, describe_guard, find_admitted, with_guard
from gpusharing.planning.snapshot.podviews import NodeWork, PodView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.target import routing_label

HARDWARE = (LABEL_MODE, "In", ("full", "mig"))
ZONE = ("zone", "In", ("a",))
SHARED_BY_MPS = make_policy(mode="MPS")
TOLD = "namespace team-a has the label gpusharing.dev/isolation="


def guarded(level: str, **fields: Any) -> PodView:
    """A pod of team-a as the guard would admit its successor; `level` is the value of the namespace's label."""
    return with_guard(make_pod(namespace_labels={LABEL_ISOLATION: level}, **fields))


def on_gpu_07(level: str) -> dict[str, NodeWork]:
    return {"gpu-07": make_work(guarded(level))}


def test_each_admitted_mode_is_a_value_of_the_routing_label_and_no_mode_with_turns_is_admitted() -> None:
    by_turns = {routing_label(mode, time_slicing=turns) for mode in Mode for turns in (False, True)}
    assert {"mig-time-slicing", "time-slicing"} == by_turns - {"full", "mig", "mps"}
    assert ADMITTED == {"hardware": ("full", "mig"), "memory": ("full", "mig", "mps")}


def test_the_requirement_is_added_to_each_term_and_only_to_pods_that_request_gpus() -> None:
    assert guarded("hardware").node_terms == ((HARDWARE,),)
    two = guarded("hardware", node_terms=((ZONE,), ()))
    assert two.node_terms == ((ZONE, HARDWARE), (HARDWARE,))
    assert guarded("hardware", resources={}).node_terms == ()
    for labels in (None, {}, {"other": "label"}):
        plain = make_pod(namespace_labels=labels)
        assert with_guard(plain) == plain


REQUIRES: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, False),
    "an admitted mode, by its node selector": ({"node_selector": {LABEL_MODE: "mig"}}, True),
    "a mode that is not admitted": ({"node_selector": {LABEL_MODE: "mps"}}, False),
    "admitted modes, in each term": ({"node_terms": ((ZONE, HARDWARE), ((LABEL_MODE, "In", ("mig",)),))}, True),
    "admitted modes, in one of two terms": ({"node_terms": ((ZONE, HARDWARE), (ZONE,))}, False),
    "one mode too many": ({"node_terms": (((LABEL_MODE, "In", ("full", "mps")),),)}, False),
    "the label alone": ({"node_terms": (((LABEL_MODE, "Exists", ()),),)}, False),
}


@pytest.mark.parametrize("what", REQUIRES)
def test_where_the_guard_only_refuses_the_replacement_of_a_pod_needs_the_requirement_itself(what: str) -> None:
    fields, admitted = REQUIRES[what]
    pod = make_pod(namespace_labels={LABEL_ISOLATION: "hardware"}, **fields)
    modes = ("full", "mig") if admitted else ()
    assert with_guard(pod, adds=False).node_terms == tuple(
        (*term, (LABEL_MODE, "In", modes)) for term in pod.node_terms or ((),)
    )


def test_a_node_is_held_whose_pod_could_not_be_replaced_because_the_guard_would_refuse_that() -> None:
    pod = with_guard(make_pod(namespace_labels={LABEL_ISOLATION: "memory"}), adds=False)
    held = held_by(snapshot_of(full_node(), policies=(SHARED_BY_MPS,), work={"gpu-07": make_work(pod)}))
    assert not lacks(held, f"N{TOLD[1:]}memory", "full or mig or mps", "replacement")


def test_a_value_that_is_no_level_admits_nothing_and_is_described() -> None:
    labels = {LABEL_ISOLATION: "hard"}
    assert find_admitted(labels) == ()
    assert not lacks(describe_guard("team-a", labels), f"{TOLD}hard", "hardware", "memory")
    assert (find_admitted({}), describe_guard("team-a", {})) == (None, "")


HELD: dict[str, tuple[PolicyView, str, str]] = {
    "time-slicing where hardware is demanded": (
        SHARING,
        "hardware",
        f"The pod requires {LABEL_MODE} In full,mig, but this label will be time-slicing; {TOLD}hardware, which admits"
        " its GPU pods only on nodes in mode full or mig",
    ),
    "MPS where hardware is demanded": (SHARED_BY_MPS, "hardware", "but this label will be mps; "),
    "time-slicing where memory is demanded": (SHARING, "memory", f"{LABEL_MODE} In full,mig,mps, but"),
    "any change where the value is no level": (SHARED_BY_MPS, "hard", "Namespace team-a has the label"),
}


@pytest.mark.parametrize("what", HELD)
def test_a_node_is_held_that_would_leave_its_guarded_pod_no_admitted_node(what: str) -> None:
    policy, level, words = HELD[what]
    assert words in held_by(snapshot_of(full_node(), policies=(policy,), work=on_gpu_07(level)))


def test_a_node_of_no_policy_without_a_mode_is_no_place_for_a_guarded_pod() -> None:
    other = full_node("gpu-09", labels=ELSEWHERE)
    assert LABEL_MODE in held_by(snapshot_of(full_node(), other, policies=(SHARING,), work=on_gpu_07("hardware")))


def test_a_change_begins_where_the_guarded_pod_finds_an_admitted_node() -> None:
    admitted = full_node("gpu-09", labels={**ELSEWHERE, LABEL_MODE: "full"})
    assert begins(snapshot_of(full_node(), admitted, policies=(SHARING,), work=on_gpu_07("hardware")))
    assert begins(snapshot_of(full_node(), policies=(SHARED_BY_MPS,), work=on_gpu_07("memory")))
    assert begins(snapshot_of(full_node(), policies=(SHARING,), work={"gpu-07": make_work(make_pod())}))
