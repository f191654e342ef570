"""A device that the device plugin calls unhealthy is no difference: 7 of 8 is never answered by a change (docs/design/nvidia.md#b9)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import H100, NOW, SETTINGS, at, make_snapshot
from tests.planning.cases import FULL, SLICED, judged, make_case
from tests.planning.changes import answering, changing
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.gpus.health import NO_TROUBLE
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import LabelNode
from gpusharing.planning.snapshot.memory import WITHDRAWN
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.verify import find_unhealthy

GPU, HALF = names.RESOURCE_GPU, "nvidia.com/mig-3g.40gb"
EIGHT = (H100,) * 8
UNADOPTED: dict[str, str | None] = dict.fromkeys((names.LABEL_PLUGIN_CONFIG, names.LABEL_MODE, names.LABEL_POLICY))


def offering(
    resources: Mapping[str, int], unhealthy: Mapping[str, int], policy: PolicyView = FULL, **fields: Any
) -> NodeCase:
    """A node with eight GPUs that has nothing else to be changed, and that no policy has adopted."""
    node = {"resources": resources, "unhealthy": unhealthy, "verified": None, **fields.pop("node", {})}
    return make_case(policy, products=EIGHT, labels=UNADOPTED, node=node, **fields)


def planned(case: NodeCase) -> RolloutPlan:
    assert case.gpunode is not None
    assert case.policy is not None
    settings = replace(SETTINGS, config_propagation=0)
    nodes, policies = [case.node], [case.policy]
    return plan_rollout(
        make_snapshot(nodes, policies, gpunodes=[case.gpunode], stack=case.stack, settings=settings), NOW
    )


@pytest.mark.parametrize(
    ("resources", "unhealthy", "begins"),
    [
        pytest.param({GPU: 7}, {GPU: 1}, False, id="7 of 8"),
        pytest.param({}, {GPU: 8}, False, id="0 of 8, or the device plugin is down"),
        pytest.param({GPU: 7}, {}, True, id="7 of 7, which another configuration may mend"),
        pytest.param({GPU: 7}, {GPU: 2}, False, id="7 of 9"),
        pytest.param({}, {}, True, id="nothing"),
    ],
)
def test_no_change_begins_because_devices_are_unhealthy(
    resources: Mapping[str, int], unhealthy: Mapping[str, int], begins: bool
) -> None:
    verdict = planned(offering(resources, unhealthy)).verdicts["gpu-07"]
    assert (verdict.phase is Phase.PREFLIGHT) is begins, verdict
    assert not verdict.starts


def test_a_node_with_7_of_8_is_adopted_and_shown_as_unhealthy() -> None:
    verdict = judge(offering({GPU: 7}, {GPU: 1}))
    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.PENDING, Reason.ADOPTABLE)
    assert verdict.health is not None
    assert verdict.health.reason is Reason.DEVICE_UNHEALTHY
    assert not lacks(verdict.health.message, "1 of 8 nvidia.com/gpu", "device plugin")


def test_a_proven_node_with_7_of_8_stays_synced_and_says_so() -> None:
    actions = planned(offering({GPU: 7}, {GPU: 1})).verdicts["gpu-07"].actions
    (adopt,) = (one for one in actions if isinstance(one, LabelNode))
    labels = {names.LABEL_MODE: "full", names.LABEL_POLICY: FULL.name, names.LABEL_PLUGIN_CONFIG: None}
    node = {"resources": {GPU: 7}, "unhealthy": {GPU: 1}, "verified": adopt.verified}
    case = make_case(FULL, products=EIGHT, labels=labels, node=node, drifting_since=at(-3600))
    verdict = judged(case)
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.SYNCED, Reason.GPU_UNHEALTHY, ())
    assert "1x full proven; 1 of 8 nvidia.com/gpu" in verdict.message


def test_a_change_that_the_policy_asks_for_waits_as_for_any_unhealthy_gpu() -> None:
    verdict = judge(offering({GPU: 7}, {GPU: 1}, SLICED))
    assert verdict is not None
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, ())


def withdrawn(policy: PolicyView = FULL, seconds: float = 3600, **node: Any) -> Verdict:
    """What is decided about a node that was proven with 8 whole GPUs and, for so long, has offered none of them."""
    actions = planned(offering({GPU: 8}, {})).verdicts["gpu-07"].actions
    (adopt,) = (one for one in actions if isinstance(one, LabelNode))
    labels = {names.LABEL_MODE: "full", names.LABEL_POLICY: FULL.name, names.LABEL_PLUGIN_CONFIG: None}
    fields = {"resources": {}, "unhealthy": {GPU: 8}, "verified": adopt.verified, **node}
    since = at(-seconds)
    case = make_case(policy, products=EIGHT, labels=labels, node=fields, drifting_since=since, withdrawn_since=since)
    return judged(case)


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(withdrawn(), id="its own name would be new"),
        pytest.param(withdrawn(retry="now"), id="a person asked for another try"),
        pytest.param(withdrawn(SLICED), id="the policy wants another mode"),
        pytest.param(judge(offering({}, {GPU: 8}, SLICED, withdrawn_since=at(-3600))), id="nothing was proven"),
    ],
)
def test_no_change_begins_on_a_node_with_0_of_8_and_no_command_is_given_that_would_start_one(verdict: Verdict) -> None:
    assert (verdict.phase, verdict.reason, verdict.candidate) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, False)
    assert verdict.actions == ()
    assert not lacks(verdict.message, "kubelet counts 8 nvidia.com/gpu", "none")
    assert names.ANNOTATION_RETRY not in verdict.message
    assert verdict.health is not None
    assert verdict.health.reason is Reason.DEVICE_UNHEALTHY


def test_a_node_whose_device_plugin_restarts_waits_and_is_synced_again_afterwards() -> None:
    verdict = withdrawn(seconds=10)
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.PENDING, Reason.DRIFTED, ())
    back = withdrawn(resources={GPU: 8}, unhealthy={})
    assert (back.phase, back.reason) == (Phase.SYNCED, Reason.SYNCED)
    changed = withdrawn(SLICED, resources={GPU: 8}, unhealthy={})
    assert (changed.phase, changed.candidate) == (Phase.PENDING, True)


def test_a_device_plugin_that_restarts_is_no_unhealthy_gpu() -> None:
    plan = planned(offering({}, {GPU: 8}, SLICED, drifting_since=at(-3600)))
    verdict = plan.verdicts["gpu-07"]
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.PENDING, Reason.OBSERVATION_PENDING, ())
    assert "offers none" in verdict.message
    assert verdict.wake == at(60)
    assert verdict.health == NO_TROUBLE
    assert {name: seen[WITHDRAWN] for name, seen in plan.memory.seen_since.items()} == {"gpu-07": NOW}
    lasting = judge(offering({}, {GPU: 8}, SLICED, withdrawn_since=at(-60)))
    assert lasting is not None
    assert (lasting.phase, lasting.reason) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY)


def test_what_the_kubelet_still_counts_of_an_earlier_mode_is_no_unhealthy_device() -> None:
    verdict = judge(changing(node={"resources": {}, "unhealthy": {GPU: 8}}))
    assert verdict is not None
    assert (verdict.health and verdict.health.reason) is Reason.NO_TROUBLE


def test_a_device_that_only_the_plugin_calls_unhealthy_does_not_keep_a_new_node_closed() -> None:
    verdict = judge(offering({GPU: 7}, {GPU: 1}, node={"gate": "[]"}))
    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.PENDING, Reason.ADOPTABLE)


WANTED = {GPU: 1, HALF: 2}
SHORT: dict[str, tuple[Mapping[str, int], Mapping[str, int], bool, Mapping[str, int]]] = {
    "all that is wanted": (WANTED, {}, False, {}),
    "one of two instances": ({GPU: 1, HALF: 1}, {HALF: 1}, False, {HALF: 1}),
    "the only whole GPU": ({HALF: 2}, {GPU: 1}, False, {GPU: 1}),
    "a resource that the plugin may not serve yet during a change": ({HALF: 2}, {GPU: 1}, True, {}),
    "one of two instances during a change": ({GPU: 1, HALF: 1}, {HALF: 1}, True, {HALF: 1}),
    "an instance that nobody counts": ({GPU: 1, HALF: 1}, {}, False, {}),
    "a resource that nobody wants": ({GPU: 1, HALF: 1, "nvidia.com/mig-1g.10gb": 1}, {HALF: 1}, False, {}),
    "a name of earlier, which the kubelet still counts": (
        {HALF: 1, GPU: 1},
        {HALF: 1, "nvidia.com/gpu.shared": 4},
        False,
        {HALF: 1},
    ),
    "nothing at all": ({}, WANTED, False, {}),
}


@pytest.mark.parametrize(("resources", "unhealthy", "fenced", "short"), SHORT.values(), ids=SHORT.keys())
def test_a_node_lacks_nothing_but(
    resources: Mapping[str, int], unhealthy: Mapping[str, int], fenced: bool, short: Mapping[str, int]
) -> None:
    node = changing().node if fenced else make_case().node
    assert find_unhealthy(replace(node, resources=resources, unhealthy=unhealthy), WANTED) == short


def test_a_device_that_is_unhealthy_midway_does_not_keep_the_node_from_its_proof() -> None:
    case = changing(gpunode=answering(), node={"resources": {HALF: 1}, "unhealthy": {HALF: 1}})
    verdict = after_pnr(case)
    assert verdict.phase is Phase.UNCORDONING
    assert verdict.health is not None
    assert verdict.health.reason is Reason.DEVICE_UNHEALTHY
