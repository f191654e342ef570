"""Nodes that started as one wave are given back together, and no node waits for ever."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_policy, make_snapshot
from tests.planning.cases import MIXED, SLICED, make_member, pool_of, run_until
from tests.planning.changes import changing, fence_to, only
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.pools.waves import hold_together
from gpusharing.planning.report.transition import who_ends, who_keeps
from gpusharing.planning.snapshot.actions import Release, UpdateFence
from gpusharing.planning.snapshot.memory import CallFailure
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.cases import show_failure
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

PROOF = Verified("pool-b", "all-1g.10gb", "c-1", layout="1x full", gpus=1)
POLICY = make_policy(rollout={"timeouts": {"verification": "5m"}})


def in_wave(name: str, *, wave: str = "w", **fence: Any) -> NodeView:
    uid = f"uid-{name}"
    return make_node(name, uid=uid, unschedulable=True, fence=make_fence("actuating", node_uid=uid, wave=wave, **fence))


def proven(node: NodeView) -> Verdict:
    verdict = Verdict(node.name, "pool-b", Phase.UNCORDONING, Reason.SYNCED, "2x3g.40gb proven")
    return verdict.then(Release(node, True, {}, verified=PROOF))


def working(node: NodeView, phase: Phase = Phase.RECONFIGURING) -> Verdict:
    return Verdict(node.name, "pool-b", phase, Reason.ACTUATION_IN_PROGRESS, "at work")


def aborted(node: NodeView) -> Verdict:
    return working(node, Phase.ABORTING).then(Release(node, True, {}))


def held(*verdicts: Verdict, nodes: tuple[NodeView, ...], now: datetime = NOW) -> dict[str, Verdict]:
    by_name = {node.name: node for node in nodes}
    told = {verdict.node: make_member(by_name[verdict.node], verdict) for verdict in verdicts}
    return {name: one.verdict for name, one in hold_together(told, make_snapshot(nodes, [POLICY]), now).items()}


A, B = in_wave("a"), in_wave("b")


def test_a_proven_node_waits_for_the_others_of_its_wave_and_records_since_when() -> None:
    (found,) = held(proven(A), working(B), nodes=(A, B)).values()
    assert (found.node, found.phase, found.reason) == ("a", Phase.UNCORDONING, Reason.WAITS_FOR_WAVE)
    assert not lacks(found.message, "2x3g.40gb proven", "together with b")
    (action,) = found.actions
    assert isinstance(action, UpdateFence)
    assert A.fence is not None
    assert action.fence == replace(A.fence, proven=NOW)
    assert (found.wake, found.deadline) == (at(300), at(300))


def test_the_node_that_is_waited_for_is_the_culprit() -> None:
    """Not the policy of the wave, of which kubectl get gpun would show nothing."""
    other = in_wave("c")
    found = held(proven(B), working(other), working(A), nodes=(A, B, other))["b"]
    assert (who_keeps(found, B), who_ends(found), found.deadline) == ("node/a", "Clock", at(300))


OWN: list[tuple[float, Phase, float | None]] = [
    (0, Phase.VERIFYING, 200),  # its own deadline, a minute ago, no longer counts
    (199, Phase.VERIFYING, 200),
    (200, Phase.FAILED, None),  # five minutes after its proof
]


@pytest.mark.parametrize(("now", "phase", "wake"), OWN)
def test_a_node_that_waits_for_its_wave_may_have_its_plugin_restarted(
    now: float, phase: Phase, wake: float | None
) -> None:
    fence = fence_to(POLICY, at(-600), wave="w", proven=at(-100), deadline=at(-60))
    verdict = after_pnr(changing(POLICY, fence=fence, now=now, node={"resources": {}}))
    assert (verdict.phase, verdict.reason) == (phase, Reason.ALLOCATABLE_MISMATCH)
    assert (verdict.wake, verdict.deadline) == (None if wake is None else at(wake), at(200))


def test_a_node_that_waits_for_its_wave_follows_a_new_spec_in_time() -> None:
    fence = fence_to(MIXED, at(-600), wave="w", proven=at(-100), deadline=at(-60))
    verdict = after_pnr(changing(SLICED, fence=fence, now=0))
    assert "after the deadline" not in verdict.message
    assert all(action.fence.failed_version is None for action in verdict.actions if isinstance(action, UpdateFence))


def test_a_step_of_a_node_that_waits_for_its_wave_is_not_late_because_its_call_fails() -> None:
    fence = fence_to(POLICY, at(-600), wave="w", proven=at(-100), deadline=at(-60))
    verdict = after_pnr(changing(POLICY, fence=fence, now=0, node={"unschedulable": False}))
    assert isinstance(only(verdict), UpdateFence)
    failure = CallFailure("the server is away", at(8), tries=3)
    assert show_failure(verdict, failure, at(0), fence).phase is Phase.RECONFIGURING


def test_a_node_that_was_not_proven_fails_at_its_deadline() -> None:
    fence = fence_to(POLICY, at(-600), wave="w", deadline=at(-60))
    assert after_pnr(changing(POLICY, fence=fence, now=0, node={"resources": {}})).phase is Phase.FAILED


def test_since_when_it_waits_is_written_once() -> None:
    waiting = in_wave("a", proven=at(-60))
    (found,) = held(proven(waiting), working(B), nodes=(waiting, B)).values()
    assert found.actions == ()
    assert found.wake == at(240)


def test_all_are_given_back_in_the_pass_that_proves_the_last() -> None:
    assert held(proven(A), proven(B), nodes=(A, B)) == {}


def test_the_first_proof_sets_the_end_for_those_proven_later() -> None:
    first, third = in_wave("a", proven=at(-290)), in_wave("c")
    found = held(proven(first), working(B), proven(third), nodes=(first, B, third))
    assert {verdict.wake for verdict in found.values()} == {at(10)}
    assert found.keys() == {"a", "c"}


ENDS: dict[str, tuple[NodeView, Verdict]] = {
    "a member is Failed": (A, working(B, Phase.FAILED)),
    "a member was given up": (A, aborted(B)),
    "the first proof is timeouts.verification ago": (in_wave("a", proven=at(-300)), working(B)),
}


@pytest.mark.parametrize(("node", "other"), ENDS.values(), ids=ENDS.keys())
def test_it_waits_no_longer_when(node: NodeView, other: Verdict) -> None:
    assert held(proven(node), other, nodes=(node, B)) == {}


OTHERS: dict[str, NodeView] = {
    "is of another wave": in_wave("b", wave="v"),
    "started by itself": in_wave("b", wave=""),
    "was left to somebody else": make_node("b", uid="uid-b", fence=make_fence(wave="w", node_uid="uid-b")),
    "only inherited the fence of an earlier node": make_node(
        "b", uid="uid-b", fence=make_fence(wave="w", node_uid="another")
    ),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_nobody_waits_for_a_node_that(other: NodeView) -> None:
    if other.fence is not None and other.fence.stage == "fenced" and other.fence.node_uid == "uid-b":
        other = replace(other, fence=replace(other.fence, stage="yielded"))
    assert held(proven(A), working(other), nodes=(A, other)) == {}


def test_a_pass_gives_no_node_of_a_wave_back_alone() -> None:
    world = pool_of(2)
    both = {"maxUnavailable": 2}
    world.set_policy(make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4}, rollout=both))
    run_until(world, Phase.RECONFIGURING, node="n0")
    for name, node in world.nodes.items():
        assert node.fence is not None
        world.nodes[name] = replace(node, fence=replace(node.fence, wave="w"))
    for _ in range(30):  # the software of n1 does nothing meanwhile
        world.act("n0")
        world.step()
        world.now += timedelta(seconds=1)
    plan = world.plan()
    assert [(one.phase, one.reason) for one in plan.verdicts.values()] == [
        (Phase.UNCORDONING, Reason.WAITS_FOR_WAVE),
        (Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS),
    ]
    assert not any(isinstance(one, Release) for verdict in plan.verdicts.values() for one in verdict.actions)


def test_at_most_three_of_the_others_are_named() -> None:
    others = [in_wave(f"n{number}") for number in range(5)]
    (found,) = held(proven(A), *map(working, others), nodes=(A, *others)).values()
    assert not lacks(found.message, "together with n0, n1, n2 and 2 more")
