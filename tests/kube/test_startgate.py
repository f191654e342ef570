"""The start-up taint on the wire: how it is seen, what tolerates it, and the PATCH that takes it away."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import make_fence

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import cluster_policy_view, node_view, tolerates
from gpusharing.kube.daemonsets import daemon_set_view, plain_stack
from gpusharing.kube.fence import parse_record, patch_for, record_text
from gpusharing.planning.snapshot.actions import LabelNode, Release
from gpusharing.planning.snapshot.records import Fence, Verified

GATE = {"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}
OTHER = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
LATER = {"key": "dedicated", "effect": "NoExecute", "timeAdded": "2026-11-20T10:00:00Z"}
PROVEN = Verified("pool-b", "", "key", layout="1x full", gpus=1)


def node(*taints: JSON) -> JSON:
    return {"metadata": {"name": "gpu-07", "uid": "u"}, "spec": {"taints": list(taints)}}


SEEN: dict[str, tuple[tuple[JSON, ...], bool]] = {
    "no taint": ((), False),
    "another taint": ((OTHER,), False),
    "the taint": ((GATE,), True),
    "the taint with a value": (({**GATE, "value": "true"},), True),
    "the taint among others": ((OTHER, GATE, LATER), True),
    "the key with another effect": (({**GATE, "effect": "NoExecute"},), False),
}


@pytest.mark.parametrize(("taints", "gated"), SEEN.values(), ids=SEEN)
def test_a_node_waits_behind_the_taint(taints: tuple[JSON, ...], gated: bool) -> None:
    assert (node_view(node(*taints)).gate is not None) is gated


def test_a_node_with_a_spec_that_nobody_can_read_does_not_wait() -> None:
    assert node_view({"metadata": {"name": "x"}, "spec": {"taints": "none"}}).gate is None


def test_a_change_of_any_other_taint_is_another_node_to_decide_about() -> None:
    assert node_view(node(GATE)) != node_view(node(GATE, OTHER)), "or the PATCH would undo it"


TOLERATIONS: dict[str, tuple[list[JSON], bool]] = {
    "none": ([], False),
    "of another taint": ([{"key": "nvidia.com/gpu", "operator": "Exists"}], False),
    "of the key": ([{"key": "gpusharing.dev/unproven", "operator": "Exists"}], True),
    "of the key with its effect": ([{**GATE, "operator": "Exists"}], True),
    "of the key with a value": ([{**GATE, "value": "true"}], True),
    "of the key with another effect": ([{**GATE, "operator": "Exists", "effect": "NoExecute"}], False),
    "of everything": ([{"operator": "Exists"}], True),
    "without a key and an operator": ([{"value": "true"}], False),
    "of everything that ends pods": ([{"operator": "Exists", "effect": "NoExecute"}], False),
}


@pytest.mark.parametrize(("tolerations", "fine"), TOLERATIONS.values(), ids=TOLERATIONS)
def test_pods_start_behind_the_taint_with_a_toleration(tolerations: list[JSON], fine: bool) -> None:
    assert tolerates(tolerations) is fine


def test_operands_have_the_gpu_operators_own_toleration_where_cluster_policy_lists_none() -> None:
    view = cluster_policy_view({"metadata": {"name": "x"}, "spec": {}})
    assert not view.tolerates_gate
    assert view.tolerations == '[{"key":"nvidia.com/gpu","operator":"Exists","effect":"NoSchedule"}]'


def test_the_list_of_cluster_policy_is_the_whole_list() -> None:
    view = cluster_policy_view({"spec": {"daemonsets": {"tolerations": [{**GATE, "operator": "Exists"}]}}})
    assert view.tolerates_gate


def daemon_set(container: str, *tolerations: JSON) -> JSON:
    template = {"containers": [{"name": container}], "tolerations": list(tolerations)}
    return {"metadata": {"name": container}, "spec": {"template": {"spec": template}}}


def test_both_daemon_sets_of_the_plain_chart_must_tolerate_it() -> None:
    wide = daemon_set("nvidia-device-plugin-ctr", GATE)
    narrow = daemon_set("gpu-feature-discovery-ctr", OTHER)
    both, one = plain_stack(map(daemon_set_view, [wide])), plain_stack(map(daemon_set_view, [wide, narrow]))
    assert both is not None
    assert one is not None
    assert (both.tolerates_gate, one.tolerates_gate) == (True, False)
    assert OTHER["key"] in one.tolerations


# --- what takes it away -------------------------------------------------------------------------------------


def test_a_release_after_a_proof_takes_the_taint_and_leaves_the_others_as_they_are() -> None:
    view = node_view(node(OTHER, GATE, LATER))
    patch = patch_for(Release(view, uncordon=True, labels={}, verified=PROVEN), "41")
    assert patch["spec"] == {"unschedulable": None, "taints": [OTHER, LATER]}
    assert patch["metadata"]["resourceVersion"] == "41"


def test_the_last_taint_takes_its_list_with_it() -> None:
    patch = patch_for(Release(node_view(node(GATE)), uncordon=False, labels={}, verified=PROVEN), "41")
    assert patch["spec"] == {"taints": None}


def test_taking_a_node_over_takes_the_taint_and_is_conditional_then() -> None:
    gated, free = node_view(node(GATE)), node_view(node())
    patch = patch_for(LabelNode(gated, {names.LABEL_MODE: "full"}, verified=PROVEN), "41")
    assert (patch["spec"], patch["metadata"]["resourceVersion"]) == ({"taints": None}, "41")
    before = patch_for(LabelNode(free, {names.LABEL_MODE: "full"}, verified=PROVEN), "41")
    assert "spec" not in before
    assert "resourceVersion" not in before["metadata"]


KEEPING: dict[str, Any] = {
    "an abort": Release(node_view(node(GATE)), uncordon=True, labels={}),
    "a former owner's mark that goes": LabelNode(node_view(node(GATE)), {names.LABEL_POLICY: None}),
    "a proof while somebody else works on the node": Release(
        node_view(node(GATE)), uncordon=False, labels={}, verified=PROVEN, fence=replace(make_fence(), stage="yielded")
    ),
}


@pytest.mark.parametrize("action", KEEPING.values(), ids=KEEPING)
def test_the_taint_stays_until_a_node_is_proven_and_given_back(action: Release | LabelNode) -> None:
    assert "taints" not in patch_for(action, "41").get("spec", {})


def test_a_fence_remembers_that_the_node_took_no_slot() -> None:
    written = record_text(make_fence(newcomer=True))
    fence, problem = parse_record(Fence, written)
    assert fence is not None, problem
    assert fence.newcomer
    older, _ = parse_record(Fence, written.replace(',"newcomer":true', ""))
    assert older is not None, "an older operator wrote it without"
    assert not older.newcomer
