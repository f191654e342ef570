"""A small pure model of the cluster: plan ∘ apply without I/O, with SIMULATED nodes (machines.py).
`World.step()` is one pass of the operator: gather, plan, carry out; it may end after any number of actions, as if the operator was killed. Every action is carried out as the API server would, and held to the invariants of rollout.py at the moment it happens (`Broken` says which one). `plan()` now and then plans without the memo too, and compares."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Self

from tests.build import NOW, POOL_LABELS, make_node
from tests.planning import gangs, habits, leaders, podkinds, promises, rules, server, tally
from tests.planning.budgets import Budget
from tests.planning.installations import labels_of, machine_of, stack_of
from tests.planning.machines import NodeMachine, patched
from tests.planning.wires import Memory, Wires, send

from gpusharing.api import names
from gpusharing.planning.drain.pods import heard, looked, scope_of
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.nvidia import RULE_PREFIX, Program, StackView, TaintRuleView
from gpusharing.planning.snapshot.podviews import NodeWork, PdbView, PodView
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, NodeView, PlanSettings, PolicyView
from gpusharing.planning.wanted.migfile import parse as parse_mig_file
from gpusharing.planning.wanted.target import known_times, under_deletion
from gpusharing.planning.wanted.verify import served

MEMO_CHECK = 4
"""One plan of so many is made once more without a memo, and compared."""
POLLS = 30
"""So many looks at blocked pods without any change, and the world counts as at rest."""


@dataclass
class World:
    """The API server's objects, the machines behind the nodes, and the operator's memory."""

    now: datetime = NOW
    nodes: dict[str, NodeView] = field(default_factory=dict)
    gpunodes: dict[str, GPUNodeView] = field(default_factory=dict)
    policies: tuple[PolicyView, ...] = ()
    machines: dict[str, NodeMachine] = field(default_factory=dict)
    pods: dict[str, dict[str, PodView]] = field(default_factory=dict)
    """By node and pod UID."""
    claims: dict[str, Claim] = field(default_factory=dict)
    failed_nodes: dict[str, FailedNode] = field(default_factory=dict)
    consents: dict[str, Consent] = field(default_factory=dict)
    stack: StackView = field(default_factory=stack_of)
    settings: PlanSettings = field(default_factory=lambda: PlanSettings(config_propagation=10.0))
    agents_down: set[str] = field(default_factory=set)
    obeys: bool = True
    """Whether the scheduler keeps pods off devices that a DeviceTaintRule selects; without the feature gate it does not."""
    refusing: bool = False
    """A PodDisruptionBudget that nobody sees refuses every eviction."""
    budgets: tuple[Budget, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    """By pod UID, what `podkinds.py` calls it."""
    by_claim: dict[str, str] = field(default_factory=dict)
    """By pod UID, the resource that stands for the device of its claim."""
    happened: Counter[str] = field(default_factory=Counter)
    """How often each thing happened (tally.py)."""
    memory: Memory = field(default_factory=Memory)
    rival: Memory | None = None
    """What a second operator knows that leads, too (leaders.py)."""
    evicted: set[str] = field(default_factory=set)
    """UIDs of pods whose eviction was accepted, ever."""
    refused: set[str] = field(default_factory=set)
    """UIDs of pods whose eviction was refused, or went unanswered, ever."""
    human_cordons: set[str] = field(default_factory=set)
    wires: Wires = field(default_factory=Wires)
    unlisted: set[str] = field(default_factory=set)
    namespace: dict[str, str] | None = field(default_factory=lambda: {"team": "a"})
    """Labels of the namespace of the pods; None: they cannot be read."""
    ledger: promises.Ledger = field(default_factory=promises.Ledger)
    done: list[Action] = field(default_factory=list)
    uids: set[str] = field(default_factory=set)
    serial: int = 0
    passes: int = 0

    # --- set-up -------------------------------------------------------------------------------------------

    def add_node(self, name: str, machine: NodeMachine | None = None, *, gated: bool = False, **labels: str) -> None:
        """A fresh node of pool b with its GPUs and NVIDIA's software. `gated`: behind the start-up taint."""
        self.serial += 1
        machine = machine or machine_of(self.stack, name)
        present = {names.LABEL_GPU_PRESENT: "true", **POOL_LABELS, **labels_of(self.stack), **labels}
        node = make_node(name, uid=f"uid-{name}-{self.serial}", labels=present, resources={}, gated=gated)
        self.machines[name], self.pods[name] = machine, {}
        self.nodes[name] = machine.plugin(node, self.stack, self.now)
        self.gpunodes.pop(name, None)
        self.human_cordons.discard(name)

    def remove_node(self, name: str) -> None:
        """The Node is deleted, and its GPUNode and pods with it."""
        for mapping in (self.nodes, self.gpunodes, self.machines, self.pods):
            mapping.pop(name, None)
        self.human_cordons.discard(name)

    def set_policy(self, policy: PolicyView) -> None:
        """Create or replace a policy; what the operator wrote on the old one stays.

        One that is made again under its name has another UID, as an API server gives it.
        """
        old = next((known for known in self.policies if known.name == policy.name), None)
        if old is not None:
            kept = old.uid if policy.uid == f"uid-{policy.name}" else policy.uid
            policy = replace(policy, uid=kept, finalizer=old.finalizer, generation=old.generation + 1)
            policy = replace(policy, approved=old.approved, resumed=old.resumed)
        elif policy.uid in self.uids:
            self.serial += 1
            policy = replace(policy, uid=f"{policy.uid}-{self.serial}")
        self.uids.add(policy.uid)
        others = [known for known in self.policies if known.name != policy.name]
        self.policies = tuple(sorted([*others, policy], key=lambda known: known.name))

    def delete_policy(self, name: str) -> None:
        """kubectl delete: gone at once without a finalizer, else marked."""
        kept = [policy for policy in self.policies if policy.name != name]
        marked = [
            under_deletion(
                replace(policy, deleting=True),
                resets=policy.spec is not None and policy.spec.deletion_policy == "Reset",
            )
            for policy in self.policies
            if policy.name == name and policy.finalizer
        ]
        # As the API server does, which raises the generation of what is being deleted.
        marked = [replace(one, generation=one.generation + one.resetting) for one in marked]
        self.policies = tuple(sorted([*kept, *marked], key=lambda policy: policy.name))

    def add_pod(
        self, node: str, kind: str = "a pod of a ReplicaSet", *, app: str = "llm", pinned: bool = False
    ) -> bool:
        """A pod that asks for one device of whatever the node offers; the scheduler keeps off cordoned nodes."""
        view, pinned = self.nodes[node], pinned or kind in podkinds.PINNED
        alive = [pod for pod in self.pods[node].values() if pod.phase not in ("Succeeded", "Failed")]
        held = Counter(name for pod in alive for name in (self.by_claim.get(pod.uid), *pod.resources) if name)
        free = [name for name, count in sorted(served(view).items()) if held[name] < count]
        tainted = view.rule_since is not None and self.obeys
        kept_off = view.unschedulable or view.gate is not None or tainted
        if (kept_off and not pinned) or not view.ready or not free:
            return False
        self.serial += 1
        pod = podkinds.make(kind, f"pod-{self.serial}", app, free[0], self.now)
        if self.stack.by_dra and pod.resources and self.serial % 2:  # every other one asks by a claim of its own
            self.by_claim[pod.uid] = free[0]
            pod = replace(pod, resources={}, dra="gpu")
        self.pods[node][pod.uid] = pod
        self.kinds[pod.uid] = kind
        return True

    # --- everybody else -----------------------------------------------------------------------------------

    def act(self, node: str) -> None:
        """Everything on one node moves one step: mig-manager, MPS daemon, plugin, kubelet, agent."""
        self.mig_manager(node)
        self.machines[node].mps(self.nodes[node], self.stack)
        self.plugin(node)
        self.kubelet(node)
        self.agent(node)

    def act_everywhere(self) -> None:
        for name in self.nodes:
            self.act(name)

    def mig_manager(self, node: str) -> None:
        """mig-manager takes a step; a reboot of its takes every pod but the pinned ones with it."""
        machine, view = self.machines[node], self.nodes[node]
        if machine.away:
            self.pods[node] = {uid: pod for uid, pod in self.pods[node].items() if self.kinds[uid] in podkinds.PINNED}
            machine.away = False
            self.nodes[node] = replace(view, ready=True)
            return
        view = patched(view, machine.mig_manager(view, self.stack))
        self.nodes[node] = replace(view, ready=False) if machine.away else view

    def plugin(self, node: str) -> None:
        self.nodes[node] = self.machines[node].plugin(self.nodes[node], self.stack, self.now)

    def kubelet(self, node: str) -> None:
        """Pods whose grace period is over end, but for those that a finalizer keeps."""
        gangs.end_broken(self, node)
        for uid, pod in list(self.pods[node].items()):
            if pod.deleted_at is not None and pod.deleted_at <= self.now and not pod.finalizers:
                del self.pods[node][uid]

    def agent(self, node: str) -> None:
        """The agent takes a turn, when it is up and has a GPUNode."""
        if node in self.gpunodes and node not in self.agents_down:
            gpunode = self.gpunodes[node]
            holders = [p for p in self.pods[node].values() if podkinds.must_leave(p, reboot=False)]
            alive = (pod for pod in self.pods[node].values() if pod.phase not in ("Succeeded", "Failed"))
            allocated = Counter(name for pod in alive for name in pod.resources)
            self.gpunodes[node] = self.machines[node].agent(gpunode, len(holders), allocated)

    # --- the operator -------------------------------------------------------------------------------------

    def restart(self) -> None:
        """The operator's process is killed; another one starts."""
        self.memory = Memory()

    def copy(self) -> Self:
        """A twin that goes its own way; its operator starts anew."""
        return replace(
            self,
            nodes=dict(self.nodes),
            gpunodes=dict(self.gpunodes),
            machines={name: replace(machine, layouts=list(machine.layouts)) for name, machine in self.machines.items()},
            pods={name: dict(pods) for name, pods in self.pods.items()},
            claims=dict(self.claims),
            failed_nodes=dict(self.failed_nodes),
            consents=dict(self.consents),
            by_claim=dict(self.by_claim),
            evicted=set(self.evicted),
            refused=set(self.refused),
            human_cordons=set(self.human_cordons),
            done=list(self.done),
            uids=set(self.uids),
            wires=Wires(dict(self.wires.faults)),
            unlisted=set(self.unlisted),
            ledger=self.ledger.copy(),
            rival=None,
            happened=Counter(),
            memory=replace(
                self.memory,
                memo=Memo(),
                work=dict(self.memory.work),
                evictions={k: dict(v) for k, v in self.memory.evictions.items()},
                failures=dict(self.memory.failures),
            ),
        )

    def snapshot(self) -> ClusterSnapshot:
        return ClusterSnapshot(
            nodes=dict(self.nodes),
            gpunodes=dict(self.gpunodes),
            policies=self.policies,
            stack=replace(self.stack, written=known_times(self.stack.written, self.now)),
            agents=frozenset(self.nodes.keys() - self.agents_down),
            operands={
                program: {
                    name: pods[program]
                    for name, machine in self.machines.items()
                    if program in (pods := machine.operands)
                }
                for program in Program
            },
            claims=dict(self.claims),
            failed_nodes=dict(self.failed_nodes),
            consents=dict(self.consents),
            taint_rules=tuple(
                TaintRuleView(RULE_PREFIX + name, f"uid-rule-{name}", node.rule_since)
                for name, node in sorted(self.nodes.items())
                if node.rule_since is not None
            ),
            work={name: self._work(name) for name in sorted(self.memory.passed.wants_pods & self.nodes.keys())},
            call_failures=dict(self.memory.failures),
            memory=self.memory.passed,
            settings=self.settings,
        )

    def _work(self, node: str) -> NodeWork:
        memories = dict(self.memory.evictions.get(node, {}))
        view = self.nodes[node]
        scope = scope_of(view, self.settings, self.stack, gpunode=self.gpunodes.get(node))
        if node in self.unlisted:
            work = NodeWork((), (), self.now, evictions=memories, error="LIST of its pods failed", scope=scope)
        else:
            pods = self._pods_of(node, all_pods=scope.all_pods)
            found = gangs.find(self, pods, reboot=scope.all_pods)
            work = NodeWork(pods, self._budgets(), self.now, evictions=memories, gangs=found, scope=scope)
        known = self.memory.work
        gpunode = self.gpunodes.get(node)
        known[node] = heard(looked(known.get(node), work, gpunode), gpunode, self.now)
        return known[node]

    def _pods_of(self, node: str, *, all_pods: bool) -> tuple[PodView, ...]:
        """The pods of a node, with what is read of their namespaces: only of those of which a pod has to leave."""
        pods = tuple(self.pods[node].values())
        wanted = {pod.namespace for pod in pods if all_pods or podkinds.holds_gpu(pod)}
        return tuple(self.readable(pod) if pod.namespace in wanted else pod for pod in pods)

    def is_touched(self, node: str, uid: str, gpus: Collection[int]) -> bool:
        """Whether a change that empties these GPUs alone, or all if there are none, concerns the GPU of this pod."""
        return True

    def readable(self, pod: PodView) -> PodView:
        """The pod with the labels of its namespace, whether the operator has read them or not."""
        return replace(pod, namespace_labels=self.namespace)

    def everywhere(self) -> list[PodView]:
        return [pod for pods in self.pods.values() for pod in pods.values()]

    def _budgets(self) -> tuple[PdbView, ...]:
        return tuple(budget.view(self.everywhere()) for budget in self.budgets)

    def plan(self) -> RolloutPlan:
        """The plan of this moment; the memo must make no difference."""
        snapshot = self.snapshot()
        plan = plan_rollout(snapshot, self.now, self.memory.memo)
        self.passes += 1
        if self.passes % MEMO_CHECK == 0:
            rules.hold(plan == plan_rollout(snapshot, self.now), "a memo changes the plan")
        rules.hold(plan.wake_at is None or plan.wake_at > self.now, f"wakes in the past: {plan.wake_at} {self.now}")
        return plan

    def step(self, limit: int | None = None) -> RolloutPlan:
        """One pass; with `limit` the operator is killed after so many actions."""
        plan = self.plan()
        beside = leaders.plan_beside(self)
        self.happened.update(tally.of_plan(self, plan))
        promises.check_plan(self, plan)
        server.forget_answers(self)
        calls = len(plan.shared) + sum(len(verdict.actions) for verdict in plan.verdicts.values())
        send(plan, self.wires, self.memory.failures, self.now, self.carry_out, limit)
        if limit is not None and limit < calls:
            self.restart()
            return plan
        self.remember(plan)
        if beside is not None:
            leaders.carry_out_beside(self, *beside)
        return plan

    def killed(self, plan: RolloutPlan) -> Iterator[Self]:
        """Yield a twin for each action of the plan, whose operator was killed before it."""
        actions = sum(len(verdict.actions) for verdict in plan.verdicts.values())
        for limit in range(len(plan.shared) + actions):
            twin = self.copy()
            twin.step(limit=limit)
            yield twin

    def remember(self, plan: RolloutPlan) -> None:
        """What the operator keeps of a pass for the next one."""
        memory = self.memory
        for name in memory.work.keys() - plan.memory.wants_pods:
            del memory.work[name]
        memory.passed = plan.memory

    def carry_out(self, action: Action) -> None:
        rules.check(self, action)
        promises.check(self, action)
        self.happened.update(tally.of_action(self, action))
        self.done.append(action)
        server.carry_out(self, action)

    def resolves_to_mig(self, config: str) -> bool:
        return any(row.get("mig-enabled") for row in parse_mig_file(self.stack.mig_file).get(config, ()))

    # --- time ---------------------------------------------------------------------------------------------

    def settle(
        self,
        rounds: int = 1500,
        *,
        approving: bool = False,
        people: Callable[["World", RolloutPlan], bool] | None = None,
    ) -> RolloutPlan:
        """Let everybody act until nothing moves any more, not even by the clock. The last plan.

        `approving`: see `habits.people_let_it_go_on`. `people` see every plan and say whether they did anything.
        """
        still = 0
        for _ in range(rounds):
            before = self._state()
            for node in self.nodes:
                self.act(node)
            wanted, plan = self.memory.passed.wants_pods, self.step()
            if approving:
                habits.people_let_it_go_on(self, plan)
            acted = people is not None and people(self, plan)
            # Pods that a plan has named already are listed again for ever, every few minutes.
            asked = {one.node for one in plan.verdicts.values() if one.wants_pods}
            news = asked | (plan.memory.wants_pods - plan.memory.previews.keys())
            moved = acted or self._state() != before or bool(news - wanted)
            still = 0 if moved else still + 1
            if rules.is_settled(plan) and (still > POLLS or (still and plan.wake_at is None)):
                return plan
            soon = self.now + timedelta(seconds=1)
            self.now = soon if moved else max(plan.wake_at or soon, soon)
        raise rules.Broken(f"(f) no fixpoint after {rounds} rounds: {plan.verdicts}")

    def _state(self) -> tuple[object, ...]:
        objects = (dict(self.nodes), dict(self.gpunodes), self.policies, self.claims, self.failed_nodes, self.consents)
        return *objects, self.stack, {name: dict(pods) for name, pods in self.pods.items()}, len(self.done)
