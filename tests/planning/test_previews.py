"""planning/pools/afterwards.py: what the nodes to go would disturb is named before they start, by few looks; and looks that lead nowhere."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, ask_anew, at, make_fence, make_node, make_pod, make_policy, make_snapshot, make_work
from tests.planning.broken import Broken
from tests.planning.budgets import Budget
from tests.planning.cases import FULL, edited, make_case, make_member, pass_time, pool_of
from tests.planning.drainpass import roomy
from tests.planning.gangs import make_gang, make_gang_view
from tests.planning.gpuworld import HALVES, SEVENTHS, THIRDS, GpuWorld, gpu_world, layouts
from tests.planning.podkinds import NAMESPACE
from tests.planning.promises import check_plan
from tests.planning.test_changed_gpus import NODE, classes
from tests.planning.test_foretold import foretell
from tests.planning.test_guard import PoisonedPods
from tests.planning.test_pool import candidate
from tests.planning.told import PENDING, SYNCED, StatusInput, answers, message, verdict
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.afterwards import AGAIN, MAX_NODES, find_previews
from gpusharing.planning.pools.choice import MOST_VAIN, count_vain
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.report.proposal import Proposal
from gpusharing.planning.report.status import find_grounds, policy_status
from gpusharing.planning.snapshot.actions import Evict, LabelNode
from gpusharing.planning.snapshot.memory import LOOKS, Look, PassMemory, Preview
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.snapshot.views import PlanSettings
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

POLICY = make_policy(generation=3)
NOTHING: frozenset[str] = frozenset()


def held(count: int, reason: Reason = Reason.APPROVAL_NEEDED, **fields: Any) -> dict[str, Pool]:
    pool = Pool(POLICY, candidates=[make_case()])
    for index in range(count):
        name = f"n{index:02}"
        told = verdict(Phase.PENDING, reason, name, disruption=DisruptionClass.RESET, **fields)
        pool.count(make_member(make_node(name), told))
    return {"pool-b": pool}


def look(pools: dict[str, Pool], previews: dict[str, Preview], work: dict[str, NodeWork], seconds: float = 0) -> Any:
    verdicts = {one.node.name: one.verdict for one in pools["pool-b"].members}
    snapshot = replace(make_snapshot([], [POLICY]), memory=PassMemory(previews=previews), work=work)
    return find_previews(pools, verdicts, snapshot, roomy(), at(seconds))


def test_no_more_nodes_are_looked_at_than_a_plan_names_and_few_at_a_time() -> None:
    pools, seconds = held(MAX_NODES + 5), 0.0
    known: dict[str, Preview] = {}
    rounds = []
    while wanted := look(pools, known, {}, seconds)[1]:
        rounds.append(len(wanted))
        work = {name: NodeWork((), (), at(seconds)) for name in wanted}
        known = dict(look(pools, known, work, seconds)[0])
        assert not look(pools, known, {}, seconds)[1], "no further one within this poll"
        seconds += PlanSettings().poll
    assert rounds == [LOOKS] * (MAX_NODES // LOOKS)
    assert sorted(known) == [f"n{index:02}" for index in range(MAX_NODES)]
    assert look(pools, known, {}, seconds)[2] is None


def test_a_node_is_looked_at_again_after_a_while_the_oldest_look_first() -> None:
    pools = held(LOOKS + 1)
    known = {f"n{index:02}": Preview(POLICY.version, at(-index)) for index in range(LOOKS + 1)}
    again = AGAIN.total_seconds()
    assert look(pools, known, {}, again - LOOKS - 1)[1] == NOTHING
    found = look(pools, known, {}, again)
    assert found[1] == {f"n{index:02}" for index in range(1, LOOKS + 1)}


@pytest.mark.parametrize(
    "other", [replace(POLICY, uid="other").version, ask_anew(POLICY).version], ids=["policy", "edit"]
)
def test_what_was_seen_for_another_plan_does_not_count(other: SpecVersion) -> None:
    before = Preview(other, NOW)
    found = look(held(1), {"n00": before}, {})
    assert found[:2] == ({}, {"n00"})


WAITS = (Phase.PENDING, Phase.PREFLIGHT, Phase.BLOCKED)


@pytest.mark.parametrize("phase", Phase, ids=str)
def test_only_what_waits_and_would_be_drained_is_looked_at(phase: Phase) -> None:
    pool = Pool(POLICY)
    told = verdict(phase, Reason.BUDGET_FULL, "n00", disruption=DisruptionClass.RESET)
    pool.count(make_member(make_node("n00"), told))
    assert look({"pool-b": pool}, {}, {})[1] == ({"n00"} if phase in WAITS else NOTHING)


NOT_TO_GO: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "nobody would have to leave": ({"disruption": DisruptionClass.PLUGIN_RESTART}, {}, {}),
    "its change has begun": ({}, {"fence": make_fence()}, {}),
    "its policy is being deleted": ({}, {}, {"deleting": True}),
}


@pytest.mark.parametrize(("verdicts", "node", "policy"), NOT_TO_GO.values(), ids=NOT_TO_GO)
def test_a_node_is_not_looked_at_if(verdicts: dict[str, Any], node: dict[str, Any], policy: dict[str, Any]) -> None:
    pool = Pool(replace(POLICY, **policy))
    waits = {"disruption": DisruptionClass.RESET, **verdicts}
    told = verdict(Phase.BLOCKED, Reason.BUDGET_FULL, "n00", **waits)
    pool.count(make_member(make_node("n00", **node), told))
    assert look({"pool-b": pool}, {}, {})[1] == NOTHING


def test_a_node_that_its_pods_block_is_looked_at_for_that_reason_alone() -> None:
    """Its looks have a pace of their own (test_pool.py); what they find is shown."""
    blocked = {"blockers": (Blocker(Reason.UNMANAGED, ("team-a/db-0",)),)}
    for before in ({}, {"n00": Preview(POLICY.version, at(-AGAIN.total_seconds()))}):
        assert look(held(1, Reason.UNMANAGED, **blocked), before, {})[1] == NOTHING
    work = {"n00": make_work(make_pod("db-0", owner=None))}
    (told,) = look(held(1, Reason.UNMANAGED, **blocked), {}, work)[0]["n00"].blockers
    assert told.pods == ("team-a/db-0",)


def test_the_preview_of_a_node_that_is_not_ready_says_so() -> None:
    node, pool = make_node("n00", ready=False), Pool(POLICY)
    told = verdict(Phase.BLOCKED, Reason.NODE_NOT_READY, "n00", disruption=DisruptionClass.RESET)
    pool.count(make_member(node, told))
    snapshot = replace(make_snapshot([node], [POLICY]), work={"n00": make_work(make_pod("train-0"))})
    blockers = find_previews({"pool-b": pool}, {"n00": told}, snapshot, roomy(), at(0))[0]["n00"].blockers
    assert Reason.NODE_UNREACHABLE in {blocker.reason for blocker in blockers}


def test_a_node_that_starts_in_this_pass_is_not_looked_at() -> None:
    pools = held(1)
    begins = verdict(Phase.CORDONED, Reason.SETTLING, "n00", disruption=DisruptionClass.RESET)
    snapshot = make_snapshot([], [POLICY])
    assert find_previews(pools, {"n00": begins}, snapshot, roomy(), NOW)[1] == NOTHING


def test_a_list_that_fails_for_ever_is_told_and_asked_again_no_sooner_than_others() -> None:
    work = {"n00": NodeWork((), (), NOW, error="403 Forbidden")}
    found = look(held(1), {}, work)
    (blocker,) = found[0]["n00"].blockers
    assert blocker.reason is Reason.LIST_FAILED
    assert "403 Forbidden" in blocker.message
    assert found[1:] == (NOTHING, None)
    assert look(held(1), dict(found[0]), {}, AGAIN.total_seconds() - 1)[1] == NOTHING


def test_pods_that_nobody_can_judge_are_told_and_keep_no_other_from_being_shown() -> None:
    work = {"n00": replace(make_work(), pods=PoisonedPods([make_pod()])), "n01": make_work(make_pod())}
    found = look(held(2), {}, work)
    (blocker,) = found[0]["n00"].blockers
    assert (blocker.reason, blocker.message[:13]) == (Reason.NODE_NOT_JUDGED, "OverflowError")
    assert found[0]["n01"].pods == ("team-a/llm-0",)
    assert found[1] == NOTHING


# --- as a whole ------------------------------------------------------------------------------------------------


def waiting(**rollout: Any) -> World:
    """Two nodes with pods of one budget, whose policy wants another mode and may not start."""
    world = pool_of(2, FULL)
    for name in ("n0", "n1"):
        world.add_pod(name)
    world.budgets = (Budget("llm", "llm", min_available=2),)
    world.set_policy(make_policy(mode="TimeSlicing", rollout=rollout))
    return world


def plan_of(world: World) -> dict[str, Any]:
    plan = world.plan()
    told = policy_status(world.policies[0], plan, world.snapshot(), {}, world.now)["plan"]
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize(
    ("rollout", "reason"),
    [
        ({"approval": "Manual"}, Reason.APPROVAL_NEEDED),
        ({"paused": True}, Reason.PAUSED),
        ({"maxUnavailable": 0}, Reason.FROZEN),
        ({"windows": [{"schedule": "0 2 * * 0", "duration": "4h"}]}, Reason.WINDOW_CLOSED),
    ],
    ids=["approval", "paused", "frozen", "window"],
)
def test_the_plan_names_pods_budgets_and_blockers_before_anybody_may_start(
    rollout: dict[str, Any], reason: Reason
) -> None:
    world = waiting(**rollout)
    for _ in range(20):  # the configuration reaches the node first
        world.step()
        world.now += timedelta(seconds=1)
    assert {v.reason for v in world.plan().verdicts.values()} == {reason}
    told = plan_of(world)
    assert told["podNames"] == sorted(pod.ref for pod in world.everywhere())
    assert told["budgets"] == [f"{NAMESPACE}/llm"]
    (line,) = told["blockers"]
    assert line.startswith(f"PDB {NAMESPACE}/llm: Pods ")
    assert told["gangs"] == []


def test_pods_that_went_are_seen_after_a_while_and_an_edit_asks_anew() -> None:
    world = waiting(approval="Manual")
    world.settle()
    world.pods["n0"].clear()
    assert len(plan_of(world)["podNames"]) == 2
    world.now += AGAIN
    world.step()
    world.step()
    assert len(plan_of(world)["podNames"]) == 1
    world.set_policy(edited(world.policies[0], priority=5))
    assert world.plan().memory.previews == {}
    world.settle()
    assert len(plan_of(world)["podNames"]) == 1


def test_gangs_are_named_with_their_members() -> None:
    world = waiting(approval="Manual")
    pods = [replace(pod, gang=make_gang()) for pod in world.everywhere()]
    gang = make_gang_view({"n0": pods[:1], "n1": pods[1:]})
    work = {"n00": NodeWork(tuple(pods[:1]), (), NOW, gangs=(gang,))}
    (told,) = look(held(1), {}, work)[0]["n00"].gangs
    assert not lacks(told, "JobSet team-a/train", "2 pods (1 on n0, 1 on n1)")


def test_a_member_elsewhere_that_must_stay_is_named_with_its_gang() -> None:
    gang = make_gang()
    mine, bare = make_pod("rank-0", gang=gang), make_pod("rank-1", owner=None, gang=gang)
    view = make_gang_view({"n00": [mine], "n07": [bare]}, gang)
    found = look(held(1), {}, {"n00": make_work(mine, gangs=(view,))})[0]["n00"].blockers
    (blocker,) = (one for one in found if one.reason is Reason.UNMANAGED)
    assert blocker.pods == ("team-a/rank-1",)
    assert not lacks(blocker.message, "JobSet team-a/train", "2 pods (1 on n00, 1 on n07)")


def test_the_plan_names_the_pods_of_the_nodes_to_go_while_others_change() -> None:
    world = pool_of(3, FULL)
    for name in ("n0", "n1", "n2"):
        world.add_pod(name)
    world.budgets = (Budget("llm", "llm", min_available=0),)
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 1}))
    began = {pod.ref: name for name in world.nodes for pod in world.pods[name].values()}
    while len([name for name, node in world.nodes.items() if node.fence is not None]) < 1:
        world.step()
        world.now += timedelta(seconds=1)
    for _ in range(3):
        world.step()
        world.now += timedelta(seconds=1)
    (first,) = (name for name, node in world.nodes.items() if node.fence is not None)
    told = plan_of(world)
    assert told["podNames"] == sorted(ref for ref, name in began.items() if name != first)
    assert told["budgets"] == [f"{NAMESPACE}/llm"]


def test_what_is_remembered_goes_when_the_policy_asks_for_something_else() -> None:
    world = waiting(paused=True)
    world.settle()
    assert len(world.plan().memory.previews) == 2
    world.set_policy(ask_anew(world.policies[0]))
    assert world.plan().memory.previews == {}


# --- a change of some GPUs (drain.scope: Changed) ----------------------------------------------------------------------


def halves(*nodes: str) -> GpuWorld:
    """Nodes with two pods `llm` on GPU 0 and two pods `free` on GPU 1, as agents report them."""
    world = gpu_world(layouts(HALVES, HALVES, SEVENTHS, SEVENTHS), *nodes)
    for node in nodes:
        for gpu, app in ((0, "llm"), (0, "llm"), (1, "free"), (1, "free")):
            assert world.add_pod(node, gpu=gpu, app=app)
    world.settle()
    return world


def told(world: GpuWorld, stranded: str = "Allow") -> Proposal:
    world.set_policy(layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, away="1", strandedPods=stranded))
    for name in world.nodes:
        world.agent(name)
    (proposal,) = foretell(world).values()
    assert {step.verdict.disruption for step in proposal.steps} == {DisruptionClass.CHANGED_GPUS}
    return proposal


def test_a_budget_of_pods_that_stay_raises_no_doubt() -> None:
    world = halves(NODE)
    world.budgets = (Budget("keep", "llm", 1),)
    proposal, done = told(world), len(world.done)
    assert [step.doubt for step in proposal.going] == [None]
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert classes(world, done) == [DisruptionClass.CHANGED_GPUS]
    evicted = sorted(f"{one.namespace}/{one.name}" for one in world.done[done:] if isinstance(one, Evict))
    assert evicted == sorted(proposal.evicted)


def test_only_pods_that_leave_count_as_users_of_what_becomes_less() -> None:
    (lost,) = told(halves(NODE)).vanishing
    assert (lost.resource, len(lost.pods)) == ("nvidia.com/mig-3g.40gb", 2)


def test_pods_that_stay_start_nowhere_else_and_are_not_evicted_again() -> None:
    world = halves("gpu-1", "gpu-2")
    for node, pods in world.pods.items():  # GPU 1 is empty everywhere, and there is room for the pods of GPU 0
        world.pods[node] = {uid: pod for uid, pod in pods.items() if pod.labels["app"] == "llm"}
        world.kubelet(node)
    proposal = told(world, "Hold")
    assert [step.doubt for step in proposal.steps] == [None, None]
    assert not proposal.evicts_again
    assert proposal.evicted == ()


def test_pods_that_leave_still_count() -> None:
    world = halves(NODE)
    world.budgets = (Budget("keep", "free", 1),)
    assert [one.doubt for one in told(world).steps] == [Reason.PDB]


# --- a pool in which pass after pass looks at pods and starts nothing says so ------------------------------------------

CASES = [candidate("gpu-07", make_work()), candidate("gpu-08", None)]
WAITING = verdict(Phase.PENDING, Reason.BUDGET_FULL, "gpu-07")
LOOKING = verdict(Phase.PREFLIGHT, Reason.PROGRESSING, "gpu-08")
LOOKED = {"gpu-07": Look(POLICY.version, "", NOW, 1)}


def counted(before: int = 3, **changes: Any) -> dict[str, int]:
    """The count after a pass in which gpu-08 is looked at, and gpu-07, whose pods are known, waits."""
    known: dict[str, Any] = {"cases": CASES, "waits": WAITING, "looking": LOOKING, "looks": {}, **changes}
    passed = PassMemory(wants_pods=frozenset(known.get("wanted", ())), vain_passes={"pool-b": before})
    snapshot = make_snapshot(work={"gpu-07": make_work()}, memory=passed)
    told = {"gpu-07": known["waits"], "gpu-08": known["looking"]}
    pool = Pool(POLICY, candidates=known["cases"])
    return count_vain({"pool-b": pool}, told, known["looks"], snapshot)


def test_a_pass_that_looks_on_although_nothing_came_of_the_last_look_was_in_vain() -> None:
    assert counted() == {"pool-b": 4}
    assert counted(before=MOST_VAIN) == {"pool-b": MOST_VAIN}, "a status that grows would be written for ever"


GOES_ON: dict[str, dict[str, Any]] = {
    "a node starts": {"waits": WAITING.then(LabelNode(CASES[0].node, {}))},
    "something is found that blocks a node": {"looks": LOOKED},
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
