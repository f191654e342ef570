"""Another controller sets the label that a change would write, and puts its own value back."""

import asyncio
from pathlib import Path

from tests.cli.asking import ask, operated, written
from tests.embedded.scene import FULL, MIXED, Scene, policy
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_drift import adopted
from tests.fakes.virtualtime import virtually

from gpusharing.api.names import LABEL_MIG_CONFIG
from gpusharing.kube.client import JSON
from kubectl_gpusharing.shell.troubles import CHANGES

SEVENTHS: JSON = {"mode": "MIG", "mig": {"strategy": "mixed", "config": "all-1g.10gb"}}
LISTS = "nfd.node.kubernetes.io/feature-labels"
TOLD = f"Node Feature Discovery manages it (annotation {LISTS}) and restores its own value; remove it from the"


def rule(scene: Scene, value: str | None) -> None:
    """nfd-master carries out a NodeFeatureRule that sets mig.config to this value, or removes it with its rule."""
    listed = "cpu-model.vendor_id" if value is None else f"cpu-model.vendor_id,{LABEL_MIG_CONFIG}"
    metadata = {"annotations": {LISTS: listed}, "labels": {LABEL_MIG_CONFIG: value}}
    scene.person("gpu-1", {"metadata": metadata})


@virtually
async def test_a_node_whose_label_a_node_feature_rule_sets_is_left_alone_until_the_rule_is_gone(tmp_path: Path) -> None:
    async with operated(1) as scene:
        cluster = scene.e.cluster
        rule(scene, "all-1g.10gb")
        await scene.serve(SEVENTHS)
        told = await ask(cluster, "doctor", "-o", "json")
        (owned,) = (one for one in told.data["symptoms"] if one["reason"] == "LabelOwnedElsewhere")
        assert owned["severity"] == "WARNING"
        assert owned["message"].startswith(f"the operator does not change label {LABEL_MIG_CONFIG} on gpu-1: {TOLD}")
        plan = await ask(cluster, "plan", "-f", written(tmp_path, policy(MIXED)))
        assert plan.status == CHANGES
        assert "Blocked: LabelOwnedElsewhere" in plan.out
        assert TOLD in " ".join(plan.out.split())
        since = scene.mark()
        transition = await scene.reach(MIXED, reason="LabelOwnedElsewhere")
        assert transition["phase"] == "Blocked"
        await scene.until_condition("Stalled", "True", "Blocked")
        await asyncio.sleep(3600)
        assert (scene.node_writes(since)["gpu-1"], scene.cordoned("gpu-1")) == (0, False)
        why = await ask(cluster, "why", "gpu-1")
        assert TOLD in " ".join(why.out.split())
        rule(scene, None)
        await scene.ready()
        assert scene.labels("gpu-1")[LABEL_MIG_CONFIG].startswith("pool-b-")


@virtually
async def test_whoever_set_the_label_before_the_node_was_adopted_has_replaced_nothing_of_ours() -> None:
    async with adopted("Terraform") as scene:
        await scene.serve(FULL)
        assert_as_wanted(scene, FULL, "gpu-1")
