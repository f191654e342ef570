"""A fair end of the random world (fairend.py) sees what is left behind, and messages that nobody can act on."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.build import make_policy
from tests.planning.broken import Broken
from tests.planning.callfaults import CALLS
from tests.planning.cases import FULL, MIXED, pool_of
from tests.planning.fairend import end_fairly
from tests.planning.machines import patched
from tests.planning.shareddeeds import policy_forced
from tests.planning.world import World

from gpusharing.api import names


def left_cordoned(world: World) -> None:
    """Nobody of the world has cordoned it, so it can only have been the operator."""
    world.nodes["n0"] = replace(world.nodes["n0"], unschedulable=True)


def left_marked(world: World) -> None:
    world.nodes["n0"] = patched(world.nodes["n0"], {names.LABEL_UPGRADE_SKIP: "true"})


def asked_for_too_much(world: World) -> None:
    """No deed of the world does that, so no person of the world knows the remedy."""
    world.set_policy(make_policy(mode="MPS", mps={"replicas": 60}))


FAULTS: dict[str, tuple[Callable[[World], None], str]] = {
    "an orphan cordon": (left_cordoned, "the cordon of n0 is left"),
    "a mark of ours": (left_marked, "marks are left on n0"),
    "a reason without a remedy": (asked_for_too_much, "nobody knows what to do about MPSTooManyClients"),
}


@pytest.mark.parametrize(("fault", "seen"), FAULTS.values(), ids=FAULTS)
def test_a_fair_end_sees(fault: Callable[[World], None], seen: str) -> None:
    world = pool_of(2, FULL)
    fault(world)
    with pytest.raises(Broken, match=seen):
        end_fairly(world)


def test_people_who_do_what_they_are_told_bring_a_change_to_its_end_beside_pods_that_block_it() -> None:
    world = pool_of(2, FULL)
    assert world.add_pod("n0", "a protected pod")
    assert world.add_pod("n1", "a bare pod")
    world.set_policy(replace(MIXED, uid=FULL.uid))
    plan = end_fairly(world)
    assert {verdict.wanted for verdict in plan.verdicts.values()} == {"2x3g.40gb"}
    assert world.happened["told a person: DoNotDisrupt"] > 0


def test_people_learn_of_a_cordon_that_force_release_leaves_although_the_calls_failed() -> None:
    world = pool_of(1, FULL)
    world.set_policy(replace(MIXED, uid=FULL.uid))
    for _ in range(60):
        if world.nodes["n0"].fence is None:
            pass_by(world)
    assert policy_forced(world, "n0")
    assert CALLS["every call about the node is lost"](world, "n0")
    for _ in range(5):
        pass_by(world)
    assert world.memory.failures["n0"].lasts
    end_fairly(world)
    assert not world.nodes["n0"].unschedulable


def pass_by(world: World) -> None:
    """One pass of the operator, and a second of everybody else."""
    world.step()
    for node in world.nodes:
        world.act(node)
    world.now += timedelta(seconds=1)
