"""The metrics page (controller/metrics.py, controller/gauges.py): every name is there, parses, and counts what happened."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, get_args

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.build import make_fence, make_policy
from tests.chart.test_monitoring import OPERATOR
from tests.planning.machines import NodeMachine
from tests.planning.told import CHANGING, DRAINING, SYNCED
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.role import ProcessMetrics
from gpusharing.kube.client import GPUNODES, NODES, ApiRequest
from gpusharing.kube.pageserver import metrics_page
from gpusharing.planning.snapshot.actions import Action, SetFinalizer
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.vocabulary.findings import Blocker, Finding
from gpusharing.planning.vocabulary.reasons import Reason

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Value by label values, in the order in which the labels are declared."""
    found: Iterator[Metric] = (family for family in metrics.registry.collect() if family.name == name)
    return {
        tuple(sample.labels.values()): sample.value
        for family in found
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def pool(*nodes: str, **fields: Any) -> World:
    """Nodes of a policy of mode Full that are not proven yet."""
    world = World()
    for name in nodes:
        world.add_node(name, NodeMachine(name))
    world.set_policy(make_policy(mode="Full", **fields))
    return world


def test_the_page_parses_and_every_metric_is_ours_and_explained(metrics: Metrics) -> None:
    metrics.process.called(ApiRequest("patch", GPUNODES, "status"), 200)
    status, body, content_type = metrics_page(metrics.registry)()
    assert (status, content_type.partition(";")[0]) == (200, "text/plain")
    families = list(text_string_to_metric_families(body.decode()))
    told = {family.name for family in families if not family.name.endswith("_created")}
    assert told == {name.removesuffix("_total") for name in OPERATOR}
    assert all(family.documentation for family in families)


def test_the_version_of_the_operator_is_a_metric(metrics: Metrics) -> None:
    assert samples(metrics, "gpusharing_build_info") == {(version("gpu-sharing-operator"), "operator"): 1}


def test_a_standby_has_no_metric_that_a_sum_over_both_processes_would_count_twice() -> None:
    names = {family.name for family in ProcessMetrics().registry.collect()}
    assert names == {"gpusharing_api_requests", "gpusharing_build_info", "gpusharing_leader"}


def test_calls_count_by_verb_resource_and_status(metrics: Metrics) -> None:
    metrics.process.called(ApiRequest("patch", GPUNODES, "status"), 200)
    metrics.process.called(ApiRequest("patch", GPUNODES, "status"), 200)
    metrics.process.called(ApiRequest("list", NODES), 0)
    assert samples(metrics, "gpusharing_api_requests") == {
        ("patch", "gpunodes/status", "200"): 2,
        ("list", "nodes", "0"): 1,
    }


def test_a_phase_counts_when_it_is_entered_and_not_when_it_is_found(metrics: Metrics) -> None:
    metrics.changed(None, SYNCED)
    metrics.changed(DRAINING, DRAINING)
    metrics.changed(DRAINING, CHANGING)
    assert samples(metrics, "gpusharing_transitions") == {("Reconfiguring", "ActuationInProgress"): 1}


def test_a_phase_is_timed_from_its_beginning_to_its_end() -> None:
    now = iter((100.0, 190.0, 190.0))
    metrics = Metrics(clock=lambda: next(now))
    metrics.changed(DRAINING, CHANGING)
    metrics.changed(CHANGING, replace(CHANGING, phase=Phase.VERIFYING))
    drained = metrics.registry.get_sample_value("gpusharing_phase_seconds_count", {"phase": "Draining"})
    assert drained == 0, "nobody saw it begin, and the series is there"
    assert metrics.registry.get_sample_value("gpusharing_phase_seconds_sum", {"phase": "Reconfiguring"}) == 90


def test_a_pass_tells_what_a_budget_allows_and_what_keeps_nodes() -> None:
    cost = {"gpuHourlyPrice": "3.20", "currency": "EUR"}
    metrics, world = Metrics(), pool("gpu-1", "gpu-2", "gpu-3", rollout={"maxUnavailable": 2}, cost=cost)
    plan = world.plan()
    blockers = (
        Blocker(Reason.PDB, ("a/x", "a/y"), "a/pdb"),
        Blocker(Reason.PDB, ("a/x",), "a/other"),
        Blocker(Reason.UNMANAGED, ("a/z",)),
        Blocker(Reason.PODS_LEAVING, ("a/gone",)),
    )
    first, second, third = (plan.verdicts[name] for name in ("gpu-1", "gpu-2", "gpu-3"))
    told = {
        "gpu-1": replace(first, blockers=blockers),
        "gpu-2": replace(second, reason=Reason.HALTED),
        "gpu-3": replace(third, reason=Reason.ORPHAN_FENCE),
    }
    pools = {"pool-b": replace(plan.pools["pool-b"], used=1)}
    metrics.passed({}, replace(plan, verdicts=told, pools=pools), world.snapshot())
    assert samples(metrics, "gpusharing_policy_budget_allowed_nodes") == {("pool-b",): 2}
    assert samples(metrics, "gpusharing_policy_budget_used_nodes") == {("pool-b",): 1}
    assert samples(metrics, "gpusharing_policy_halted") == {("pool-b",): 1}
    assert samples(metrics, "gpusharing_policy_gpu_hourly_price") == {("pool-b", "EUR"): 3.2}
    assert samples(metrics, "gpusharing_orphan_nodes") == {(): 1}
    assert samples(metrics, "gpusharing_drain_blocked_pods") == {("pool-b", "PDB"): 2, ("pool-b", "Unmanaged"): 1}, (
        "a pod counts once for each reason, and one that is leaving blocks nothing"
    )
    world.settle()
    metrics.passed({}, world.plan(), world.snapshot())
    assert samples(metrics, "gpusharing_drain_blocked_pods") == {}
    assert samples(metrics, "gpusharing_policy_halted") == {("pool-b",): 0}
    assert samples(metrics, "gpusharing_orphan_nodes") == {(): 0}


def test_the_age_of_what_makes_no_progress_is_that_of_the_oldest_node() -> None:
    now = [0.0]
    metrics, world = Metrics(clock=lambda: now[0]), pool("gpu-1", "gpu-2", "gpu-3")
    plan, agents = world.plan(), frozenset({"gpu-1", "gpu-3"})
    drained = replace(plan.verdicts["gpu-1"], phase=Phase.DRAINING, reason=Reason.PODS_LEAVING)
    blocked = replace(plan.verdicts["gpu-2"], phase=Phase.BLOCKED, reason=Reason.ALREADY_CORDONED)
    waits = replace(plan.verdicts["gpu-3"], phase=Phase.PENDING, reason=Reason.BUDGET_FULL)

    def told(at: float, *pods: str) -> dict[str, dict[tuple[str, ...], float]]:
        """What is told a minute after a pass in which these pods are in the way of the first node."""
        now[0] = at
        held = Blocker(Reason.PDB, pods)
        others = (Blocker(Reason.JOBS_RUNNING, ("a/job",)), Blocker(Reason.GRACE_TOO_LONG, ("a/b",), until=NOW))
        one = replace(drained, blockers=(held, *others) if pods else others)
        verdicts = {"gpu-1": one, "gpu-2": blocked, "gpu-3": replace(waits, blockers=(held,))}
        snapshot = replace(world.snapshot(), agents=agents)
        metrics.passed({}, replace(plan, verdicts=verdicts), snapshot)
        now[0] += 60
        names = ("drain_blocked", "policy_blocked", "policy_without_agent")
        return {name: samples(metrics, f"gpusharing_{name}_seconds") for name in names}

    told(0, "a/x", "a/y")
    assert told(600, "a/x", "a/y") == {
        "drain_blocked": {("pool-b", "PDB"): 660},
        "policy_blocked": {("pool-b", "AlreadyCordoned"): 660},
        "policy_without_agent": {("pool-b",): 660},
    }
    assert told(1200, "a/y")["drain_blocked"] == {("pool-b", "PDB"): 60}, "a pod has left"
    assert told(1300)["drain_blocked"] == {}
    agents = frozenset({"gpu-1", "gpu-2", "gpu-3"})
    blocked = replace(blocked, phase=Phase.PENDING, reason=Reason.PAUSED)
    assert told(1400) == {"drain_blocked": {}, "policy_blocked": {}, "policy_without_agent": {}}


def test_changes_that_were_given_up_count_for_the_revision_that_is_wanted() -> None:
    metrics, world = Metrics(), pool("gpu-1", "gpu-2")
    plan, snapshot = world.plan(), world.snapshot()
    version = plan.pools["pool-b"].policy.version
    for count, of, told in ((4, version, 4), (4, replace(version, revision="other"), 0)):
        deferred = Deferred(count, NOW, "DrainTimeout", of)
        nodes = {**snapshot.nodes, "gpu-2": replace(snapshot.nodes["gpu-2"], deferred=deferred)}
        metrics.passed({}, plan, replace(snapshot, nodes=nodes))
        assert samples(metrics, "gpusharing_policy_abandoned_changes") == {("pool-b",): told}


def test_actions_count_by_kind_and_result(metrics: Metrics) -> None:
    metrics.acted(SetFinalizer("pool-b", present=True), "done")
    assert samples(metrics, "gpusharing_actions") == {("SetFinalizer", "done"): 1}


def test_every_kind_of_action_is_told_from_0_on_so_that_the_first_counts(metrics: Metrics) -> None:
    assert samples(metrics, "gpusharing_actions") == {}, "this process does not lead"
    settled(metrics)
    none = samples(metrics, "gpusharing_actions")
    assert none == {(kind.__name__, "done"): 0 for kind in get_args(Action)}
    metrics.acted(SetFinalizer("pool-b", present=True), "done")
    tell(metrics, World())
    assert samples(metrics, "gpusharing_actions") == {**none, ("SetFinalizer", "done"): 1}


def test_a_pass_tells_its_seconds_and_the_nodes_of_each_policy_by_phase(metrics: Metrics) -> None:
    world = pool("gpu-07")
    world.settle()
    metrics.passed({"plan": 0.003, "execute": 0.2}, world.plan(), world.snapshot())
    assert samples(metrics, "gpusharing_policy_nodes") == {("pool-b", "Synced"): 1}
    assert metrics.registry.get_sample_value("gpusharing_pass_seconds_count", {"step": "plan"}) == 1
    assert metrics.registry.get_sample_value("gpusharing_pass_seconds_sum", {"step": "execute"}) == 0.2
    assert samples(metrics, "gpusharing_policy_unhealthy_nodes") == {}
    plan = world.plan()
    unhealthy = replace(plan.verdicts["gpu-07"], health=Finding(Reason.GPU_LOST, "GPU 0: lost"))
    metrics.passed({}, replace(plan, verdicts={"gpu-07": unhealthy}), world.snapshot())
    assert samples(metrics, "gpusharing_policy_unhealthy_nodes") == {("pool-b", "GPULost"): 1}
    world.remove_node("gpu-07")
    metrics.passed({}, world.plan(), world.snapshot())
    assert samples(metrics, "gpusharing_policy_nodes") == {}, "a phase without nodes is gone"


def settled(metrics: Metrics, *nodes: str) -> World:
    world = pool(*nodes)
    world.settle()
    tell(metrics, world)
    return world


def tell(metrics: Metrics, world: World) -> None:
    metrics.passed({}, world.plan(), world.snapshot())


def test_what_moves_counts_by_policy_from_0_on_and_as_long_as_there_is_the_policy(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-07")
    moves = "gpusharing_policy_transitions"
    assert samples(metrics, moves) == {("pool-b",): 0}
    metrics.changed(DRAINING, CHANGING)
    metrics.changed(CHANGING, CHANGING)
    metrics.changed(replace(DRAINING, policy=""), replace(CHANGING, policy=""))
    assert samples(metrics, moves) == {("pool-b",): 1}
    metrics.passed({}, replace(world.plan(), pools={}), world.snapshot())
    assert samples(metrics, moves) == {}


def test_each_restart_that_ended_mps_clients_counts_by_policy_from_0_on(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-07")
    ended = "gpusharing_policy_mps_clients_ended"
    assert samples(metrics, ended) == {("pool-b",): 0}
    seen = [
        replace(SYNCED, mps_pod=Operand("gpu-operator", "mps-x", "uid", True, lone_restarts=count))
        for count in (0, 1, 3)
    ]
    for before, after in (
        (None, seen[1]),
        (SYNCED, seen[1]),
        (seen[0], seen[1]),
        (seen[1], seen[2]),
        (seen[2], SYNCED),
    ):
        metrics.changed(before, after)
    assert samples(metrics, ended) == {("pool-b",): 3}
    metrics.passed({}, replace(world.plan(), pools={}), world.snapshot())
    assert samples(metrics, ended) == {}


def test_the_conditions_are_those_of_the_object_and_go_with_the_policy(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-1")
    condition = "gpusharing_policy_condition"
    assert samples(metrics, condition) == {}, "nothing was written yet"
    rows = [
        {"type": "Ready", "status": "False", "reason": "Draining", "message": "1 of 2 nodes"},
        {"type": "Stalled", "status": "False", "reason": "Draining", "message": ""},
    ]
    metrics.status_of = {"pool-b": {"conditions": rows}, "gone": {"conditions": rows}}.__getitem__
    stalled = ("pool-b", "Stalled", "False", "Draining")
    assert samples(metrics, condition) == {("pool-b", "Ready", "False", "Draining"): 1, stalled: 1}
    rows[0] |= {"status": "True", "reason": "Synced"}
    assert samples(metrics, condition) == {("pool-b", "Ready", "True", "Synced"): 1, stalled: 1}
    metrics.passed({}, replace(world.plan(), pools={}), world.snapshot())
    assert samples(metrics, condition) == {}


def test_a_node_that_differs_from_its_proof_is_drifted_until_its_change_begins(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-1", "gpu-2")
    drifted = "gpusharing_policy_drifted_nodes"
    assert samples(metrics, drifted) == {("pool-b",): 0}
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], resources={"nvidia.com/gpu": 5})
    tell(metrics, world)
    assert samples(metrics, drifted) == {("pool-b",): 1}
    world.nodes["gpu-1"] = replace(world.nodes["gpu-1"], fence=make_fence())
    tell(metrics, world)
    assert samples(metrics, drifted) == {("pool-b",): 0}


def test_a_node_whose_agent_is_not_ready_counts(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-1", "gpu-2")
    world.agents_down.add("gpu-2")
    assert samples(metrics, "gpusharing_policy_nodes_without_agent") == {("pool-b",): 0}
    tell(metrics, world)
    assert samples(metrics, "gpusharing_policy_nodes_without_agent") == {("pool-b",): 1}


def test_slices_and_pods_that_wait_for_them_are_counted_when_somebody_asks(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-1", "gpu-2")
    waiting = {"nvidia.com/mig-1g.10gb": 3}
    metrics.passed({}, world.plan(), replace(world.snapshot(), pending=waiting))
    served = sum(node.resources["nvidia.com/gpu"] for node in world.nodes.values())
    assert samples(metrics, "gpusharing_policy_slices") == {("pool-b", "nvidia.com/gpu"): served}
    assert samples(metrics, "gpusharing_policy_slices_idle") == {("pool-b", "nvidia.com/gpu"): served}
    assert samples(metrics, "gpusharing_pending_pods") == {("nvidia.com/mig-1g.10gb",): 3}


def test_gpus_are_counted_by_the_mode_of_their_policy(metrics: Metrics) -> None:
    world = settled(metrics, "gpu-1", "gpu-2")
    reports = world.snapshot().gpunodes
    count = sum(len(one.observed.gpus) for one in reports.values() if one.observed is not None)
    assert samples(metrics, "gpusharing_policy_gpus") == {("pool-b", "Full"): count}
