"""What cannot be carried out is refused with an alternative, before anything is touched."""

import asyncio

import pytest
from hack.embedded import CLUSTER_POLICY
from tests.embedded.scene import FULL, L40S, MIXED, SINGLE, SLICED, at_once, node, nodes, scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import CLUSTER_POLICIES, GPU_CLUSTERS, JSON, NODES

REFUSED: dict[str, tuple[JSON, str, str]] = {
    "an unknown profile": (
        {"mig": {"layouts": [{"profiles": {"1g.99gb": 1}}]}},
        "ProfileNotSupported",
        "1g.10gb",
    ),
    "seven 1g.20gb on an 80 GB card": (
        {"mig": {"layouts": [{"profiles": {"1g.20gb": 7}}]}},
        "LayoutDoesNotFit",
        "1g.20gb",
    ),
    "an unknown name": ({"mig": {"config": "all-9g.99gb"}}, "ConfigUnknown", "all-balanced"),
    "a layout that leaves a GPU out": (
        {"mig": {"layouts": [{"devices": [0], "profiles": {"3g.40gb": 2}}]}},
        "LayoutIncomplete",
        "devices: [1]",
    ),
    "a layout for a GPU that is not there": (
        {"mig": {"layouts": [{"devices": [0, 1, 2], "profiles": {"3g.40gb": 2}}]}},
        "LayoutTooManyGPUs",
        "GPU 2",
    ),
}


@pytest.mark.parametrize(("spec", "reason", "told"), REFUSED.values(), ids=REFUSED.keys())
@virtually
async def test_what_the_card_cannot_be_is_refused_with_an_alternative_before_anything_is_touched(
    spec: JSON, reason: str, told: str
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply({"mode": "MIG", **spec})
        row = await stage.until_condition("Accepted", "False", reason)
        assert told in row["message"]
        await asyncio.sleep(300)
        assert not stage.node_writes()
        assert stage.transition("gpu-1")["phase"] == "Skipped"


@virtually
async def test_mig_on_cards_without_it_is_refused() -> None:
    async with scene(node("gpu-1", L40S)) as stage:
        stage.apply(MIXED)
        await stage.until_condition("Accepted", "False", "NotMigCapable")
        assert not stage.node_writes()


@virtually
async def test_an_invalid_spec_that_passed_the_server_is_named_by_its_field() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply({"mode": "TimeSlicing", "timeSlicing": {"replicas": 1}})
        row = await stage.until_condition("Accepted", "False", "InvalidSpec")
        assert "replicas" in row["message"]
        assert not stage.node_writes()


NEWER = {"spec": {"rollout": {"onlyInTheDark": True}}}
"""A field of a newer version: ignored, it would let nodes be drained by day."""


@virtually
async def test_a_field_of_newer_crds_is_refused_before_anything_is_touched() -> None:
    async with scene(*nodes(2)) as stage:
        stage.apply({**MIXED, "rollout": NEWER["spec"]["rollout"]})
        row = await stage.until_condition("Accepted", "False", "InvalidSpec")
        assert "spec.rollout.onlyInTheDark" in row["message"]
        assert "upgrade the operator" in row["message"]
        await asyncio.sleep(600)
        assert not stage.node_writes()


@virtually
async def test_a_field_of_newer_crds_in_a_running_change_lets_no_further_node_begin() -> None:
    async with scene(*nodes(2)) as stage:
        stage.apply(FULL)
        await stage.ready("pool-b")
        stage.apply(MIXED)
        first = await stage.any_fenced("actuating")
        stage.apply({**MIXED, "rollout": NEWER["spec"]["rollout"]})
        await stage.until_condition("Accepted", "False", "InvalidSpec")
        mark = stage.mark()
        await asyncio.sleep(7200)
        assert set(stage.node_writes(mark)) <= {first}
        stage.apply(MIXED)
        await stage.ready("pool-b")


@virtually
async def test_a_selector_that_selects_nothing_is_said() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(FULL, pool="nowhere")
        await stage.until_condition("Ready", "False", "NoNodes")


@virtually
async def test_a_selected_node_without_a_gpu_is_named() -> None:
    bare = {
        "metadata": {"name": "cpu-1", "labels": {"gpusharing.dev/pool": "b"}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "4"}},
    }
    async with scene(bare) as stage:
        stage.apply(FULL)
        row = await stage.until_condition("Accepted", "False", "NoGPU")
        assert "cpu-1" in row["message"]


def without(*path: str) -> JSON:
    """The ClusterPolicy with one field removed."""
    return changed(None, *path)


def changed(value: object, *path: str) -> JSON:
    """The patch of the ClusterPolicy that sets one field."""
    body: JSON = {path[-1]: value}
    for step in reversed(path[:-1]):
        body = {step: body}
    return {"spec": body}


STACKS: dict[str, tuple[JSON, JSON, str, str]] = {
    "the plugin's ConfigMap is not ours": (
        changed("theirs", "devicePlugin", "config", "name"),
        SLICED,
        "PluginConfigNotOurs",
        "kubectl patch clusterpolicy",
    ),
    "no plugin ConfigMap at all": (
        without("devicePlugin", "config"),
        SLICED,
        "PluginConfigNotOurs",
        "not set",
    ),
    "a MIG strategy for the whole cluster": (
        changed("single", "mig", "strategy"),
        MIXED,
        "MigStrategySet",
        "single",
    ),
    "mig-manager off": (changed(False, "migManager", "enabled"), MIXED, "MigManagerDisabled", "enabled"),
    "own layouts without our mig-parted file": (
        changed("theirs", "migManager", "config", "name"),
        MIXED,
        "LayoutsNeedConfigMap",
        "gpusharing-mig-parted",
    ),
}


@pytest.mark.parametrize(("patch", "spec", "reason", "told"), STACKS.values(), ids=STACKS.keys())
@virtually
async def test_settings_that_would_override_us_are_named_with_the_command_that_mends_them(
    patch: JSON, spec: JSON, reason: str, told: str
) -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", patch)
        stage.apply(spec)
        row = await stage.until_condition("Accepted", "False", reason)
        assert told in row["message"]
        await asyncio.sleep(200)
        assert not stage.node_writes()
        stage.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": None})
        stage.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": CLUSTER_POLICY["spec"]})
        await stage.ready()


@virtually
async def test_a_named_configuration_works_without_our_mig_parted_file() -> None:
    async with scene(*nodes(1)) as stage:
        stage.e.cluster.patch(
            CLUSTER_POLICIES, "cluster-policy", changed(None, "migManager", "config", "name")
        )
        stage.apply(SINGLE)
        await stage.ready()
        assert_as_wanted(stage, SINGLE, "gpu-1")


@virtually
async def test_without_a_cluster_policy_or_with_a_dra_stack_nothing_is_done() -> None:
    async with scene(*nodes(1), cluster_policy=None) as stage:
        stage.apply(SLICED)
        await stage.until_condition("Accepted", "False", "ClusterPolicyMissing")
        stage.e.cluster.add(CLUSTER_POLICIES, CLUSTER_POLICY)
        stage.e.cluster.add(GPU_CLUSTERS, {"metadata": {"name": "gpus"}})
        await stage.until_condition("Accepted", "False", "UnsupportedStack")
        await asyncio.sleep(200)
        assert not stage.node_writes()


@virtually
async def test_a_change_that_was_blocked_by_the_stack_in_the_middle_gives_the_node_back() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(SLICED, rollout=at_once(1))
        await stage.fenced("gpu-1")
        stage.e.cluster.patch(
            CLUSTER_POLICIES, "cluster-policy", changed("theirs", "devicePlugin", "config", "name")
        )
        await stage.released("gpu-1")
        assert not stage.cordoned("gpu-1")
        assert stage.e.cluster.get(NODES, "gpu-1")
