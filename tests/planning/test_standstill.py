"""A pool in which pass after pass looks at pods and starts nothing says so."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, make_policy, make_snapshot, make_work
from tests.planning.broken import Broken
from tests.planning.budgets import Budget
from tests.planning.cases import pass_time, pool_of
from tests.planning.promises import check_plan
from tests.planning.test_pool import candidate
from tests.planning.told import PENDING, SYNCED, StatusInput, answers, message, verdict
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.planning.pools.choice import MOST_VAIN, count_vain
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.report.status import find_grounds
from gpusharing.planning.snapshot.actions import LabelNode
from gpusharing.planning.snapshot.memory import Look, PassMemory
from gpusharing.planning.vocabulary.reasons import Reason

POLICY = make_policy()
CASES = [candidate("gpu-07", make_work()), candidate("gpu-08", None)]
WAITS = verdict(Phase.PENDING, Reason.BUDGET_FULL, "gpu-07")
LOOKING = verdict(Phase.PREFLIGHT, Reason.PROGRESSING, "gpu-08")
LOOKS = {"gpu-07": Look(POLICY.version, "", NOW, 1)}


def counted(before: int = 3, **changes: Any) -> dict[str, int]:
    """The count after a pass in which gpu-08 is looked at, and gpu-07, whose pods are known, waits."""
    known: dict[str, Any] = {"cases": CASES, "waits": WAITS, "looking": LOOKING, "looks": {}, **changes}
    passed = PassMemory(wants_pods=frozenset(known.get("wanted", ())), vain_passes={"pool-b": before})
    snapshot = make_snapshot(work={"gpu-07": make_work()}, memory=passed)
    told = {"gpu-07": known["waits"], "gpu-08": known["looking"]}
    pool = Pool(POLICY, candidates=known["cases"])
    return count_vain({"pool-b": pool}, told, known["looks"], snapshot)


def test_a_pass_that_looks_on_although_nothing_came_of_the_last_look_was_in_vain() -> None:
    assert counted() == {"pool-b": 4}
    assert counted(before=MOST_VAIN) == {"pool-b": MOST_VAIN}, "a status that grows would be written for ever"


GOES_ON: dict[str, dict[str, Any]] = {
    "a node starts": {"waits": WAITS.then(LabelNode(CASES[0].node, {}))},
    "something is found that blocks a node": {"looks": LOOKS},
    "nobody is looked at": {"looking": verdict(Phase.PENDING, Reason.BUDGET_FULL, "gpu-08")},
    "only a node whose pods are known is looked at, again": {
        "waits": verdict(Phase.PREFLIGHT, Reason.PROGRESSING, "gpu-07"),
        "looking": verdict(Phase.PENDING, Reason.BUDGET_FULL, "gpu-08"),
    },
    "no pods have come yet": {"cases": [candidate("gpu-07", None), CASES[1]]},
}


@pytest.mark.parametrize("change", GOES_ON.values(), ids=GOES_ON)
def test_no_pass_was_in_vain_in_which(change: dict[str, Any]) -> None:
    assert counted(**change) == {}


def test_passes_in_vain_are_counted_on_only_if_the_pods_that_were_wanted_have_come() -> None:
    """Otherwise the API server holds back the LIST of a node, and the planner can do nothing but want it again."""
    assert counted(wanted={"gpu-07", "gpu-09"}) == {"pool-b": 1}
    assert counted(wanted={"gpu-07"}) == {"pool-b": 4}


ALLOW: dict[str, Any] = {"drain": {"strandedPods": "Allow"}}


@pytest.mark.parametrize(("size", "others"), [(2, set()), (20, {Phase.PENDING})], ids=["one other", "many others"])
def test_a_wait_for_the_pods_of_a_node_that_a_predecessor_has_just_cordoned_is_not_in_vain(
    size: int, others: set[Phase]
) -> None:
    world = pool_of(size, make_policy(mode="Full", rollout={"maxUnavailable": 2}))
    world.budgets = (Budget("keep", "llm", 0),)
    for name in world.nodes:
        assert world.add_pod(name)
    world.set_policy(make_policy(rollout={"maxUnavailable": 1}, **ALLOW))
    pass_time(world, 60, until=lambda world: any(node.fence is not None for node in world.nodes.values()))
    world.set_policy(make_policy(rollout={"maxUnavailable": 2}, **ALLOW))
    world.restart()
    phases = []
    for _ in range(4):
        plan = world.step()
        phases.append({verdict.phase for verdict in plan.verdicts.values()})
        assert world.memory.passed.vain_passes == {}
    assert phases == [{Phase.CORDONED, Phase.PREFLIGHT, *others}] * 4


def test_a_world_in_which_passes_make_no_progress_breaks_a_promise() -> None:
    world = pool_of(1)
    plan = replace(world.step(), memory=PassMemory(vain_passes={"pool-b": MOST_VAIN}))
    with pytest.raises(Broken, match="passes make no progress"):
        check_plan(world, plan)


def test_a_policy_whose_passes_are_in_vain_is_stalled_and_asks_for_a_report() -> None:
    waits = StatusInput([SYNCED, PENDING], vain_passes={"pool-b": MOST_VAIN})
    status = waits.status()
    assert answers(status)["Stalled"] == "True NoProgress"
    assert not lacks(message(status, "Stalled"), "60 passes", "pods")
    fewer = StatusInput([SYNCED, PENDING], vain_passes={"pool-b": MOST_VAIN - 1})
    assert answers(fewer.status())["Stalled"] == "False Progressing"
    assert find_grounds(waits.policy, *waits.found()) != find_grounds(fewer.policy, *fewer.found())
