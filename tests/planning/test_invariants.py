"""Whatever happens, in whatever order, however often the operator is killed: the invariants of rollout.py hold.
`world.py` carries out every action under `rules.py` and `promises.py`. Two runs, the same every time: one does every deed of `deeds.py` in every moment of a change, the other one drives a machine of random events (`chaos.py`). Each example ends twice, and everything must come to Synced: eventually stable reconciliation (docs/design/faults.md#esr). In a twin of the world people do only what the messages tell them (`fairend.py`); then they clear up (cordons, markers, pods, wedges, calls that fail) and approve what is to be approved. The first run says how often each thing happened, and fails when one of `EXPECTED` never did: what never happens is held by nobody. `test_invariants_can_fail.py` shows that each invariant sees what it is there for."""

import os
from collections.abc import Callable, Collection
from itertools import cycle, product
from random import Random
from typing import Any

import pytest
from hack.report import PROPERTY
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.planning.budgets import Budget
from tests.planning.chaos import APPS, BUDGETS, REPLACED, SHARED, Cluster
from tests.planning.deeds import DEEDS, PODS
from tests.planning.dradeeds import DRA_DEEDS
from tests.planning.habits import DRAINS, ROLLOUTS
from tests.planning.installations import DRA, GPU_OPERATOR, PLAIN, Installation
from tests.planning.podkinds import KINDS, NOBODY_MOVES
from tests.planning.recovery import MODES, NODES
from tests.planning.tally import EXPECTED

from gpusharing.planning.vocabulary.reasons import Reason

MOVABLE = sorted(KINDS.keys() - NOBODY_MOVES)
DIVIDED = [number for number, (mode, _) in enumerate(MODES) if mode == "MIG"]
SERVED = [number for number, (mode, _) in enumerate(MODES) if mode == "MPS"]
GANGS = (("", False), ("", True), ("what stays is deleted", True), ("a rule asks for another namespace", False))
"""Habits of a drain in which a gang is protected, and whether a budget refuses first."""
CERTAIN = (
    "a GPU becomes unhealthy",
    "the policy asks for approvals from now on",
    "the policy is paused, and aborts",
    "the pods on the node cannot be listed, or can be again",
    "MPS follows no label any more, or does again",
)
NOTHING_NEW = (
    "the policy gets another price",
    "the policy is paused and goes on",
    "the policy may change all nodes at once",
)
ON_EACH = [(node, "a pod of a ReplicaSet", "llm") for node in NODES]
STAGES = ("rest", "fenced", "actuating")
"""Moments of a change in which each deed is done."""
FOLLOWED = {
    "a NodeMaintenance names the node": "the foreign marker goes",
    "a tool marks the node as its own": "the foreign marker goes",
    "a driver upgrade waits for its turn": "a tool marks the node as its own",
    "a GPU becomes unhealthy": "the GPU is healthy again",
    "a GPU is lost": "the GPU is healthy again",
    "a person cordons": "a person uncordons",
    "a person uncordons": "a person cordons",
    "a person moves the node to pool c": "a person moves the node to pool b",
    "a person takes the node out of all pools": "a person moves the node to pool c",
    "mig-manager begins to fail": "a person asks for a retry",
    "mig-manager begins to forget its operands": "mig-manager works again",
    "a pod of a ReplicaSet lands": "a pod ends by itself",
    "every call about the node is lost": "all calls work again",
    "every answer to calls about the node is lost": "all calls work again",
}
"""What often comes after a deed; of the others the same again, which takes back what goes and comes."""


def at_rest(modes: list[int], budget: object = 1, seconds: int = 60) -> Cluster:
    """A pool that was edited from the first mode to the second, and had time to change."""
    cluster = Cluster()
    cluster.a_pool_at_rest_is_edited(
        modes=modes, budget=budget, pods=[], tempers=["works"] * len(NODES), guards=(), with_reboot=False
    )
    cluster.everybody_works_on(seconds)
    return cluster


def disturb(cluster: Cluster, mode: int, *, budget: object = 1, afterwards: int = 70, **fields: Any) -> None:
    """A change that drains nodes without pods, and that nobody disturbs, unless the fields say otherwise."""
    usual: dict[str, Any] = {"pods": [], "unmanaged": "Evict", "stage": "fenced", "later": 0, "whats": []}
    known = {**usual, **fields}
    cluster.people_clear_up_and_a_change_is_disturbed(mode=mode, budget=budget, afterwards=afterwards, **known)


def play(what: str, stage: str, random: Random, installation: Installation = GPU_OPERATOR) -> None:
    """A pool at rest is edited twice; in the middle of the second change the deed is done, often with another one."""
    cluster = Cluster()
    cluster.a_pool_at_rest_is_edited(
        modes=[0, random.choice(SERVED if "MPS" in what else DIVIDED)]
        if stage == "rest"
        else random.sample(range(len(MODES)), 2),
        budget=random.choice([1, 2, "100%"]),
        pods=[],
        tempers=["works"] * len(NODES),
        guards=(),
        with_reboot=random.random() < 0.3,
        cap=random.choice([100, 100, 2]),
        installation=installation,
    )
    if stage == "rest":
        cluster.everybody_works_on(45)
        cluster.somebody_acts(NODES[0], what)
        cluster.everybody_works_on(20)
        node = NODES[0]
    else:
        cluster.world.budgets = guards(random)
        cluster.people_clear_up_and_a_change_is_disturbed(
            mode=random.randrange(len(MODES)),
            budget=random.choice([1, 2, "100%"]),
            pods=[pod(random) for _ in range(random.randrange(6))],
            unmanaged=random.choice(["Evict", "Evict", "Block"]),
            stage=stage,
            later=random.choice([0, 0, 1, 3]),
            whats=[what, *random.sample(sorted(DEEDS), random.randrange(2))],
            afterwards=random.choice([3, 15, 70]),
            drain=together(random, DRAINS, 2),
            rollout=together(random, ROLLOUTS, 2),
            gang=SHARED if random.random() < 0.3 else "",
            fails=NODES[0] if random.random() < 0.15 else "",
        )
        node = cluster.disturbed
    cluster.somebody_acts(node, FOLLOWED.get(what, what))
    cluster.everybody_works_on(15)
    cluster.operator_is_killed_after_some_actions(random.randrange(4))
    cluster.teardown()


def play_habit(habit: str, random: Random, *, disturbed: bool) -> None:
    """A change by this habit where it matters: under a budget that keeps pods for good, with a mig-manager that fails on one node until that goes back."""
    rest = random.sample(DIVIDED, 2)
    cluster = at_rest(rest, 2)
    cluster.world.budgets = (Budget("all", "llm", 3),)
    disturb(
        cluster,
        mode=rest[0],
        budget=2,
        pods=[(NODES[1], "a pod of a ReplicaSet", "llm"), (NODES[2], "a pod with files on the node", "free")],
        whats=random.sample(sorted(DEEDS), 1 if disturbed else 0),
        afterwards=10,
        drain=[*together(random, DRAINS, 1), *([habit] if habit in DRAINS else [])],
        rollout=[*together(random, ROLLOUTS, 1), *([habit] if habit in ROLLOUTS else [])],
        fails=NODES[0],
    )
    for _ in range(80):
        cluster.everybody_works_on(1)
        for name, node in cluster.world.nodes.items():
            if node.fence is not None and node.fence.rolls_back:
                cluster.world.machines[name].temper = "works"
    cluster.teardown()


def play_certain(what: str) -> None:
    """What must be seen whatever is drawn: the deed meets a drain that a budget holds up, or a pool that wants MPS."""
    cluster = at_rest([0, DIVIDED[0]])
    if "MPS" in what:
        cluster.somebody_acts(NODES[0], what)
        cluster.edit_policy("pool-b", SERVED[0], 1, 0, "Allow", "Evict", (), ())
    else:
        cluster.world.refusing = True
        disturb(cluster, mode=0, pods=ON_EACH, whats=[what], afterwards=10)
        cluster.world.refusing = False
    cluster.everybody_works_on(20)
    cluster.teardown()


def play_halted() -> None:
    """The first two nodes fail, which halts the third, for which the budget has room in the end. Nobody asks for anything new, so it does not start: the invariant (o) sees to that."""
    cluster = at_rest([0, DIVIDED[0]], 2, seconds=0)
    for machine in cluster.world.machines.values():
        machine.temper = "fails"
    cluster.everybody_works_on(150)
    for what in NOTHING_NEW:
        told = cluster.world.plan().verdicts.values()
        assert Reason.HALTED in {verdict.reason for verdict in told}, (what, told)
        cluster.somebody_acts(NODES[-1], what)
        cluster.world.happened["a halt meets an edit that asks for nothing new"] += 1
        cluster.everybody_works_on(20)
    cluster.teardown()


def play_gang(drain: str, random: Random, *, refusing: bool) -> None:
    """A gang runs on all nodes, which are drained as one, and somebody protects its ranks on one of them: before the first is evicted, or while a budget that nobody sees refuses."""
    rest = random.sample(DIVIDED, 2)
    cluster = at_rest(rest, "100%")
    cluster.world.budgets, cluster.world.refusing = (), refusing
    disturb(
        cluster,
        mode=rest[0],
        budget="100%",
        later=10 if refusing else 0,
        whats=["a person protects the pods"],
        afterwards=30,
        drain=[drain] if drain else [],
        gang=SHARED,
    )
    cluster.world.refusing = False
    cluster.everybody_works_on(70)
    cluster.teardown()


def play_rest_of_a_gang(random: Random) -> None:
    """A gang runs on all nodes, of which one may be away. While the first is changed, each other one gets a gang of its own, which is known only once its pods are listed."""
    rest = random.sample(DIVIDED, 2)
    cluster = at_rest(rest)
    disturb(cluster, mode=rest[0], stage="actuating", gang=REPLACED)
    cluster.everybody_works_on(70)
    cluster.teardown()


def play_left_cordoned() -> None:
    """A policy is released by force while the calls about its node in flight fail. Another policy, of which one node may be away, gets that node with its cordon, and has other nodes to change meanwhile."""
    cluster = at_rest([0, DIVIDED[0]])
    whats = ["every call about the node is lost", "the policy is deleted by force"]
    disturb(cluster, mode=0, pods=ON_EACH, whats=[*whats, "another policy of equal priority comes"])
    cluster.somebody_acts(cluster.disturbed, "all calls work again")
    cluster.everybody_works_on(60)
    cluster.teardown()


def together(random: Random, habits: Collection[str], most: int) -> list[str]:
    """Up to so many habits, which a policy has together; often none."""
    return random.sample(sorted(habits), random.randrange(most + 1))


def guards(random: Random) -> tuple[Budget, ...]:
    """Often none, and only now and then one that never lets anybody go."""
    return random.choice([(), (), *BUDGETS])


def pod(random: Random) -> tuple[str, str, str]:
    """(node, kind, app): mostly one that can leave, else nothing would begin."""
    kind = random.choice(MOVABLE if random.random() < 0.9 else sorted(KINDS))
    return random.choice(NODES), kind, random.choice(APPS)


def test_every_deed_in_every_moment_of_a_change_keeps_the_invariants(
    record_property: Callable[[str, object], None],
) -> None:
    Cluster.happened.clear()
    usual = sorted(DEEDS.keys() - DRA_DEEDS.keys())
    examples = [(what, stage, GPU_OPERATOR) for what in usual for stage in STAGES]
    examples += [(what, stage, DRA) for what in sorted(DRA_DEEDS) for stage in STAGES]
    elsewhere = zip((what for what in usual if what not in PODS), cycle(product(STAGES, (PLAIN, DRA))))
    examples += [(what, stage, installation) for what, (stage, installation) in elsewhere]
    for what, stage, installation in examples:
        where = "" if installation == GPU_OPERATOR else f", {installation}"
        try:
            play(what, stage, Random(f"{what}, {stage}{where}"), installation)
        except Exception as error:
            error.add_note(f"in the example of {what!r}, {stage}{where}")
            raise
    for number, known in enumerate([*sorted(DRAINS), *sorted(ROLLOUTS)] * 2):
        try:
            play_habit(known, Random(f"{known}, {number}"), disturbed=number >= len(DRAINS) + len(ROLLOUTS))
        except Exception as error:
            error.add_note(f"in example {number} of the habit {known!r}")
            raise
    for drain, refusing in GANGS:
        play_gang(drain, Random(drain), refusing=refusing)
    play_rest_of_a_gang(Random("rest"))
    for what in CERTAIN:
        play_certain(what)
    play_left_cordoned()
    play_halted()
    record_property(PROPERTY, dict(Cluster.happened))
    done = {what for what in DEEDS if any(seen.startswith(what) for seen in Cluster.happened)}
    never = [what for what in EXPECTED if not Cluster.happened[what]] + sorted(DEEDS.keys() - done)
    assert not never, f"never happened, so nothing is known about it: {never}"


def test_a_node_that_only_the_clock_called_failed_and_that_is_proven_late_halts_nobody() -> None:
    cluster = at_rest([0, 1], seconds=0)
    cluster.all_gpunodes_are_deleted()
    cluster.everybody_works_on(9)
    cluster.time_passes(4000)
    cluster.everybody_works_on(60)
    cluster.teardown()


LONG = os.environ.get("PROPERTIES") == "long"
"""`make test-random` sets it: 10,000 examples in all, of ten seeds, which workers play side by side."""
EXAMPLES = 1000 if LONG else 12
pytestmark = [pytest.mark.timeout(7200, method="signal")] if LONG else []
"""A thousand examples are two minutes of CPU, and may have to share it."""
SEEDS = range(1, 11) if LONG else (int(os.environ.get("SEED", "1")),)


@pytest.mark.parametrize("number", SEEDS, ids=lambda number: f"seed-{number}")
def test_whatever_happens_in_whatever_order_the_invariants_hold(number: int) -> None:
    print(f"{EXAMPLES} examples of SEED={number}")

    @seed(number)
    class Seeded(Cluster):
        """The same examples whenever the seed is the same."""

    run_state_machine_as_test(
        Seeded,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
