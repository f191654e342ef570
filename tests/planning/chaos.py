"""A machine of random events (hypothesis) that drives a World: operator, people, tools, pods, hardware and clocks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.planning import gangs
from tests.planning.budgets import Budget
from tests.planning.deeds import DEEDS, where
from tests.planning.fairend import end_fairly
from tests.planning.habits import DRAINS, ROLLOUTS, combined, person_approves, person_resumes, with_habits
from tests.planning.installations import GPU_OPERATOR, INSTALLATIONS, Installation, stack_of
from tests.planning.machines import Temper
from tests.planning.podkinds import KINDS
from tests.planning.recovery import MODES, NODES, WAITS, at_rest, chosen, clear_up, in_flight, lenient, stage_of, wanted
from tests.planning.rules import is_settled
from tests.planning.shareddeeds import force_release
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.views import PolicyView

APPS = ("llm", "free")
"""Only the pods of the first one may have PodDisruptionBudgets."""
BUDGETS: Sequence[tuple[Budget, ...]] = (
    (),
    (Budget("keep", "llm", 1),),
    (Budget("keep", "llm", 1, always_allow_unhealthy=True),),
    (Budget("all", "llm", 3),),
    (Budget("keep", "llm", 0), Budget("also", "llm", 0)),
)
GANGS = (SHARED, REPLACED) = (
    "a gang runs on all nodes",
    "a gang runs on all nodes, and smaller ones come in its place",
)
nodes = st.sampled_from(NODES)
deeds = st.sampled_from(sorted(DEEDS))
policies = st.sampled_from(("pool-b", "other"))
tempers: st.SearchStrategy[Temper] = st.sampled_from(("works", "works", "works", "fails", "hangs", "forgets"))
drains, rollouts = (st.sampled_from(combined(habits)) for habits in (DRAINS, ROLLOUTS))
kinds = st.sampled_from([*["a pod of a ReplicaSet"] * 6, *["a CPU pod"] * 2, *KINDS])


class Cluster(RuleBasedStateMachine):
    """Random events against the planner."""

    happened: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.disturbed = ""

    @initialize(
        modes=st.lists(st.integers(0, len(MODES) - 1), min_size=2, max_size=2, unique=True),
        budget=st.sampled_from([1, 2, "100%"]),
        pods=st.lists(st.tuples(nodes, kinds, st.sampled_from(APPS)), max_size=6),
        tempers=st.lists(tempers, min_size=len(NODES), max_size=len(NODES)),
        guards=st.sampled_from(BUDGETS),
        with_reboot=st.booleans(),
        drain=drains,
        rollout=rollouts,
        cap=st.sampled_from([100, 100, 1, 2]),
        installation=st.sampled_from(INSTALLATIONS),
    )
    def a_pool_at_rest_is_edited(
        self,
        modes: list[int],
        budget: object,
        pods: list[tuple[str, str, str]],
        tempers: list[Temper],
        guards: tuple[Budget, ...],
        with_reboot: bool,
        drain: Sequence[str] = (),
        rollout: Sequence[str] = (),
        cap: int = 100,
        installation: Installation = GPU_OPERATOR,
    ) -> None:
        modes = [chosen(stack_of(installation), mode) for mode in modes]
        world = self.world = at_rest(modes[0], budget, installation).copy()
        self._happens(f"installed: {installation}")
        world.settings = replace(WAITS, max_in_flight=cap)
        self._reboots(with_reboot)
        for name, kind, app in pods:
            world.add_pod(name, kind, app=app)
        for name, temper in zip(NODES, tempers, strict=True):
            world.machines[name].temper = temper
        world.budgets = guards
        self._set_policy(wanted("pool-b", modes[1], budget), drain, rollout)

    def _set_policy(self, policy: PolicyView, drain: Sequence[str], rollout: Sequence[str]) -> None:
        self.world.set_policy(with_habits(policy, drain, rollout))
        for habit in (*drain, *rollout):
            self._happens(f"habit: {habit}")
        if len(drain) > 1 or len(rollout) > 1:
            self._happens("habits of a kind together")

    def _happens(self, what: str) -> None:
        self.world.happened[what] += 1

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
    everybody_works_more = rule(times=st.integers(2, 6))(_work)
    everybody_works_on = rule(times=st.integers(5, 25))(_work)
    everybody_works_until_rest = rule(times=st.just(60))(_work)

    @rule(actions=st.integers(0, 4))
    def operator_is_killed_after_some_actions(self, actions: int) -> None:
        self.world.step(limit=actions)
        self.world.restart()
        self._happens("the operator is killed")

    @rule()
    def every_prefix_of_the_plan_is_safe(self) -> None:
        plan = self.world.plan()
        actions = len(plan.shared) + sum(len(verdict.actions) for verdict in plan.verdicts.values())
        for prefix in range(actions):
            twin = self.world.copy()
            twin.step(limit=prefix)
            for _ in range(3):
                twin.step()
            self._happens("a prefix of a plan is carried out")

    # --- the nodes ---

    @rule(node=nodes, part=st.sampled_from(["mig_manager", "plugin", "kubelet", "agent"]))
    def one_part_of_a_node_acts(self, node: str, part: str) -> None:
        if node in self.world.nodes:
            getattr(self.world, part)(node)

    @rule(node=nodes, temper=tempers)
    def mig_manager_changes_its_temper(self, node: str, temper: Temper) -> None:
        if node in self.world.nodes:
            self.world.machines[node].temper = temper

    def _do(self, node: str, what: str) -> None:
        if node in self.world.nodes:
            moment = where(self.world, node)
            if DEEDS[what](self.world, node):
                self._happens(what + moment)

    @rule(node=nodes, what=deeds)
    def somebody_acts(self, node: str, what: str) -> None:
        self._do(node, what)

    @precondition(lambda self: bool(in_flight(self.world)))
    @rule(which=st.integers(0, 2), what=deeds)
    def somebody_acts_in_the_middle(self, which: int, what: str) -> None:
        fenced = in_flight(self.world)
        self._do(fenced[which % len(fenced)], what)

    @rule(
        mode=st.integers(0, len(MODES) - 1),
        budget=st.sampled_from([1, 2, "100%"]),
        pods=st.lists(st.tuples(nodes, kinds, st.sampled_from(APPS)), max_size=4),
        unmanaged=st.sampled_from(["Evict", "Evict", "Block"]),
        stage=st.sampled_from(["fenced", "actuating"]),
        later=st.integers(0, 6),
        whats=st.lists(deeds, min_size=1, max_size=3),
        afterwards=st.sampled_from([2, 10, 70]),
        drain=drains,
        rollout=rollouts,
        gang=st.sampled_from(["", *GANGS]),
        fails=st.sampled_from(["", "", "", *NODES]),
    )
    def people_clear_up_and_a_change_is_disturbed(
        self,
        mode: int,
        budget: object,
        pods: list[tuple[str, str, str]],
        unmanaged: str,
        stage: str,
        later: int,
        whats: list[str],
        afterwards: int,
        drain: Sequence[str] = (),
        rollout: Sequence[str] = (),
        gang: str = "",
        fails: str = "",
    ) -> None:
        """Without this rule most steps would be spent on nodes on which nothing can move."""
        world = self.world
        guards = world.budgets
        clear_up(world)
        self._work(10)
        for name, kind, app in pods:
            if name in world.nodes:
                self._add_pod(name, kind, app)
        for name in world.nodes if gang else ():
            if name == NODES[0]:
                self._add_pod(name, "a rank without a GPU", "free")
            self._add_pod(name, "a rank of a JobSet", "free")
        if fails in world.machines:
            world.machines[fails].temper = "fails"
        known = self._policy("pool-b")
        if known is None or not known.going:
            wish = wanted("pool-b", chosen(world.stack, mode), budget, unmanaged=unmanaged)
            self._set_policy(wish, drain, rollout)
        world.budgets = guards
        for _ in range(40):
            self._work(1)
            self.a_person_approves("pool-b")
            if fenced := [name for name in in_flight(world) if stage_of(world, name) == stage]:
                break
        self._work(later)
        if gang == REPLACED and gangs.start_alone(world):
            self._happens(gang)
        for what in whats:
            if fenced := [name for name in fenced if name in world.nodes]:
                self.disturbed = fenced[0]
                self._do(fenced[0], what)
        self._work(afterwards)

    @rule(node=nodes, gated=st.booleans())
    def node_goes_or_comes_again(self, node: str, gated: bool) -> None:
        if node in self.world.nodes:
            self.world.remove_node(node)
            self._happens("a node goes")
        else:
            self.world.add_node(node, gated=gated)
            self._happens("a node comes" + (" behind the start-up taint" if gated else ""))

    @rule()
    def all_gpunodes_are_deleted(self) -> None:
        self.world.gpunodes.clear()
        self._happens("all GPUNodes are deleted")

    @rule(with_reboot=st.booleans())
    def somebody_edits_the_cluster_policy(self, with_reboot: bool) -> None:
        self._reboots(with_reboot)

    def _reboots(self, with_reboot: bool) -> None:
        stack = self.world.stack
        assert stack.cluster_policy is not None, "each installation of the world has one, or its like"
        if stack.cluster_policy.with_reboot != with_reboot:
            self._happens("WITH_REBOOT is edited")
            changed = replace(stack.cluster_policy, with_reboot=with_reboot)
            self.world.stack = replace(stack, cluster_policy=changed)

    # --- pods ---

    @rule(node=nodes, kind=kinds, app=st.sampled_from(APPS), pinned=st.booleans())
    def pod_appears(self, node: str, kind: str, app: str, pinned: bool) -> None:
        if node in self.world.nodes:
            self._add_pod(node, kind, app, pinned=pinned)

    def _add_pod(self, node: str, kind: str, app: str, *, pinned: bool = False) -> None:
        moment = where(self.world, node)
        if self.world.add_pod(node, kind, app=app, pinned=pinned):
            self._happens(f"{kind} comes{moment}")

    @rule(guards=st.sampled_from(BUDGETS))
    def somebody_edits_the_disruption_budgets(self, guards: tuple[Budget, ...]) -> None:
        self.world.budgets = guards

    # --- policies and time ---

    @rule(
        name=policies,
        mode=st.integers(0, len(MODES) - 1),
        budget=st.sampled_from([0, 1, 2, "0%", "34%", "100%", "1000a%"]),
        priority=st.integers(0, 1),
        stranded=st.sampled_from(["Allow", "Allow", "Hold"]),
        unmanaged=st.sampled_from(["Evict", "Block"]),
        drain=drains,
        rollout=rollouts,
    )
    def edit_policy(
        self,
        name: str,
        mode: int,
        budget: object,
        priority: int,
        stranded: str,
        unmanaged: str,
        drain: Sequence[str],
        rollout: Sequence[str],
    ) -> None:
        known = self._policy(name)
        if known is None or not known.going:
            mode = chosen(self.world.stack, mode)
            policy = with_habits(wanted(name, mode, 1, priority, stranded, unmanaged), drain, rollout)
            self.world.set_policy(lenient(policy, max_unavailable=budget))
            self._happens("a policy is edited" if known else "a policy is created")

    @rule(name=policies)
    def pause_or_go_on(self, name: str) -> None:
        known = self._policy(name)
        if known is not None and known.spec is not None and not known.going:
            self.world.set_policy(lenient(known, paused=not known.spec.rollout.paused))
            self._happens("a policy is paused, or no more")

    @rule(name=policies)
    def a_person_approves(self, name: str) -> None:
        if person_approves(self.world, name, self.world.plan()):
            self._happens("a plan is approved")

    @rule(name=policies)
    def a_person_resumes(self, name: str) -> None:
        if person_resumes(self.world, name, self.world.plan()):
            self._happens("a halted rollout is resumed")

    @rule(name=policies)
    def delete_policy(self, name: str) -> None:
        if (known := self._policy(name)) is not None and not known.going:
            self.world.delete_policy(name)
            self._happens("a policy is deleted")

    @precondition(lambda self: any(policy.going for policy in self.world.policies))
    @rule()
    def force_release(self) -> None:
        force_release(self.world)
        self._happens("force-release is asked for")

    def _policy(self, name: str) -> PolicyView | None:
        return next((policy for policy in self.world.policies if policy.name == name), None)

    @rule(seconds=st.sampled_from([1, 5, 30, 130, 1300, 4000, 40000]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    @rule(seconds=st.sampled_from([-600, -30, 600]))
    def the_clock_is_set(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)
        self._happens("the clock is set back" if seconds < 0 else "the clock is set forward")

    # --- the end ---

    def teardown(self) -> None:
        """In a twin people do only what they are told (fairend.py). Then people clear up, everything comes to rest, and what has a policy is Synced."""
        if self.world.nodes:
            self._happens("a fair end")
            twin = self.world.copy()
            end_fairly(twin)
            self.world.happened.update(twin.happened)
            clear_up(self.world)
            forced = any(policy.force_release for policy in self.world.policies)
            plan = self.world.settle(approving=True)
            if forced:  # it keeps every cordon, for people to lift
                clear_up(self.world)
                plan = self.world.settle(approving=True)
            assert is_settled(plan)
            owned = {v.node: (v.phase, v.reason, v.message) for v in plan.verdicts.values() if v.policy}
            fine = [phase in (Phase.SYNCED, Phase.SKIPPED) for phase, _, _ in owned.values()]
            assert all(fine), owned
            assert not self.world.claims
            assert not any(policy.finalizer or policy.going for policy in self.world.policies)
            assert not any(node.unschedulable for node in self.world.nodes.values())
            synced = {v.node for v in plan.verdicts.values() if v.phase is Phase.SYNCED}
            assert not any(self.world.nodes[name].gate for name in synced), "proven behind the start-up taint"
            reverse = replace(self.world.snapshot(), nodes=dict(sorted(self.world.nodes.items(), reverse=True)))
            again = plan_rollout(reverse, self.world.now)
            assert is_settled(again)
            assert again.verdicts == plan.verdicts
        Cluster.happened.update(self.world.happened)
