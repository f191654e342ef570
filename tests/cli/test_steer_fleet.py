"""`pause --all` and `resume --all` stop the fleet and let it go on (kubectl_gpusharing/changing/steer.py), and the chart's value paused does so without the plugin (planning/snapshot/views.py, PolicyView.paused_by)."""

import asyncio
import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ME, Answered, ask, install, operated, writes
from tests.embedded.scene import FULL, MIXED, Scene, at_once, node, open_scene, pdb
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.times import to_micro_time
from gpusharing.kube.client import CONFIG_MAPS, DEPLOYMENTS, JSON, LEASES, PDBS, POLICIES
from gpusharing.kube.clock import wall_time
from gpusharing.kube.errors import Forbidden
from kubectl_gpusharing.shell.troubles import DONE, Trouble


def fleet(**paused: JSON) -> FakeCluster:
    """A policy for each pool with these fields of spec.rollout; their operator is installed, and does nothing."""
    cluster = FakeCluster()
    install(cluster)
    for name, rollout in paused.items():
        cluster.add(POLICIES, {"metadata": {"name": name}, "spec": {"mode": "Full", "rollout": rollout}})
    return cluster


def rollouts(cluster: FakeCluster) -> dict[str, JSON]:
    return {raw["metadata"]["name"]: raw["spec"]["rollout"] for raw in cluster.objects(POLICIES)}


PAUSED, HELD = {"paused": True}, {"paused": True, "whenPaused": "Hold"}


@virtually
async def test_all_policies_are_paused_and_those_that_are_already_stay_untouched() -> None:
    cluster = fleet(a={}, b=PAUSED, c={"paused": False, "whenPaused": "Hold"})
    told = await ask(cluster, "pause", "--all")
    assert told == Answered(
        DONE,
        'gsp/a  {"spec":{"rollout":{"paused":true}}}\n'
        'gsp/c  {"spec":{"rollout":{"paused":true}}}\n'
        "No further node will start to change; changes in flight are completed.\n"
        "No further node will start to change; nodes whose change has not passed the point of no return stay cordoned\n"
        "and wait, and no pod is evicted.\n"
        "Done.\n",
    )
    assert rollouts(cluster) == {"a": PAUSED, "b": PAUSED, "c": HELD}


@virtually
async def test_what_becomes_of_nodes_in_flight_may_be_said_for_all_policies() -> None:
    cluster = fleet(a={}, b=PAUSED, c=HELD)
    await ask(cluster, "pause", "--all", "--when-paused", "Hold")
    assert rollouts(cluster) == {"a": HELD, "b": HELD, "c": HELD}
    assert len(writes(cluster)) == 2


@virtually
async def test_all_pauses_end_after_one_confirmation_and_nothing_else_is_changed() -> None:
    cluster = fleet(a=PAUSED, b={}, c=HELD)
    with pytest.raises(Trouble, match="must be confirmed"):
        await ask(cluster, "resume", "--all")
    assert writes(cluster) == []
    told = await ask(cluster, "resume", "--all", "--yes")
    assert told.status == DONE
    over = {"paused": False}
    assert rollouts(cluster) == {"a": over, "b": {}, "c": {**over, "whenPaused": "Hold"}}


@virtually
async def test_a_pause_that_says_what_becomes_of_nodes_leaves_no_trace_after_its_end() -> None:
    cluster = fleet(a={}, b={"whenPaused": "Abort"}, c=PAUSED, d=HELD)
    await ask(cluster, "pause", "--all", "--when-paused", "Abort")
    await ask(cluster, "pause", "--all", "--when-paused", "Hold")
    assert rollouts(cluster) == dict.fromkeys("abcd", HELD)
    await ask(cluster, "resume", "--all", "--yes")
    over = {"a": "Finish", "b": "Abort", "c": "Finish", "d": "Hold"}
    assert rollouts(cluster) == {name: {"paused": False, "whenPaused": when} for name, when in over.items()}
    assert not any(one["metadata"].get("annotations") for one in cluster.objects(POLICIES))


@virtually
async def test_a_pause_that_somebody_else_ended_brings_no_old_value_back() -> None:
    cluster = fleet(a={})
    await ask(cluster, "pause", "--all", "--when-paused", "Hold")
    cluster.patch(POLICIES, "a", {"spec": {"rollout": {"paused": False, "whenPaused": "Abort"}}})
    await ask(cluster, "pause", "--all")
    await ask(cluster, "resume", "--all", "--yes")
    assert rollouts(cluster) == {"a": {"paused": False, "whenPaused": "Abort"}}
    await ask(cluster, "pause", "--all", "--when-paused", "Hold")
    cluster.patch(POLICIES, "a", {"spec": {"rollout": {"whenPaused": "Finish"}}})
    await ask(cluster, "resume", "--all", "--yes")
    assert rollouts(cluster) == {"a": {"paused": False, "whenPaused": "Finish"}}


@pytest.mark.parametrize("verb", ["pause", "resume"])
@virtually
async def test_where_every_policy_is_as_wanted_that_is_said(verb: str) -> None:
    cluster = fleet(a=PAUSED if verb == "pause" else {})
    with pytest.raises(Trouble, match="there is no policy for which this would change anything"):
        await ask(cluster, verb, "--all", "--yes")
    assert writes(cluster) == []


@pytest.mark.parametrize(("output", "names_printed"), [("table", []), ("json", ["a", "c"]), ("name", ["a", "c"])])
@virtually
async def test_a_policy_that_cannot_be_patched_does_not_keep_the_others_from_being_paused(
    output: str, names_printed: list[str]
) -> None:
    cluster = fleet(a={}, b={}, c={})
    refusal = Forbidden('User "me" cannot patch resource "gpusharingpolicies"')
    cluster.faults.fail("patch", POLICIES, refusal, identity=ME, name="b")
    printed = io.StringIO()
    with pytest.raises(Trouble, match=r"cannot patch resource.*2 of 3 policies were changed$"):
        await ask(cluster, "pause", "--all", "-o", output, stream=printed)
    assert rollouts(cluster) == {"a": PAUSED, "b": {}, "c": PAUSED}
    assert re.findall(r'(?:"name": "|gpusharing.dev/)([abc])\b', printed.getvalue()) == names_printed


@virtually
async def test_with_json_there_is_one_document_for_each_policy() -> None:
    told = await ask(fleet(a={}, b={}), "pause", "--all", "--dry-run", "-o", "json")
    assert told.out.count('"done": false') == 2
    assert told.out.count('"name": "') == 2


@pytest.mark.parametrize("words", [("pause",), ("resume",), ("pause", "a", "--all")])
@virtually
async def test_a_name_or_all_is_given_and_not_both(words: tuple[str, ...]) -> None:
    cluster = fleet(a={})
    with pytest.raises(Trouble, match=f"give one name or --all, for example: kubectl gpusharing {words[0]} --all"):
        await ask(cluster, *words)
    assert writes(cluster) == []


# --- the whole fleet, with an operator ---------------------------------------------------------------------------


@virtually
async def test_a_fleet_that_is_paused_starts_no_node_in_any_pool_until_it_is_resumed() -> None:
    async with open_scene(node("gpu-1"), node("gpu-2", pool="c")) as scene:
        install(scene.e.cluster)
        for name in ("b", "c"):
            scene.apply(FULL, name=f"pool-{name}", pool=name)
        await scene.ready("pool-b", "pool-c")
        await ask(scene.e.cluster, "pause", "--all")
        for name in ("b", "c"):
            scene.e.cluster.patch(POLICIES, f"pool-{name}", {"spec": MIXED})
        await scene.reason("gpu-1", "Paused")
        await scene.reason("gpu-2", "Paused")
        await ask(scene.e.cluster, "resume", "--all", "--yes")
        await scene.ready("pool-b", "pool-c")


@virtually
async def test_with_the_charts_value_no_pool_starts_a_node_whatever_its_policy_says() -> None:
    async with open_scene(node("gpu-1"), node("gpu-2", pool="c"), paused="true") as scene:
        for spec in (FULL, MIXED):
            for name in ("b", "c"):
                scene.apply(spec, name=f"pool-{name}", pool=name, rollout=at_once(1, paused=False))
            if spec is FULL:
                await scene.ready("pool-b", "pool-c")
        for name in ("gpu-1", "gpu-2"):
            told = await scene.reason(name, "Paused")
            assert not lacks(told["message"], "paused is true")
        await asyncio.sleep(300)
        assert not scene.cordoned("gpu-1")
        assert not scene.cordoned("gpu-2")


async def restarted(scene: Scene, paused: Any) -> None:
    """helm upgrade --set paused=...: another operator with the setting takes over."""
    await scene.e.kill_operator()
    scene.e.settings = replace(scene.e.settings, paused=paused)
    scene.e.start_operator()


@virtually
async def test_with_hold_nodes_in_flight_of_every_pool_stay_cordoned_until_the_value_is_false_again() -> None:
    workload, budget = SimWorkload("llm", 2), pdb("keep", "llm", minAvailable=1)
    async with open_scene(node("gpu-1"), workloads=[workload], budgets=[budget], serving=FULL) as scene:
        await scene.running("llm", 2)
        scene.apply(MIXED, drain={"strandedPods": "Allow"})
        await scene.reason("gpu-1", "PDBInUse")
        await restarted(scene, "Hold")
        told = await scene.reason("gpu-1", "Paused")
        assert told["phase"] == "Cordoned"
        assert told["message"].startswith("the chart's value paused is Hold, so the change is suspended")
        scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
        await asyncio.sleep(300)
        assert len(scene.evicted()) == 1
        assert scene.cordoned("gpu-1")
        assert (await scene.fenced("gpu-1")).stage == "fenced"
        await restarted(scene, "false")
        await scene.ready()
        assert not scene.cordoned("gpu-1")


@virtually
async def test_with_abort_nodes_in_flight_of_every_pool_are_given_back_as_they_were() -> None:
    async with open_scene(node("gpu-1"), serving=FULL) as scene:
        scene.apply(MIXED)
        await scene.fenced("gpu-1")
        await restarted(scene, "Abort")
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")
        await scene.reason("gpu-1", "Paused")
        assert scene.labels("gpu-1")[names.LABEL_MODE] == "full"


@virtually
async def test_a_resume_says_that_the_charts_value_keeps_the_fleet_stopped() -> None:
    cluster = fleet(a=PAUSED)
    cluster.delete(DEPLOYMENTS, "gpusharing-operator", "gpusharing")
    install(cluster, GPUSHARING_PAUSED="Hold")
    told = await ask(cluster, "resume", "a", "--yes")
    assert not lacks(told.out, "Done", "paused is Hold")


@pytest.mark.parametrize("verb", ["pause", "resume"])
@virtually
async def test_an_operator_scaled_to_no_pods_has_not_done_what_it_was_asked(verb: str) -> None:
    cluster = fleet(a=PAUSED if verb == "resume" else {})
    scaled = {"spec": {"replicas": 0}}
    await cluster.client("admin").patch(DEPLOYMENTS, "gpusharing-operator", scaled, namespace="gpusharing")
    told = await ask(cluster, verb, "a", "--yes", width=200)
    last = "The patch was written, but the operator is scaled to 0 replicas, so it has no effect yet."
    assert (told.status, told.out.splitlines()[-1]) == (DONE, last)


@virtually
async def test_an_operator_that_leads_outside_of_the_cluster_is_one() -> None:
    cluster = fleet(a={})
    scaled, now = {"spec": {"replicas": 0}}, to_micro_time(wall_time())
    await cluster.client("admin").patch(DEPLOYMENTS, "gpusharing-operator", scaled, namespace="gpusharing")
    spec = {"holderIdentity": "laptop-1a2b3c4d", "renewTime": now, "leaseDurationSeconds": 15}
    cluster.add(LEASES, {"metadata": {"name": "gpusharing-operator", "namespace": "gpusharing"}, "spec": spec})
    told = await ask(cluster, "pause", "a", "--yes")
    assert (told.status, told.out.splitlines()[-1]) == (DONE, "Done.")
    cluster.faults.fail("get", LEASES, Forbidden("no"), times=EVER, identity=ME)
    told = await ask(cluster, "resume", "a", "--yes")
    assert (told.status, told.out.splitlines()[-1]) == (DONE, "Done."), "unknown, so it counts as one"


@virtually
async def test_a_plan_shows_that_the_charts_value_keeps_the_fleet_stopped() -> None:
    async with operated(1, serving=FULL) as scene:
        cluster = scene.e.cluster
        cluster.delete(DEPLOYMENTS, "gpusharing-operator", "gpusharing")
        install(cluster, GPUSHARING_PAUSED="true")
        scene.apply(MIXED)
        told = await ask(cluster, "plan", "pool-b")
        assert "Pending: Paused" in told.out
        assert not lacks(told.out, "1 node", "person")


@virtually
async def test_a_resume_says_that_the_configmap_keeps_the_fleet_stopped_and_how_to_end_that() -> None:
    cluster = fleet(a=PAUSED)
    cluster.add(CONFIG_MAPS, {"metadata": {"name": names.STOP, "namespace": "gpusharing"}})
    told = await ask(cluster, "resume", "a", "--yes", width=300)
    assert not lacks(
        told.out, "exists, which stops the operator", "kubectl -n gpusharing delete configmap gpusharing-stop"
    )
