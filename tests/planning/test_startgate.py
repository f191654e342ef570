"""Nodes that join behind the start-up taint (docs/design/transition.md#gate): what they are told, and what they cost."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import (
    H100,
    NOW,
    make_claim,
    make_cluster_policy,
    make_fence,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_stack,
    make_work,
)
from tests.planning.cases import FULL, MIXED, case_of, judged, make_case, pool_of, run_until, world_of, wrote
from tests.planning.machines import NodeMachine
from tests.planning.newcomers import begun, fleet
from tests.planning.promises import approve
from tests.planning.world import World
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.pools.holds import propose
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import Actuate, FenceNode, LabelNode, Release, UpdateFence
from gpusharing.planning.snapshot.nvidia import (
    PLUGIN_SWITCH,
    ClusterPolicyView,
    DaemonSetState,
    DraView,
    NodeDevices,
    PlainStackView,
)
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.stack.installationviews import Place
from gpusharing.planning.stack.requirements import TOLERATION, with_toleration
from gpusharing.planning.transition.fencing import find_closed
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Reason

GATED: dict[str, Any] = {"gate": "[]"}
WRITES = (FenceNode, Actuate, UpdateFence, Release, LabelNode)
INTOLERANT = make_cluster_policy(tolerates_gate=False, tolerations='[{"key":"nvidia.com/gpu","operator":"Exists"}]')


# --- the way of a node behind the taint ---------------------------------------------------------------------


def test_a_node_that_joins_is_brought_to_its_layout_and_loses_the_taint_with_the_release() -> None:
    world = pool_of(1, MIXED)
    world.add_node("new", gated=True)
    done = len(world.done)
    world.settle()
    assert world.nodes["new"].gate is None
    steps = [type(one).__name__ for one in world.done[done:] if isinstance(one, WRITES)]
    assert steps == ["FenceNode", "Actuate", "Release"], "no write more than without the taint"


def test_a_node_that_joins_as_it_is_wanted_loses_the_taint_without_a_disturbance() -> None:
    world = pool_of(1)
    world.add_node("new", gated=True)
    done = len(world.done)
    world.settle()
    assert world.nodes["new"].gate is None
    assert [type(one).__name__ for one in world.done[done:] if isinstance(one, WRITES)] == ["LabelNode"]


def test_a_proven_node_that_is_tainted_again_is_proven_by_what_it_shows_now() -> None:
    verdict = judged(make_case(FULL, node=GATED))
    (action,) = verdict.actions
    assert isinstance(action, LabelNode)
    assert action.verified is not None, "only a proof takes the taint"
    assert verdict.reason is Reason.ADOPTABLE


def test_an_abort_leaves_the_taint() -> None:
    world = World()
    world.set_policy(MIXED)
    world.add_node("new", gated=True)
    run_until(world, Phase.CORDONED, node="new")
    world.nodes["new"] = replace(world.nodes["new"], unschedulable=False)
    world.step()
    assert wrote(world, Release) == ["Release"]
    assert world.nodes["new"].gate is not None


NOT_YET: dict[str, tuple[NodeCase, Reason]] = {
    "nobody owns it": (make_case(None, node=GATED), Reason.UNOWNED),
    "its agent is not Ready": (make_case(FULL, node=GATED, agent_ready=False), Reason.AGENT_NOT_READY),
    "it is not Ready": (make_case(FULL, node={**GATED, "ready": False}), Reason.NODE_NOT_READY),
    "nobody has read it": (
        make_case(FULL, node=GATED, gpunode={"observed": None}), Reason.OBSERVATION_PENDING,
    ),
    "somebody cordoned it": (
        make_case(MIXED, node={**GATED, "unschedulable": True}), Reason.ALREADY_CORDONED,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), NOT_YET.values(), ids=NOT_YET)
def test_the_taint_stays_and_the_reason_says_so_while(case: NodeCase, reason: Reason) -> None:
    verdict = judged(case)
    assert verdict.reason is reason
    assert not lacks(verdict.message, "no workload starts", "taint gpusharing.dev/unproven")
    assert not any(isinstance(action, LabelNode) and action.verified for action in verdict.actions)


def test_without_the_taint_no_message_speaks_of_it() -> None:
    assert "taint" not in judged(make_case(None)).message


def test_a_node_with_an_unhealthy_gpu_keeps_the_taint_though_its_layout_is_right() -> None:
    report = world_of(FULL).gpunodes["gpu-07"]
    assert report.observed is not None
    gpus = tuple(replace(gpu, vitals=Vitals(ecc_errors=True)) for gpu in report.observed.gpus)
    verdict = judged(make_case(FULL, node=GATED, gpunode={"observed": replace(report.observed, gpus=gpus)}))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, ())


UNSEEN: dict[str, tuple[tuple[DaemonSetState, ...], str]] = {
    "it may not run there": (
        (DaemonSetState("nfd-worker", "gpu-operator", False, "[]"),),
        ". If it has one, it is not detected, because DaemonSet nfd-worker of Node Feature Discovery does not tolerate"
        " gpusharing.dev/unproven; run: helm upgrade gpu-operator nvidia/gpu-operator -n gpu-operator",
    ),
    "nobody can see whether it may": (
        (),
        ". If it has one, the worker of Node Feature Discovery must tolerate gpusharing.dev/unproven to detect it. The"
        " operator cannot check that: its DaemonSet is not in namespace gpu-operator, the only one that the operator"
        " reads",
    ),
    "it may run there, and found none": ((DaemonSetState("nfd-worker", "gpu-operator", True, "[]"),), ""),
}


@pytest.mark.parametrize(("finders", "said"), UNSEEN.values(), ids=UNSEEN)
def test_where_no_gpu_was_found_the_worker_that_would_find_it_is_named_where(
    finders: tuple[DaemonSetState, ...], said: str
) -> None:
    bare = {**GATED, "resources": {}}
    absent = dict.fromkeys((names.LABEL_GPU_PRESENT, names.LABEL_GPU_PRODUCT))
    stack = replace(make_stack(FULL), finders=finders)
    verdict = judged(make_case(FULL, node=bare, labels=absent, gpunode={"observed": None}, stack=stack))
    assert verdict.reason is Reason.NO_GPU
    assert said in verdict.message
    assert ("Node Feature Discovery" in verdict.message) is bool(said)


# --- what must tolerate it ----------------------------------------------------------------------------------


def test_a_node_that_nvidias_pods_keep_off_is_told_with_the_one_command() -> None:
    stack = make_stack(MIXED, cluster_policy=INTOLERANT)
    verdict = judged(make_case(MIXED, node=GATED, stack=stack))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.TAINT_NOT_TOLERATED)
    assert verdict.message.endswith(
        "run (this restarts those pods on every node): kubectl patch clusterpolicy cluster-policy --type merge -p"
        ' \'{"spec":{"daemonsets":{"tolerations":[{"key":"nvidia.com/gpu","operator":"Exists"},'
        '{"key":"gpusharing.dev/unproven","operator":"Exists","effect":"NoSchedule"}]}}}\''
    )
    assert judged(make_case(MIXED, stack=stack)).candidate, "without the taint nobody is told"


GPU = '[{"key":"nvidia.com/gpu","operator":"Exists"}]'
WORKER = DaemonSetState("nfd-worker", "gpu-operator", False, GPU)
KEPT_OFF: dict[str, tuple[dict[str, Any], str, str]] = {
    "our agent": (
        {"intolerant_agents": "gpusharing-agent"},
        "DaemonSet gpusharing-agent does not tolerate gpusharing.dev/unproven, so its pods cannot run on gpu-07",
        'kubectl -n gpusharing-agent patch daemonset gpusharing-agent --type json -p \'[{"op":"add","path":'
        '"/spec/template/spec/tolerations/-","value":{"key":"gpusharing.dev/unproven","operator":"Exists",'
        '"effect":"NoSchedule"}}]\'',
    ),
    "the worker of Node Feature Discovery": (
        {"finders": (replace(WORKER, name="fine", tolerates_gate=True), WORKER)},
        "DaemonSet nfd-worker of Node Feature Discovery does not tolerate gpusharing.dev/unproven, so its pods",
        "helm upgrade gpu-operator nvidia/gpu-operator -n gpu-operator --version VERSION --reuse-values --set-json"
        ' \'node-feature-discovery.worker.tolerations=[{"key":"nvidia.com/gpu","operator":"Exists"},'
        '{"key":"gpusharing.dev/unproven","operator":"Exists","effect":"NoSchedule"}]\'',
    ),
}


@pytest.mark.parametrize(("seen", "said", "command"), KEPT_OFF.values(), ids=KEPT_OFF)
def test_a_node_that_others_who_prove_it_are_kept_off_is_told_with_the_one_command(
    seen: dict[str, Any], said: str, command: str
) -> None:
    stack = replace(make_stack(MIXED), **seen)
    verdict = judged(make_case(MIXED, node=GATED, stack=stack))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.TAINT_NOT_TOLERATED)
    assert said in verdict.message
    assert verdict.message.endswith(f": {command}")
    assert judged(make_case(MIXED, stack=stack)).candidate, "without the taint nobody is told"


def test_what_proves_a_node_is_told_first_come_first_served() -> None:
    agents, finder = (seen for seen, _, _ in KEPT_OFF.values())
    everything = replace(make_stack(MIXED, cluster_policy=INTOLERANT), **agents, **finder)
    firsts = [everything, replace(everything, intolerant_agents="")]
    firsts.append(replace(firsts[1], cluster_policy=make_cluster_policy()))
    told = [judged(make_case(MIXED, node=GATED, stack=stack)).message for stack in firsts]
    assert ["gpusharing-agent does" in told[0], "ClusterPolicy" in told[1], "nfd-worker" in told[2]] == [True] * 3


def test_what_is_wanted_already_needs_no_more_than_it_has() -> None:
    stack = make_stack(FULL, cluster_policy=INTOLERANT)
    assert judged(make_case(FULL, node=GATED, stack=stack)).reason is Reason.ADOPTABLE


def test_the_command_is_whole_however_much_is_tolerated_already() -> None:
    many = ",".join(f'{{"key":"example.com/{number:03}","operator":"Exists"}}' for number in range(12))
    stack = make_stack(MIXED, cluster_policy=replace(INTOLERANT, tolerations=f"[{many}]"))
    message = judged(make_case(MIXED, node=GATED, stack=stack)).message
    assert message.endswith("}}}'")
    assert len(message) <= MAX_TEXT + 100


OPERAND = INTOLERANT
PLAIN = replace(INTOLERANT, plain=PlainStackView("nvdp", "nvdp"))


def test_the_toleration_is_added_to_what_is_there() -> None:
    assert with_toleration(GPU)[-1] == TOLERATION
    assert len(with_toleration(GPU)) == 2


def told(view: Seen) -> list[tuple[str, str]]:
    """(message, command) of what `helm test` says about the taint."""
    found = [one for one in view.symptoms if one.reason == "TaintNotTolerated"]
    return [(one.message, str(one.command)) for one in found]


@pytest.mark.parametrize(
    "view",
    [
        Seen(nodes=(make_node(gated=True),)),
        Seen(place=Place(startup_gate=True)),
    ],
    ids=["a node waits", "nodes are to come"],
)
def test_helm_test_names_what_does_not_tolerate_it_with_a_command_for_each(view: Seen) -> None:
    found = told(replace(view, cluster_policies=(OPERAND,), finders=(WORKER,)))
    assert [command.partition(" -")[0] for _, command in found] == [
        "kubectl patch clusterpolicy cluster-policy",
        "helm upgrade gpu-operator nvidia/gpu-operator",
    ]
    assert found[1][1].endswith(
        '--set-json \'node-feature-discovery.worker.tolerations=[{"key":"nvidia.com/gpu","operator":"Exists"},'
        '{"key":"gpusharing.dev/unproven","operator":"Exists","effect":"NoSchedule"}]\''
    )
    assert not any(lacks(message, "not in use") for message, _ in found)


def test_the_toleration_names_the_nodes_whose_driver_is_replaced_and_that_are_drained() -> None:
    labels = {"a": "true", "b": "true", "c": "pre-installed"}
    nodes = [
        make_node(name, gated=True, labels={"nvidia.com/gpu.deploy.driver": here}) for name, here in labels.items()
    ]
    nodes = [replace(node, labels={**node.labels, "nvidia.com/gpu.deploy.mig-manager": "false"}) for node in nodes]
    view = Seen(nodes=tuple(nodes), cluster_policies=(OPERAND,))
    ((message, command),) = told(view)
    assert not lacks(message, "driver of a, b", "drains")
    assert command.startswith("kubectl patch clusterpolicy")
    ((message, _),) = told(replace(view, cluster_policies=(replace(OPERAND, switches={"driver.enabled": False}),)))
    assert "drains" not in message


def test_helm_test_gives_the_commands_of_the_plain_chart_where_that_stands_alone() -> None:
    view = Seen(nodes=(make_node(gated=True),), plain=PLAIN, finders=(replace(WORKER, release="nvdp"),))
    plugin, worker = (command for _, command in told(view))
    assert plugin.startswith(
        "helm upgrade nvdp nvdp/nvidia-device-plugin -n gpu-operator --version VERSION --reuse-values --set-json"
    )
    assert "'nfd.worker.tolerations=[" in worker


def test_helm_test_is_content_with_what_tolerates_it() -> None:
    fine = make_cluster_policy()
    view = Seen(nodes=(make_node("x", gated=True),), cluster_policies=(fine, replace(OPERAND, ignored=True)))
    assert told(replace(view, finders=(replace(WORKER, tolerates_gate=True),))) == []
    assert told(Seen(cluster_policies=(OPERAND,), finders=(WORKER,))) == [], "no node waits, and none is to come"


DRIVER = DaemonSetState("dra-plugin", "dra", tolerates_gate=False, tolerations=GPU)
WITHOUT_PLUGIN = make_cluster_policy(switches={PLUGIN_SWITCH: False})


@pytest.mark.parametrize(
    ("driver", "cluster_policy", "kept_off"),
    [
        (DRIVER, WITHOUT_PLUGIN, True),
        (replace(DRIVER, tolerates_gate=True), WITHOUT_PLUGIN, False),
        (DRIVER, make_cluster_policy(), False),
    ],
    ids=["it does not tolerate the taint", "it does", "the device plugin serves the GPUs"],
)
def test_the_dra_driver_has_to_tolerate_it_where_it_serves_the_gpus(
    driver: DaemonSetState, cluster_policy: ClusterPolicyView, kept_off: bool
) -> None:
    command = (
        "helm upgrade dra CHART -n gpu-operator --reset-then-reuse-values --set-json"
        ' \'kubeletPlugin.tolerations=[{"key":"nvidia.com/gpu","operator":"Exists"},'
        '{"key":"gpusharing.dev/unproven","operator":"Exists","effect":"NoSchedule"}]\''
    )
    dra = DraView(driver)
    view = Seen(nodes=(make_node(gated=True),), cluster_policies=(cluster_policy,), dra=dra)
    assert [said for _, said in told(view)] == [command] * kept_off
    case = replace(make_case(MIXED, node=GATED), stack=make_stack(cluster_policy=cluster_policy, dra=dra))
    closed = find_closed(case)
    assert (closed is not None and command in closed.message) is kept_off
    domains = replace(case, stack=replace(case.stack, dra=DraView(replace(driver, serves_gpus=False))))
    assert find_closed(domains) is None, "a driver for compute domains serves no GPU"


# --- what it costs ------------------------------------------------------------------------------------------

PROVEN = Verified("pool-b", "", "", layout="1x full", gpus=1)
NEWCOMERS: dict[str, tuple[bool, dict[str, Any], dict[str, Any] | None]] = {
    "it joined just now": (True, {"gated": True}, None),
    "its agent sees no pod": (True, {"gated": True}, {"pods": 0}),
    "it has GPU pods": (False, {"gated": True}, {"pods": 1}),
    "nobody can count its GPU pods": (False, {"gated": True}, {"holdings_known": False}),
    "it was given back once": (False, {"gated": True, "verified": PROVEN}, None),
    "it has no taint": (False, {}, None),
    "its change took no slot": (True, {"fence": make_fence(newcomer=True)}, {"pods": 1}),
    "its change took one": (False, {"gated": True, "fence": make_fence()}, None),
}


@pytest.mark.parametrize(("newcomer", "node", "report"), NEWCOMERS.values(), ids=NEWCOMERS)
def test_a_node_is_a_newcomer_when(newcomer: bool, node: dict[str, Any], report: dict[str, Any] | None) -> None:
    gpunode = None if report is None else make_gpunode(**report)
    assert case_of(make_node(**node), gpunode).newcomer is newcomer
    if not make_node(**node).fence:
        by_dra = replace(make_node(**node), devices=NodeDevices((None,)))
        assert not case_of(by_dra, gpunode).newcomer, "the agent does not count who holds a claim"


def test_newcomers_take_no_slot_and_hold_up_nobody() -> None:
    found = begun(fleet(served=3, new=2, maxUnavailable=1))
    assert found[:2] == ["NEW-0", "NEW-1"]
    assert len(found) == 3


def test_a_full_budget_does_not_hold_up_newcomers() -> None:
    snapshot = fleet(served=2, new=1, maxUnavailable=1)
    away = {**snapshot.nodes, "old-0": replace(snapshot.nodes["old-0"], ready=False)}
    assert begun(replace(snapshot, nodes=away)) == ["NEW-0"]


def test_newcomers_that_are_not_ready_yet_use_up_no_budget() -> None:
    snapshot = fleet(served=1, new=2, maxUnavailable=1)
    joining = {name: replace(node, ready=name == "old-0") for name, node in snapshot.nodes.items()}
    assert begun(replace(snapshot, nodes=joining)) == ["old-0"]


def test_newcomers_are_no_part_of_a_percentage_and_begin_in_a_pool_without_other_nodes() -> None:
    assert len([name for name in begun(fleet(served=4, new=4, maxUnavailable="50%")) if name.islower()]) == 2
    assert begun(fleet(served=0, new=2, maxUnavailable="10%")) == ["NEW-0", "NEW-1"]


def test_newcomers_share_the_cap_on_nodes_in_flight() -> None:
    snapshot = fleet(served=0, new=3, maxUnavailable=1)
    capped = replace(snapshot, settings=replace(snapshot.settings, max_in_flight=2))
    assert len(begun(capped)) == 2
    waiting = [v for v in plan_rollout(capped, NOW).verdicts.values() if v.reason is Reason.BUDGET_FULL]
    assert ["operator.maxInFlight" in verdict.message for verdict in waiting] == [True]


def test_a_taint_on_nodes_in_service_does_not_let_them_all_be_drained_at_once() -> None:
    """kubectl taint nodes --all gpusharing.dev/unproven:NoSchedule"""
    snapshot = fleet(served=0, new=3, maxUnavailable=1)
    busy = [make_gpunode(name, pods=1) for name in snapshot.nodes]
    snapshot = replace(snapshot, gpunodes={one.name: one for one in busy})
    assert len(begun(snapshot)) == 1
    assert begun(snapshot)[0].islower(), "it takes the one slot"


def test_a_pod_that_the_list_shows_counts_though_the_agent_has_not_seen_it() -> None:
    snapshot = fleet(served=1, new=2, maxUnavailable=1)
    work = {name: make_work(make_pod(f"llm-{name}")) for name in snapshot.nodes}
    allowed = [make_policy(rollout={"maxUnavailable": 1}, drain={"strandedPods": "Allow"})]
    found = begun(replace(snapshot, work=work, policies=tuple(allowed)))
    assert [name.islower() for name in found] == [True], "one, in the one slot"


def test_a_change_that_took_a_slot_keeps_it_when_its_pods_are_gone() -> None:
    snapshot = fleet(served=0, new=2, maxUnavailable=1)
    fence = make_fence(node_uid="uid-new-0")
    nodes = {**snapshot.nodes, "new-0": replace(snapshot.nodes["new-0"], fence=fence, unschedulable=True)}
    busy = {"new-1": make_gpunode("new-1", pods=1), "new-0": make_gpunode("new-0", pods=0)}
    claims = {"new-0": make_claim("uid-new-0")}
    assert begun(replace(snapshot, nodes=nodes, gpunodes=busy, claims=claims)) == []


def test_two_cards_of_a_newcomer_are_proven_like_any_others() -> None:
    world = World()
    world.set_policy(MIXED)
    world.add_node("new", NodeMachine("new", (H100, H100)), gated=True)
    world.settle()
    assert world.nodes["new"].gate is None


HOLDS: dict[str, tuple[dict[str, Any], Reason]] = {
    "closed windows": ({"windows": [{"schedule": "0 22 * * *", "duration": "6h"}]}, Reason.WINDOW_CLOSED),
    "a blackout": ({"blackouts": [{"schedule": "0 9 * * *", "duration": "6h"}]}, Reason.WINDOW_CLOSED),
    "a plan that nobody approved": ({"approval": "Manual"}, Reason.APPROVAL_NEEDED),
    "a frozen pool": ({"maxUnavailable": 0}, Reason.FROZEN),
    "a pool that is frozen by a percentage": ({"maxUnavailable": "0%"}, Reason.FROZEN),
    "a paused pool": ({"paused": True}, Reason.PAUSED),
}


@pytest.mark.parametrize(("rollout", "reason"), HOLDS.values(), ids=HOLDS)
def test_newcomers_wait_like_all_others_for(rollout: dict[str, Any], reason: Reason) -> None:
    snapshot = fleet(served=1, new=1, **rollout)
    assert begun(snapshot) == []
    assert {one.reason for one in plan_rollout(snapshot, NOW).verdicts.values()} == {reason}


def hash_of(snapshot: Any) -> str:
    (pool,) = plan_rollout(snapshot, NOW).pools.values()
    return propose(pool).hash


def test_a_node_that_joins_behind_the_taint_needs_an_approval_of_its_own() -> None:
    before, after = (fleet(served=1, new=new, approval="Manual") for new in (0, 1))
    (policy,) = after.policies
    told = plan_rollout(replace(after, policies=(replace(policy, approved=hash_of(before)),)), NOW).verdicts
    assert {one.reason for one in told.values()} == {Reason.APPROVAL_NEEDED}
    assert begun(replace(after, policies=(replace(policy, approved=hash_of(after)),))) == ["NEW-0", "old-0"]


def test_its_approval_lasts_until_the_node_that_joined_is_proven_and_beyond() -> None:
    """Or its release would be another plan, and stop the others."""
    world = World()
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"approval": "Manual"}))
    world.add_node("new", gated=True)
    world.settle()
    (policy,) = world.policies
    plan = world.plan()
    approved = propose(plan.pools["pool-b"]).hash
    approve(world, policy, plan)
    seen: set[str] = set()
    while not seen or world.nodes["new"].gate is not None:
        world.act("new")
        world.step()
        seen.add(propose(world.plan().pools["pool-b"]).hash)
        world.now += timedelta(seconds=1)
    world.settle()
    assert seen == {approved} == {propose(world.plan().pools["pool-b"]).hash}


def test_newcomers_may_be_canaries_and_do_not_start_beside_them() -> None:
    snapshot = fleet(served=2, new=2, maxUnavailable=3, canary={"nodes": 1, "soak": "30m"})
    assert len(begun(snapshot)) == 1
    waiting = [one for one in plan_rollout(snapshot, NOW).verdicts.values() if not one.actions]
    assert {one.reason for one in waiting} == {Reason.CANARY_SOAK}


def test_a_newcomer_that_fails_halts_the_policy_like_any_other() -> None:
    snapshot = fleet(served=1, new=1)
    fence = make_fence(
        "actuating",
        node_uid="uid-new-0",
        version=snapshot.policies[0].version,
        newcomer=True,
        failed_version=snapshot.policies[0].version,
    )
    nodes = {**snapshot.nodes, "new-0": replace(snapshot.nodes["new-0"], fence=fence, unschedulable=True)}
    told = plan_rollout(replace(snapshot, nodes=nodes, claims={"new-0": make_claim("uid-new-0")}), NOW).verdicts
    assert told["old-0"].reason is Reason.HALTED


def test_newcomers_start_beside_a_canary_that_is_too_large_and_nodes_in_service_do_not() -> None:
    snapshot = fleet(served=2, new=2, maxUnavailable=2, canary={"nodes": 5})
    assert begun(snapshot) == ["NEW-0", "NEW-1"]
    told = plan_rollout(snapshot, NOW).verdicts
    assert {told[name].reason for name in ("old-0", "old-1")} == {Reason.CANARY_TOO_LARGE}
    busy = replace(snapshot, work={**snapshot.work, "new-0": make_work(make_pod("llm"))})
    assert begun(busy) == ["NEW-1"], "one that turns out to have pods would be drained"
    assert plan_rollout(busy, NOW).verdicts["new-0"].reason is Reason.CANARY_TOO_LARGE
    unapproved = fleet(served=1, new=1, approval="Manual", canary={"nodes": 5})
    told = plan_rollout(unapproved, NOW).verdicts
    assert begun(unapproved) == []
    assert (told["old-0"].reason, told["new-0"].reason) == (Reason.CANARY_TOO_LARGE, Reason.APPROVAL_NEEDED)


def test_the_proof_of_a_newcomer_says_that_nobody_counted_on_it() -> None:
    world = World()
    world.set_policy(make_policy(mode="TimeSlicing"))
    world.add_node("new", gated=True)
    world.add_node("old")
    world.settle()
    proofs = {name: node.verified for name, node in world.nodes.items()}
    assert {name: proof is not None and proof.apart for name, proof in proofs.items()} == {
        "new": True, "old": False}  # fmt: skip
    world.nodes["new"] = replace(world.nodes["new"], labels={**world.nodes["new"].labels, names.LABEL_POLICY: ""})
    world.settle()
    again = world.nodes["new"].verified
    assert again is not None
    assert again.apart, "taking it over once more forgets nothing"
