"""What the operator follows: complete before anything is decided, and awake at every change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import make_operand
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually
from tests.kube.objects import node, pod
from tests.wording import lacks

from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DEVICE_TAINT_RULES,
    GPU_CLUSTERS,
    GPUNODES,
    JSON,
    MEDIK8S_MAINTENANCES,
    NODES,
    NVIDIA_MAINTENANCES,
    PODS,
    Resource,
)
from gpusharing.kube.daemonsets import by_node
from gpusharing.kube.dra import rule_for
from gpusharing.kube.errors import Forbidden, KubeError, NotFound, Unavailable
from gpusharing.kube.sources import RESTORE_NOTE, Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.views import GPUNodeView


class Followed:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.wakes = 0
        self.restores = 0
        self.sources = Sources(
            cluster.client("operator"),
            SourceSettings(admin_mig_config_map="site-mig", agent_namespace=""),
            self.wake,
            lambda: self.restores,
        )

    def wake(self) -> None:
        self.wakes += 1


@asynccontextmanager
async def following(cluster: FakeCluster, seconds: float = 1.0) -> AsyncIterator[Followed]:
    followed = Followed(cluster)
    async with running(followed.sources.run()):
        await asyncio.sleep(seconds)
        yield followed


def operand(name: str, namespace: str, labels: dict[str, str], **changes: JSON) -> JSON:
    return pod(name, metadata={"namespace": namespace, "labels": labels, **changes.get("metadata", {})})


@virtually
async def test_nothing_is_missing_when_everything_was_listed_though_nvidias_kinds_have_no_object() -> None:
    async with following(FakeCluster()) as followed:
        assert followed.sources.missing() == {}


@pytest.mark.parametrize(
    ("resource", "name"),
    [(NODES, "nodes"), (GPUNODES, "gpunodes"), (CONFIG_MAPS, "configmaps"), (PODS, "agent pods")],
    ids=["nodes", "GPUNodes", "ConfigMaps", "pods"],
)
@virtually
async def test_what_could_not_be_listed_yet_is_named_with_the_reason(resource: Resource, name: str) -> None:
    cluster = FakeCluster()
    cluster.faults.fail("list", resource, Forbidden("may not list them"), times=2)
    async with following(cluster, 0.1) as followed:
        assert followed.sources.missing()[name] == "may not list them"
        await asyncio.sleep(30)
        assert followed.sources.missing() == {}


@virtually
async def test_a_kind_of_ours_whose_crd_is_gone_has_no_objects_and_no_age() -> None:
    cluster = FakeCluster()
    cluster.uninstalled.add(GPUNODES)
    async with following(cluster) as followed:
        assert "does not serve gpunodes.gpusharing.dev" in followed.sources.missing()["gpunodes"]
        await asyncio.sleep(120)
        assert followed.sources.missing() == {}
        assert "gpunodes" not in followed.sources.ages()
        cluster.uninstalled.clear()
        await asyncio.sleep(60)
        assert (followed.sources.gpunodes.gone, followed.sources.missing()) == (False, {})
        assert "gpunodes" in followed.sources.ages()


@pytest.mark.parametrize("error", [NotFound("no such kind"), Forbidden("no right")], ids=["absent", "no right"])
@pytest.mark.parametrize(
    "resource",
    [CLUSTER_POLICIES, GPU_CLUSTERS, MEDIK8S_MAINTENANCES, NVIDIA_MAINTENANCES],
    ids=["ClusterPolicy", "GPUCluster", "medik8s NodeMaintenance", "NVIDIA NodeMaintenance"],
)
@virtually
async def test_a_kind_of_others_that_is_not_there_or_not_for_us_counts_as_none(
    resource: Resource, error: KubeError
) -> None:
    cluster = FakeCluster()
    cluster.faults.fail("list", resource, error, times=100)
    async with following(cluster) as followed:
        assert followed.sources.missing() == {}


@virtually
async def test_a_kind_of_others_that_we_may_no_longer_read_is_named_and_keeps_what_was_read() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, node("gpu-07"))
    cluster.add(MEDIK8S_MAINTENANCES, {"metadata": {"name": "nm"}, "spec": {"nodeName": "gpu-07"}})
    async with following(cluster) as followed:
        sources = followed.sources
        assert sources.revoked() == {}
        refusals = [
            cluster.faults.fail(verb, MEDIK8S_MAINTENANCES, Forbidden("no right"), times=EVER)
            for verb in ("list", "watch")
        ]
        cluster.close_watches()
        await asyncio.sleep(5)
        cluster.delete(MEDIK8S_MAINTENANCES, "nm")
        await asyncio.sleep(86400)
        assert sources.missing() == {}
        assert sources.revoked() == {"medik8s nodemaintenances": "no right"}
        assert not lacks(sources.node_views()["gpu-07"].foreign, "medik8s NodeMaintenance nm", "as last read")
        for refusal in refusals:
            refusal.lift()
        await asyncio.sleep(600)
        assert sources.revoked() == {}
        assert sources.node_views()["gpu-07"].foreign == ""


@virtually
async def test_a_server_that_stumbles_over_cluster_policies_does_not_mean_that_there_is_none() -> None:
    """Nodes in a drain would be given up for a policy that is only unreadable for a second."""
    cluster = FakeCluster()
    cluster.faults.fail("list", CLUSTER_POLICIES, Unavailable("etcd has no leader"), times=1)
    async with following(cluster, 0.1) as followed:
        assert followed.sources.missing() == {"clusterpolicies": "etcd has no leader"}
        await asyncio.sleep(30)
        assert followed.sources.missing() == {}


CHANGES: dict[str, tuple[Resource, JSON]] = {
    "a Node": (NODES, node()),
    "a GPUNode": (GPUNODES, {"metadata": {"name": "gpu-07"}, "spec": {}}),
    "an agent's pod": (PODS, operand("agent", "gpusharing", {"app.kubernetes.io/name": "gpusharing-agent"})),
    "a mig-manager pod": (PODS, operand("mig", "gpu-operator", {"app": "nvidia-mig-manager"})),
    "a ConfigMap": (CONFIG_MAPS, {"metadata": {"name": "gpusharing-mig-parted", "namespace": "gpu-operator"}}),
    "a ClusterPolicy": (CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": {}}),
    "a GPUCluster": (GPU_CLUSTERS, {"metadata": {"name": "gpus"}}),
    "a NodeMaintenance of medik8s": (MEDIK8S_MAINTENANCES, {"metadata": {"name": "nm"}}),
    "a NodeMaintenance of NVIDIA": (NVIDIA_MAINTENANCES, {"metadata": {"name": "nm", "namespace": "ops"}}),
}


@pytest.mark.parametrize(("resource", "obj"), CHANGES.values(), ids=CHANGES.keys())
@virtually
async def test_every_kind_wakes_the_loop_when_one_comes_and_goes(resource: Resource, obj: JSON) -> None:
    async with following(FakeCluster()) as followed:
        added = followed.cluster.add(resource, obj)
        await asyncio.sleep(0.1)
        assert followed.wakes == 1
        followed.cluster.store.remove(resource, (added["metadata"].get("namespace", ""), added["metadata"]["name"]))
        await asyncio.sleep(0.1)
        assert followed.wakes == 2


@virtually
async def test_pods_and_config_maps_of_others_wake_nobody() -> None:
    async with following(FakeCluster()) as followed:
        followed.cluster.add(PODS, pod("workload"))
        followed.cluster.add(PODS, operand("other", "gpu-operator", {"app": "nvidia-device-plugin"}))
        followed.cluster.add(CONFIG_MAPS, {"metadata": {"name": "x", "namespace": "default"}, "data": {}})
        await asyncio.sleep(0.1)
        assert followed.wakes == 0


@virtually
async def test_heartbeats_of_a_node_and_shown_of_ours_wake_nobody() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, node())
    cluster.add(GPUNODES, {"metadata": {"name": "gpu-07"}, "spec": {}})
    async with following(cluster) as followed:
        before = followed.wakes
        heartbeat = {"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "later"}]}}
        cluster.patch(NODES, "gpu-07", heartbeat, subresource="status")
        transition = {"status": {"transition": {"phase": "Synced"}}}
        cluster.patch(GPUNODES, "gpu-07", transition, subresource="status")
        await asyncio.sleep(0.1)
        assert followed.wakes == before
        assert followed.sources.shown("gpu-07")[0] == {"phase": "Synced"}


@virtually
async def test_a_kind_that_is_not_installed_is_asked_for_less_than_25_times_in_5_minutes_and_noticed_later() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("list", NVIDIA_MAINTENANCES, NotFound("no such kind"), times=25)
    cluster.add(NODES, node())
    cluster.add(NVIDIA_MAINTENANCES, {"metadata": {"name": "nm", "namespace": "ops"}, "spec": {"nodeName": "gpu-07"}})
    async with following(cluster, 300) as followed:
        assert followed.sources.node_views()["gpu-07"].foreign == ""
        await asyncio.sleep(600)
        assert followed.sources.node_views()["gpu-07"].foreign == "NVIDIA NodeMaintenance ops/nm"


@virtually
async def test_a_node_with_a_node_maintenance_keeps_its_identity_until_one_of_both_changes() -> None:
    cluster = FakeCluster()
    for name in ("gpu-07", "gpu-08"):
        cluster.add(NODES, node(name))
    maintenance = {"metadata": {"name": "nm"}, "spec": {"nodeName": "gpu-07"}}
    async with following(cluster) as followed:
        sources = followed.sources
        plain = sources.node_views()
        cluster.add(MEDIK8S_MAINTENANCES, maintenance)
        await asyncio.sleep(0.1)
        first, second = sources.node_views(), sources.node_views()
        assert first["gpu-07"].foreign == "medik8s NodeMaintenance nm"
        assert first["gpu-07"] is second["gpu-07"]
        assert first["gpu-08"] is plain["gpu-08"]
        cluster.patch(NODES, "gpu-07", {"metadata": {"labels": {"x": "y"}}})
        cluster.patch(MEDIK8S_MAINTENANCES, "nm", {"status": {"drainProgress": 50}}, subresource="status")
        await asyncio.sleep(0.1)
        third = sources.node_views()["gpu-07"]
        assert (third.labels["x"], third.foreign) == ("y", "medik8s NodeMaintenance nm")
        assert sources.node_view(cluster.get(NODES, "gpu-07")) == third
        cluster.patch(MEDIK8S_MAINTENANCES, "nm", {"status": {"phase": "Failed"}}, subresource="status")
        await asyncio.sleep(0.1)
        assert sources.node_views()["gpu-07"].foreign == "medik8s NodeMaintenance nm (failed)"
        cluster.delete(MEDIK8S_MAINTENANCES, "nm")
        await asyncio.sleep(0.1)
        assert sources.node_views()["gpu-07"] is sources.nodes.items["gpu-07"]


@virtually
async def test_a_node_with_a_device_taint_rule_keeps_its_identity_until_the_rule_changes() -> None:
    cluster = FakeCluster()
    for name in ("gpu-07", "gpu-08"):
        cluster.add(NODES, node(name))
    cluster.add(GPU_CLUSTERS, {"metadata": {"name": "gpus"}})
    cluster.add(DEVICE_TAINT_RULES, rule_for("gpu-07"))
    async with following(cluster) as followed:
        await asyncio.sleep(5)
        first, second = followed.sources.node_views(), followed.sources.node_views()
        assert first["gpu-07"].rule_since is not None
        assert first["gpu-08"].rule_since is None
        assert all(first[name] is second[name] for name in first)
        assert followed.sources.seen_node("gpu-07") is first["gpu-07"]
        cluster.delete(DEVICE_TAINT_RULES, rule_for("gpu-07")["metadata"]["name"])
        await asyncio.sleep(0.1)
        assert followed.sources.node_views()["gpu-07"] is followed.sources.nodes.items["gpu-07"]


@virtually
async def test_the_progress_of_a_node_maintenance_wakes_nobody() -> None:
    cluster = FakeCluster()
    cluster.add(MEDIK8S_MAINTENANCES, {"metadata": {"name": "nm"}, "spec": {"nodeName": "gpu-07"}})
    async with following(cluster) as followed:
        before = followed.wakes
        progress = {"status": {"phase": "Running", "drainProgress": 50}}
        cluster.patch(MEDIK8S_MAINTENANCES, "nm", progress, subresource="status")
        await asyncio.sleep(0.1)
        assert followed.wakes == before


@virtually
async def test_the_transition_goes_with_its_gpunode() -> None:
    cluster = FakeCluster()
    for name in ("gpu-07", "gpu-08"):
        cluster.add(GPUNODES, {"metadata": {"name": name}, "status": {"transition": {"phase": "Synced"}}})
    async with following(cluster) as followed:
        assert followed.sources.shown("gpu-07")[0] == {"phase": "Synced"}
        cluster.delete(GPUNODES, "gpu-07")
        await asyncio.sleep(0.1)
        assert followed.sources.shown("gpu-07")[0] == {}
        assert set(followed.sources._shown) == {"gpu-08"}


@virtually
async def test_of_config_maps_only_ours_the_admins_and_the_generated_ones_are_kept() -> None:
    cluster = FakeCluster()
    kept = ("gpusharing-mig-parted", "gpusharing-device-plugin", "site-mig", "gpu-07-mig-config")
    for name in (*kept, "big-and-foreign"):
        data = {"config.yaml": "x"}
        cluster.add(CONFIG_MAPS, {"metadata": {"name": name, "namespace": "gpu-operator"}, "data": data})
    async with following(cluster) as followed:
        found = followed.sources.config_maps.items
        assert {name for name, view in found.items() if view.data} == set(kept)


def test_of_two_pods_of_one_node_the_ready_one_counts_in_whichever_order_they_come() -> None:
    app = "nvidia-mig-manager"
    ready = replace(make_operand("gpu-1", serial=1), node="gpu-1", app=app)
    going = replace(make_operand("gpu-1", ready=False), node="gpu-1", app=app)
    nowhere = replace(make_operand(""), app=app)
    for pods in ([ready, going, nowhere], [going, ready]):
        assert by_node(pods, app) == {"gpu-1": ready}


@virtually
async def test_restarts_are_read_only_in_the_pod_of_an_mps_daemon() -> None:
    manager = {"name": "config-manager", "restartCount": 2, "state": {"waiting": {}}}
    cluster = FakeCluster()
    for app in ("nvidia-device-plugin-mps-control-daemon", "nvidia-mig-manager"):
        made = operand(app, "gpu-operator", {"app": app})
        cluster.add(PODS, {**made, "status": {**made.get("status", {}), "containerStatuses": [manager]}})
    async with following(cluster) as followed:
        found = dict(followed.sources.operands.items)
    assert {name: (one.lone_restarts, one.settling) for name, one in found.items()} == {
        "nvidia-device-plugin-mps-control-daemon": (2, True),
        "nvidia-mig-manager": (0, False),
    }


MPS = "nvidia-device-plugin-mps-control-daemon"
CHART = {"app.kubernetes.io/name": "nvidia-device-plugin", "app.kubernetes.io/instance": "nvdp"}
"""Labels of all pods of NVIDIA's device-plugin chart (k8s-device-plugin v0.19.3, templates/_helpers.tpl)."""
DAEMONS: dict[str, tuple[str, bool, bool | None, bool]] = {
    "it crash-loops": (MPS, False, False, True),
    "its pod is not created yet": (MPS, False, None, True),
    "only config-manager crash-loops": (MPS, False, True, False),
    "all is well": (MPS, True, True, False),
    "its pod is Ready, and nothing more is known": (MPS, True, None, False),
    "another program": ("nvidia-mig-manager", False, None, False),
}


@pytest.mark.parametrize(("app", "ready", "daemon", "down"), DAEMONS.values(), ids=DAEMONS.keys())
@virtually
async def test_an_mps_daemon_is_down_while_its_own_container_does_not_run(
    app: str, ready: bool, daemon: bool | None, down: bool
) -> None:
    rows = [] if daemon is None else [{"name": "mps-control-daemon-ctr", "ready": daemon}]
    status = {"conditions": [{"type": "Ready", "status": str(ready)}], "containerStatuses": rows}
    cluster = FakeCluster()
    cluster.add(PODS, {**operand(app, "gpu-operator", {"app": app}), "status": status})
    async with following(cluster) as followed:
        (place,) = followed.sources.operands.items.values()
    assert place.down == down


@virtually
async def test_of_the_pods_of_nvidias_chart_with_the_same_labels_only_the_mps_daemon_is_one() -> None:
    crashing = {"name": "mps-control-daemon-ctr", "ready": False, "restartCount": 7}
    status = {"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [crashing]}
    cluster = FakeCluster()
    for container in ("mps-control-daemon-ctr", "nvidia-device-plugin-ctr", "gpu-feature-discovery-ctr"):
        made = operand(container, "gpu-operator", CHART)
        cluster.add(PODS, {**made, "spec": {**made["spec"], "containers": [{"name": container}]}, "status": status})
    async with following(cluster) as followed:
        found = by_node(followed.sources.chart_pods.items.values(), MPS)
    (daemon,) = found.values()
    assert (daemon.name, daemon.down, daemon.lone_restarts) == ("mps-control-daemon-ctr", True, 0)


@virtually
async def test_a_pod_that_is_being_deleted_is_not_ready_any_more() -> None:
    cluster = FakeCluster()
    cluster.add(PODS, operand("agent", "gpusharing", {"app.kubernetes.io/name": "gpusharing-agent"}))
    cluster.add(PODS, operand("mig", "gpu-operator", {"app": "nvidia-mig-manager"}))
    async with following(cluster) as followed:
        assert followed.sources.operands.items["mig"].ready
        place = followed.sources.agents.items["agent"]
        assert (place.node, place.ready) == ("gpu-07", True)
        cluster.delete(PODS, "agent", "gpusharing")
        cluster.delete(PODS, "mig", "gpu-operator")
        await asyncio.sleep(0.1)
        manager = followed.sources.operands.items["mig"]
        assert (manager.ready, manager.deleting) == (False, True)
        gone = followed.sources.agents.items["agent"]
        assert (gone.ready, gone.deleting) == (False, True)


# --- whose a ConfigMap is --------------------------------------------------------------------------

LABEL = {"labels": {"app.kubernetes.io/managed-by": "gpusharing-operator"}}
TIMES = {"annotations": {"gpusharing.dev/written": "{}"}}
WHOSE: dict[str, tuple[JSON, bool]] = {
    "ours by its label": (LABEL, True),
    "ours by its times of writing": (TIMES, True),
    "Helm's": ({"labels": {"app.kubernetes.io/managed-by": "Helm"}}, False),
    "nobody's": ({}, False),
    "nobody's, whose marks are null": ({"labels": None, "annotations": None}, False),
}


def plugin_map(metadata: JSON) -> JSON:
    where = {"name": "gpusharing-device-plugin", "namespace": "gpu-operator"}
    return {"metadata": {**where, **metadata}, "data": {"a": "x"}}


@pytest.mark.parametrize(("metadata", "ours"), WHOSE.values(), ids=WHOSE.keys())
@virtually
async def test_a_config_map_is(metadata: JSON, ours: bool) -> None:
    cluster = FakeCluster()
    cluster.add(CONFIG_MAPS, plugin_map(metadata))
    async with following(cluster) as followed:
        assert followed.sources.config_maps.items["gpusharing-device-plugin"].ours is ours


@virtually
async def test_marks_that_somebody_took_off_are_remembered_for_this_very_object() -> None:
    cluster = FakeCluster()
    async with following(cluster) as followed:
        items = followed.sources.config_maps.items
        created = cluster.add(CONFIG_MAPS, plugin_map(LABEL))
        followed.sources.config_maps.accept(created)  # the answer to our write, before any watch event
        name, space = "gpusharing-device-plugin", "gpu-operator"
        cluster.patch(CONFIG_MAPS, name, {"metadata": {"labels": None}}, space)
        await asyncio.sleep(1)
        assert (items[name].labelled, items[name].ours) == (False, True)
        cluster.delete(CONFIG_MAPS, name, space)
        cluster.add(CONFIG_MAPS, plugin_map({}))
        await asyncio.sleep(1)
        assert not items[name].ours


@virtually
async def test_a_report_is_read_again_only_when_it_is_another_one() -> None:
    cluster = FakeCluster()
    report = {
        "requestID": "a",
        "quiet": False,
        "simulated": True,
        "error": "",
        "driverVersion": "1",
        "gpus": [],
        "models": [],
        "computeModes": "",
        "programs": "",
    }
    cluster.add(
        GPUNODES, {"metadata": {"name": "gpu-07"}, "spec": {}, "status": {"observed": report, "transition": {}}}
    )
    async with following(cluster) as followed:

        async def written(**status: JSON) -> GPUNodeView:
            cluster.patch(GPUNODES, "gpu-07", {"status": status}, subresource="status")
            await asyncio.sleep(0.1)
            return followed.sources.gpunodes.items["gpu-07"]

        first = await written(transition={"phase": "Pending"})
        assert first.observed is not None
        same = await written(transition={"phase": "Synced"})
        assert same.observed is first.observed
        assert followed.sources.shown("gpu-07")[0] == {"phase": "Synced"}
        other = await written(observed=report | {"requestID": "b"})
        assert other.observed is not None
        assert other.observed.request_id == "b"


@virtually
async def test_each_kind_is_listed_once_at_the_start_however_often_one_asks_what_is_missing() -> None:
    cluster = FakeCluster()
    followed = Followed(cluster)
    async with running(followed.sources.run()):
        for _ in range(20):
            followed.sources.missing()
            await asyncio.sleep(0)
        await asyncio.sleep(100)
        assert not followed.sources.missing()
        lists = {kind: count for (_, verb, kind), count in cluster.calls.items() if verb == "list"}
        often = {"pods": 3, "nodemaintenances": 2}  # agents, NVIDIA's operands and chart; of medik8s and of NVIDIA
        assert {kind: count for kind, count in lists.items() if count != 1} == often


@virtually
async def test_after_a_restore_everything_is_listed_anew_except_kinds_that_are_not_there() -> None:
    cluster = FakeCluster()
    cluster.uninstall(GPU_CLUSTERS)
    async with following(cluster) as followed:
        await asyncio.sleep(60)
        assert followed.sources.missing() == {}
        followed.restores += 1
        kinds = {*followed.sources.required, *followed.sources.optional} - {"gpuclusters"}
        assert followed.sources.missing() == dict.fromkeys(kinds, RESTORE_NOTE)
        await asyncio.sleep(1)
        assert followed.sources.missing() == {}
