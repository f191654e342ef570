"""The actuator of DRA with static partitions: one change from candidate to release, the restart of the kubelet plugin, and what is believed of the ResourceSlices."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import (
    NOW,
    SETTINGS,
    at,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_operand,
    make_pod,
    make_policy,
    make_snapshot,
    make_stack,
    make_work,
)
from tests.configs import target_for
from tests.planning.cases import SeenSince, judged
from tests.planning.test_drastack import DRIVER
from tests.wording import lacks

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_MIG_STATE, DisruptionClass, Phase
from gpusharing.planning.drain.pods import scope_of
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.pools.afterwards import preview_of
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, LabelNode, Release, RestartOperand, UpdateFence
from gpusharing.planning.snapshot.nvidia import (
    PLUGIN_SWITCH,
    DeviceClassView,
    DraView,
    NodeDevices,
    Operand,
    Program,
    StackView,
)
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PolicyView
from gpusharing.planning.transition.cases import compare
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import DRA, find_actuator
from gpusharing.planning.wanted.assess import Assessed
from gpusharing.planning.wanted.objects import wanted_class
from gpusharing.planning.wanted.target import PolicyTargets, Target, find_last_proven, find_request
from gpusharing.planning.wanted.verify import Comparison, Source

MIG, FULL = make_policy(), make_policy(mode="Full")
HALVES: Layout = (("3g.40gb", 2),)
ONE = wanted_class("3g.40gb")
CLASS = DeviceClassView(ONE.name, "u", "1", ours=True, resource=ONE.resource, selectors=ONE.selectors)
SWITCHES: dict[str, bool | str] = {PLUGIN_SWITCH: False}


def dra_stack(*policies: PolicyView, classes: tuple[DeviceClassView, ...] = (CLASS,)) -> StackView:
    policy = make_cluster_policy("", switches=SWITCHES, mig_manager_version="v0.15.1")
    return make_stack(*policies, cluster_policy=policy, dra=DraView(DRIVER, classes=classes))


def kubelet_plugin(serial: int = 0, *, ready: bool = True, since: datetime | None = NOW) -> Operand:
    return Operand("gpu-operator", "dra-plugin", f"uid-plugin-{serial}", ready, ready_since=since)


class Played:
    """gpu-07 with one GPU in the DRA stack, an agent that answers at once, and programs that follow."""

    def __init__(self, layout: Layout | None = None) -> None:
        config = "" if layout else "all-disabled"
        labels = {LABEL_MIG_CONFIG: config, LABEL_MIG_STATE: "success", "nvidia.com/gpu.present": "true"}
        self.layout = layout
        self.node: NodeView = replace(
            make_node(labels=labels, resources={}), devices=NodeDevices((layout,)), uid="uid-gpu-07"
        )
        self.gpunode: GPUNodeView = make_gpunode(gpus=[make_gpu(layout=layout)])
        self.plugin: Operand | None = kubelet_plugin()
        self.mig_manager = make_operand()
        self.publishes = True
        self.stack = dra_stack(MIG, FULL)
        self.phases: list[Phase] = []
        self.restarts: list[str] = []
        self.actuations: list[Actuate] = []

    def case(self, policy: PolicyView, now: datetime) -> NodeCase:
        empty = at(-8) + (now - NOW)
        work = make_work(listed_at=now, empty_since=empty, scope=scope_of(self.node, SETTINGS, self.stack))
        operands = {Program.MIG_MANAGER: self.mig_manager, Program.KUBELET_PLUGIN: self.plugin}
        case = NodeCase(
            node=self.node,
            gpunode=self.gpunode,
            owner=policy,
            work=work,
            agent_ready=True,
            agent_trouble=None,
            operands={program: pod for program, pod in operands.items() if pod is not None},
            mig_failure="",
            claimed=False,
            seen_since={},
            actuator=find_actuator(self.stack),
            stack=self.stack,
            settings=SETTINGS,
            now=now,
        )
        assert policy.spec is not None
        return compare(case, PolicyTargets(policy, find_request(policy.name, policy.spec), self.stack))

    def judge(self, policy: PolicyView, now: datetime) -> Verdict:
        verdict = judged(self.case(policy, now))
        self.phases += [verdict.phase] if self.phases[-1:] != [verdict.phase] else []
        return verdict

    def answer(self, action: EnsureGPUNode) -> None:
        observed = make_gpunode(gpus=[make_gpu(layout=self.layout)]).observed
        assert observed is not None
        observed = replace(observed, request_id=action.request_id, quiet=action.quiet)
        self.gpunode = replace(self.gpunode, request_id=action.request_id, quiet=action.quiet, observed=observed)

    def carry_out(self, verdict: Verdict, now: datetime) -> Release | None:
        """Do what was decided. Returns the release, or None as long as the change goes on."""
        if verdict.candidate:
            fence = make_fence(disruption=verdict.disruption, since=now, version=MIG.version)
            self.node = replace(self.node, fence=fence, unschedulable=True)
        for action in verdict.actions:
            match action:
                case EnsureGPUNode():
                    self.answer(action)
                case Actuate():
                    self.actuations.append(action)
                    self.divide(action)
                case UpdateFence():
                    self.node = replace(self.node, fence=action.fence)
                case RestartOperand():
                    self.restart(action, now)
                case Release():
                    return action
                case _:
                    raise AssertionError(f"this change needs no {action}")
        return None

    def divide(self, action: Actuate) -> None:
        kept = {key: text for key, text in {**self.node.labels, **action.labels}.items() if text is not None}
        self.layout = None if kept[LABEL_MIG_CONFIG] == "all-disabled" else HALVES
        self.node = replace(self.node, labels={**kept, LABEL_MIG_STATE: "success"}, fence=action.fence)

    def restart(self, action: RestartOperand, now: datetime) -> None:
        """Replace a pod; a new kubelet plugin publishes the devices that exist."""
        self.restarts.append(action.name)
        if action.uid == self.mig_manager.uid:
            pod = make_operand(serial=len(self.restarts))
            self.mig_manager = replace(pod, ready_since=now)
            return
        self.plugin = kubelet_plugin(len(self.restarts), since=now)
        if self.publishes:
            self.node = replace(self.node, devices=NodeDevices((self.layout,)))

    def run(self, policy: PolicyView, begin: float = 600, turns: int = 40) -> Release | None:
        """Let passes follow each other every ten seconds, until a release; None if there is none."""
        for turn in range(turns):
            now = at(begin + 10 * turn)
            if (release := self.carry_out(self.judge(policy, now), now)) is not None:
                return release
        return None


def test_a_change_divides_the_gpus_restarts_the_kubelet_plugin_and_is_proven_by_the_slices() -> None:
    played = Played()
    release = played.run(MIG)
    assert release is not None, played.phases
    assert played.restarts == ["dra-plugin"]
    way = Phase.PENDING, Phase.VERIFYING_IDLE, Phase.RECONFIGURING, Phase.VERIFYING, Phase.UNCORDONING
    assert played.phases == [*way]
    (run,) = played.actuations
    assert run.labels.keys() == {LABEL_MIG_CONFIG, LABEL_MIG_STATE}
    assert (run.fence.daemon_uid, run.fence.gfd_timestamp) == ("uid-plugin-0", "")
    assert release.uncordon
    assert release.verified is not None
    assert (release.verified.layout, release.verified.plugin_config) == ("2x3g.40gb", "")


def test_no_node_is_returned_to_service_while_no_pod_could_request_its_devices() -> None:
    played = Played()
    for turn in range(20):
        played.carry_out(played.judge(MIG, at(600 + 10 * turn)), at(600 + 10 * turn))
        if played.actuations:
            break
    played.stack = dra_stack(MIG, FULL, classes=())
    assert played.run(MIG, 820, turns=20) is None
    waits = played.judge(MIG, at(1020))
    assert waits.phase is Phase.VERIFYING
    assert not lacks(waits.message, "DeviceClass", "nvidia.com/mig-3g.40gb")
    played.stack = dra_stack(MIG, FULL)
    assert played.run(MIG, 1030) is not None, played.phases


def test_a_device_plugins_label_from_before_goes_with_the_change() -> None:
    played = Played()
    stale = {**played.node.labels, "nvidia.com/device-plugin.config": "pool-b-12345678"}
    played.node = replace(played.node, labels=stale)
    assert played.run(MIG) is not None
    assert played.actuations[0].labels["nvidia.com/device-plugin.config"] is None


def test_a_node_whose_slices_agree_is_adopted_and_left_alone() -> None:
    played = Played()
    verdict = played.judge(FULL, at(600))
    assert (verdict.candidate, verdict.disruption) == (False, DisruptionClass.NONE)
    assert [type(action) for action in verdict.actions] == [LabelNode], verdict


@pytest.mark.parametrize("plugin", [None, kubelet_plugin(ready=False), kubelet_plugin(since=at(595))])
def test_slices_of_a_kubelet_plugin_that_does_not_keep_running_adopt_no_node(plugin: Operand | None) -> None:
    played = Played()
    played.plugin = plugin
    case = replace(played.case(FULL, at(600)), seen_since=SeenSince(at(500)))
    verdict = judged(case)
    starting = plugin is not None and plugin.ready
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.ACTUATOR_MISSING, True)
    assert ("started a moment ago" if starting else "ResourceSlices of gpu-07") in verdict.message
    assert [one for one in verdict.actions if isinstance(one, LabelNode)] == []


def test_slices_of_a_kubelet_plugin_whose_pods_carry_another_label_are_believed() -> None:
    played = Played()
    played.plugin, driver = None, played.stack.dra.driver
    assert driver is not None
    played.stack = replace(played.stack, dra=replace(played.stack.dra, driver=replace(driver, labelled=False)))
    verdict = judged(replace(played.case(FULL, at(600)), seen_since=SeenSince(at(500))))
    assert [type(action) for action in verdict.actions] == [LabelNode], verdict


def test_slices_that_still_differ_after_the_restart_lead_to_another_restart_and_then_to_failure() -> None:
    played = Played()
    played.publishes = False
    assert played.run(MIG, turns=120) is None
    restarts = [one for one in played.restarts if one == "dra-plugin"]
    assert len(restarts) == 1 + SETTINGS.max_cures, "one for each attempt"
    last = played.judge(MIG, at(1800))
    assert last.phase is Phase.FAILED
    assert not lacks(last.message, "ResourceSlices of gpu-07 show 1x full (1 GPU)", "2x3g.40gb (1 GPU)")


def test_a_pod_that_somebody_else_replaced_too_early_is_replaced_again() -> None:
    played = Played()
    for turn in range(40):
        now = at(600 + 10 * turn)
        release = played.carry_out(played.judge(MIG, now), now)
        if played.actuations and played.plugin == kubelet_plugin():
            played.plugin = kubelet_plugin(9, since=now)  # before mig-manager was done, so its slices are old
        if release is not None:
            break
    assert release is not None, played.phases
    assert "dra-plugin" in played.restarts


AFTER = {LABEL_MIG_CONFIG: "x", LABEL_MIG_STATE: "success"}


def after_pnr(**changes: Any) -> NodeCase:
    """gpu-07 after the point of no return towards halves, with mig-manager done unless said otherwise."""
    played = Played()
    fence = make_fence(
        "actuating", target_mig_config="x", to_layout="2x3g.40gb", daemon_uid="uid-plugin-0", stage_since=NOW
    )
    labels = {**played.node.labels, **changes.pop("labels", AFTER)}
    played.node = replace(played.node, labels=labels, fence=fence, unschedulable=True)
    played.plugin = changes.pop("plugin", played.plugin)
    return replace(played.case(MIG, changes.pop("now", at(120))), **changes)


def test_the_kubelet_plugin_is_replaced_only_once_mig_manager_is_done() -> None:
    done, busy = after_pnr(), after_pnr(labels={**AFTER, LABEL_MIG_STATE: "pending"})
    assert DRA.find_old(done, done.fence) == (kubelet_plugin(), "NVIDIA's DRA kubelet plugin")
    assert DRA.find_old(busy, busy.fence) is None
    again = after_pnr(plugin=kubelet_plugin(1))
    assert DRA.find_old(again, again.fence) is None, "the fence names a pod that is gone"
    stuck = replace(busy.fence, restart_uid=make_operand().uid)
    assert DRA.find_old(busy, stuck) == (make_operand(), "mig-manager")


GRACE = timedelta(seconds=SETTINGS.restart_grace)


@pytest.mark.parametrize(
    ("plugin", "now", "works"),
    [
        (replace(kubelet_plugin(), deleting=True), at(900), True),
        (None, at(900), True),
        (kubelet_plugin(1, ready=False), at(900), True),
        (kubelet_plugin(1, since=at(100)), at(100), False),
        (kubelet_plugin(1, since=None), NOW, False),
    ],
    ids=["the old pod is terminating", "no pod", "not Ready", "Ready", "Ready since nobody knows when"],
)
def test_slices_prove_nothing_before_the_new_pod_is_ready(plugin: Operand | None, now: datetime, works: bool) -> None:
    case = after_pnr(plugin=plugin, now=now)
    trouble = DRA.find_trouble(case, case.fence)
    assert (trouble is not None) is works
    if trouble is not None:
        assert (trouble.reason, trouble.final) == (Reason.ACTUATION_IN_PROGRESS, False)


def test_a_plugin_that_was_not_restarted_is_waited_for_by_nobody() -> None:
    case = after_pnr(now=at(900))
    trouble = DRA.find_trouble(case, case.fence)
    assert trouble is not None
    assert trouble.final, "only a run of the operator restarts it"


def test_it_looks_again_when_the_slices_should_be_right() -> None:
    case = after_pnr(plugin=kubelet_plugin(1, since=at(100)), now=at(110))
    assert DRA.next_look(case, case.fence) == at(100) + GRACE
    case = after_pnr(plugin=None, now=at(100000))
    assert DRA.next_look(case, case.fence) is None


def read(request: str, *, quiet: bool = False, error: str = "", answered: str | None = None) -> GPUNodeView:
    gpus = [make_gpu(layout=HALVES)]
    return make_gpunode(gpus=gpus, request_id=request, quiet=quiet, error=error, answered=answered)


@pytest.mark.parametrize(
    ("gpunode", "now", "outdated"),
    [
        pytest.param(read("op-1:verify:e:1"), at(100) + GRACE, True, id="they differ from the proof's reading"),
        pytest.param(read("op-1:verify:e:1"), at(100) + GRACE - timedelta(seconds=1), False, id="it is early yet"),
        pytest.param(read("op-0:verify:e:1"), at(900), False, id="another change"),
        pytest.param(read("op-1:quiet:e:1", quiet=True), at(900), False, id="a reading from before the run"),
        pytest.param(read("op-1:verify:e:1", quiet=True), at(900), False, id="NVML is closed"),
        pytest.param(read("op-1:verify:e:1", answered="op-1:quiet:e:1"), at(900), False, id="not answered yet"),
        pytest.param(read("op-1:verify:e:1", error="no driver"), at(900), False, id="the agent cannot read"),
        pytest.param(make_gpunode(request_id="op-1:verify:e:1"), at(900), False, id="they agree"),
        pytest.param(make_gpunode(observed=False), at(900), False, id="never read"),
        pytest.param(None, at(900), False, id="no GPUNode"),
    ],
)
def test_slices_are_outdated_if_they_differ_from_the_reading_that_proves(
    gpunode: GPUNodeView | None, now: datetime, outdated: bool
) -> None:
    case = after_pnr(plugin=kubelet_plugin(1, since=at(100)), now=now, gpunode=gpunode)
    trouble = DRA.find_trouble(case, case.fence)
    assert (trouble is not None) is outdated
    if trouble is not None:
        assert (trouble.final, trouble.cure) == (True, "restarting NVIDIA's DRA kubelet plugin")


def test_what_is_compared_is_shown_from_the_agents_reading_to_what_the_node_offers() -> None:
    assert DRA.sources == (Source.AGENT, Source.NVML, Source.MIG_MANAGER, Source.OPERANDS, Source.SLICES)
    played = Played()
    assessed = played.case(FULL, NOW).assessment
    assert isinstance(assessed, Assessed)
    compared = Comparison(replace(played.node, devices=None), assessed.observed, assessed.target, played.stack)
    assert [(source, found.reason) for source, found in DRA.checks(compared)] == [
        (Source.SLICES, Reason.ALLOCATABLE_MISMATCH)
    ]


@pytest.mark.parametrize(
    ("plugin", "classes", "says"),
    [
        (None, (CLASS,), "no Ready pod of NVIDIA's DRA kubelet plugin runs on gpu-07; check the pods with label"),
        (kubelet_plugin(ready=False), (CLASS,), "dra-driver-nvidia-gpu-component=kubelet-plugin in namespace"),
        (kubelet_plugin(), (replace(CLASS, resource=""),), "DRAExtendedResource feature gate"),
        (kubelet_plugin(), (), "no DeviceClass lets pods request nvidia.com/mig-3g.40gb yet"),
    ],
    ids=["no kubelet plugin", "not Ready", "a DeviceClass without its resource", "one that the operator creates"],
)
def test_no_change_begins_while_something_is_missing_and_no_person_acts_where_the_operator_does(
    plugin: Operand | None, classes: tuple[DeviceClassView, ...], says: str
) -> None:
    played = Played()
    played.plugin, played.stack = plugin, dra_stack(MIG, FULL, classes=classes)
    verdict = played.judge(MIG, at(600))
    assert not verdict.candidate
    missing = (Phase.BLOCKED, Reason.ACTUATOR_MISSING) if classes else (Phase.PENDING, Reason.CONFIG_PROPAGATING)
    assert (verdict.phase, verdict.reason) == missing
    assert says in verdict.message


@pytest.mark.parametrize("devices", [None, NodeDevices((None,), missing=1)], ids=["nothing", "not all"])
@pytest.mark.parametrize("policy", [MIG, FULL], ids=["a change", "drift"])
def test_no_node_is_drained_while_the_driver_has_not_published_its_devices(
    policy: PolicyView, devices: NodeDevices | None
) -> None:
    """As after an upgrade of the driver that took so long that the kubelet deleted its slices."""
    played = Played()
    played.node = replace(played.node, devices=devices)
    verdict = played.judge(policy, at(600))
    assert not verdict.candidate
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.ACTUATOR_MISSING)
    assert "NVIDIA's DRA driver" in verdict.message


def test_a_repeated_run_needs_the_pod_but_not_that_it_is_ready() -> None:
    case = after_pnr(plugin=kubelet_plugin(ready=False))
    target = target_for(MIG, [make_gpu()], case.stack)
    assert isinstance(target, Target)
    assert DRA.find_missing(case, target, True) == ""
    assert "no Ready pod" in DRA.find_missing(case, target, False)
    assert "no Ready pod" in DRA.find_missing(after_pnr(plugin=None), target, True)


def test_the_last_proven_layout_needs_no_device_plugin() -> None:
    stack = dra_stack(MIG, FULL)
    gpunode = make_gpunode()
    record = Verified(
        policy="pool-b", version=MIG.version, mig_config="all-disabled", plugin_config="", layout="1x full", gpus=1
    )
    node = replace(make_node(resources={}), verified=record)
    assert gpunode.observed is not None
    last = find_last_proven(node, gpunode.observed, stack)
    assert isinstance(last, Target), last
    assert (last.plugin_key, last.layouts, last.configured is not None) == ("", (None,), True)
    shared = replace(node, verified=replace(record, plugin_config="pool-b-1", layout="4x shared"))
    assert not lacks(find_last_proven(shared, gpunode.observed, stack), "all-disabled", "means 1x full", "4x shared")


def test_the_holder_of_a_claim_is_evicted_there_and_shown_before() -> None:
    played, work = Played(), make_work(make_pod(dra="gpu"), make_pod("unread", dra="unresolved"))
    case = replace(played.case(MIG, at(600)), work=work)
    assert case.scope.evicts_claims
    assert not replace(case, stack=make_stack(MIG)).scope.evicts_claims
    verdict = played.judge(MIG, at(600))
    for stack, pods in ((played.stack, ("team-a/llm-0",)), (make_stack(MIG), ())):
        snapshot = make_snapshot([played.node], [MIG], stack=stack)
        assert preview_of(MIG, verdict, work, Afterwards(tuple), snapshot).pods == pods
