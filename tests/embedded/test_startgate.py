"""Nodes that join behind the start-up taint (docs/design/transition.md#gate), on a SIMULATED cluster."""

import copy

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, Scene, at_once, node, open_scene
from tests.fakes.virtualtime import virtually
from tests.nodewrites import is_gated, taints_of

from gpusharing.kube.client import CLUSTER_POLICIES, JSON, NODES, POLICIES

GATE: JSON = {"key": "gpusharing.dev/unproven", "value": "true", "effect": "NoSchedule"}
UNREGISTERED: JSON = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
TOLERATIONS: list[JSON] = [
    {"key": "nvidia.com/gpu", "operator": "Exists"},
    {"key": "gpusharing.dev/unproven", "operator": "Exists"},
]
PREPARED: JSON = {**CLUSTER_POLICY, "spec": {**CLUSTER_POLICY["spec"], "daemonsets": {"tolerations": TOLERATIONS}}}


def gated(name: str, *more: JSON) -> JSON:
    """A GPU node as a kubelet with --register-with-taints registers it."""
    raw = node(name)
    raw["spec"] = {"taints": [*more, GATE]}
    return raw


def waits(scene: Scene, name: str) -> bool:
    return is_gated(scene.e.node(name))


async def opened(scene: Scene, name: str, seconds: float = HOUR) -> None:
    await scene.e.until(lambda: not waits(scene, name), f"{name} to lose the taint", seconds)


@virtually
async def test_a_node_that_joins_gets_its_layout_before_any_workload_lands() -> None:
    """Without the gate the pods would take the whole GPUs before the operator has looked."""
    async with open_scene(
        gated("gpu-1", UNREGISTERED), workloads=[SimWorkload("llm", 1)], cluster_policy=PREPARED
    ) as scene:
        landed: list[bool] = []
        scene.e.cluster.store.on_commit.append(
            lambda _, change: (
                landed.append(waits(scene, "gpu-1"))
                if change.new is not None and change.new["kind"] == "Pod" and _is_llm(change.new)
                else None
            )
        )
        await scene.serve(SLICED)
        assert not waits(scene, "gpu-1")
        assert taints_of(scene.e.node("gpu-1")) == [UNREGISTERED], "a taint of somebody else's stays"
        scene.person("gpu-1", {"spec": {"taints": None}})
        await scene.running("llm", 1)
        assert landed
        assert not any(landed), "no pod was bound while the taint was there"
        assert scene.evicted() == []


def _is_llm(pod: JSON) -> bool:
    return pod["metadata"].get("labels", {}).get("app") == "llm" and bool(pod["spec"].get("nodeName"))


@virtually
async def test_with_no_policy_the_taint_stays_and_the_reason_is_shown() -> None:
    async with open_scene(gated("gpu-1"), cluster_policy=PREPARED) as scene:
        shown = await scene.reason("gpu-1", "Unowned")
        assert shown["message"] == (
            "no workload starts on this node until it is proven (taint gpusharing.dev/unproven): no policy selects this"
            " node"
        )
        assert scene.node_writes()["gpu-1"] == 0
        await scene.serve(MIXED)
        assert not waits(scene, "gpu-1")


@virtually
async def test_newcomers_come_in_while_the_budget_is_full() -> None:
    async with open_scene(node("gpu-1"), cluster_policy=PREPARED, serving=FULL) as scene:
        scene.person("gpu-1", {"spec": {"unschedulable": True}})  # takes the one slot
        scene.apply(SLICED, rollout=at_once(1))
        for name in ("gpu-2", "gpu-3"):
            scene.e.cluster.add(NODES, gated(name))
        await opened(scene, "gpu-2")
        await opened(scene, "gpu-3")
        assert scene.transition("gpu-1")["reason"] == "AlreadyCordoned"
        scene.cordon("gpu-1", on=False)
        await scene.ready()


@virtually
async def test_newcomers_that_are_as_wanted_are_let_in_by_one_write_each() -> None:
    async with open_scene(node("gpu-1"), cluster_policy=PREPARED, serving=FULL) as scene:
        scene.cordon("gpu-1")  # takes the one slot
        since = scene.mark()
        for name in ("gpu-2", "gpu-3"):
            scene.e.cluster.add(NODES, gated(name))
            await opened(scene, name)
        assert scene.node_writes(since) == {"gpu-2": 1, "gpu-3": 1}


@pytest.mark.parametrize("wanted", ["what it has", "another layout"])
@virtually
async def test_a_node_in_service_that_is_tainted_again_is_let_in_by_a_proof_and_takes_its_slot_in_its_turn(
    wanted: str,
) -> None:
    async with open_scene(node("gpu-1"), node("gpu-2"), cluster_policy=PREPARED, serving=FULL) as scene:
        since = scene.mark()
        again = {"spec": {"taints": [{"key": "gpusharing.dev/unproven", "effect": "NoSchedule"}]}}
        if wanted == "what it has":
            scene.person("gpu-1", again)
            await opened(scene, "gpu-1")
            assert scene.node_writes(since) == {"gpu-1": 1}
            return
        await scene.reach(SLICED, rollout=at_once(0), reason="Frozen")
        for name in ("gpu-1", "gpu-2"):
            scene.person(name, again)
        await scene.serve(SLICED, rollout=at_once(1))
        assert scene.guard.largest["pool-b"] == 1, "neither is a newcomer"
        assert not waits(scene, "gpu-1")
        assert not waits(scene, "gpu-2")


@virtually
async def test_what_does_not_tolerate_the_taint_is_told_on_the_node_and_on_the_policy_until_it_does() -> None:
    async with open_scene(gated("gpu-1")) as scene:
        shown = await scene.reach(MIXED, reason="TaintNotTolerated")
        assert "kubectl patch clusterpolicy cluster-policy" in shown["message"]
        row = await scene.until_condition("Stalled", "True", "Blocked")
        assert "daemonsets.tolerations" in row["message"]
        assert scene.node_writes()["gpu-1"] == 0
        scene.e.cluster.patch(
            CLUSTER_POLICIES, "cluster-policy", {"spec": {"daemonsets": {"tolerations": TOLERATIONS}}}
        )
        await scene.ready()
        assert not waits(scene, "gpu-1")


@virtually
async def test_a_release_that_loses_against_another_taint_is_decided_anew_and_keeps_it() -> None:
    async with open_scene(gated("gpu-1"), cluster_policy=PREPARED) as scene:
        theirs: JSON = {"key": "example.com/theirs", "effect": "NoSchedule"}

        def meanwhile() -> None:
            taints = copy.deepcopy(taints_of(scene.e.node("gpu-1")))
            scene.person("gpu-1", {"spec": {"taints": [*taints, theirs]}})

        await scene.begin(SLICED, stage="actuating")
        client = scene.e.client
        assert client is not None
        client.interfere(lambda body: "taints" in body.get("spec", {}), meanwhile)
        await scene.ready()
        assert taints_of(scene.e.node("gpu-1")) == [theirs]


@virtually
async def test_a_policy_that_goes_in_the_middle_leaves_the_taint() -> None:
    async with open_scene(gated("gpu-1"), cluster_policy=PREPARED) as scene:
        await scene.begin(SLICED)
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.released("gpu-1")
        assert waits(scene, "gpu-1")
        assert not scene.cordoned("gpu-1")
        assert (await scene.reason("gpu-1", "Unowned"))["phase"] == "Skipped"


# --- in the protocol of the autoscalers ----------------------------------------------------------------------


def is_initialized(raw: JSON, startup_taints: list[JSON]) -> bool:
    """Karpenter's judgement of a node that it made (v1.14.1 pkg/controllers/nodeclaim/lifecycle/initialization.go): Ready, none of the NodePool's startupTaints left (key and effect), and no taint of a node that is only starting."""
    starting = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", UNREGISTERED["key"])
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in raw["status"]["conditions"])
    there = {(taint["key"], taint["effect"]) for taint in taints_of(raw)}
    expected = {(taint["key"], taint["effect"]) for taint in startup_taints}
    return ready and not (there & expected) and not any(key in starting for key, _ in there)


@virtually
async def test_karpenter_counts_the_node_as_started_when_it_is_proven_and_not_before() -> None:
    """spec.template.spec.startupTaints of the NodePool; Karpenter takes its own taint when the node has registered."""
    async with open_scene(gated("gpu-1", UNREGISTERED), cluster_policy=PREPARED) as scene:
        await scene.begin(MIXED)
        scene.person("gpu-1", {"spec": {"taints": [GATE]}, "metadata": {"labels": {"karpenter.sh/registered": "true"}}})
        assert not is_initialized(scene.e.node("gpu-1"), [GATE])
        await scene.fenced("gpu-1", "actuating")
        assert not is_initialized(scene.e.node("gpu-1"), [GATE])
        await scene.ready()
        assert is_initialized(scene.e.node("gpu-1"), [GATE])
        assert not scene.cordoned("gpu-1")


def is_counted_ready(raw: JSON, startup_taints: frozenset[str]) -> bool:
    """The cluster autoscaler's judgement with --startup-taint (1.36.1, utils/taints/taints.go): while one of these keys is there the node counts as one that is still starting."""
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in raw["status"]["conditions"])
    return ready and not any(taint["key"] in startup_taints for taint in taints_of(raw))


@pytest.mark.parametrize("spec", [FULL, SLICED], ids=["as it is", "with a change"])
@virtually
async def test_the_cluster_autoscaler_counts_it_as_ready_only_when_it_is_proven(spec: JSON) -> None:
    keys = frozenset({GATE["key"]})
    async with open_scene(gated("gpu-1"), cluster_policy=PREPARED) as scene:
        assert not is_counted_ready(scene.e.node("gpu-1"), keys)
        await scene.serve(spec)
        assert is_counted_ready(scene.e.node("gpu-1"), keys)
        assert "cluster-autoscaler.kubernetes.io/scale-down-disabled" not in scene.annotations("gpu-1")
