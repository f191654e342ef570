"""ClusterPolicy's mig.strategy: whose MIG devices it names, and that no message removes it while one needs it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NOW,
    make_cluster_policy,
    make_gpu,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
)
from tests.planning.test_acceptance import PLAIN_MIG
from tests.planning.test_installation import GOOD, PLUGIN
from tests.seen import make_map
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PolicyView
from gpusharing.planning.stack.effects import FREE_STRATEGY, UNKNOWN, find_effects
from gpusharing.planning.vocabulary.commands import Loss
from gpusharing.planning.vocabulary.reasons import Reason

WANTED = {"strategy": "single", "config": "all-1g.10gb"}
SINGLE = make_policy(mig=WANTED)
KEPT = make_policy(
    "kept",
    mig={"strategy": "mixed", "config": "all-1g.10gb"},
    nodeSelector={"matchLabels": {"gpusharing.dev/pool": "kept"}},
)
SEVENTHS = (("1g.10gb", 7),)
GPU = {names.LABEL_GPU_PRESENT: "true", "gpusharing.dev/pool": ""}
OFFERS = {"nvidia.com/mig-1g.10gb": 14}
ENTRIES = {
    "own": "version: v1\nflags: {migStrategy: mixed}\n",
    "other": "version: v1\nflags: {migStrategy: single}\n",
    "silent": "version: v1\n",
}


def other(
    name: str = "gpu-9", *, offers: Mapping[str, int] | None = None, labels: Mapping[str, str] | None = None
) -> NodeView:
    return make_node(name, labels={**GPU, **(labels or {})}, resources=offers or {})


def reporting(**gpu: Any) -> GPUNodeView:
    return make_gpunode("gpu-9", gpus=(make_gpu(0, **gpu), make_gpu(1, **gpu)))


DIVIDED, WHOLE = reporting(layout=SEVENTHS), reporting()

USERS: dict[str, tuple[NodeView, GPUNodeView | None, str]] = {
    "nobody owns it": (other(offers=OFFERS), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "its agent alone tells": (other(), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "GFD alone tells": (other(labels={names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}), None,
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
    "nothing is known of it": (other(), None, UNKNOWN),
    "its agent cannot read the GPUs": (other(), make_gpunode("gpu-9", gpus=(), error="no driver"), UNKNOWN),
    "its entry says nothing of MIG": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "silent"}), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "its entry is not in our ConfigMap": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "gone"}), DIVIDED,
        "nvidia.com/device-plugin.config is gone, without which its device plugin shares and divides nothing, or does"
        " not start"),
    "its entry would give them other names": (
        other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "other"}), DIVIDED, "14 nvidia.com/mig-1g.10gb"),
    "a policy adopted it with this strategy": (
        other(offers=OFFERS, labels={"gpusharing.dev/pool": "kept", names.LABEL_POLICY: "kept"}), DIVIDED,
        "14 nvidia.com/mig-1g.10gb"),
}  # fmt: skip
OTHERS: dict[str, tuple[NodeView, GPUNodeView | None]] = {
    "its entry says the strategy itself": (other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "own"}), DIVIDED),
    "its GPUs are whole": (other(offers={"nvidia.com/gpu": 2}), WHOLE),
    "GFD describes whole GPUs": (other(labels={names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"}), None),
    "its card has no MIG": (other(labels={names.LABEL_MIG_CAPABLE: "false"}), None),
    "it has no GPU": (make_node("gpu-9", labels={"gpusharing.dev/pool": ""}, resources={}), None),
    "its own policy waits for the removal": (make_node("gpu-9", resources=OFFERS), DIVIDED),
}  # fmt: skip


def find(node: NodeView, report: GPUNodeView | None, **policy: Any) -> dict[str, str]:
    stack = make_stack(cluster_policy=make_cluster_policy(mig_strategy="mixed", **policy), plugin_configs=ENTRIES)
    reports = [] if report is None else [report]
    snapshot = make_snapshot([node], [SINGLE, KEPT], gpunodes=reports, stack=stack)
    return {effect.node: effect.why for effect in find_effects(FREE_STRATEGY, snapshot) if effect.loss is Loss.DEVICES}


@pytest.mark.parametrize(("node", "report", "devices"), USERS.values(), ids=USERS.keys())
def test_a_node_lives_by_the_strategy_of_the_cluster(node: NodeView, report: GPUNodeView | None, devices: str) -> None:
    assert find(node, report) == {"gpu-9": devices}


@pytest.mark.parametrize(("node", "report"), OTHERS.values(), ids=OTHERS.keys())
def test_a_node_does_not_need_the_strategy_of_the_cluster(node: NodeView, report: GPUNodeView | None) -> None:
    assert find(node, report) == {}


def test_the_default_entry_counts_for_a_node_without_the_label() -> None:
    node = other(offers=OFFERS)
    assert find(node, DIVIDED, plugin_default="own") == {}
    assert find(node, DIVIDED, plugin_default="silent") != {}


def objection(cluster_policy: ClusterPolicyView, *nodes: NodeView, policy: PolicyView = SINGLE) -> str:
    mine = make_node("gpu-1", labels=GPU | {"gpusharing.dev/pool": "b"}, resources=OFFERS)
    stack = make_stack(cluster_policy=cluster_policy)
    plan = plan_rollout(make_snapshot([mine, *nodes], [policy], gpunodes=(), stack=stack), NOW)
    assert plan.objections["pool-b"].reason is Reason.MIG_STRATEGY_SET
    return plan.objections["pool-b"].message


REFUSING = {
    "ClusterPolicy": (make_cluster_policy(mig_strategy="mixed"), '"strategy":null'),
    "NVIDIA's chart": (replace(PLAIN_MIG, mig_strategy="mixed"), "migStrategy=null"),
}


@pytest.mark.parametrize(("cluster_policy", "command"), REFUSING.values(), ids=REFUSING.keys())
def test_no_message_removes_the_strategy_that_another_node_lives_by(
    cluster_policy: ClusterPolicyView, command: str
) -> None:
    whole = other("gpu-8", offers={"nvidia.com/gpu": 2}, labels={names.LABEL_GPU_PRODUCT: "NVIDIA-H100-80GB-HBM3"})
    assert command in objection(cluster_policy, whole), "nobody is harmed"
    said = objection(cluster_policy, whole, other("gpu-7"), other(offers=OFFERS))
    assert command not in said
    assert "run:" not in said
    assert f"gpu-7 ({UNKNOWN}), gpu-9 (14 nvidia.com/mig-1g.10gb)" in said
    assert not lacks(said, "agent of gpu-7")
    assert "flags.migStrategy: mixed" in said


def test_no_message_removes_the_strategy_that_the_pool_of_a_paused_policy_lives_by() -> None:
    """Its nodes would lose their MIG devices without a change that follows."""
    cluster_policy, command = REFUSING["ClusterPolicy"]
    said = objection(cluster_policy, policy=make_policy(mig=WANTED, rollout={"paused": True}))
    assert command not in said
    assert not lacks(said, "gpu-1 (14 nvidia.com/mig-1g.10gb", "pool-b is paused")
    assert command in objection(cluster_policy)


@pytest.mark.parametrize("plain", [False, True], ids=["ClusterPolicy", "NVIDIA's chart"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nodes": ()}, ""),
        ({"nodes": (other(offers=OFFERS),)}, "gpu-9 (14 nvidia.com/mig-1g.10gb)"),
        ({"nodes": (other(),), "gpunodes": {"gpu-9": DIVIDED}}, "gpu-9 (14 nvidia.com/mig-1g.10gb)"),
        ({"nodes": (), "unread": {"nodes": "forbidden"}}, f"every GPU node ({UNKNOWN})"),
        (
            {
                "nodes": (other(offers=OFFERS, labels={names.LABEL_PLUGIN_CONFIG: "own"}),),
                "config_maps": {**GOOD.config_maps, PLUGIN: make_map(ENTRIES, ours=True)},
            },
            "",
        ),
    ],
    ids=[
        "no other node",
        "another offers MIG devices",
        "its agent reports them",
        "nobody may look",
        "its own entry",
    ],
)
def test_doctor_prints_the_removal_only_where_no_other_node_is_harmed(
    plain: bool, change: dict[str, Any], named: str
) -> None:
    cluster_policy = REFUSING["NVIDIA's chart" if plain else "ClusterPolicy"][0]
    stacks: dict[str, Any] = {"cluster_policies": () if plain else (cluster_policy,)}
    view = replace(GOOD, **stacks, plain=cluster_policy if plain else None, policies=(SINGLE,), **change)
    (found,) = (one for one in view.symptoms if one.reason == "MigStrategySet")
    assert ("null" in str(found.command)) == (not named)
    assert named in found.message
