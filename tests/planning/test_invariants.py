"""Whatever happens, in whatever order, however often the operator is killed: the invariants of rollout.py hold.

`world.py` carries out every action under `rules.py`; here a machine of random events drives it. At the end people
clear up (cordons, markers, stray processes, wedges), and everything must come to Synced: eventually stable
reconciliation (reliability-performance.md 1.4).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.build import H100, make_policy
from tests.planning.machines import Machine, Temper
from tests.planning.rules import NEEDS_IDLE
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.views import PolicyView, Settings

T4 = "Tesla T4"
NODES = ("gpu-0", "gpu-1", "gpu-2")
MODES: Sequence[tuple[str, dict[str, Any]]] = (
    ("Full", {}),
    ("TimeSlicing", {}),
    ("TimeSlicing", {"timeSlicing": {"replicas": 4, "failRequestsGreaterThanOne": True}}),
    ("MIG", {}),
    ("MIG", {"mig": {"strategy": "single", "config": "all-1g.10gb"}}),
    ("MIG", {"mig": {"config": "all-balanced"}}),
    ("MPS", {}),
    ("MPS", {"mps": {"replicas": 8}}),
    ("MIG", {"timeSlicing": {"replicas": 2}}),
    ("MIG", {"mig": {"config": "all-balanced"}, "timeSlicing": {"replicas": 3}}),
)
nodes = st.sampled_from(NODES)
policies = st.sampled_from(("pool-b", "other"))
tempers: st.SearchStrategy[Temper] = st.sampled_from(("works", "works", "fails", "hangs", "forgets"))


def wanted(name: str, mode: int, budget: object, priority: int, stranded: str) -> PolicyView:
    """One of the modes, with a budget."""
    kind, fields = MODES[mode]
    return make_policy(
        name,
        kind,
        created=f"2026-11-01T00:00:0{len(name) % 10}Z",
        priority=priority,
        drain={"strandedPods": stranded, "timeout": "2m"},
        rollout={"maxUnavailable": budget},
        **fields,
    )


class Cluster(RuleBasedStateMachine):
    """Random events against the planner."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(
        modes=st.lists(st.integers(0, len(MODES) - 1), min_size=2, max_size=2, unique=True),
        budget=st.sampled_from([1, 2, "50%"]),
        pods=st.lists(nodes, max_size=5),
        tempers=st.lists(tempers, min_size=len(NODES), max_size=len(NODES)),
        strays=st.lists(nodes, max_size=1),
    )
    def a_pool_at_rest_is_edited(
        self, modes: list[int], budget: object, pods: list[str], tempers: list[Temper], strays: list[str]
    ) -> None:
        world = self.world
        world.settings = Settings(settle=1, idle=1, poll=2, config_propagation=3, drift_grace=10)
        for name in NODES:
            world.add_node(name)
        world.set_policy(wanted("pool-b", modes[0], budget, 0, "Allow"))
        world.settle()
        for name in pods:
            world.add_pod(name)
        for name, temper in zip(NODES, tempers, strict=True):
            world.machines[name].temper = temper
            world.machines[name].stray = name in strays
        world.set_policy(wanted("pool-b", modes[1], budget, 0, "Allow"))

    # --- the operator ---

    @rule(times=st.integers(1, 6))
    def passes(self, times: int) -> None:
        for _ in range(times):
            self.world.step()

    def _work(self, times: int) -> None:
        for _ in range(times):
            for node in list(self.world.nodes):
                self.world.act(node)
            self.world.step()
            self.world.now += timedelta(seconds=2)

    everybody_works = rule(times=st.integers(1, 5))(_work)
    everybody_works_on = rule(times=st.integers(5, 25))(_work)
    everybody_works_until_rest = rule(times=st.just(60))(_work)

    @rule(actions=st.integers(0, 4))
    def operator_is_killed_after_some_actions(self, actions: int) -> None:
        self.world.step(limit=actions)
        self.world.restart()

    @rule()
    def every_prefix_of_the_plan_is_safe(self) -> None:
        plan = self.world.plan()
        actions = len(plan.shared) + sum(len(verdict.actions) for verdict in plan.verdicts.values())
        for prefix in range(actions):
            twin = self.world.copy()
            twin.step(limit=prefix)
            for _ in range(3):
                twin.step()

    # --- the nodes ---

    @rule(node=nodes, part=st.sampled_from(["mig_manager", "plugin", "kubelet", "agent"]))
    def one_part_of_a_node_acts(self, node: str, part: str) -> None:
        if node in self.world.nodes:
            getattr(self.world, part)(node)

    @rule(node=nodes, temper=tempers)
    def mig_manager_changes_its_temper(self, node: str, temper: Temper) -> None:
        if node in self.world.nodes:
            self.world.machines[node].temper = temper

    @rule(node=nodes)
    def agent_goes_or_comes(self, node: str) -> None:
        self.world.agents_down ^= {node}

    @rule(node=nodes)
    def node_ready_or_not(self, node: str) -> None:
        if node in self.world.nodes:
            view = self.world.nodes[node]
            self.world.nodes[node] = replace(view, ready=not view.ready)

    @rule(node=nodes, product=st.sampled_from([H100, T4]))
    def node_goes_or_comes_again(self, node: str, product: str) -> None:
        if node in self.world.nodes:
            self.world.remove_node(node)
        else:
            self.world.add_node(node, Machine(node, (product,)))

    @rule()
    def all_gpunodes_are_deleted(self) -> None:
        self.world.gpunodes.clear()

    @rule(node=nodes)
    def somebody_destroys_the_instances(self, node: str) -> None:
        machine = self.world.machines.get(node)
        view = self.world.nodes.get(node)
        if machine and view and view.fence is None:
            machine.layouts = [None if layout is None else () for layout in machine.layouts]

    @rule(node=nodes)
    def mps_daemon_is_killed(self, node: str) -> None:
        if node in self.world.machines:
            self.world.machines[node].kill_mps()

    # --- pods ---

    @rule(node=nodes, pinned=st.booleans())
    def pod_appears(self, node: str, pinned: bool) -> None:
        if node in self.world.nodes:
            self.world.add_pod(node, pinned=pinned)

    @rule(node=nodes)
    def pod_finishes(self, node: str) -> None:
        pods = self.world.pods.get(node, {})
        if pods:
            pods.pop(min(pods))

    @rule(node=nodes)
    def stray_process(self, node: str) -> None:
        if node in self.world.machines:
            self.world.machines[node].stray ^= True

    @rule()
    def budgets_of_workloads_refuse_or_not(self) -> None:
        self.world.refusing = not self.world.refusing

    # --- people ---

    @rule(node=nodes)
    def cordon(self, node: str) -> None:
        view = self.world.nodes.get(node)
        if view is not None and not view.unschedulable:
            # On a node that we cordoned nobody can see who did it again (drain.md C2); hold-cordon is for that.
            if view.fence is None or view.fence.disruption not in NEEDS_IDLE:
                self.world.human_cordons.add(node)
            self.world.nodes[node] = replace(view, unschedulable=True)

    @rule(node=nodes)
    def uncordon(self, node: str) -> None:
        if node in self.world.nodes:
            self.world.human_cordons.discard(node)
            self.world.nodes[node] = replace(self.world.nodes[node], unschedulable=False)

    @rule(node=nodes, who=st.sampled_from(["", "kured"]))
    def foreign_marker(self, node: str, who: str) -> None:
        if node in self.world.nodes:
            self.world.nodes[node] = replace(self.world.nodes[node], foreign=who)

    @rule(node=nodes, held=st.booleans())
    def hold_cordon(self, node: str, held: bool) -> None:
        if node in self.world.nodes:
            self.world.nodes[node] = replace(self.world.nodes[node], hold_cordon=held)

    @rule(node=nodes, number=st.integers(0, 9))
    def retry(self, node: str, number: int) -> None:
        if node in self.world.nodes:
            self.world.nodes[node] = replace(self.world.nodes[node], retry=f"try-{number}")

    @rule(
        name=policies,
        mode=st.integers(0, len(MODES) - 1),
        budget=st.sampled_from([0, 1, 2, "0%", "34%", "100%", "1000a%"]),
        priority=st.integers(0, 1),
        stranded=st.sampled_from(["Allow", "Allow", "Hold"]),
    )
    def edit_policy(self, name: str, mode: int, budget: object, priority: int, stranded: str) -> None:
        known = next((policy for policy in self.world.policies if policy.name == name), None)
        if known is None or not known.deleting:
            self.world.set_policy(lenient(wanted(name, mode, 1, priority, stranded), budget))

    @rule(name=policies)
    def delete_policy(self, name: str) -> None:
        self.world.delete_policy(name)

    @precondition(lambda self: any(policy.deleting for policy in self.world.policies))
    @rule()
    def force_release(self) -> None:
        self.world.policies = tuple(
            replace(policy, force_release=policy.deleting) for policy in self.world.policies
        )

    @rule(seconds=st.sampled_from([1, 5, 30, 130, 1300, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    # --- the end ---

    def teardown(self) -> None:
        """People clear up; then everything comes to rest, and what has a policy is Synced."""
        if self.world.nodes:
            clear_up(self.world)
            forced = any(policy.force_release for policy in self.world.policies)
            plan = self.world.settle()
            if forced:  # it keeps every cordon, for people to lift
                clear_up(self.world)
                plan = self.world.settle()
            assert plan.settled
            owned = {v.node: (v.phase, v.reason, v.message) for v in plan.verdicts.values() if v.policy}
            fine = [phase in (Phase.SYNCED, Phase.SKIPPED) for phase, _, _ in owned.values()]
            assert all(fine), owned
            assert not self.world.claims
            assert not any(policy.finalizer or policy.deleting for policy in self.world.policies)
            assert not any(node.unschedulable for node in self.world.nodes.values())
            reverse = replace(
                self.world.snapshot(), nodes=dict(sorted(self.world.nodes.items(), reverse=True))
            )
            again = plan_rollout(reverse, self.world.now)
            assert again.settled
            assert again.verdicts == plan.verdicts


def lenient(policy: PolicyView, budget: object) -> PolicyView:
    """The policy with any budget at all, also one that the API server would refuse."""
    assert policy.spec is not None, "made from a good spec"
    rollout = policy.spec.rollout.model_copy(update={"max_unavailable": budget})
    return replace(policy, spec=policy.spec.model_copy(update={"rollout": rollout}))


def clear_up(world: World) -> None:
    """All that a person does so that things go on: after it nothing but the operator is needed."""
    world.refusing = False
    world.agents_down.clear()
    for machine in world.machines.values():
        machine.temper, machine.stray = "works", False
        if machine.mps_dead:
            machine.stop_mps()
        machine.exclusive = machine.clients is not None
        if machine.running or any(
            "paused" in v for k, v in world.nodes[machine.name].labels.items() if "deploy" in k
        ):
            machine.restart()
    for policy in world.policies:
        if not policy.deleting:
            world.set_policy(lenient(policy, 1))
    for name, node in world.nodes.items():
        kept = node.unschedulable and node.fence is not None and name not in world.human_cordons
        world.nodes[name] = replace(
            node, foreign="", hold_cordon=False, ready=True, unschedulable=kept, retry="clear"
        )
    world.human_cordons.clear()
    for pods in world.pods.values():
        pods.clear()
    settle_deleted(world)


def settle_deleted(world: World) -> None:
    """Fences of policies that are gone need a policy that takes them over."""
    if not any(not policy.deleting for policy in world.policies):
        world.set_policy(wanted("rescue", 0, 1, 0, "Allow"))


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
