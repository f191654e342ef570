"""One frozen snapshot from many reads: what did not change keeps its identity, what cannot be read is said.
The pods that wait for a GPU are counted by kube/gather.py."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import ClassVar

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import EVER, SILENCE, Silence
from tests.build import at, empty_since, make_fence, make_memory
from tests.fakes.virtualtime import virtual_now, virtually
from tests.kube.gathering import gathering
from tests.kube.objects import node, observed, pdb, pod

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    GPUNODES,
    JSON,
    NODES,
    PDBS,
    PODS,
    ApiRequest,
    Resource,
)
from gpusharing.kube.errors import Forbidden, HeldBack, KubeError, ServerAway, Throttled, Unauthorized, Unavailable
from gpusharing.kube.fence import record_text
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.nvidia import Operand, Program
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.stack.acceptance import with_effects

MIG_MANAGER = {"namespace": "gpu-operator", "labels": {"app": "nvidia-mig-manager"}}


def config_map(name: str, text: str = "x", key: str = "config.yaml", **annotations: str) -> tuple[Resource, JSON]:
    metadata = {"name": name, "namespace": "gpu-operator", "annotations": annotations}
    return CONFIG_MAPS, {"metadata": metadata, "data": {key: text}}


# --- pods ------------------------------------------------------------------------------------------


@virtually
async def test_pods_are_listed_only_for_the_nodes_that_are_asked_for() -> None:
    async with gathering((PODS, pod()), (PODS, pod("other", "gpu-08"))) as stage:
        snapshot = await stage.snapshot()
        assert [row.name for row in snapshot.work["gpu-07"].pods] == ["llm-0"]
        assert snapshot.work.keys() == {"gpu-07"}
        assert (await stage.snapshot(1, frozenset())).work == {}


@virtually
async def test_a_node_with_more_pods_than_a_page_holds_is_listed_page_by_page() -> None:
    pods = [(PODS, pod(f"llm-{number:03}")) for number in range(501)]
    async with gathering(*pods) as stage:
        assert len((await stage.work()).pods) == 501
        assert stage.lists("pods") == 2


@virtually
async def test_a_list_is_used_for_three_seconds_and_then_made_anew() -> None:
    async with gathering((PODS, pod())) as stage:
        first = await stage.work()
        stage.cluster.add(PODS, pod("llm-1"))
        assert await stage.work(2.9) is first
        later = await stage.work(3)
        assert (len(later.pods), later.listed_at) == (2, at(3))


@virtually
async def test_a_list_from_before_a_lost_answer_is_not_used_again() -> None:
    async with gathering((PODS, pod())) as stage:
        await stage.work()
        stage.cluster.delete(PODS, "llm-0", "team-a")
        stage.gatherer.pods.forget()
        assert (await stage.work(0.1)).pods[0].deleted_at is not None


@virtually
async def test_emptiness_counts_from_the_first_of_the_lists_that_found_no_holder() -> None:
    async with gathering() as stage:
        since: list[datetime | None] = [empty_since(await stage.work(seconds)) for seconds in (0, 3, 6)]
        assert since == [at(0)] * 3
        stage.cluster.add(PODS, pod())
        assert empty_since(await stage.work(9)) is None
        stage.cluster.patch(PODS, "llm-0", {"status": {"phase": "Succeeded"}}, "team-a", "status")
        assert empty_since(await stage.work(12)) == at(12)


@virtually
async def test_an_empty_list_from_before_the_cordon_is_none_of_the_two_that_prove_a_node_idle() -> None:
    async with gathering() as stage:
        assert empty_since(await stage.work(0)) == at(0)
        fence = record_text(make_fence(since=at(1)))
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": {names.ANNOTATION_FENCE: fence}}})
        await stage.seen()
        assert [empty_since(await stage.work(seconds)) for seconds in (6, 9)] == [at(6), at(6)]


@virtually
async def test_pods_that_cannot_be_listed_prove_nothing() -> None:
    async with gathering() as stage:
        await stage.work()
        stage.cluster.faults.fail("list", PODS, Forbidden("not allowed to list pods"), identity="operator")
        work = await stage.work(3)
        assert "not allowed to list pods" in work.error
        assert (work.pods, empty_since(work)) == ((), None)
        assert empty_since(await stage.work(6)) == at(6), "counted anew"


@pytest.mark.parametrize("error", [ServerAway("refused"), Unauthorized("401")])
@virtually
async def test_a_server_that_is_away_ends_the_gathering(error: KubeError) -> None:
    async with gathering() as stage:
        stage.cluster.faults.fail("list", PODS, error, identity="operator")
        with pytest.raises(ExceptionGroup) as caught:
            await stage.snapshot()
        assert caught.value.exceptions == (error,)


@pytest.mark.parametrize("fault", [Unavailable("502"), SILENCE], ids=["refused", "silent"])
@virtually
async def test_a_node_whose_pods_cannot_be_listed_costs_no_other_node_its_proof(fault: KubeError | Silence) -> None:
    both = frozenset({"gpu-07", "gpu-08"})
    async with gathering((NODES, node("gpu-08"))) as stage:
        stage.cluster.faults.fail("list", PODS, fault, selector="spec.nodeName=gpu-08", times=EVER)
        begun = virtual_now()
        for seconds in range(0, 30, 3):
            work = (await stage.snapshot(seconds, both)).work
        assert (virtual_now() - begun).total_seconds() <= 10.0
        assert (empty_since(work["gpu-07"]), work["gpu-07"].error) == (at(0), "")
        assert "gpu-08" not in work or "cannot be listed" in work["gpu-08"].error
        await asyncio.sleep(20)
        assert "cannot be listed" in (await stage.snapshot(60, both)).work["gpu-08"].error
        await stage.gatherer.workers.close()


@virtually
async def test_a_node_whose_answer_was_lost_is_listed_at_once() -> None:
    async with gathering() as stage:
        await stage.work(0)
        stage.calls.unsure.add("gpu-07")
        await stage.work(0.1)
        await stage.work(0.2)
        assert stage.lists("pods") == 2


@pytest.mark.parametrize(
    "error",
    [Throttled("too many requests", 1.0), HeldBack("not sent", 9.0), ServerAway("no response")],
    ids=["refused", "held back", "server away"],
)
@virtually
async def test_a_node_whose_answer_was_lost_is_listed_at_once_even_after_a_list_that_failed(error: KubeError) -> None:
    async with gathering() as stage:
        await stage.work(0)
        stage.calls.unsure.add("gpu-07")
        stage.cluster.faults.fail("list", PODS, error, identity="operator")
        with suppress(ExceptionGroup):
            await stage.work(0.1)
        await stage.work(0.2)
        assert (stage.lists("pods"), stage.calls.unsure) == (3, set())


@virtually
async def test_a_list_that_had_to_wait_leaves_what_was_seen_before() -> None:
    async with gathering() as stage:
        before = await stage.work(0)
        stage.cluster.faults.fail("list", PODS, HeldBack("not sent", 9.0), identity="operator")
        assert await stage.work(3) == before


@virtually
async def test_budgets_are_read_only_while_some_pod_holds_a_gpu() -> None:
    async with gathering((PDBS, pdb())) as stage:
        assert (await stage.work()).pdbs == ()
        assert stage.lists("poddisruptionbudgets") == 0
        stage.cluster.add(PODS, pod())
        assert [row.name for row in (await stage.work(3)).pdbs] == ["llm"]


@virtually
async def test_refused_evictions_are_part_of_the_work_and_new_ones_are_seen_without_a_list() -> None:
    async with gathering((PODS, pod())) as stage:
        first = await stage.work()
        assert first.evictions == {}
        stage.calls.evictions["gpu-07"] = {"uid": make_memory()}
        second = await stage.work(1)
        assert second.evictions == {"uid": make_memory()}
        assert second.pods is first.pods
        stage.calls.evictions["gpu-07"]["other"] = make_memory()
        assert second.evictions == {"uid": make_memory()}, "a snapshot does not change afterwards"


@virtually
async def test_pods_that_wait_are_counted_by_the_resource_they_ask_for() -> None:
    waiting = pod("waiting")
    del waiting["spec"]["nodeName"]
    waiting["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "4"
    waiting["status"] = {"phase": "Pending"}
    async with gathering((PODS, pod()), (PODS, waiting)) as stage:
        await stage.gatherer.count_pending()
        found = await stage.snapshot()
        assert (found.pending, found.pending_devices) == ({"nvidia.com/gpu": 1}, {"nvidia.com/gpu": 4})


# --- NVIDIA's stack --------------------------------------------------------------------------------


@virtually
async def test_the_stack_keeps_its_identity_while_nothing_in_it_changes() -> None:
    async with gathering(config_map("gpusharing-mig-parted", "a")) as stage:
        before = (await stage.snapshot()).stack
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"labels": {"x": "y"}}})
        stage.cluster.add(*config_map("foreign"))
        await stage.seen()
        assert (await stage.snapshot(1)).stack is before
        stage.cluster.patch(CONFIG_MAPS, "gpusharing-mig-parted", {"data": {"config.yaml": "b"}}, "gpu-operator")
        await stage.seen()
        after = (await stage.snapshot(2)).stack
        assert (after is before, after.mig_file) == (False, "b")


@virtually
async def test_every_file_of_the_stack_comes_from_its_own_config_map() -> None:
    written = {"gpusharing.dev/written": '{"k": "2026-11-20T10:00:00+00:00"}'}
    async with gathering(
        config_map("gpusharing-device-plugin", "plugin", "k", **written),
        config_map("gpusharing-mig-parted", "ours"),
        config_map("site-mig", "theirs"),
        config_map("gpu-07-mig-config", "generated"),
        config_map("time-slicing-config", "theirs too", "any"),
        settings=SourceSettings(admin_plugin_config_map="time-slicing-config", admin_mig_config_map="site-mig"),
    ) as stage:
        stack = (await stage.snapshot()).stack
        assert stack.plugin_configs == {"k": "plugin"}
        assert (stack.mig_file, stack.admin_mig_file) == ("ours", "theirs")
        assert stack.admin_plugin_configs == {"any": "theirs too"}
        assert stack.generated_mig_files == {"gpu-07": "generated"}
        assert (stack.written, stack.plugin_map_exists) == ({"k": at(0)}, True)


MIG_OFF = "version: v1\nmig-configs: {all-disabled: [{devices: all, mig-enabled: false}]}"
PLUGIN_MAP, MIG_MAP = (
    config_map("gpusharing-device-plugin", "version: v1", "held"),
    config_map("gpusharing-mig-parted", MIG_OFF),
)
ENTRIES: dict[str, tuple[str, tuple[Resource, JSON], str, dict[str, str]]] = {
    "devicePlugin": (names.LABEL_PLUGIN_CONFIG, PLUGIN_MAP, "held", {}),
    "migManager": (names.LABEL_MIG_CONFIG, MIG_MAP, "all-disabled", {"nvidia.com/gpu.deploy.mig-manager": "true"}),
}


@pytest.mark.parametrize("pointer", ["theirs", "", "ours"])
@pytest.mark.parametrize("block", ENTRIES)
@virtually
async def test_entries_that_nodes_name_and_ours_lacks_are_known_before_the_pointer_moves(
    block: str, pointer: str
) -> None:
    label, ours, held, more = ENTRIES[block]
    config = {"name": ours[1]["metadata"]["name"] if pointer == "ours" else pointer}
    policy = {"metadata": {"name": "cluster-policy"}, "spec": {block: {"config": config}}}
    async with gathering((CLUSTER_POLICIES, policy), ours) as stage:
        for seconds, entry in enumerate(("all-1g.10gb", held)):
            stage.cluster.patch(NODES, "gpu-07", {"metadata": {"labels": {label: entry, **more}}})
            await stage.seen()
            missing = {} if pointer == "ours" or entry == held else {"gpu-07": entry}
            assert missing_of(await stage.snapshot(seconds)) == missing


def missing_of(snapshot: ClusterSnapshot) -> dict[str, str]:
    effects = with_effects(snapshot, Memo(), {}, {}).stack.effects or {}
    return {one.node: one.missing for found in effects.values() for one in found if one.missing}


@pytest.mark.parametrize(("config", "ours"), [("gpusharing-mig-parted", True), ("theirs", False), ("", False)])
@virtually
async def test_our_mig_file_is_served_only_when_cluster_policy_points_at_it(config: str, ours: bool) -> None:
    policy = {"metadata": {"name": "cluster-policy"}, "spec": {"migManager": {"config": {"name": config}}}}
    async with gathering((CLUSTER_POLICIES, policy)) as stage:
        stack = (await stage.snapshot()).stack
        assert stack.serves_our_mig_file is ours
        assert stack.plugin_map_exists is False


# --- clocks and pods that we follow ----------------------------------------------------------------


def mig_manager(name: str, ready: bool = True) -> tuple[Resource, JSON]:
    conditions = [{"type": "Ready", "status": str(ready)}]
    return PODS, pod(name, metadata=MIG_MANAGER, status={"conditions": conditions})


def manager_of(snapshot: ClusterSnapshot) -> Operand:
    return snapshot.operands[Program.MIG_MANAGER]["gpu-07"]


def daemon_of(snapshot: ClusterSnapshot) -> Operand:
    return snapshot.operands[Program.MPS_DAEMON]["gpu-07"]


@virtually
async def test_of_two_mig_manager_pods_the_ready_one_counts() -> None:
    async with gathering(mig_manager("old", ready=False), mig_manager("new"), mig_manager("z", ready=False)) as stage:
        assert manager_of(await stage.snapshot()).name == "new"


@virtually
async def test_on_a_fenced_node_mig_manager_is_ready_since_we_have_seen_it_so() -> None:
    fence: Mapping[str, str] = {names.ANNOTATION_FENCE: record_text(make_fence())}
    async with gathering(mig_manager("one")) as stage:
        assert manager_of(await stage.snapshot()).ready_since is None
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": dict(fence)}})
        await stage.seen()
        moments = [manager_of(await stage.snapshot(seconds)).ready_since for seconds in (1, 2)]
        assert moments == [at(1), at(1)]
        stage.cluster.store.remove(PODS, ("gpu-operator", "one"))
        stage.cluster.add(*mig_manager("two"))
        await stage.seen()
        assert manager_of(await stage.snapshot(3)).ready_since == at(3)
        stage.cluster.store.remove(PODS, ("gpu-operator", "two"))
        stage.cluster.add(*mig_manager("three", ready=False))
        await stage.seen()
        assert manager_of(await stage.snapshot(4)).ready_since is None


def mps_daemon(labels: Mapping[str, str], *, ready: bool = True) -> JSON:
    """A pod of an MPS daemon on gpu-07, whose daemon runs, while its config-manager may not."""
    container = {"name": "mps-control-daemon-ctr"}
    status = {
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [{**container, "ready": True}],
    }
    made = pod("mps", metadata={**MIG_MANAGER, "labels": dict(labels)}, status=status)
    return {**made, "spec": {**made["spec"], "containers": [container]}}


DAEMONS = {
    "the GPU Operator's": {"app": "nvidia-device-plugin-mps-control-daemon"},
    "that of NVIDIA's chart": {"app.kubernetes.io/name": "nvidia-device-plugin"},
}


@pytest.mark.parametrize("labels", DAEMONS.values(), ids=DAEMONS)
@virtually
async def test_an_mps_daemon_is_ready_since_we_have_seen_it_so_on_every_node(labels: dict[str, str]) -> None:
    async with gathering((PODS, mps_daemon(labels))) as stage:
        moments = [daemon_of(await stage.snapshot(seconds)).ready_since for seconds in (1, 2)]
    assert moments == [at(1), at(1)]


@virtually
async def test_a_daemon_whose_config_manager_crashes_has_not_just_started() -> None:
    labels = DAEMONS["the GPU Operator's"]
    async with gathering((PODS, mps_daemon(labels))) as stage:
        moments = [daemon_of(await stage.snapshot(1)).ready_since]
        for seconds, ready in ((2, False), (3, True)):
            status = {"status": mps_daemon(labels, ready=ready)["status"]}
            stage.cluster.patch(PODS, "mps", status, "gpu-operator", subresource="status")
            await stage.seen()
            moments.append(daemon_of(await stage.snapshot(seconds)).ready_since)
    assert moments == [at(1), at(1), at(1)]


@virtually
async def test_beside_a_cluster_policy_the_pods_of_nvidias_chart_do_not_count() -> None:
    daemon = mps_daemon(DAEMONS["that of NVIDIA's chart"])
    policy = {"metadata": {"name": "cluster-policy"}, "spec": {}}
    async with gathering((PODS, daemon), (CLUSTER_POLICIES, policy)) as stage:
        assert (await stage.snapshot()).operands[Program.MPS_DAEMON] == {}


class Noting(FakeClient):
    order: ClassVar[list[str]] = []

    async def call(self, request: ApiRequest) -> JSON:
        if request.verb == "list":
            self.order.append(request.query.get("fieldSelector", ""))
            await asyncio.sleep(0.8)
        return await super().call(request)


@virtually
async def test_where_not_all_can_be_listed_the_nodes_that_need_only_that_come_first() -> None:
    async with gathering((NODES, node("gpu-01")), (NODES, node("gpu-08"))) as stage:
        for name, since in (("gpu-07", -60), ("gpu-08", -90)):
            fence = record_text(make_fence(since=at(since)))
            stage.cluster.patch(NODES, name, {"metadata": {"annotations": {names.ANNOTATION_FENCE: fence}}})
        await stage.seen()
        gatherer = stage.gatherer
        gatherer.workers.parallel, gatherer.pods.client = 1, Noting(stage.cluster, "operator")
        wanted = frozenset({"gpu-01", "gpu-02", "gpu-07", "gpu-08"})
        Noting.order.clear()
        work = (await stage.snapshot(0, wanted, proving=wanted)).work
        order = ["gpu-08", "gpu-07", "gpu-01", "gpu-02"]  # one lost its fence since the last plan, one is gone
        assert Noting.order == [f"spec.nodeName={name}" for name in order]
        dated = [(work[name].listed_at - at(0)).total_seconds() for name in order]
        assert dated == pytest.approx([0.0, 0.8, 1.6, 2.4], abs=0.01), "as of when each was begun"


@virtually
async def test_the_pods_of_sixteen_nodes_are_listed_at_once() -> None:
    nodes = [f"gpu-{number}" for number in range(40, 80)]
    async with gathering(*((NODES, node(name)) for name in nodes)) as stage:
        silent = stage.cluster.faults.fail("list", PODS, SILENCE, identity="operator", times=EVER)
        await stage.snapshot(0, frozenset(nodes))
        assert silent.hits == 16
        await stage.gatherer.workers.close()


ASKED: JSON = {
    "metadata": {"name": "gpu-07", "uid": "uid-of-gpu-07"},
    "spec": {"request": {"id": "op-1:quiet:1", "quiet": True}},
}
ANSWER = observed(requestID="op-1:quiet:1", quiet=True)


@virtually
async def test_the_first_of_the_lists_that_prove_a_node_idle_is_made_when_its_agent_has_answered() -> None:
    async with gathering((GPUNODES, ASKED)) as stage:
        assert (await stage.work(0)).listed_at == at(0)
        assert (await stage.work(1)).listed_at == at(0), "nothing was answered"
        stage.cluster.patch(GPUNODES, "gpu-07", {"status": {"observed": ANSWER}}, subresource="status")
        await stage.seen()
        first = await stage.work(2)
        assert (first.listed_at, first.quiet_since) == (at(2), at(2))
        assert (await stage.work(4.9)).listed_at == at(2), "once for each answer"
        assert (await stage.work(5)).listed_at == at(5)


@virtually
async def test_a_snapshot_has_the_age_of_each_view_that_decides() -> None:
    async with gathering() as stage:
        silent = stage.cluster.faults.fail("watch", NODES, SILENCE, times=EVER)
        listless = stage.cluster.faults.fail("list", NODES, SILENCE, times=EVER)
        stage.cluster.close_watches()
        await asyncio.sleep(140)
        ages = dict((await stage.snapshot()).view_ages)
        pods = {"agent pods", "operand pods", "device-plugin chart pods"}
        assert set(ages) == {"nodes", "gpunodes", "configmaps", *pods}
        assert 135 < ages.pop("nodes") < 145
        assert max(ages.values()) < 61
        assert (await stage.snapshot()).old_views == ""
        await asyncio.sleep(20)
        assert (await stage.snapshot()).old_views == "nodes"
        silent.lift()
        listless.lift()
        await asyncio.sleep(120)
        assert (await stage.snapshot()).old_views == ""


@virtually
async def test_pods_that_the_server_refuses_to_list_are_as_they_were_for_two_minutes() -> None:
    async with gathering() as stage:
        busy = Throttled("too many requests", 30.0)
        stage.cluster.faults.fail("list", PODS, busy, identity="operator")
        assert "cannot be listed: too many requests" in (await stage.work(-9)).error, "they were never seen"
        before = await stage.work()
        stage.cluster.faults.fail("list", PODS, busy, identity="operator", times=EVER)
        assert await stage.work(3) == await stage.work(119) == before
        assert "cannot be listed: too many requests" in (await stage.work(120)).error
