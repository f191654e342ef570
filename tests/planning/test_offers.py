"""Does what a node offers fit its labels and its agent's report (planning/stack/offers.py)? And what the device plugin calls unhealthy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    H100,
    NO_MIG_MANAGER,
    NOW,
    SETTINGS,
    at,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_snapshot,
    make_stack,
)
from tests.planning.cases import FULL, MIXED, SLICED, judged, make_case
from tests.planning.changes import answering, changing
from tests.seen import Seen, make_map
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.health import NO_TROUBLE
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.actions import EnsureGPUNode, LabelNode
from gpusharing.planning.snapshot.memory import WITHDRAWN
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.stack.effects import FREE_STRATEGY, find_layouts
from gpusharing.planning.stack.nodesymptoms import find_all_misfits, find_node_symptoms
from gpusharing.planning.stack.offers import find_misfits
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.commands import Change
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.verify import find_unhealthy

CONFIG, STATE, PRODUCT = names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE, names.LABEL_GPU_PRODUCT
GPU, SMALL = names.RESOURCE_GPU, "nvidia.com/mig-1g.10gb"
ALL, SEVEN, THREE = "all-1g.10gb", (("1g.10gb", 7),), (("1g.10gb", 3),)
P = "NVIDIA-H100-80GB-HBM3"
PARTS = "version: v1\nmig-configs: {parts: [{devices: all, mig-enabled: true, mig-devices: {1c.3g.40gb: 2}}]}"
OWN = "version: v1\nmig-configs: {own: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 3}}]}"


def world(
    labels: Mapping[str, str],
    offers: Mapping[str, int],
    layouts: tuple[Layout | None, ...] | None,
    strategy: str = "mixed",
    *,
    unhealthy: Mapping[str, int] | None = None,
    admin: str = "",
    plugin: str = "",
    chart: PlainStackView | None = None,
    node: Mapping[str, Any] | None = None,
    **more: Any,
) -> tuple[NodeView, ClusterSnapshot]:
    """A node without a policy, whose GPUs have these layouts; None: no agent has read them."""
    policy = replace(make_cluster_policy(plugin, mig_strategy=strategy, mig_config_name="", **more), plain=chart)
    stack = make_stack(
        cluster_policy=policy, admin_mig_file=admin, admin_plugin_configs={"any": SHARED} if chart else {}
    )
    known = {names.LABEL_GPU_PRESENT: "true", PRODUCT: P, **labels}
    view = replace(make_node(labels=known, resources=offers), unhealthy=unhealthy or {}, **(node or {}))
    gpus = [make_gpu(index, layout=layout) for index, layout in enumerate(layouts or ())]
    gpunodes = [] if layouts is None else [make_gpunode(gpus=gpus)]
    return view, make_snapshot([view], gpunodes=gpunodes, stack=stack)


SHARED = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}"
DONE = {CONFIG: ALL, STATE: "success"}
SHOWN = {names.LABEL_MIG_STRATEGY: "mixed", names.LABEL_GPU_COUNT: "2"}
INVALID = {PRODUCT: f"{P}-MIG-INVALID", **DONE}
ONE, TWO = (None,), (SEVEN, SEVEN)
FITS: dict[str, tuple[NodeView, ClusterSnapshot]] = {
    "whole GPUs": world({}, {GPU: 2}, (None, None)),
    "whole GPUs of which nobody has read": world({}, {GPU: 2}, None),
    "instances under mixed": world(DONE, {SMALL: 14}, TWO),
    "instances under single": world({**DONE, PRODUCT: f"{P}-MIG-1g.10gb"}, {GPU: 14}, TWO, "single"),
    "instances that nobody has read, with their label": world(DONE, {SMALL: 14}, None),
    "an entry of the admin's": world({CONFIG: "own", STATE: "success"}, {SMALL: 3}, (THREE,), admin=OWN),
    "a device plugin that offers nothing yet": world({}, {}, ONE),
    "mig-manager at work": world({CONFIG: ALL, STATE: "pending"}, {GPU: 1}, ONE),
    "our change": world(INVALID, {}, None, node={"fence": make_fence()}),
    "another device plugin": world({}, {GPU: 5}, ONE, node={"other_plugin": "HAMi's device plugin"}),
    "compute instances that strategy none serves whole": world({CONFIG: "parts"}, {GPU: 1}, None, "none", admin=PARTS),
    "the only entry of NVIDIA's chart": world({}, {GPU: 4}, ONE, "", plugin="theirs", chart=PlainStackView("nvdp", "")),
}


@pytest.mark.parametrize("name", FITS)
def test_nothing_is_said_of(name: str) -> None:
    assert [*find_misfits(*FITS[name])] == []


MISFITS: dict[str, tuple[tuple[NodeView, ClusterSnapshot], Reason, str, str]] = {
    "GFD's MIG-INVALID": (
        world(INVALID, {}, None, "single"), Reason.MIG_INVALID, "set ClusterPolicy mig.strategy to mixed", ""),
    "GFD's MIG-INVALID, of which an agent knows more": (
        world(INVALID, {}, (SEVEN, None), "single"), Reason.MIG_INVALID, "one and the same MIG profile on every", ""),
    "an entry with compute instances": (
        world({CONFIG: "parts", STATE: "success"}, {}, None, admin=PARTS), Reason.COMPUTE_INSTANCES,
        "(1c.3g.40gb), at which the device plugin exits. Name only profiles of GPU instances in it, such as 3g.40gb",
        ""),
    "whole GPUs that are divided": (
        world(DONE, {GPU: 2}, TWO, "none"), Reason.MIG_NOT_SERVED, "its GPUs have 7x1g.10gb, but its device plugin", ""),
    "whole GPUs that are divided, of which nobody has read": (
        world(DONE, {GPU: 2}, None, "none"), Reason.MIG_NOT_SERVED, "mig-manager has applied all-1g.10gb", ""),
    "shares of GPUs that are divided": (
        world(DONE, {f"{GPU}.shared": 8}, TWO, "none"), Reason.MIG_NOT_SERVED, "advertises whole GPUs", ""),
    "instances without a label": (
        world({}, {SMALL: 14}, TWO), Reason.MIG_CONFIG_UNSET, "divided into 7x1g.10gb, and nvidia.com/mig.config", ALL),
    "instances without a label, of which nobody has read": (
        world(SHOWN, {SMALL: 14}, None), Reason.MIG_CONFIG_UNSET, "divided into 14x1g.10gb", ALL),
    "some instances, of which nobody has read": (
        world(SHOWN, {SMALL: 7}, None), Reason.MIG_CONFIG_UNSET, "Set it to an entry that has this layout", ""),
    "instances under single, of which nobody has read": (
        world({PRODUCT: f"{P}-MIG-1g.10gb"}, {GPU: 7}, None, "single"), Reason.MIG_CONFIG_UNSET, "into 7x1g.10gb", ""),
    "instances by cloud-init": (
        world(SHOWN, {SMALL: 14}, None, switches=NO_MIG_MANAGER), Reason.MIG_CONFIG_UNSET,
        "and not by mig-manager (no nvidia.com/mig.config, migManager.enabled is false)", ALL),
    "instances that the label does not name": (
        world({CONFIG: "all-disabled", STATE: "success"}, {SMALL: 14}, TWO), Reason.MIG_CONFIG_DIFFERS,
        "nvidia.com/mig.config is all-disabled, but its GPUs have 7x1g.10gb", ALL),
    "a layout without a name": (
        world(DONE, {SMALL: 3}, (THREE,)), Reason.MIG_CONFIG_DIFFERS, "but its GPUs have 3x1g.10gb", ""),
    "7 of 8": (
        world({}, {GPU: 7}, (None,) * 8, unhealthy={GPU: 1}), Reason.DEVICE_UNHEALTHY, "1 of 8 nvidia.com/gpu is", ""),
    "7 of 8, of which nobody has read": (
        world({}, {GPU: 7}, None, unhealthy={GPU: 1}), Reason.DEVICE_UNHEALTHY, "1 of 8 nvidia.com/gpu is", ""),
    "0 of 8": (
        world({}, {}, (None,) * 8, unhealthy={GPU: 8}), Reason.DEVICE_UNHEALTHY, "not running, or calls all of them", ""),
    "the whole GPU beside instances": (
        world({CONFIG: "x", STATE: "success"}, {SMALL: 7}, (SEVEN, None), unhealthy={GPU: 1},
            admin="mig-configs: {x: [{devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 7}},"
            " {devices: [1], mig-enabled: false}]}"),
        Reason.DEVICE_UNHEALTHY, "1 of 1 nvidia.com/gpu is", ""),
    "7 of 7, but there are 8": (
        world({}, {GPU: 7}, (None,) * 8), Reason.ALLOCATABLE_MISMATCH, "advertises 7 nvidia.com/gpu, but", ""),
    "instances that single would refuse": (
        world(DONE, {GPU: 14}, (SEVEN, None), "single"), Reason.MIG_CONFIG_DIFFERS, "but its GPUs have", ""),
}  # fmt: skip


@pytest.mark.parametrize(("found", "reason", "words", "config"), MISFITS.values(), ids=MISFITS.keys())
def test_it_is_told_also_in_the_verdict_on_a_node_without_a_policy(
    found: tuple[NodeView, ClusterSnapshot], reason: Reason, words: str, config: str
) -> None:
    (one, change), *_ = find_misfits(*found)
    assert one.reason is reason
    assert (change.labels if change is not None else ()) == (((CONFIG, config),) if config else ())
    assert words in one.message
    assert found[0].name not in one.message
    verdict = plan_rollout(found[1], NOW).verdicts["gpu-07"]
    assert (verdict.phase, verdict.reason) == (Phase.SKIPPED, reason)
    assert all(isinstance(action, EnsureGPUNode) for action in verdict.actions)
    assert verdict.message.startswith("no policy selects this node, and ")
    assert words in verdict.message


def test_a_report_that_may_be_old_is_not_compared() -> None:
    node, snapshot = world(DONE, {SMALL: 14}, (None, None))
    assert [one.reason for one, _ in find_misfits(node, snapshot)] != []
    assert [*find_misfits(node, replace(snapshot, agents=frozenset()))] == []


def test_an_unhealthy_instance_is_a_part_of_the_layout() -> None:
    node, _ = world(DONE, {SMALL: 6}, None, unhealthy={SMALL: 1})
    assert find_layouts(node, None) == (SEVEN,)


def told(found: tuple[NodeView, ClusterSnapshot], *others: NodeView) -> dict[str, tuple[str, str, str]]:
    node, snapshot = found
    policy = snapshot.stack.cluster_policy
    assert policy is not None
    view = Seen(nodes=(node, *others), cluster_policies=(policy,), gpunodes=snapshot.gpunodes)
    symptoms = find_node_symptoms(view.snapshot, {}, find_all_misfits(view.snapshot))
    return {one.reason: (one.severity, one.message, str(one.command)) for one in symptoms}


def test_doctor_says_it_once_for_all_nodes_with_a_command_that_takes_nothing_from_any() -> None:
    node, snapshot = MISFITS["instances by cloud-init"][0]
    found = told((node, snapshot), replace(node, name="gpu-08"))
    ((severity, message, command),) = found.values()
    assert severity == "WARNING"
    assert not lacks(message, "gpu-07, gpu-08", "14x1g.10gb")
    assert command == f"kubectl label node gpu-07 gpu-08 --overwrite {CONFIG}={ALL}"


def test_a_label_is_not_set_where_nobody_knows_what_mig_manager_would_do_with_it() -> None:
    found = world({**SHOWN, "nvidia.com/gpu.deploy.mig-manager": "true"}, {SMALL: 14}, None)
    _, message, command = told(found)["MigConfigUnset"]
    assert not lacks(message, "unknown", "mig-manager", "gpu-07")
    assert command == "kubectl describe node gpu-07"


def test_mixed_is_the_way_out_of_mig_invalid_unless_it_would_take_devices_from_other_nodes() -> None:
    found = MISFITS["GFD's MIG-INVALID"][0]
    severity, _, command = told(found)["MigInvalid"]
    assert (severity, '{"spec":{"mig":{"strategy":"mixed"}}}' in command) == ("ERROR", True)
    served = make_node("gpu-08", labels={**DONE, PRODUCT: f"{P}-MIG-1g.10gb"}, resources={GPU: 7})
    _, message, command = told(found, served)["MigInvalid"]
    assert "devices would go on gpu-08 (7 nvidia.com/gpu)" in message
    assert command == "kubectl describe node gpu-07"


def test_where_a_policy_divides_gpus_both_mentions_of_the_strategy_have_one_command() -> None:
    node, snapshot = MISFITS["GFD's MIG-INVALID"][0]
    (found, change), *_ = find_misfits(node, replace(snapshot, policies=(MIXED,)))
    assert change == FREE_STRATEGY
    assert not lacks(found.message, "remove ClusterPolicy mig.strategy", "divide all GPUs")
    whole, rest = MISFITS["whole GPUs that are divided"][0]
    (found, _), *_ = find_misfits(whole, replace(rest, policies=(MIXED,)))
    assert "or remove ClusterPolicy mig.strategy" in found.message


def test_an_entry_of_the_device_plugin_is_changed_where_that_sets_the_strategy() -> None:
    node, snapshot = world(INVALID, {}, None, "", plugin="theirs")
    ((one, change),) = find_misfits(node, snapshot)
    assert not lacks(one.message, "flags.migStrategy", "nvidia.com/device-plugin.config", "mixed")
    assert (one.reason, change) == (Reason.MIG_INVALID, None)
    (_, fixed), *_ = find_misfits(*MISFITS["GFD's MIG-INVALID"][0])
    assert fixed == Change(fields=(("mig.strategy", "mixed"),))


def test_a_name_that_mig_manager_does_not_have_is_told_once_with_the_right_one() -> None:
    node, snapshot = world({CONFIG: "typo", STATE: "success"}, {SMALL: 14}, TWO)
    view = Seen(nodes=(node,), gpunodes=snapshot.gpunodes)
    entries = {"gpu-07": ("own", frozenset({"all-disabled"}))}
    (one,) = find_node_symptoms(view.snapshot, entries, find_all_misfits(view.snapshot))
    assert (one.reason, str(one.command)) == (
        "MigConfigDiffers",
        f"kubectl label node gpu-07 --overwrite {CONFIG}={ALL}",
    )
    (unread,) = find_node_symptoms(view.snapshot, entries)
    assert unread.reason == "MigConfigUnknown"


def test_the_entries_that_mig_manager_reads_count_before_the_installation() -> None:
    node, _ = world({CONFIG: "parts", STATE: "success"}, {}, None)
    policy = make_cluster_policy("", mig_strategy="mixed", mig_config_name="own")
    maps = {"own": make_map({"config.yaml": PARTS}, ours=False)}
    view = Seen(nodes=(node,), cluster_policies=(policy,), config_maps=maps)
    (one,) = find_node_symptoms(view.snapshot, {}, find_all_misfits(view.snapshot))
    assert (one.reason, one.severity) == ("ComputeInstances", "ERROR")


# --- a device that the device plugin calls unhealthy is no difference (docs/design/nvidia.md#b9) -----------------------

HALF = "nvidia.com/mig-3g.40gb"
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
    verdict = judged(offering({GPU: 7}, {GPU: 1}))
    assert (verdict.phase, verdict.reason) == (Phase.PENDING, Reason.ADOPTABLE)
    assert verdict.health is not None
    assert verdict.health.reason is Reason.DEVICE_UNHEALTHY
    assert not lacks(verdict.health.message, "1 of 8 nvidia.com/gpu", "device plugin")


def proven(
    resources: Mapping[str, int], unhealthy: Mapping[str, int], policy: PolicyView = FULL, **fields: Any
) -> Verdict:
    """What is decided about a node that policy FULL adopted when it offered this; `node` has what it offers since."""
    actions = planned(offering(resources, unhealthy)).verdicts["gpu-07"].actions
    (adopt,) = (one for one in actions if isinstance(one, LabelNode))
    labels = {names.LABEL_MODE: "full", names.LABEL_POLICY: FULL.name, names.LABEL_PLUGIN_CONFIG: None}
    labels |= fields.pop("labels", {})
    node = {"resources": resources, "unhealthy": unhealthy, "verified": adopt.verified, **fields.pop("node", {})}
    return judged(make_case(policy, products=EIGHT, labels=labels, node=node, **fields))


def test_a_proven_node_with_7_of_8_stays_synced_and_says_so() -> None:
    verdict = proven({GPU: 7}, {GPU: 1}, drifting_since=at(-3600))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.SYNCED, Reason.GPU_UNHEALTHY, ())
    assert "1x full proven; 1 of 8 nvidia.com/gpu" in verdict.message


def test_a_change_that_the_policy_asks_for_waits_as_for_any_unhealthy_gpu() -> None:
    verdict = judged(offering({GPU: 7}, {GPU: 1}, SLICED))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, ())


def withdrawn(policy: PolicyView = FULL, seconds: float = 3600, **node: Any) -> Verdict:
    """What is decided about a node that was proven with 8 whole GPUs and, for so long, has offered none of them."""
    since = at(-seconds)
    offers = {"resources": {}, "unhealthy": {GPU: 8}, **node}
    return proven({GPU: 8}, {}, policy, node=offers, drifting_since=since, withdrawn_since=since)


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(withdrawn(), id="its own name would be new"),
        pytest.param(withdrawn(retry="now"), id="a person asked for another try"),
        pytest.param(withdrawn(SLICED), id="the policy wants another mode"),
        pytest.param(judged(offering({}, {GPU: 8}, SLICED, withdrawn_since=at(-3600))), id="nothing was proven"),
    ],
)
def test_no_change_begins_on_a_node_with_0_of_8_and_no_command_is_given_that_would_start_one(verdict: Verdict) -> None:
    assert (verdict.phase, verdict.reason, verdict.candidate) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, False)
    assert verdict.actions == ()
    assert not lacks(verdict.message, "kubelet counts 8 nvidia.com/gpu", "none")
    assert names.ANNOTATION_RETRY not in verdict.message
    assert (verdict.health and verdict.health.reason) is Reason.DEVICE_UNHEALTHY


def test_a_change_begins_where_the_plugin_cannot_start_for_want_of_the_entry_that_its_label_names() -> None:
    """A change gives the label an entry (docs/design/nvidia.md#b4)."""
    lost = {"resources": {}, "unhealthy": {GPU: 8}}
    since = {"drifting_since": at(-3600), "withdrawn_since": at(-3600)}
    label = {names.LABEL_PLUGIN_CONFIG: "bogus"}
    verdict = proven({GPU: 8}, {}, FULL, node=lost, labels=label, **since)
    assert (verdict.phase, verdict.candidate) == (Phase.PENDING, True)


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
    lasting = judged(offering({}, {GPU: 8}, SLICED, withdrawn_since=at(-60)))
    assert (lasting.phase, lasting.reason) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY)


def test_what_the_kubelet_still_counts_of_an_earlier_mode_is_no_unhealthy_device() -> None:
    verdict = judged(changing(node={"resources": {}, "unhealthy": {GPU: 8}}))
    assert (verdict.health and verdict.health.reason) is Reason.NO_TROUBLE


def test_a_device_that_only_the_plugin_calls_unhealthy_does_not_keep_a_new_node_closed() -> None:
    verdict = judged(offering({GPU: 7}, {GPU: 1}, node={"gate": "[]"}))
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
        {HALF: 1, f"{GPU}.shared": 4},
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
    assert (verdict.health and verdict.health.reason) is Reason.DEVICE_UNHEALTHY
