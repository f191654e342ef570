"""One API call per action; what fails is left to a later pass, and never to another node.
Shared writes (controller/sharedwrites.py) and those of nodes (controller/nodewrites.py) are reached through the executor."""

from dataclasses import replace
from typing import get_args

import pytest
from tests.build import make_claim, make_snapshot, make_stack
from tests.controller.executing import Executing, plan_of
from tests.kube.objects import node, pod

from gpusharing.api import names
from gpusharing.controller.execute import Outcome
from gpusharing.controller.sharedwrites import SUBJECTS
from gpusharing.kube.client import CONFIG_MAPS, GPUNODES, JSON, NODES, PODS, POLICIES
from gpusharing.kube.errors import Conflict, Forbidden, Invalid, KubeError
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    ClearRequests,
    EnsureGPUNode,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    RestartOperand,
    SetClaims,
    SetFinalizer,
    UpdateFence,
    WriteConfig,
)
from gpusharing.planning.snapshot.memory import COMMON
from gpusharing.planning.snapshot.views import ClusterSnapshot

# --- Node writes -----------------------------------------------------------------------------------


async def test_a_node_that_changed_in_what_no_plan_reads_is_fenced_after_a_409() -> None:
    stage = Executing()
    action = stage.fence()
    stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": {"example.com/x": "1"}}})
    outcome = await stage.run(action)
    assert outcome.done == 1
    assert stage.patches() == 2
    assert stage.view().fence == action.fence
    held = stage.cluster.get(NODES, "gpu-07")["metadata"]["resourceVersion"]
    assert stage.sources.nodes.version("gpu-07") == held


INTERFERENCES: dict[str, JSON] = {
    "a person cordoned it": {"spec": {"unschedulable": True}},
    "its labels changed": {"metadata": {"labels": {"gpusharing.dev/pool": "c"}}},
    "somebody asks for the cordon to be held": {"metadata": {"annotations": {names.ANNOTATION_HOLD_CORDON: "true"}}},
    "somebody else works on it": {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "1"}}},
}


@pytest.mark.parametrize("body", INTERFERENCES.values(), ids=INTERFERENCES.keys())
async def test_a_node_that_changed_in_what_was_decided_on_is_left_to_the_next_pass(body: JSON) -> None:
    stage = Executing()
    action = stage.fence()
    stage.cluster.patch(NODES, "gpu-07", body)
    outcome = await stage.run(action)
    assert (outcome.done, stage.failures()) == (0, {})
    assert stage.view().fence is None
    assert stage.patches() == 1


@pytest.mark.parametrize("body", INTERFERENCES.values(), ids=INTERFERENCES.keys())
async def test_a_change_that_came_by_watch_since_the_decision_is_not_overridden(body: JSON) -> None:
    stage = Executing()
    decided_on = stage.view()
    action = stage.fence()
    changed = stage.cluster.patch(NODES, "gpu-07", body)
    stage.sources.nodes.accept(changed)  # so the newest version is known, and no 409 would come
    evict = stage.eviction
    for actions in ((action,), (evict, evict)):
        plan = plan_of({"gpu-07": actions})
        outcome = await stage.executor.execute(plan, make_snapshot([decided_on]))
        assert (outcome.done, stage.failures()) == (0, {})
    assert stage.view().fence is None
    assert stage.patches() == 0
    assert not [write for write in stage.cluster.writes if write.call.verb == "evict"]


async def test_evictions_end_with_the_change_that_arrives_between_two_of_them() -> None:
    stage = Executing()
    other = stage.cluster.add(PODS, pod("llm-1"))["metadata"]["uid"]

    def cordon(*_: object) -> None:
        stage.sources.nodes.accept(stage.cluster.patch(NODES, "gpu-07", {"spec": {"unschedulable": True}}))

    stage.executor.on_action = cordon
    outcome = await stage.run(stage.eviction, Evict("gpu-07", "team-a", "llm-1", other))
    assert outcome.done == 1


async def test_a_node_whose_last_calls_the_snapshot_does_not_show_is_left_alone() -> None:
    stage = Executing()
    plan, snapshot = plan_of({"gpu-07": (stage.eviction,)}), make_snapshot([stage.view()])
    await stage.executor.execute(plan, snapshot, {"gpu-07"})
    assert stage.cluster.writes == []
    assert (await stage.executor.execute(plan, snapshot, {"gpu-08"})).done == 1


async def test_a_node_that_another_object_speaks_of_meanwhile_is_left_to_the_next_pass() -> None:
    stage = Executing()
    action = stage.fence()
    stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": {"example.com/x": "1"}}})
    plan, snapshot = plan_of({"gpu-07": (action,)}), make_snapshot([])
    maintenance = {"metadata": {"name": "nm", "uid": "nm", "resourceVersion": "1"}, "spec": {"nodeName": "gpu-07"}}
    stage.sources.optional["medik8s nodemaintenances"].accept(maintenance)
    outcome = await stage.executor.execute(plan, snapshot)
    assert (outcome.done, stage.failures()) == (0, {})
    assert stage.view().fence is None


async def test_a_node_of_the_same_name_is_another_node() -> None:
    stage = Executing()
    action = stage.fence()
    stage.cluster.delete(NODES, "gpu-07")
    stage.cluster.add(NODES, node("gpu-07"))
    outcome = await stage.run(action)
    assert outcome.done == 0
    assert stage.view().fence is None


async def test_a_node_that_keeps_changing_is_given_up_after_three_tries() -> None:
    stage = Executing()
    action = stage.fence()
    stage.cluster.faults.fail("patch", NODES, Conflict("modified"), times=3)
    await stage.run(action)
    assert list(stage.failures()) == ["gpu-07"]
    assert "each of 3 attempts" in stage.failures()["gpu-07"]


async def test_a_surprise_ends_the_actions_of_that_node_only() -> None:
    stage = Executing()
    stage.add_node("gpu-08")
    view = stage.view()
    stage.cluster.faults.fail("patch", NODES, Forbidden("may not patch nodes"))
    outcome = await stage.run_all(
        {"gpu-07": (Release(view, uncordon=False, labels={}), stage.eviction), "gpu-08": (stage.fence("gpu-08"),)}
    )
    assert list(stage.failures()) == ["gpu-07"]
    assert stage.executor.calls.failures["gpu-07"].refused
    assert outcome.done == 1
    assert stage.view("gpu-08").fence is not None
    assert "deletionTimestamp" not in stage.cluster.get(PODS, "llm-0", "team-a")["metadata"]


# --- what must be written before a fence -----------------------------------------------------------


@pytest.mark.parametrize("error", [Conflict("changed too often"), Forbidden("may not patch leases")])
async def test_without_its_claim_no_node_is_fenced_and_everything_else_goes_on(error: KubeError) -> None:
    stage = Executing()
    stage.add_node("gpu-08")
    stage.claims.error = error
    await stage.run_all(
        {"gpu-07": (stage.eviction,), "gpu-08": (stage.fence("gpu-08"),)}, shared=(SetClaims({"gpu-08": make_claim()}),)
    )
    assert list(stage.failures()) == ["claims on the Lease"]
    assert stage.view("gpu-08").fence is None
    assert "gpu-07" in stage.executor.calls.evictions


async def test_while_the_policies_may_be_old_no_node_is_fenced_and_everything_else_goes_on() -> None:
    stage = Executing()
    stage.add_node("gpu-08")
    plan = plan_of({"gpu-07": (stage.eviction,), "gpu-08": (stage.fence("gpu-08"),)})
    snapshot = make_snapshot(stage.sources.node_views().values())
    await stage.executor.execute(plan, replace(snapshot, policies_error="no answer yet"))
    assert stage.view("gpu-08").fence is None
    assert "gpu-07" in stage.executor.calls.evictions


async def test_a_refused_write_of_the_configuration_holds_up_no_node_that_has_its_own() -> None:
    stage = Executing()
    stage.cluster.faults.fail("create", CONFIG_MAPS, Forbidden("may not create configmaps"))
    await stage.run(stage.fence(), shared=(WriteConfig({"k": "version: v1"}, ""),))
    assert list(stage.failures()) == ["our ConfigMaps"]
    assert stage.view("gpu-07").fence is not None


async def test_while_the_configuration_is_being_written_no_node_is_fenced() -> None:
    stage = Executing()
    stage.executor.workers.busy.add("our ConfigMaps")
    await stage.run(stage.fence(), shared=(WriteConfig({"k": "version: v1"}, ""),))
    assert stage.view("gpu-07").fence is None


async def test_without_its_finalizer_only_that_policys_nodes_wait() -> None:
    stage = Executing()
    stage.add_node("gpu-08")
    stage.cluster.faults.fail("patch", POLICIES, Invalid("no new finalizers on an object that is being deleted"))
    await stage.run_all(
        {"gpu-07": (stage.fence(),), "gpu-08": (stage.fence("gpu-08", "pool-c"),)},
        shared=(SetFinalizer("pool-b", present=True),),
    )
    assert stage.view().fence is None
    assert stage.view("gpu-08").fence is not None


# --- finalizers ------------------------------------------------------------------------------------


async def add_policy(stage: Executing, *finalizers: str, read: bool = True) -> None:
    """A policy that the executor knows if it is `read`."""
    manifest = {"metadata": {"name": "pool-b", "finalizers": list(finalizers)}, "spec": {"mode": "Full"}}
    stage.cluster.add(POLICIES, manifest)
    if read:
        await stage.read_policies()


async def test_our_finalizer_comes_and_goes_beside_those_of_others() -> None:
    stage = Executing()
    await add_policy(stage, "example.com/theirs")
    for present, expected in ((True, ["example.com/theirs", names.FINALIZER]), (False, ["example.com/theirs"])):
        await stage.run(shared=(SetFinalizer("pool-b", present=present),))
        assert stage.cluster.get(POLICIES, "pool-b")["metadata"]["finalizers"] == expected


async def test_a_finalizer_that_somebody_added_in_the_same_moment_survives_ours() -> None:
    stage = Executing()
    await add_policy(stage)
    stage.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": ["example.com/new"]}})
    await stage.run(shared=(SetFinalizer("pool-b", present=True),))
    assert stage.failures() == {}
    found = stage.cluster.get(POLICIES, "pool-b")["metadata"]["finalizers"]
    assert found == ["example.com/new", names.FINALIZER]


async def test_our_finalizer_is_not_taken_off_a_policy_that_was_edited_since_it_was_decided() -> None:
    stage = Executing()
    await add_policy(stage, names.FINALIZER)
    stage.cluster.patch(POLICIES, "pool-b", {"spec": {"deletionPolicy": "Reset"}})
    await stage.run(shared=(SetFinalizer("pool-b", present=False),))
    assert stage.failures() == {}
    edited = stage.cluster.get(POLICIES, "pool-b")
    assert edited["metadata"]["finalizers"] == [names.FINALIZER]
    assert stage.sources.policies.finalizers("pool-b")[0] == edited["metadata"]["resourceVersion"]


@pytest.mark.parametrize(("present", "heard"), [(True, False), (False, False), (True, True), (False, True)])
async def test_another_policy_of_the_same_name_keeps_its_finalizers(present: bool, heard: bool) -> None:
    stage = Executing()
    await add_policy(stage, *([] if present else [names.FINALIZER]))
    uid = stage.cluster.get(POLICIES, "pool-b")["metadata"]["uid"]
    stage.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": None}})
    stage.cluster.delete(POLICIES, "pool-b")
    theirs = ["example.com/theirs", *([] if present else [names.FINALIZER])]
    await add_policy(stage, *theirs, read=heard)
    outcome = await stage.run(shared=(SetFinalizer("pool-b", present, uid),))
    assert outcome.done == (0 if present or heard else 1), "no node is fenced for a policy that is gone"
    assert stage.cluster.get(POLICIES, "pool-b")["metadata"]["finalizers"] == theirs


async def test_a_finalizer_that_is_there_already_and_a_policy_that_is_gone_need_no_write() -> None:
    stage = Executing()
    await add_policy(stage, names.FINALIZER)
    await stage.run(shared=(SetFinalizer("pool-b", present=True),))
    assert stage.cluster.writes == []
    stage.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": None}})
    stage.cluster.delete(POLICIES, "pool-b")
    await stage.run(shared=(SetFinalizer("pool-b", present=False),))
    assert stage.failures() == {}


# --- GPUNodes, pods, ConfigMaps --------------------------------------------------------------------

ENSURE = EnsureGPUNode("gpu-07", "uid-7", "op-1:quiet:1", quiet=True)


async def test_a_gpunode_is_created_for_its_node_and_patched_afterwards() -> None:
    stage = Executing()
    await stage.run(ENSURE)
    created = stage.cluster.get(GPUNODES, "gpu-07")
    assert created["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "gpu-07", "uid": "uid-7"}
    ]
    assert created["spec"] == {"request": {"id": "op-1:quiet:1", "quiet": True, "holders": False, "quietGPUs": []}}
    await stage.run(EnsureGPUNode("gpu-07", "uid-7", "op-1:verify:2", quiet=False))
    assert stage.cluster.get(GPUNODES, "gpu-07")["spec"]["request"] == {
        "id": "op-1:verify:2",
        "quiet": False,
        "holders": False,
        "quietGPUs": [],
    }
    await stage.run(replace(ENSURE, quiet_gpus=(1, 3)))
    assert stage.cluster.get(GPUNODES, "gpu-07")["spec"]["request"]["quietGPUs"] == [1, 3]
    assert [write.call.verb for write in stage.cluster.writes] == ["create", "patch", "patch"]


@pytest.mark.parametrize(("known", "there"), [(True, False), (False, True)])
async def test_a_gpunode_that_came_or_went_meanwhile_ends_up_as_asked(known: bool, there: bool) -> None:
    stage = Executing()
    if there:
        stage.cluster.add(GPUNODES, {"metadata": {"name": "gpu-07"}, "spec": {"request": {"id": "", "quiet": False}}})
    if known:
        stage.sources.gpunodes.accept({"metadata": {"name": "gpu-07", "uid": "gone", "resourceVersion": "3"}})
    await stage.run(ENSURE)
    assert stage.failures() == {}
    assert stage.cluster.get(GPUNODES, "gpu-07")["spec"]["request"]["id"] == "op-1:quiet:1"


@pytest.mark.parametrize("made_again", [False, True])
async def test_a_gpunode_is_not_made_over_and_over_for_a_node_whose_deletion_was_not_heard_of(made_again: bool) -> None:
    """It belongs to that Node, so the server takes it away as soon as it is there."""
    stage = Executing()
    uid = stage.cluster.get(NODES, "gpu-07")["metadata"]["uid"]
    ensure = EnsureGPUNode("gpu-07", uid, "op-1:quiet:1", quiet=True)

    async def run_and_collect() -> Outcome:
        outcome = await stage.run(ensure)
        stage.cluster.delete(GPUNODES, "gpu-07")
        stage.sources.gpunodes.drop("gpu-07")
        return outcome

    await run_and_collect()
    outcome = await run_and_collect()
    assert (outcome.done, outcome.again) == (1, None), "somebody had deleted it, and its Node is there"
    stage.cluster.delete(NODES, "gpu-07")
    if made_again:
        stage.cluster.add(NODES, node("gpu-07"))
    outcome = await stage.run(ensure)
    assert stage.told[-1] == ("EnsureGPUNode", "NotFound")
    assert outcome.again is not None, "it waits, instead of being made in every pass"
    assert [write.call.verb for write in stage.cluster.writes] == ["create", "create"]


ASKED = {"gpusharing.dev/retry": "again", "gpusharing.dev/skip": "true"}


def requested() -> tuple[Executing, ClearRequests, LabelNode]:
    """A person has annotated the GPUNode, and the operator has decided to move that."""
    stage = Executing()
    asked = {"metadata": {"name": "gpu-07", "annotations": {**ASKED, "team": "a"}}}
    stage.sources.gpunodes.accept(stage.cluster.add(GPUNODES, asked))
    asks = {names.ANNOTATION_RETRY: "again"}
    take = LabelNode(stage.view(), {names.LABEL_SKIP: "true"}, requests=asks)
    return stage, ClearRequests("gpu-07", ASKED), take


async def test_a_request_is_moved_from_the_gpunode_to_its_node() -> None:
    stage, clear, take = requested()
    assert (await stage.run(take, clear)).done == 2
    node = stage.view()
    assert (node.retry, node.labels[names.LABEL_SKIP]) == ("again", "true")
    assert stage.cluster.get(GPUNODES, "gpu-07")["metadata"]["annotations"] == {"team": "a"}
    assert stage.sources.gpunodes.items["gpu-07"].requests == {}


async def test_a_request_that_came_in_the_meantime_is_not_removed_unread() -> None:
    """The watch has not shown it yet: the server answers 409. Then the cache has it, and nothing is sent."""
    stage, clear, take = requested()
    later = {"metadata": {"annotations": {names.ANNOTATION_RETRY: "once-more"}}}
    raw = stage.cluster.patch(GPUNODES, "gpu-07", later)
    await stage.run(take, clear)
    assert stage.told[-1] == ("ClearRequests", "Conflict")
    stage.sources.gpunodes.accept(raw)
    stage.seconds = 60
    assert (await stage.run(clear)).done == 0
    annotations = stage.cluster.get(GPUNODES, "gpu-07")["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_RETRY] == "once-more"


async def test_a_request_whose_node_could_not_be_written_stays_on_the_gpunode() -> None:
    stage, clear, take = requested()
    stage.cluster.faults.fail("patch", NODES, Forbidden("no"))
    assert (await stage.run(take, clear)).done == 0
    assert stage.cluster.get(GPUNODES, "gpu-07")["metadata"]["annotations"] == {**ASKED, "team": "a"}


async def test_a_mig_manager_pod_is_deleted_by_its_uid_only() -> None:
    stage = Executing()
    wrong = RestartOperand("gpu-07", "team-a", "llm-0", "uid-of-another")
    assert (await stage.run(wrong)).done == 0
    assert (await stage.run(RestartOperand("gpu-07", "team-a", "gone", "uid"))).done == 0
    assert (await stage.run(RestartOperand("gpu-07", "team-a", "llm-0", stage.eviction.uid))).done == 1


async def test_a_mig_manager_pod_that_is_on_its_way_out_is_not_deleted_again() -> None:
    stage = Executing()
    stage.cluster.patch(PODS, "llm-0", {"metadata": {"finalizers": ["example.com/slow"]}}, "team-a")
    restart = RestartOperand("gpu-07", "team-a", "llm-0", stage.eviction.uid)
    assert [(await stage.run(restart)).done for _ in range(2)] == [1, 0]


async def test_a_pod_that_is_said_to_be_gone_and_shown_all_the_same_is_told() -> None:
    stage = Executing()
    wrong = RestartOperand("gpu-07", "team-a", "llm-0", "uid-of-another")
    found = []
    for _ in range(3):
        await stage.run(wrong)
        found.append(stage.failures().keys())
    assert found == [set(), set(), {"gpu-07"}]
    assert stage.executor.calls.failures["gpu-07"].message.startswith("RestartOperand failed: ")


async def test_a_config_map_that_vanished_is_made_anew_with_everything_in_it() -> None:
    stage = Executing()
    stage.stack = make_stack(plugin_configs={"old": "version: v1"}, mig_file="x")
    for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
        stage.sources.config_maps.accept({"metadata": {"name": name, "uid": name, "resourceVersion": "3"}})
    await stage.run(shared=(WriteConfig({"old": "version: v1", "new": "version: v1"}, "x"),))
    data = stage.cluster.get(CONFIG_MAPS, "gpusharing-device-plugin", "gpu-operator")["data"]
    assert data.keys() == {"old", "new"}


async def test_a_config_map_that_somebody_made_a_moment_ago_is_not_patched_unread() -> None:
    stage = Executing()
    metadata = {"name": "gpusharing-device-plugin", "namespace": "gpu-operator"}
    stage.cluster.add(CONFIG_MAPS, {"metadata": metadata, "data": {"theirs": "x"}})
    await stage.run(shared=(WriteConfig({"k": "version: v1"}, ""),))
    assert stage.told == [("WriteConfig", "AlreadyExists")]
    assert list(stage.failures()) == ["our ConfigMaps"]
    assert stage.cluster.get(CONFIG_MAPS, *metadata.values())["data"] == {"theirs": "x"}


PLUGIN = "gpu-operator/gpusharing-device-plugin"


async def test_a_refusal_to_write_them_is_told_until_it_is_none() -> None:
    stage = Executing()
    stage.cluster.faults.fail("create", CONFIG_MAPS, Forbidden("may not create configmaps"))
    write = WriteConfig({"k": "version: v1"}, "")
    await stage.run(shared=(write,))
    assert stage.executor.calls.write_error == f"ConfigMap {PLUGIN}: may not create configmaps"
    await stage.run(shared=(write,))
    assert stage.executor.calls.write_error == f"ConfigMap {PLUGIN}: may not create configmaps", (
        "not asked again at once"
    )
    stage.seconds = 2.0
    await stage.run(shared=(write,))
    assert stage.executor.calls.write_error == ""


async def test_a_snapshot_without_actions_writes_nothing() -> None:
    stage = Executing()
    empty: ClusterSnapshot = make_snapshot()
    assert await stage.executor.execute(plan_of({}), empty) == Outcome()
    assert stage.cluster.writes == []


def test_every_shared_write_has_an_owner_that_shows_its_failure() -> None:
    kinds = {FenceNode, Actuate, UpdateFence, Release, LabelNode, EnsureGPUNode, ClearRequests, Evict, ForceDelete}
    kinds |= {RestartOperand, SetFinalizer}  # a node, or one policy
    assert set(get_args(Action)) - kinds == SUBJECTS.keys(), "an action without a subject"
    assert set(SUBJECTS.values()) <= set(COMMON), "a subject that no status reads"
