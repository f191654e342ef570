"""What `plan` says is what happens: its nodes, pods and devices are compared with what then came (SIMULATED worlds)."""

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from random import Random
from typing import Any

import pytest
from tests.planning.budgets import Budget
from tests.planning.habits import with_habits
from tests.planning.recovery import MODES, WAITS, wanted
from tests.planning.wires import Memory
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.api.policy import LabelSelector
from gpusharing.planning.report.proposal import Proposal, configured, tell_proposal
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import Evict, FenceNode, ForceDelete
from gpusharing.planning.snapshot.memory import PassMemory
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Passes
from gpusharing.planning.wanted.verify import served

POOLS = {"b": 3, "c": 2}
ENDS = "a pod of a Job that ends"
BEHIND = " has changed, which waits ("
"""A node's pods would be stranded until another one has changed."""
REPLACED = ["a pod of a ReplicaSet", "a pod of a Job"]
KINDS = [*REPLACED * 4, "a bare pod", "a protected pod", ENDS]
BUDGETS = [*[()] * 3, (Budget("keep", "llm", 1),), (Budget("all", "llm", 3),), (Budget("none", "free", 0),)]
HABITS = [*[()] * 5, ("one canary",), ("by approval",), ("at night",), ("more canaries than nodes",)]
SEEN = ("promised", "held", "blocked", "evicted", "evicts again", "evicted once more")
DRAINS = [*[()] * 4, ("jobs are evicted late",), ("what stays is deleted",), ("marks are ignored",)]


@dataclass
class Scheduler:
    """Replaces the pods of controllers that went, and starts each on the first node with a free device of its kind."""

    known: dict[str, PodView] = field(default_factory=dict)
    waiting: list[PodView] = field(default_factory=list)
    came: set[str] = field(default_factory=set)
    """The pods that were started after the plan, as `namespace/name`."""
    refs: dict[str, str] = field(default_factory=dict)
    """Of all pods that there ever were, by UID."""
    jobs: bool = False
    """Whether there was a pod that ends by itself."""

    def look(self, world: World) -> bool:
        present = {pod.uid: pod for pod in world.everywhere()}
        self.jobs = self.jobs or any(world.kinds[uid] == ENDS for uid in present)
        gone = [pod for uid, pod in self.known.items() if uid not in present]
        self.waiting += [pod for pod in gone if pod.owner is not None and pod.restarts]
        before, self.waiting = self.waiting, [pod for pod in self.waiting if not self._place(world, pod)]
        self.known = {pod.uid: pod for pod in world.everywhere()}
        self.refs.update((pod.uid, pod.ref) for pod in world.everywhere())
        return len(self.waiting) < len(before)

    def _place(self, world: World, pod: PodView) -> bool:
        (resource,) = pod.resources
        for name, node in sorted(world.nodes.items()):
            held = sum(resource in one.resources for one in world.pods[name].values())
            if node.ready and not node.unschedulable and served(node).get(resource, 0) > held:
                world.serial += 1
                made = replace(pod, name=f"pod-{world.serial}", uid=f"uid-pod-{world.serial}", deleted_at=None)
                world.pods[name][made.uid] = made
                world.kinds[made.uid] = world.kinds[pod.uid]
                self.came.add(made.ref)
                return True
        return False


def policy(pool: str, mode: int, budget: object = 1, stranded: str = "Hold", unmanaged: str = "Evict") -> PolicyView:
    made = wanted(f"pool-{pool}", mode, budget, 0, stranded, unmanaged)
    assert made.spec is not None, "made from a good spec"
    chosen = LabelSelector.model_validate({"matchLabels": {"gpusharing.dev/pool": pool}})
    return replace(made, spec=made.spec.model_copy(update={"node_selector": chosen}))


@lru_cache
def at_rest(modes: tuple[int, ...]) -> World:
    world = World(settings=WAITS)
    for (pool, count), mode in zip(POOLS.items(), modes, strict=True):
        for number in range(count):
            labels: dict[str, Any] = {"gpusharing.dev/pool": pool}
            world.add_node(f"{pool}-{number}", **labels)
        world.set_policy(policy(pool, mode))
    world.settle()
    return world


def edited(random: Random) -> World:
    world = at_rest(tuple(random.choice([0, 0, 0, 1, 3, 4]) for _ in POOLS)).copy()
    for _ in range(random.randrange(9)):
        kind = random.choice(KINDS)
        app = random.choice(["llm", "free"]) if kind in REPLACED else "alone"
        world.add_pod(random.choice(sorted(world.nodes)), kind, app=app)
    world.budgets = random.choice(BUDGETS)
    for pool in random.sample(sorted(POOLS), random.choice([1, 1, 2])):
        stranded, unmanaged = random.choice(["Hold", "Hold", "Allow"]), random.choice(["Evict", "Block"])
        wish = policy(pool, random.randrange(len(MODES)), random.choice([1, 1, 2, "100%"]), stranded, unmanaged)
        world.set_policy(with_habits(wish, random.choice(DRAINS), random.choice(HABITS)))
    for name in world.nodes:
        world.agent(name)
    return world


def foretell(world: World) -> dict[str, Proposal]:
    """As `kubectl gpusharing plan` does: without the operator's memory, as if its ConfigMaps were written already."""
    twin = replace(world.copy(), memory=Memory())
    plan = plan_rollout(twin.snapshot(), twin.now)
    listed = frozenset(name for name, one in plan.verdicts.items() if one.disruption.cordons)
    twin.memory.passed = PassMemory(wants_pods=listed)
    snapshot = twin.snapshot()
    plan = plan_rollout(snapshot, twin.now)
    later = configured(snapshot, plan, twin.now - timedelta(seconds=WAITS.config_propagation))
    if later is not None:
        snapshot, plan = later, plan_rollout(later, twin.now)
    return {one.name: tell_proposal(one, plan, snapshot, twin.now) for one in snapshot.policies}


def end_jobs(world: World, name: str) -> None:
    fence = world.nodes[name].fence
    if fence is not None and world.now > fence.since + timedelta(seconds=20):
        kept = {uid: pod for uid, pod in world.pods[name].items() if world.kinds[uid] != ENDS}
        world.pods[name] = kept


def play(world: World, scheduler: Scheduler) -> RolloutPlan:
    """Everybody works until nothing has moved for a while, whatever the time of the day; the last plan."""
    still, hours, seen, plan = 0, 0, set[str](), world.plan()
    while still < 12 or hours < 24:
        if still >= 12:
            still, hours, world.now = 0, hours + 2, world.now + timedelta(hours=2)
        begun = {name for name, node in world.nodes.items() if node.fence is not None}
        hours, seen = 0 if begun - seen else hours, seen | begun
        before = len(world.done)
        for node in world.nodes:
            world.act(node)
            end_jobs(world, node)
        plan = world.step()
        moved = scheduler.look(world) or len(world.done) > before or any(node.fence for node in world.nodes.values())
        still = 0 if moved else still + 1
        world.now += timedelta(seconds=1)
    return plan


def compare(number: int) -> Counter[str]:
    """Let a random world come to rest after what `plan` said; how often each thing was said or seen."""
    random = Random(f"world {number}")
    world = edited(random)
    told, scheduler, begun = foretell(world), Scheduler(), len(world.done)
    scheduler.look(world)
    end, counts = play(world, scheduler), Counter[str]()
    done = world.done[begun:]
    changed = {one.node.name for one in done if isinstance(one, FenceNode)}
    for name, one in told.items():
        about, mine = f"{name} in world {number}: {world.policies}", end.pools[name].names
        evictions = {action.uid for action in done if isinstance(action, Evict | ForceDelete) and action.node in mine}
        gone = {scheduler.refs[uid] for uid in evictions}
        held = {step.verdict.node for step in one.going if step.held}
        promised = {step.verdict.node for step in one.going} - held
        missing = {node for node in promised if end.verdicts[node].phase is not Phase.SYNCED} | promised - changed
        assert not missing, f"{missing} did not change, {about}"
        # A budget may allow more later, and a job that ends leaves its device to another pod.
        stuck = {step.verdict.node: step.obstacle for step in one.steps if step.verdict.node not in promised}
        late = {node for node, why in stuck.items() if why and (why.passes is Passes.LATER or scheduler.jobs)}
        late |= {step.verdict.node for step in one.steps if step.doubt or BEHIND in str(step.preview)}
        assert not changed & stuck.keys() - late, f"{changed & stuck.keys() - late} changed, {about}"
        counts.update(promised=len(promised), held=len(held), blocked=len(stuck.keys() - held))
        if held or changed & late:
            continue
        assert gone >= {*one.evicted}, f"{ {*one.evicted} - gone } stayed, {about}"
        more = gone - {*one.evicted}
        assert more <= scheduler.came, f"{more - scheduler.came} were not named, {about}"
        assert one.evicts_again or late or not more, f"{more} were evicted too, {about}"
        after = sum((Counter(served(world.nodes[node])) for node in mine), Counter[str]())
        assert one.after == after, f"{one.after} were said and {after} came, {about}"
        counts.update({"evicted": len(one.evicted), "evicts again": one.evicts_again, "evicted once more": len(more)})
    return counts


LONG = os.environ.get("PROPERTIES") == "long"
WORLDS = range(2000) if LONG else range(40)


@pytest.mark.timeout(3600 if LONG else 180, method="signal")
def test_the_nodes_pods_and_devices_that_a_plan_names_are_those_that_change() -> None:
    counts = sum((compare(number) for number in WORLDS), Counter[str]())
    assert min(counts[what] for what in SEEN) > 0, counts
