"""Could a pod start on a node (planning/drain/placement.py), and does our own pod keep a place? Labels and taints: tests/cli/test_placement.py.
Reports: NVIDIA/k8s-device-plugin#1695, #1762, #929, #1208; kai-scheduler/KAI-Scheduler#506, #1876."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from tests.build import (
    NOW,
    at,
    make_cluster_policy,
    make_fence,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_stack,
    make_work,
)
from tests.planning.cases import FULL, MIG_SLICED, MIXED, MPS, SINGLE, SLICED, assessed_of, make_case, pool_of, world_of
from tests.planning.gangs import make_gang, make_gang_view
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.drain.placement import LABEL_KAI_MIG, Kind, Needs, Offer, could_start, find_obstacles, needs_of
from gpusharing.planning.drain.stranded import FutureNode
from gpusharing.planning.pools.afterwards import find_present_offer
from gpusharing.planning.pools.candidates import find_places, spare
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.podviews import PodView, Taint, Toleration
from gpusharing.planning.snapshot.views import NodeView, PlanSettings, PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, SharingStrategy, render

GPU, SHARED, HALF = names.RESOURCE_GPU, names.RESOURCE_GPU_SHARED, "nvidia.com/mig-3g.40gb"
STRICT = make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4, "failRequestsGreaterThanOne": True})
RENAMED = make_policy(mode="MPS", mps={"replicas": 4, "renameByDefault": True})


def asking(*containers: Mapping[str, int], **fields: Any) -> PodView:
    total, largest = dict[str, int](), dict[str, int]()
    for one in containers:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
            largest[name] = max(largest.get(name, 0), count)
    return make_pod(resources=total, per_container=largest, **fields)


def kinds(pod: PodView, offer: Offer) -> list[Kind]:
    return [one.kind for one in find_obstacles(needs_of(pod), offer)]


def future_of(policy: PolicyView) -> FutureNode:
    """The node of a world at rest under this policy, as the planner foresees it."""
    world = world_of(policy)
    node = plan_rollout(world.snapshot(), world.now).afterwards.find_node("gpu-07")
    assert node is not None
    return node


SHARES: dict[str, tuple[PolicyView, PodView, bool]] = {
    "two shares of MPS": (MPS, asking({GPU: 2}), False),
    "two renamed shares of MPS": (RENAMED, asking({SHARED: 2}), False),
    "one share of MPS in each of two containers": (MPS, asking({GPU: 1}, {GPU: 1}), True),
    "two time slices": (SLICED, asking({GPU: 2}), True),
    "two time slices that the policy refuses": (STRICT, asking({GPU: 2}), False),
    "one time slice in each of two containers": (STRICT, asking({GPU: 1}, {GPU: 1}), True),
    "two shared instances": (MIG_SLICED, asking({HALF: 2}), True),
    "two instances": (MIXED, asking({HALF: 2}), True),
}


@pytest.mark.parametrize("case", SHARES)
def test_the_plugin_refuses_several_shares_for_one_container(case: str) -> None:
    """k8s-device-plugin v0.20.0, internal/rm/rm.go, ValidateRequest."""
    policy, pod, starts = SHARES[case]
    world = world_of(policy)
    present = find_present_offer(world.nodes["gpu-07"], world.stack)
    for offer in (present, future_of(policy).offer):
        assert kinds(pod, offer) == ([] if starts else [Kind.SHARES])


def test_it_says_what_is_too_much_and_which_policy_says_so() -> None:
    (found,) = find_obstacles(needs_of(asking({GPU: 1}, {GPU: 3})), future_of(STRICT).offer)
    assert not lacks(found.text, f"3 {GPU}", "policy pool-b", "failRequestsGreaterThanOne", "request 1")


STRATEGIES: tuple[SharingStrategy, ...] = ("time-slicing", "mps")


def test_a_configuration_of_nobody_limits_shares_too() -> None:
    world = world_of(FULL)
    for strategy, fails in product(STRATEGIES, (True, False)):
        sharing = Sharing(((GPU, 4),), fail_requests_greater_than_one=fails, strategy=strategy)
        stack = replace(world.stack, plugin_configs={"mine": render(PluginConfig(sharing=sharing))})
        node = make_node(labels={names.LABEL_PLUGIN_CONFIG: "mine"}, resources={GPU: 4})
        assert kinds(asking({GPU: 2}), find_present_offer(node, stack)) == [Kind.SHARES] * fails
    unread = make_node(
        labels={names.LABEL_PLUGIN_CONFIG: "gone", names.LABEL_SHARING_STRATEGY: "mps"}, resources={GPU: 4}
    )
    assert kinds(asking({GPU: 2}), find_present_offer(unread, world.stack)) == [Kind.SHARES], "GFD's label tells"


@pytest.mark.parametrize(("version", "limited"), [("v0.19.3", True), ("v0.20.0", False), ("", False)])
def test_a_device_plugin_before_0_20_ignores_that_mps_should_accept_several_shares(
    version: str, *, limited: bool
) -> None:
    sharing = Sharing(((GPU, 4),), fail_requests_greater_than_one=False, strategy="mps")
    policy = replace(make_cluster_policy(), plugin_version=version)
    stack = make_stack(cluster_policy=policy, plugin_configs={"mine": render(PluginConfig(sharing=sharing))})
    node = make_node(labels={names.LABEL_PLUGIN_CONFIG: "mine"}, resources={GPU: 4})
    assert kinds(asking({GPU: 2}), find_present_offer(node, stack)) == [Kind.SHARES] * limited


FRACTION = make_pod(resources={}, labels={"runai-gpu-group": "g"}, scheduler="kai-scheduler")
WAITING = make_pod(resources={}, fractions=2, scheduler="kai-scheduler")
WHOLE, INSTANCE = asking({GPU: 1}, scheduler="kai-scheduler"), asking({HALF: 1}, scheduler="kai-scheduler")
DIVIDED = {names.LABEL_MIG_STRATEGY: "mixed"}
EITHER = {GPU: 2, HALF: 2}
LABELLED_NO, LABELLED_YES = {**DIVIDED, LABEL_KAI_MIG: "false"}, {**DIVIDED, LABEL_KAI_MIG: "1"}
SINGLE_YES = {LABEL_KAI_MIG: "true", names.LABEL_MIG_STRATEGY: "single"}
KAI: dict[str, tuple[PodView, Offer, bool]] = {
    "a fraction on whole GPUs": (FRACTION, Offer("n", {GPU: 2}), True),
    "a fraction of two GPUs on two": (WAITING, Offer("n", {GPU: 2}), True),
    "a fraction of two GPUs on one": (WAITING, Offer("n", {GPU: 1}), False),
    "a fraction beside instances": (FRACTION, Offer("n", EITHER), False),
    "a whole GPU beside instances": (WHOLE, Offer("n", EITHER), False),
    "a whole GPU beside instances, by another scheduler": (asking({GPU: 1}), Offer("n", EITHER), True),
    "an instance": (INSTANCE, Offer("n", EITHER), True),
    "a fraction with strategy single": (FRACTION, Offer("n", {GPU: 7}, divided=True), False),
    "a whole device with strategy single": (WHOLE, Offer("n", {GPU: 7}, divided=True), True),
    "a fraction with strategy single and KAI's label": (
        FRACTION, Offer("n", {GPU: 7}, divided=True, find_labels=lambda: (SINGLE_YES,)), False),
    "a whole GPU beside instances on a node without GFD's label": (
        WHOLE, Offer("n", EITHER, find_labels=lambda: ({"zone": "east"},)), True),
    "a fraction beside instances on a node without GFD's label": (
        FRACTION, Offer("n", EITHER, find_labels=lambda: ({"zone": "east"},)), True),
    "a share with a name of its own beside instances": (
        asking({SHARED: 1}, scheduler="kai-scheduler"),
        Offer("n", {SHARED: 4, HALF: 2}, find_labels=lambda: (DIVIDED,)), True),
    "a whole GPU where the label says that there is no MIG": (
        WHOLE, Offer("n", EITHER, find_labels=lambda: (LABELLED_NO,)), True),
    "an instance where the label says that there is no MIG": (
        INSTANCE, Offer("n", EITHER, find_labels=lambda: (LABELLED_NO,)), False),
    "a whole GPU where only the label says that there is MIG": (
        WHOLE, Offer("n", {GPU: 2}, find_labels=lambda: (LABELLED_YES,)), False),
}  # fmt: skip


@pytest.mark.parametrize("case", KAI)
def test_kai_scheduler_places(case: str) -> None:
    pod, offer, starts = KAI[case]
    assert could_start(needs_of(pod), offer) is starts


def test_the_label_by_which_kai_would_recognize_a_node_with_strategy_single_is_named() -> None:
    (found,) = find_obstacles(needs_of(FRACTION), future_of(SINGLE).offer)
    assert found.kind is Kind.KAI
    assert LABEL_KAI_MIG in found.text


def test_strategy_single_is_recognized_now_and_afterwards() -> None:
    for policy, divided in ((SINGLE, True), (MIXED, False), (FULL, False), (SLICED, False)):
        world = world_of(policy)
        assert find_present_offer(world.nodes["gpu-07"], world.stack).divided is divided
        assert future_of(policy).offer.divided is divided


def test_count_labels_taints_and_shares_are_all_told_if_all_are_in_the_way() -> None:
    offer = Offer("n", {GPU: 1}, {GPU: "MPS"}, (Taint("team", "b"),), find_labels=lambda: ({"zone": "east"},))
    pod = asking({GPU: 2}, node_selector={"zone": "west"})
    assert kinds(pod, offer) == [Kind.COUNT, Kind.LABELS, Kind.TAINT, Kind.SHARES]
    tolerant = replace(pod, tolerations=(Toleration("team", "Exists"),), node_selector={})
    assert kinds(tolerant, replace(offer, devices={GPU: 2}, limited={})) == []


def test_labels_that_are_unknown_exclude_nothing() -> None:
    needs = Needs(((GPU, 1),), selector=(("zone", "west"),))
    assert could_start(needs, Offer("n", {GPU: 1}))
    assert not could_start(needs, Offer("n", {GPU: 1}, find_labels=lambda: ({},)))


def test_of_several_sets_of_labels_one_has_to_meet_all_rules() -> None:
    needs = Needs(((GPU, 1),), selector=(("a", "1"), ("b", "1")))
    split: tuple[dict[str, str], ...] = ({"a": "1"}, {"b": "1"})
    assert not could_start(needs, Offer("n", {GPU: 1}, find_labels=lambda: split))
    assert could_start(needs, Offer("n", {GPU: 1}, find_labels=lambda: (*split, {"a": "1", "b": "1"})))


# --- our own pod keeps a place -----------------------------------------------------------------------------------------

A = make_node("a")
BEFORE: dict[str, tuple[Sequence[NodeView], int | None]] = {
    "another node is open": ((A, make_node("b")), 1),
    "the other one is cordoned": ((A, make_node("b", unschedulable=True)), 0),
    "the other one is not Ready": ((A, make_node("b", ready=False)), 0),
    "there is no other node": ((A,), None),
    "the other one keeps pods off with a taint, so that waiting would not help": (
        (A, replace(make_node("b"), taints=(Taint("dedicated"),))),
        None,
    ),
    "the other one is being deleted": ((A, make_node("b", deleting=True)), None),
    "it is no place itself": (
        (replace(make_node("a"), taints=(Taint("dedicated"),)), make_node("b", unschedulable=True)),
        None,
    ),
}


@pytest.mark.parametrize("case", BEFORE)
def test_the_last_place_is_kept_only_where_another_may_open_again(case: str) -> None:
    nodes, free = BEFORE[case]
    assert spare(find_places(nodes), [replace(make_case(MIXED), node=nodes[0])]) == free


def test_nodes_that_begin_are_no_places_any_more() -> None:
    nodes = (A, make_node("b"), make_node("c"))
    places = find_places(nodes)
    assert places is not None
    places.discard("b")
    assert spare(places, [replace(make_case(MIXED), node=A)]) == 1


def test_a_change_without_a_cordon_closes_no_place() -> None:
    nodes = (A, make_node("b", unschedulable=True))
    case = make_case(SLICED, node={"labels": {}})
    restart = replace(assessed_of(case), disruption=DisruptionClass.PLUGIN_RESTART)
    assert spare(find_places(nodes), [replace(case, node=A, assessment=restart)]) is None


@pytest.mark.parametrize(("pod", "at_once"), [("operator-1", 2), ("", 3)], ids=["in a pod", "outside the cluster"])
def test_of_a_pool_that_may_be_away_as_a_whole_one_node_stays_open_for_an_operator(pod: str, at_once: int) -> None:
    world = pool_of(3)
    world.settings = replace(world.settings, pod_name=pod)
    assert SLICED.spec is not None
    rollout = SLICED.spec.rollout.model_copy(update={"max_unavailable": "100%"})
    world.set_policy(replace(SLICED, spec=SLICED.spec.model_copy(update={"rollout": rollout})))
    most, told = 0, set[str]()
    for _ in range(120):
        world.act_everywhere()
        plan = world.step()
        most = max(most, sum(node.unschedulable for node in world.nodes.values()))
        told |= {verdict.message for verdict in plan.verdicts.values() if verdict.reason is Reason.BUDGET_FULL}
        world.now += timedelta(seconds=1)
    assert most == at_once
    assert {"the operator's own pod" in message for message in told} == ({True} if pod else set())
    assert {verdict.phase for verdict in plan.verdicts.values()} == {Phase.SYNCED}


# --- a gang, and a place that comes back ------------------------------------------------------------------------------

RANK = "a rank of a JobSet"
POD = PlanSettings(pod_name="operator-1", config_propagation=10.0)
SLICING: dict[str, Any] = {"mode": "TimeSlicing", "finalizer": True, "drain": {"onTimeout": "Hold"}}
IN_FLIGHT = make_fence(since=at(-60), deadline=at(840), disruption=DisruptionClass.RESET, node_uid="uid-n0")
AWAY: dict[str, tuple[NodeView, int]] = {
    "it goes on": (make_node("n0", unschedulable=True, fence=IN_FLIGHT), 0),
    "it reboots": (make_node("n0", unschedulable=True, ready=False, fence=IN_FLIGHT), 0),
    "it is held past its time": (
        make_node("n0", unschedulable=True, fence=replace(IN_FLIGHT, deadline=at(-1))), 1),
    "it was cordoned before, and stays so": (
        make_node("n0", unschedulable=True, fence=replace(IN_FLIGHT, prior_unschedulable=True)), 1),
    "a taint keeps pods off it": (
        replace(make_node("n0", unschedulable=True, fence=IN_FLIGHT), taints=(Taint("dedicated"),)), 1),
    "nothing of ours goes on there": (make_node("n0", unschedulable=True), 1),
}  # fmt: skip


@pytest.mark.parametrize(("away", "starts"), AWAY.values(), ids=AWAY)
def test_a_gang_waits_for_the_place_of_a_node_only_if_our_change_gives_it_back_by_itself(
    away: NodeView, starts: int
) -> None:
    policy = make_policy(**SLICING, rollout={"maxUnavailable": 3})
    pods = {name: [make_pod(f"rank-{name}", gang=make_gang())] for name in ("n1", "n2")}
    view = make_gang_view(pods)
    work = {name: make_work(*pods[name], gangs=(view,)) for name in pods}
    work["n0"] = make_work(make_pod("leaves", owner=None))
    snapshot = make_snapshot([away, make_node("n1"), make_node("n2")], [policy], work=work)
    plan = plan_rollout(replace(snapshot, settings=POD), NOW)
    begun = [one for verdict in plan.verdicts.values() for one in verdict.actions if isinstance(one, FenceNode)]
    assert len(begun) == starts


def test_in_a_whole_roll_a_gang_changes_as_one_although_our_own_pod_needs_a_place() -> None:
    world = pool_of(3, FULL)
    world.settings = POD
    assert all(world.add_pod(name, RANK) for name in ("n1", "n2"))
    before = len(world.done)
    drain = {"strandedPods": "Allow"}
    world.set_policy(make_policy(mode="TimeSlicing", drain=drain, rollout={"maxUnavailable": 2}))
    world.settle()
    fences = {one.node.name: one.fence for one in world.done[before:] if isinstance(one, FenceNode)}
    assert list(fences) == ["n0", "n1", "n2"]
    assert fences["n1"].wave == fences["n2"].wave != ""
