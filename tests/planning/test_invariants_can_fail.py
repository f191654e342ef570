"""Each invariant of the random world sees the fault that it is there for: a call is right, then it is spoilt."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

import pytest
from tests.build import make_policy
from tests.planning import podkinds, promises, rules
from tests.planning.broken import Broken
from tests.planning.cases import FULL, MIXED, NODE, copy_of, edited, pool_of
from tests.planning.fairend import end_fairly
from tests.planning.habits import with_habits
from tests.planning.machines import patched
from tests.planning.recovery import lenient
from tests.planning.shareddeeds import CALLS, policy_forced
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Canary
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    Evict,
    FenceNode,
    LabelNode,
    Release,
    RestartOperand,
    SetFinalizer,
)
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason

MARK = sorted(names.NEIGHBOR_ANNOTATIONS)[0]
Spoil: TypeAlias = Callable[[World, Any], Action | None]
"""(world, action) → the action that is looked at then; None: the same."""


class ReachedError(Exception):
    def __init__(self, action: Action) -> None:
        super().__init__()
        self.action = action


class Watched(World):
    kind: type = ReachedError

    def carry_out(self, action: Action) -> None:
        if isinstance(action, self.kind):
            raise ReachedError(action)
        super().carry_out(action)


def reached(kind: type, *, pods: int = 0, rounds: int = 400) -> tuple[World, Any]:
    """The world in which the first call of this kind is sent on the way from whole GPUs to MIG, and that call."""
    world = Watched(**vars(copy_of(FULL)))
    world.kind = kind
    world.set_policy(edited(MIXED))
    for _ in range(pods):
        world.add_pod(NODE)
    if kind is RestartOperand:
        world.machines[NODE].temper = "forgets"
    for _ in range(rounds):
        world.act_everywhere()
        try:
            world.step()
        except ReachedError as found:
            return world, found.action
        world.now += timedelta(seconds=1)
    raise AssertionError(f"no {kind.__name__} in {rounds} rounds")


def look(world: World, action: Action) -> None:
    rules.check(world, action)
    promises.check(world, action)


def policy(**rollout: object) -> Spoil:
    def spoil(world: World, action: Any) -> None:
        world.policies = tuple(lenient(one, **rollout) for one in world.policies)

    return spoil


def habit(drain: str = "", rollout: str = "") -> Spoil:
    def spoil(world: World, action: Any) -> None:
        drains, rollouts = [drain] if drain else [], [rollout] if rollout else []
        world.policies = tuple(with_habits(one, drains, rollouts) for one in world.policies)

    return spoil


def node(**fields: Any) -> Spoil:
    """The node is like that, and the call was decided on it; the budget has room all the same."""

    def spoil(world: World, action: Any) -> Action:
        policy(max_unavailable=2)(world, action)
        world.nodes[NODE] = replace(world.nodes[NODE], **fields)
        on_it: Action = replace(action, node=world.nodes[NODE])
        return on_it

    return spoil


def call(**fields: Any) -> Spoil:
    return lambda world, action: replace(action, **fields)


def fence(**fields: Any) -> Spoil:
    return lambda world, action: replace(action, fence=replace(action.fence, **fields))


def pod(kind: str, habit_of_drain: str = "") -> Spoil:
    def spoil(world: World, action: Any) -> None:
        habit(habit_of_drain)(world, action)
        assert world.add_pod(NODE, kind, app="free", pinned=True), "there is room for it"

    return spoil


def changed(world: World, action: Any) -> None:
    world.nodes[NODE] = replace(world.nodes[NODE], retry="again")


def late(world: World, action: Any) -> None:
    habit(rollout="in the morning, less a blackout")(world, action)
    world.now += timedelta(minutes=12)


def marked(world: World, action: Any) -> None:
    pods = world.pods[NODE]
    for uid, one in pods.items():
        pods[uid] = replace(one, marks=((names.ANNOTATION_DO_NOT_DISRUPT, "true"),))


def ended(world: World, action: Any) -> None:
    world.evicted |= world.pods[NODE].keys()


def another_node_away(world: World, action: Any) -> None:
    """A second node of the pool is cordoned, and takes the only place in the budget."""
    world.add_node("gpu-99")
    world.nodes["gpu-99"] = replace(world.nodes["gpu-99"], unschedulable=True)


def cap_of_none(world: World, action: Any) -> None:
    world.settings = replace(world.settings, max_in_flight=0)


def without_claim(world: World, action: Any) -> None:
    world.claims = {}


def without_finalizer(world: World, action: Any) -> None:
    world.policies = tuple(replace(one, finalizer=False) for one in world.policies)


def stray(world: World, action: Any) -> None:
    world.machines[NODE].stray = True


def loud(world: World, action: Any) -> None:
    known = world.gpunodes[NODE]
    assert known.observed is not None, "the agent has answered"
    world.gpunodes[NODE] = replace(known, observed=replace(known.observed, quiet=False))


def failed_before(world: World, action: Any) -> None:
    world.ledger.failed[action.fence.version] = {world.nodes[NODE].uid}


def human_cordon(world: World, action: Any) -> None:
    world.human_cordons.add(NODE)


def other_uid(world: World, action: Any) -> Action:
    gone: Action = replace(action, uid="gone")
    return gone


def failed_again(world: World, action: Any) -> None:
    """A person has let the rollout go on once, and another node failed since."""
    world.add_node("gpu-99")
    both = {world.nodes[NODE].uid, world.nodes["gpu-99"].uid}
    world.ledger.failed[action.fence.version] = both
    policy(max_unavailable=2)(world, action)
    world.ledger.seen[action.fence.version, ""] = frozenset({world.nodes[NODE].uid})


def canary_elsewhere(world: World, action: Any) -> None:
    """One canary of two nodes, and another one has begun."""
    world.add_node("gpu-99")
    world.nodes["gpu-99"] = replace(world.nodes["gpu-99"], fence=action.fence)
    habit(rollout="one canary")(world, action)
    policy(max_unavailable=2)(world, action)


def canary_broken(world: World, action: Any) -> None:
    """The canary has served for long enough, and its kubelet is silent now."""
    world.add_node("gpu-99")
    fence, began = action.fence, world.now - timedelta(hours=2)
    proof = Verified("pool-b", "", "", layout="1x full", gpus=1, version=fence.version, changed_at=began)
    world.nodes["gpu-99"] = replace(world.nodes["gpu-99"], verified=proof, ready=False)
    habit(rollout="one canary")(world, action)
    policy(max_unavailable=3)(world, action)


def mate_protected(world: World, action: Any) -> None:
    """The pod is a rank of a JobSet, and somebody protects another rank, on another node."""
    world.add_node("gpu-99")
    for node, name in ((NODE, "rank-0"), ("gpu-99", "rank-1")):
        pod = podkinds.make("a rank of a JobSet", name, "llm", "nvidia.com/gpu", world.now)
        pod = replace(pod, uid=action.uid) if node == NODE else pod
        world.pods[node][pod.uid], world.kinds[pod.uid] = pod, "a rank of a JobSet"
    mates = world.pods["gpu-99"]
    for uid, mate in mates.items():
        mates[uid] = replace(mate, marks=((names.ANNOTATION_DO_NOT_DISRUPT, "true"),))


def _of_kind(world: World, owner: str) -> None:
    pods = world.pods[NODE]
    for uid, one in pods.items():
        assert one.owner is not None, "a pod of a ReplicaSet"
        pods[uid] = replace(one, owner=replace(one.owner, kind=owner))


def _unowned_mark(world: World, action: Release) -> Action:
    before = world.nodes[NODE].fence
    assert before is not None, "a release has a fence"
    added = tuple(name for name in before.added if name != MARK)
    world.nodes[NODE] = replace(world.nodes[NODE], fence=replace(before, added=added))
    return replace(action, node=world.nodes[NODE])


def _as_wanted(world: World, action: SetFinalizer) -> None:
    world.policies = tuple(replace(one, finalizer=action.present) for one in world.policies)


FAULTS: Mapping[str, tuple[type, int, Spoil, str]] = {
    "more nodes away than the budget allows": (FenceNode, 0, another_node_away, "(a)"),
    "more nodes in flight than the operator may take": (FenceNode, 0, cap_of_none, "(a)"),
    "a start in a frozen pool": (FenceNode, 0, policy(max_unavailable=0), "(a)"),
    "a start with nonsense for a budget": (FenceNode, 0, policy(max_unavailable="1000a%"), "(a)"),
    "a start of a paused policy": (FenceNode, 0, policy(paused=True), "paused"),
    "a start without a claim": (FenceNode, 0, without_claim, "claim"),
    "a start without a finalizer": (FenceNode, 0, without_finalizer, "finalizer"),
    "a start on a node that somebody maintains": (FenceNode, 0, node(foreign="kured"), "somebody else"),
    "a start on a node that somebody cordoned": (FenceNode, 0, node(unschedulable=True), "somebody else"),
    "a start on a node that is going": (FenceNode, 0, node(deleting=True), "going"),
    "a start without a cordon": (FenceNode, 0, call(cordon=False), "cordon and class"),
    "a start on a node that has changed": (FenceNode, 0, changed, "conditional write"),
    "a fence that calls a foreign mark ours": (FenceNode, 0, node(neighbor_marks=frozenset({MARK})), "(i)"),
    "a foreign label": (FenceNode, 0, call(labels={"team": "b"}), "(i)"),
    "a cordon over a protected pod": (FenceNode, 0, pod("a protected pod"), "(k)"),
    "a cordon over a pod that a rule keeps": (FenceNode, 0, pod("a pod of a ReplicaSet", "a rule blocks"), "(k)"),
    "a cordon over a bare pod": (FenceNode, 0, pod("a bare pod"), "(k)"),
    "a start before its approval": (FenceNode, 0, habit(rollout="by approval"), "(l)"),
    "a start outside the windows": (FenceNode, 0, habit(rollout="at night"), "(m)"),
    "a start with too little of its window left": (FenceNode, 0, late, "(m)"),
    "a start beside the canary": (FenceNode, 0, canary_elsewhere, "(n)"),
    "a start beside a canary that is broken": (FenceNode, 0, canary_broken, "(n) gpu-99, a canary"),
    "a start of a halted policy": (FenceNode, 0, failed_before, "(o)"),
    "a start after a resume and as many failures again": (FenceNode, 0, failed_again, "(o)"),
    "a point of no return with a holder": (Actuate, 0, pod("a pod of a ReplicaSet"), "(b)"),
    "a point of no return beside a stray process": (Actuate, 0, stray, "(b)"),
    "a point of no return without silence": (Actuate, 0, loud, "(b)"),
    "a point of no return on a schedulable node": (Actuate, 0, node(unschedulable=False), "(b)"),
    "a point of no return on a node that is going": (Actuate, 0, node(deleting=True), "(b)"),
    "a point of no return on a maintained node": (Actuate, 0, node(foreign="kured"), "somebody else"),
    "a label for a configuration that is not there": (
        Actuate, 0, call(labels={names.LABEL_PLUGIN_CONFIG: "gone"}), "not written"),
    "a restart of mig-manager beside a process": (RestartOperand, 0, stray, "(b)"),
    "a restart of a pod that is gone": (RestartOperand, 0, other_uid, "gone"),
    "an eviction of a protected pod": (Evict, 1, marked, "(c)"),
    "an eviction of a DaemonSet's pod": (Evict, 1, lambda world, action: _of_kind(world, "DaemonSet"), "(c)"),
    "an eviction of a rank while another one is protected": (Evict, 1, mate_protected, "(c) evicts a rank"),
    "a second eviction of one pod": (Evict, 1, ended, "(c)"),
    "an eviction of a pod that is gone": (Evict, 1, other_uid, "gone"),
    "an eviction that a paused policy holds": (Evict, 1, policy(paused=True, when_paused="Hold"), "(p)"),
    "an uncordon of somebody's cordon": (Release, 0, human_cordon, "(d)"),
    "an uncordon of a held node": (Release, 0, node(hold_cordon=True), "(d)"),
    "an uncordon without a proof": (Release, 0, call(verified=None), "without a proof"),
    "a release that forgets our cordon": (Release, 0, call(uncordon=False), "(d)"),
    "a release that takes a foreign mark away": (Release, 0, _unowned_mark, "(i)"),
    "an adoption that writes more than our labels": (
        LabelNode, 0, call(labels={names.LABEL_MIG_CONFIG: "all-disabled"}), "more than our labels"),
    "a finalizer that is there already": (SetFinalizer, 0, _as_wanted, "as wanted"),
}  # fmt: skip
"""By what it is: the kind of call, pods on the node, what spoils it, and what must be said."""


@pytest.mark.parametrize("what", FAULTS)
def test_an_invariant_sees(what: str) -> None:
    kind, pods, spoil, said = FAULTS[what]
    world, action = reached_adoption() if kind is LabelNode else reached(kind, pods=pods)
    if said != "as wanted" and kind is not SetFinalizer:
        look(world, action)  # as the planner has it nothing is wrong
    spoilt = spoil(world, action)
    with pytest.raises(Broken) as broken:
        look(world, action if spoilt is None else spoilt)
    assert said in str(broken.value), broken.value


def reached_adoption() -> tuple[World, Any]:
    world = Watched(**vars(copy_of(FULL)))
    world.kind = LabelNode
    world.nodes[NODE] = replace(world.nodes[NODE], verified=None)
    with pytest.raises(ReachedError) as found:
        world.step()
    return world, found.value.action


# --- several nodes together -----------------------------------------------------------------------------------


def a_gang_on_three_nodes() -> Watched:
    """A pool at rest of three nodes, with a rank on each, and another layout wanted of all at once."""
    world = Watched(**vars(copy_of(FULL)))
    for name in ("gpu-08", "gpu-09"):
        world.add_node(name)
    world.settle()
    for name in world.nodes:
        assert world.add_pod(name, "a rank of a JobSet"), name
    world.set_policy(lenient(edited(MIXED), max_unavailable=3))
    return world


def started(world: World) -> Any:
    for _ in range(100):
        plan = world.plan()
        if any(isinstance(a, FenceNode) for verdict in plan.verdicts.values() for a in verdict.actions):
            return plan
        world.act_everywhere()
        world.step()
        world.now += timedelta(seconds=1)
    raise AssertionError("nothing started")


def test_an_invariant_sees_a_gang_torn_apart() -> None:
    world = a_gang_on_three_nodes()
    plan = started(world)
    promises.check_plan(world, plan)
    last = max(plan.verdicts)
    torn = replace(plan.verdicts[last], actions=(), phase=Phase.PENDING, reason=Reason.BUDGET_FULL, candidate=True)
    assert torn.disruption is DisruptionClass.RESET
    with pytest.raises(Broken, match=r"\(q\)"):
        promises.check_plan(world, replace(plan, verdicts={**plan.verdicts, last: torn}))


def test_an_invariant_sees_a_node_that_comes_back_before_its_wave() -> None:
    world = a_gang_on_three_nodes()
    world.kind = Release
    with pytest.raises(ReachedError):
        world.settle()
    plan = world.plan()
    promises.check_plan(world, plan)
    first = min(plan.verdicts)
    alone = {
        name: verdict if name == first else replace(verdict, actions=(), phase=Phase.VERIFYING)
        for name, verdict in plan.verdicts.items()
    }
    world.ledger.waves.clear()
    with pytest.raises(Broken, match=r"\(r\)"):
        promises.check_plan(world, replace(plan, verdicts=alone))


def test_an_invariant_sees_a_namespace_that_was_not_read() -> None:
    world = a_gang_on_three_nodes()
    plan = started(world)
    first = min(plan.verdicts)
    untrue = replace(plan.verdicts[first], blockers=(Blocker(Reason.NAMESPACE_UNREADABLE),))
    with pytest.raises(Broken, match=r"\(k\)"):
        promises.check_plan(world, replace(plan, verdicts={**plan.verdicts, first: untrue}))


def test_an_invariant_sees_a_node_that_is_forgotten_or_starts_before_its_pool_is_whole() -> None:
    world = Watched(**vars(pool_of(2, edited(MIXED, deletion_policy="Reset"))))
    policy(canary=Canary(nodes=1, soak="1h"))(world, None)
    world.delete_policy("pool-b")
    world.kind = FenceNode
    with pytest.raises(ReachedError) as start:
        world.settle()
    first, other = world.nodes["n0"], world.nodes["n1"]
    look(world, start.value.action)
    world.ledger.proofs[other.uid] = (world.policies[0].version, world.now)
    with pytest.raises(Broken, match=r"\(n\) nodes that were reset"):
        look(world, start.value.action)
    world.machines["n0"].layouts = [None]
    ours = {names.LABEL_MODE, names.LABEL_POLICY}
    with pytest.raises(Broken, match=r"\(s\)"):
        look(world, LabelNode(first, dict.fromkeys(ours), forget=True))


def test_an_invariant_sees_a_world_that_never_comes_to_rest() -> None:
    world = copy_of(FULL)
    world.set_policy(edited(MIXED))
    with pytest.raises(Broken, match=r"\(f\)"):
        world.settle(rounds=3)


# --- a fair end (fairend.py) ------------------------------------------------------------------------------------------


def left_cordoned(world: World) -> None:
    """Nobody of the world has cordoned it, so it can only have been the operator."""
    world.nodes["n0"] = replace(world.nodes["n0"], unschedulable=True)


def left_marked(world: World) -> None:
    world.nodes["n0"] = patched(world.nodes["n0"], {names.LABEL_UPGRADE_SKIP: "true"})


def asked_for_too_much(world: World) -> None:
    """No deed of the world does that, so no person of the world knows the remedy."""
    world.set_policy(make_policy(mode="MPS", mps={"replicas": 60}))


LEFT: dict[str, tuple[Callable[[World], None], str]] = {
    "an orphan cordon": (left_cordoned, "the cordon of n0 is left"),
    "a mark of ours": (left_marked, "marks are left on n0"),
    "a reason without a remedy": (asked_for_too_much, "nobody knows what to do about MPSTooManyClients"),
}


@pytest.mark.parametrize(("fault", "seen"), LEFT.values(), ids=LEFT)
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
