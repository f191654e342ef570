"""Of several ClusterPolicies the one counts that the GPU Operator follows; where nobody can tell, that is said."""

import itertools
from dataclasses import replace

import pytest
from tests.build import SETTINGS, make_cluster_policy, make_policy, make_stack

from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, find_active
from gpusharing.planning.stack.acceptance import find_objection
from gpusharing.planning.stack.pointers import plan_pointers
from gpusharing.planning.vocabulary.reasons import Mark, Reason


def named(name: str, *, ignored: bool = False) -> ClusterPolicyView:
    return make_cluster_policy(name=name, ignored=ignored)


FOUND: dict[str, tuple[tuple[ClusterPolicyView, ...], str, tuple[str, ...]]] = {
    "none": ((), "", ()),
    "the only one": ((named("a"),), "a", ()),
    "the only one, which was once ignored": ((named("a", ignored=True),), "a", ()),
    "the one that is not ignored, whatever its name": ((named("a", ignored=True), named("b")), "b", ()),
    "none of two before the GPU Operator has looked": ((named("a"), named("b")), "a", ("a", "b")),
    "none of two that are both ignored": (
        (named("a", ignored=True), named("b", ignored=True)), "a", ("a", "b")),
    "none of two beside a third that is ignored": (
        (named("a", ignored=True), named("b"), named("c")), "b", ("b", "c")),
}  # fmt: skip


@pytest.mark.parametrize(("found", "name", "rivals"), FOUND.values(), ids=FOUND.keys())
def test_it_takes(found: tuple[ClusterPolicyView, ...], name: str, rivals: tuple[str, ...]) -> None:
    for order in itertools.permutations(found):
        active, among = find_active(order)
        assert (active.name if active else "", among) == (name, rivals)


def test_where_nobody_can_tell_no_policy_is_accepted_and_no_pointer_is_set() -> None:
    bare = make_cluster_policy("", mig_config_name="")
    stack = make_stack(make_policy(), cluster_policy=bare, rival_policies=("a", "b"))
    objection = find_objection(make_policy(), stack, SETTINGS)
    assert objection is not None
    assert objection.reason is Reason.SEVERAL_CLUSTER_POLICIES
    assert "a, b" in objection.message
    asked = replace(SETTINGS, configure_gpu_operator=True)
    assert plan_pointers(stack, asked, quiet=True) is None
    assert plan_pointers(replace(stack, rival_policies=()), asked, quiet=True) is not None


def test_a_node_in_flight_holds_until_it_is_told() -> None:
    assert Mark.MOMENTARY in Reason.SEVERAL_CLUSTER_POLICIES.marks
