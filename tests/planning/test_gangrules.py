"""A member of a gang has the rules of the policy that its own node follows; where nobody can tell what those are, it must stay (planning/transition/cases.py)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_fence, make_node, make_pod, make_policy, make_snapshot, make_work
from tests.planning.cases import FULL, pass_time, pool_of
from tests.planning.ganging import make_gang, make_gang_view
from tests.planning.test_guard import Poisoned
from tests.planning.test_nodecases import PAUSED, STACK, terms
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.validation import Problem
from gpusharing.planning.rollout import follow
from gpusharing.planning.snapshot.podviews import GangMember
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.cases import with_rules
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

OTHER = make_policy("other", drain={"unmanagedPods": "Evict"})
UNREAD = replace(OTHER, spec=None, problems=(Problem("spec.drain.rules[0].behavior", "unknown"),))
FAULT = TypeError("unsupported operand")
UNKNOWN = "The drain rules for the pod's node are unknown and may forbid evicting the pod: "
RANK = "a rank of a JobSet"


def shared(
    other: PolicyView, *, unread: Iterable[str] = (), unowned: Iterable[str] = (), **given: Any
) -> tuple[ClusterSnapshot, ClusterSnapshot]:
    """A gang on two nodes, of which another policy has the second, and a member on a node that nobody knows: as it is read, and with rules. Nobody can judge the policies `unread`, nor find the owners of the nodes `unowned`."""
    first, second = make_node("gpu-07"), make_node("gpu-08", **given)
    ranks = {name: [make_pod(f"rank-of-{name}", gang=make_gang())] for name in ("gpu-07", "gpu-08", "cpu-1")}
    work = make_work(*ranks["gpu-07"], gangs=(make_gang_view(ranks),))
    snapshot = make_snapshot([first, second], [PAUSED, other], stack=STACK, work={"gpu-07": work})
    owned = {"gpu-07": "pool-b", "gpu-08": other.name}
    owners = {name: owner for name, owner in owned.items() if name not in unowned}
    failed: dict[str, Exception] = dict.fromkeys(unowned, FAULT)
    offered = {one.name: terms(one) for one in (PAUSED, other)}
    followed = follow(snapshot, owners, offered, failed=failed, unread=dict.fromkeys(unread, FAULT))
    return snapshot, with_rules(snapshot, followed, owners, failed)


def members(snapshot: ClusterSnapshot) -> dict[str, GangMember]:
    return {one.node: one for one in snapshot.work["gpu-07"].gangs[0].members}


def test_a_member_of_a_gang_has_the_rules_of_the_policy_that_its_own_node_follows() -> None:
    before, after = shared(OTHER)
    assert before != after
    found = members(after)
    assert OTHER.spec is not None
    assert (found["gpu-08"].policy, found["gpu-08"].rules) == ("other", OTHER.spec.drain)
    assert {found[name].rules for name in ("gpu-07", "cpu-1")} == {None}


def test_where_both_policies_say_the_same_nothing_is_added() -> None:
    before, after = shared(make_policy("other"))
    assert after is before


def test_a_policy_that_cannot_be_read_may_forbid_anything() -> None:
    _, after = shared(UNREAD)
    found = members(after)
    unruled = found["gpu-08"].rules
    assert isinstance(unruled, Finding)
    assert unruled.reason is Reason.INVALID_SPEC
    assert not lacks(unruled.message, UNKNOWN, "policy other", "spec.drain.rules[0].behavior")
    assert found["gpu-08"].policy == "other"
    assert {found[name].rules for name in ("gpu-07", "cpu-1")} == {None}


def test_a_policy_that_nobody_can_judge_may_forbid_anything() -> None:
    _, after = shared(OTHER, unread=["other"])
    why = members(after)["gpu-08"].rules
    assert isinstance(why, Finding)
    assert why.reason is Reason.POLICY_NOT_JUDGED
    assert not lacks(why.message, UNKNOWN, "policy other", "TypeError")


def test_a_node_in_a_change_has_the_rules_of_the_policy_that_changes_it() -> None:
    before, after = shared(OTHER, fence=make_fence(policy="pool-b"))
    assert after is before


def test_a_node_whose_owner_nobody_can_find_may_forbid_anything() -> None:
    _, after = shared(OTHER, unowned=["gpu-08"])
    why = members(after)["gpu-08"].rules
    assert isinstance(why, Finding)
    assert why.reason is Reason.NODE_NOT_JUDGED


def test_a_node_that_nobody_can_judge_still_has_the_rules_of_its_policy() -> None:
    before, after = shared(OTHER, labels=Poisoned())
    assert before != after
    found = members(after)["gpu-08"]
    assert OTHER.spec is not None
    assert (found.policy, found.rules) == ("other", OTHER.spec.drain)


def spoil(world: World) -> None:
    world.policies = tuple(
        replace(one, generation=one.generation + 1, spec=None, problems=UNREAD.problems)
        if one.name == "pool-c"
        else one
        for one in world.policies
    )


@pytest.mark.parametrize("begun", [False, True], ids=["before the drain", "in the drain"])
def test_a_gang_over_two_pools_is_not_ended_while_nobody_can_read_the_policy_of_a_member(*, begun: bool) -> None:
    world = pool_of(1, FULL)
    label: dict[str, Any] = {"gpusharing.dev/pool": "c"}
    world.add_node("m0", **label)
    world.set_policy(make_policy("pool-c", mode="Full", nodeSelector={"matchLabels": label}))
    world.settle()
    assert all(world.add_pod(name, RANK) for name in world.nodes)
    world.refusing = True
    edit = make_policy(drain={"strandedPods": "Allow"})
    if begun:
        world.set_policy(edit)
        pass_time(world, 60, until=lambda world: bool(world.refused))
        assert world.refused
    spoil(world)
    if not begun:
        pass_time(world, 3)
        world.set_policy(edit)
    world.refusing = False
    pass_time(world, 60)
    verdict = world.plan().verdicts["n0"]
    assert (world.evicted, len(world.pods["m0"]), len(world.pods["n0"])) == (set(), 1, 1)
    assert verdict.phase is (Phase.DRAINING if begun else Phase.BLOCKED)
    assert verdict.reason is Reason.INVALID_SPEC
    assert f"{UNKNOWN}policy pool-c cannot be read" in verdict.message
