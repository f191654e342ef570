"""Budgets that our own evictions use up: a node that waits for them waits its turn, and nobody is told to repair pods."""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import JOB, NOW, at, make_memory, make_node, make_pdb, make_pod, make_snapshot, make_work
from tests.planning.budgets import Budget
from tests.planning.drainpass import SCOPE
from tests.planning.recovery import WAITS, wanted
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.policy import Drain, LabelSelector
from gpusharing.planning.drain.evictions import REPLACED_WITHIN, is_in_use, with_evicted
from gpusharing.planning.drain.plan import crowding, due_under
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.report.events import Event, node_events
from gpusharing.planning.snapshot.memory import Evicted, PassMemory
from gpusharing.planning.snapshot.podviews import NodeWork, PdbView, PodView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason

# --- which evictions count ------------------------------------------------------------------------------------------

FULL, ROOMY = make_pdb(allowed=0, current=2), make_pdb()
BEFORE = Evicted("a", "team-a/llm", at(-60))


def evicting(pdb: PdbView, reason: Reason = Reason.EVICTED, *, app: str = "llm") -> NodeWork:
    """A node on which the eviction of a pod of that app had this answer half a minute ago."""
    memory = replace(make_memory(reason, next_try=at(30)), asked_at=at(-30))
    pod = make_pod(labels={"app": app})
    return make_work(pod, pdbs=[pdb], evictions={pod.uid: memory})


def known(*before: Evicted, **work: NodeWork) -> list[tuple[str, str]]:
    memory = PassMemory(evicted={f"uid-{n}": one for n, one in enumerate(before)})
    after = with_evicted(make_snapshot([make_node("a")], work=work, memory=memory), NOW)
    return sorted((one.node, one.budget) for one in after.memory.evicted.values())


A, B = ("a", "team-a/llm"), ("b", "team-a/llm")
COUNTED = {
    "an eviction that was accepted": (known(b=evicting(FULL)), [B]),
    "a pod that was deleted by force": (known(b=evicting(FULL, Reason.FORCE_DELETE)), [B]),
    "an eviction that was refused": (known(b=evicting(FULL, Reason.PDB)), []),
    "an eviction under no budget": (known(b=evicting(FULL, app="web")), []),
    "an earlier one, while its budget has no room": (known(BEFORE, b=make_work(pdbs=[FULL])), [A]),
    "an earlier one, while nobody lists its budget": (known(BEFORE), [A]),
    "an earlier one, once its budget has room again": (known(BEFORE, b=make_work(pdbs=[ROOMY])), []),
    "an earlier one, whose budget was listed before it": (
        known(BEFORE, b=make_work(pdbs=[ROOMY], listed_at=at(-61))), [A]),
    "an earlier one that made the budget refuse another, until that is tried again": (
        known(BEFORE, b=evicting(ROOMY, Reason.PDB)), [A]),
    "an earlier one for as long as a replacement may take": (
        known(replace(BEFORE, at=NOW - REPLACED_WITHIN), replace(BEFORE, at=at(1) - REPLACED_WITHIN)), [A]),
}  # fmt: skip


@pytest.mark.parametrize(("found", "counted"), COUNTED.values(), ids=COUNTED.keys())
def test_an_eviction_of_ours_counts_if_it_is(found: list[tuple[str, str]], counted: list[tuple[str, str]]) -> None:
    assert found == counted


IN_USE = {
    "one of three is being replaced": (2, ("a",), True),
    "its controller has not seen the eviction yet": (3, ("a",), True),
    "two of three are being replaced": (1, ("a", "b"), True),
    "another pod is broken, too": (1, ("a",), False),
    "we evicted none": (2, (), False),
}


@pytest.mark.parametrize(("healthy", "nodes", "in_use"), IN_USE.values(), ids=IN_USE.keys())
def test_a_budget_comes_back_with_our_replacements_when(healthy: int, nodes: tuple[str, ...], in_use: bool) -> None:
    assert is_in_use(replace(make_pdb(allowed=0, current=healthy), evicted_from=nodes)) is in_use


# --- which evictions hold up other nodes -----------------------------------------------------------------------------

LLM, LATE = make_pod(), make_pod("web-0", labels={"app": "web"})
JOB_POD = make_pod("train-0", owner=JOB, labels={"app": "train"}, restarts=False)
LAST: dict[str, Any] = {"rules": [{"podSelector": {"matchLabels": {"app": "llm"}}, "behavior": "Evict", "order": 5}]}
OVER: dict[str, Any] = {"jobs": {"timeout": "10s", "onTimeout": "Evict"}}
SILENT: dict[str, Any] = {"scope": replace(SCOPE, cordoned_at=at(-60), silent=True)}
DUE: dict[str, tuple[tuple[PodView, ...], dict[str, Any], dict[str, Any], int]] = {
    "no pod comes before it": ((LLM,), {}, {}, 1),
    "a pod under another order comes first": ((LLM, LATE), LAST, {}, 1),
    "the pods before it are gone": ((LLM,), LAST, {}, 1),
    "a job has its time": ((LLM, JOB_POD), {}, {}, 0),
    "a job will have its time after the cordon": ((LLM, JOB_POD), {}, {"scope": SCOPE, "cordoned": False}, 0),
    "the time of the job is over": ((LLM, JOB_POD), OVER, {}, 1),
    "nobody knows whether the pods still run": ((LLM,), {}, SILENT, 0),
}


@pytest.mark.parametrize(("pods", "drain", "found", "count"), DUE.values(), ids=DUE.keys())
def test_a_pod_takes_room_in_its_budget_from_the_moment_of_its_turn(
    pods: tuple[PodView, ...], drain: dict[str, Any], found: dict[str, Any], count: int
) -> None:
    work = make_work(*pods, pdbs=[make_pdb()])
    found = {"scope": replace(SCOPE, cordoned_at=at(-60)), **found}
    due = due_under(find_standings(work, Drain.model_validate(drain), NOW, **found))
    assert due == ({"team-a/llm": count} if count else {})


def test_a_node_that_waits_for_others_under_its_budget_names_a_few_of_them() -> None:
    standings = find_standings(make_work(LLM, pdbs=[make_pdb()]), Drain(), NOW, scope=SCOPE, cordoned=False)
    crowd = {"team-a/llm": Counter({f"gpu-{number}": 1 for number in range(5)}), "team-a/web": Counter({"gpu-9": 1})}
    (found,) = crowding(standings, crowd)
    assert (found.reason, found.pods, found.pdb) == (Reason.PDB_IN_USE, ("team-a/llm-0",), "team-a/llm")
    assert not lacks(found.message, "gpu-0, gpu-1, gpu-2 and 2 more")


# --- Deployments, whose replacements take their time ----------------------------------------------------------------


@dataclass
class Workloads:
    """Deployments in a World, and what the operator tells while they move."""

    world: World
    replicas: dict[str, int]
    starts_in: timedelta = timedelta(seconds=45)
    told: list[Event] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def settle(self) -> None:
        self.world.settle()
        self._replace()
        self._start(timedelta(0))

    def go_on(self, seconds: int) -> None:
        world = self.world
        until = world.now + timedelta(seconds=seconds)
        while world.now < until:
            for node in world.nodes:
                world.act(node)
            self._replace()
            self._start(self.starts_in)
            plan = world.step()
            for name, after in plan.verdicts.items():
                self.told += node_events(self.verdicts.get(name), after)
                self.verdicts[name] = after
            if all(one.phase in (Phase.SYNCED, Phase.SKIPPED) for one in self.verdicts.values()):
                return
            world.now += timedelta(seconds=1)

    def _replace(self) -> None:
        for app, count in self.replicas.items():
            alive = sum(pod.labels.get("app") == app and pod.deleted_at is None for pod in self.world.everywhere())
            for node in sorted(self.world.nodes, key=lambda name: len(self.world.pods[name])):
                if alive < count and self.world.add_pod(node, app=app):
                    alive += 1
                    uid, pod = self.world.pods[node].popitem()
                    self.world.pods[node][uid] = replace(pod, ready=False)

    def _start(self, after: timedelta) -> None:
        for pods in self.world.pods.values():
            for uid, pod in pods.items():
                if not pod.ready and pod.created is not None and pod.created + after <= self.world.now:
                    pods[uid] = replace(pod, ready=True)

    def phase(self, node: str) -> Phase:
        return self.verdicts[node].phase

    @property
    def warnings(self) -> list[str]:
        return [f"{event.reason} {event.note}" for event in self.told if event.type == "Warning"]


def workloads(nodes: int, *budgets: Budget, most: int = 1) -> Workloads:
    """A pool of nodes, each divided into shares, on which Deployments run under budgets."""
    world = World(settings=WAITS, budgets=budgets)
    for number in range(nodes):
        world.add_node(f"gpu-{number}")
    world.set_policy(drained(1, most))
    running = Workloads(world, {budget.app: budget.replicas for budget in budgets})
    running.settle()
    return running


def drained(mode: int, most: int, name: str = "pool-b", jobs: str = "1h", **labels: str) -> PolicyView:
    policy = wanted(name, mode, most)
    assert policy.spec is not None, "made from a good spec"
    waits = policy.spec.drain.jobs.model_copy(update={"timeout": jobs})
    update: dict[str, Any] = {"drain": policy.spec.drain.model_copy(update={"timeout": "30m", "jobs": waits})}
    if labels:
        update["node_selector"] = LabelSelector.model_validate({"matchLabels": labels})
    return replace(policy, spec=policy.spec.model_copy(update=update))


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize(
    "budgets",
    [
        (Budget("llm", "llm", 3, replicas=4),),
        (Budget("llm", "llm", 3, replicas=4), Budget("free", "free", 1, replicas=2)),
        (Budget("llm", "llm", 2, replicas=4), Budget("free", "free", 2, replicas=3)),
    ],
    ids=["one budget", "two budgets", "two budgets, one with more room"],
)
def test_a_healthy_rollout_writes_no_warning(budgets: tuple[Budget, ...], most: int) -> None:
    running = workloads(4, *budgets, most=most)
    running.world.set_policy(drained(3, most))
    running.go_on(1800)
    assert {one.phase for one in running.verdicts.values()} == {Phase.SYNCED}
    assert running.warnings == []
    assert len(running.world.evicted) >= 4


def waiting_behind_a_replacement(starts_in: timedelta) -> Workloads:
    """gpu-0 or gpu-1 has changed, and the other one waits because a pod that was on it is not Ready elsewhere."""
    running = workloads(2, Budget("llm", "llm", 1, replicas=2))
    running.starts_in = starts_in
    running.world.set_policy(drained(3, 1))
    running.go_on(120)
    return running


def test_a_node_waits_its_turn_while_what_we_evicted_is_being_replaced() -> None:
    running = waiting_behind_a_replacement(timedelta(minutes=5))
    (done,) = (one.node for one in running.verdicts.values() if one.phase is Phase.SYNCED)
    (waits,) = (one for one in running.verdicts.values() if one.phase is not Phase.SYNCED)
    assert (waits.phase, waits.reason) == (Phase.PENDING, Reason.PDB_IN_USE)
    assert not lacks(waits.message, done, "1 of 2 pods")
    assert "Remedy" not in waits.message
    running.go_on(1800)
    assert {one.phase for one in running.verdicts.values()} == {Phase.SYNCED}
    assert running.warnings == []


def test_a_replacement_that_is_not_ready_after_ten_minutes_blocks_with_the_remedy() -> None:
    running = waiting_behind_a_replacement(timedelta(days=1))
    assert running.warnings == []
    running.go_on(int(REPLACED_WITHIN.total_seconds()))
    (waits,) = (one for one in running.verdicts.values() if one.phase is not Phase.SYNCED)
    assert (waits.phase, waits.reason) == (Phase.BLOCKED, Reason.PDB)
    assert "Remedy: Get the unready pods running again" in waits.message
    (warning,) = running.warnings
    assert warning.startswith(f"PodEvictionBlocked {waits.node}: PDB team-a/llm: Pod team-a/")


def test_after_a_restart_of_the_operator_it_is_blocked_until_the_replacement_is_ready() -> None:
    running = waiting_behind_a_replacement(timedelta(minutes=5))
    running.world.restart()
    running.go_on(30)
    assert (Phase.BLOCKED, Reason.PDB) in {(one.phase, one.reason) for one in running.verdicts.values()}
    running.go_on(1800)
    assert {one.phase for one in running.verdicts.values()} == {Phase.SYNCED}


def test_a_budget_that_another_broken_pod_uses_up_as_well_blocks() -> None:
    running = waiting_behind_a_replacement(timedelta(days=1))
    (done,) = (one.node for one in running.verdicts.values() if one.phase is Phase.SYNCED)
    for pods in running.world.pods.values():
        for uid, pod in pods.items():
            pods[uid] = replace(pod, ready=False)
    running.world.budgets = (Budget("llm", "llm", 2, replicas=4),)
    running.go_on(70)
    (waits,) = (one for one in running.verdicts.values() if one.node != done)
    assert waits.phase in (Phase.BLOCKED, Phase.DRAINING)
    assert waits.reason is not Reason.PDB_IN_USE


# --- nodes that wait for jobs ---------------------------------------------------------------------------------------


def beside_a_job(*policies: str) -> Workloads:
    """gpu-0 has a job with a day left and gpu-1 a pod under the same budget; each has a policy, or both the same."""
    running = workloads(3, Budget("llm", "llm", 1, replicas=2), most=3)
    world = running.world
    for number in range(3):
        name = f"gpu-{number}"
        node = world.nodes[name]
        world.nodes[name] = replace(node, labels={**node.labels, "team": policies[number] if number < 2 else "none"})
        world.pods[name].clear()
    running.world.delete_policy("pool-b")
    for name in policies:
        world.set_policy(drained(1, 3, name, "23h", team=name))
    world.settle()
    for name in ("gpu-0", "gpu-1"):
        assert world.add_pod(name)
    return running


def end_jobs(world: World) -> None:
    for pods in world.pods.values():
        for uid in [uid for uid in pods if world.kinds[uid] == "a pod of a Job that ends"]:
            pods[uid] = replace(pods[uid], phase="Succeeded")


@pytest.mark.parametrize("policies", [("one", "two"), ("one", "one")], ids=["of other policies", "of one policy"])
def test_a_node_that_waits_for_its_jobs_holds_up_no_other_under_its_budgets(policies: tuple[str, str]) -> None:
    running = beside_a_job(*policies)
    assert running.world.add_pod("gpu-0", "a pod of a Job that ends", app="train")
    for name in policies:
        running.world.set_policy(drained(3, 3, name, "23h", team=name))
    running.go_on(300)
    assert running.phase("gpu-0") is Phase.WAITING_FOR_JOBS
    assert running.phase("gpu-1") is Phase.SYNCED
    end_jobs(running.world)
    running.go_on(1200)
    assert running.phase("gpu-0") is Phase.SYNCED
    assert running.warnings == []


def test_nodes_whose_jobs_end_together_share_a_budget_and_name_each_other() -> None:
    running = beside_a_job("one", "two")
    for name in ("gpu-0", "gpu-1"):
        assert running.world.add_pod(name, "a pod of a Job that ends", app="train")
    for name in ("one", "two"):
        running.world.set_policy(drained(3, 3, name, "23h", team=name))
    running.go_on(60)
    assert {running.phase(name) for name in ("gpu-0", "gpu-1")} == {Phase.WAITING_FOR_JOBS}
    end_jobs(running.world)
    running.go_on(30)
    first, second = sorted(("gpu-0", "gpu-1"), key=lambda name: bool(running.verdicts[name].blockers))
    assert (running.phase(second), running.verdicts[second].reason) == (Phase.DRAINING, Reason.PDB_IN_USE)
    assert f"evicted from {first} are being replaced" in running.verdicts[second].message
    running.go_on(1200)
    assert {running.phase(name) for name in ("gpu-0", "gpu-1")} == {Phase.SYNCED}
    assert running.warnings == []
