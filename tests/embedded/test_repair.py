"""The operator repairs NVIDIA's MPS DaemonSet itself (docs/adr/0076-the-one-exception.md)."""

import asyncio

import pytest
from hack.sim.fakefaults import EVER
from tests.embedded.mpsset import (
    DAEMON,
    DEAF,
    NAMESPACE,
    RELEASED,
    RIGHT,
    containers,
    counted,
    overwrite,
    reported,
    signalled,
)
from tests.embedded.scene import HOUR, L40S, MPS, SLICED, Scene, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import CONFIG_MAPS, DAEMON_SETS, EVENTS, JSON, PODS
from gpusharing.kube.errors import Conflict, Forbidden, Unavailable
from gpusharing.planning.stack.mps import MOST_REPAIRS


async def repaired(scene: Scene) -> None:
    await scene.e.until(lambda: signalled(scene) == RIGHT, "the repair", HOUR)


@virtually
async def test_one_write_and_mps_works_and_what_else_the_daemonset_says_stays() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True) as scene:
        before = scene.e.cluster.get(DAEMON_SETS, DAEMON, NAMESPACE)
        version = before["metadata"]["resourceVersion"]
        await scene.serve(MPS)
        writes = scene.writes(plural="daemonsets")
        assert [write.error for write in writes] == [None]
        assert (writes[0].call.body or {})["metadata"] == {"resourceVersion": version}
        assert scene.events()["MPSDaemonRepaired"] == 1
        assert counted(scene) == 1
        after = scene.e.cluster.get(DAEMON_SETS, DAEMON, NAMESPACE)
        for raw in (before, after):
            for one in raw["spec"]["template"]["spec"]["containers"]:
                one["env"] = [row for row in one.get("env", ()) if row["name"] != "PROCESS_TO_SIGNAL"]
        assert after["spec"] == before["spec"]


@virtually
async def test_an_overwrite_under_nodes_that_served_mps_is_repaired_and_they_serve_again_without_a_drain() -> None:
    async with open_scene(*nodes(2, product=L40S), repair_mps=True, serving=MPS) as scene:
        since = scene.mark()
        overwrite(scene)
        await repaired(scene)
        await scene.ready()
        assert scene.events()["MPSDaemonRepaired"] == 1
        assert scene.node_writes(since)["gpu-1"] == scene.node_writes(since)["gpu-2"] == 0


@virtually
async def test_after_three_overwrites_it_gives_up_though_it_is_restarted() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True) as scene:
        scene.apply(SLICED)
        for count in (1, 2, 3):
            await repaired(scene)
            assert counted(scene) == count
            await scene.e.until(lambda: len(reported(scene)) == count, "the Event", HOUR)  # noqa: B023 - awaited at once
            await scene.e.kill_operator()
            overwrite(scene)
            scene.e.start_operator()
        assert reported(scene) == ["repair 1 of 3", "repair 2 of 3", "repair 3 of 3"]
        blocked = await scene.reach(MPS, reason="MPSNotSwitchable")
        words = "has set it 3 times under device plugin v0.20.0, but someone else overwrote it each time"
        assert words in blocked["message"]
        await asyncio.sleep(HOUR)
        assert len(scene.writes(plural="daemonsets")) == 3
        assert signalled(scene) == RELEASED
        mark: JSON = {"metadata": {"annotations": {"gpusharing.dev/mps-repairs": None}}}
        scene.e.cluster.patch(CONFIG_MAPS, "gpusharing-device-plugin", mark, NAMESPACE)
        await repaired(scene)
        await scene.ready()


@virtually
async def test_without_the_right_it_says_so_counts_nothing_and_other_writes_go_on() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True, start=False) as scene:
        no_right = Forbidden("no right to patch daemonsets")
        fault = scene.e.cluster.faults.fail("patch", DAEMON_SETS, no_right, times=EVER)
        scene.e.start_operator()
        await scene.serve(SLICED)
        scene.apply(MPS)
        await scene.e.until(
            lambda: "no right to patch daemonsets" in str(scene.condition("Ready").get("message", "")),
            "the condition to say why",
            HOUR,
        )
        assert counted(scene) == 0
        for number in range(MOST_REPAIRS + 1):  # ClusterPolicy is edited, so the DaemonSet has another generation
            edit(scene, str(number))
            await asyncio.sleep(HOUR)
        assert counted(scene) == 0
        assert "no right to patch daemonsets" in scene.transition("gpu-1")["message"]
        assert scene.events()["MPSDaemonRepaired"] == 0
        fault.lift()
        await scene.ready()
        assert counted(scene) == 1
        assert scene.events()["MPSDaemonRepaired"] == 1


@virtually
async def test_a_repair_whose_answer_is_lost_is_reported_and_the_next_overwrite_counts() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True, start=False) as scene:
        scene.e.cluster.faults.fail("patch", DAEMON_SETS, Unavailable("504: time-out"), after=True)
        scene.e.start_operator()
        scene.apply(SLICED)
        await scene.e.until(lambda: reported(scene) == ["repair 1 of 3"], "the Event", HOUR)
        overwrite(scene)
        await scene.e.until(lambda: reported(scene) == ["repair 1 of 3", "repair 2 of 3"], "the next", HOUR)
        assert counted(scene) == 2
        assert len(scene.writes(plural="daemonsets")) == 2


@virtually
async def test_a_repair_after_which_the_operator_dies_is_reported_by_the_next_one() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True) as scene:
        scene.apply(SLICED)
        await repaired(scene)
        await scene.e.kill_operator()
        scene.e.start_operator()
        await scene.e.until(lambda: reported(scene) == ["repair 1 of 3"], "the Event", HOUR)
        await scene.ready()
        assert counted(scene) == 1


@virtually
async def test_without_the_right_to_post_events_repairs_are_made_and_counted_and_the_last_is_reported_later() -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True, start=False) as scene:
        no_right = Forbidden("no right to create events")
        fault = scene.e.cluster.faults.fail("create", EVENTS, no_right, times=EVER)
        scene.e.start_operator()
        scene.apply(SLICED)
        for count in (1, 2):
            await scene.e.until(lambda: signalled(scene) == RIGHT, "the repair", HOUR)
            await asyncio.sleep(60)
            assert counted(scene) == count
            if count == 1:
                overwrite(scene)
        fault.lift()
        await scene.e.until(lambda: reported(scene) == ["repair 2 of 3"], "the Event", HOUR)


def edit(scene: Scene, value: str) -> None:
    """The GPU Operator writes the DaemonSet anew, with another variable of its own."""
    found = containers(scene)
    for one in found:
        one["env"] = [row for row in one.get("env", ()) if row["name"] != "X"] + [{"name": "X", "value": value}]
    body: JSON = {"spec": {"template": {"spec": {"containers": found}}}}
    scene.e.cluster.patch(DAEMON_SETS, DAEMON, body, NAMESPACE)


@pytest.mark.parametrize("conflicts", [1, 5])
@virtually
async def test_a_write_that_somebody_came_before_is_decided_anew_and_counted_once(conflicts: int) -> None:
    async with open_scene(*nodes(1, product=L40S), sim=DEAF, repair_mps=True, start=False) as scene:
        scene.e.cluster.faults.fail("patch", DAEMON_SETS, Conflict("it changed"), times=conflicts)
        scene.e.start_operator()
        await scene.serve(MPS)
        assert counted(scene) == 1


# --- config-manager restarts alone ----------------------------------------------------------------------


def restart(scene: Scene, manager: int, daemon: int = 0) -> None:
    """The kubelet of gpu-1 reports how often each container of the MPS daemon's pod has restarted."""
    (pod,) = scene.e.cluster.objects(PODS, namespace=NAMESPACE, label_selector=f"app={DAEMON}")
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    rows = [
        {"name": "mps-control-daemon-ctr", "restartCount": daemon},
        {"name": "config-manager", "restartCount": manager, "lastState": ended},
    ]
    body = {"status": {"containerStatuses": rows}}
    scene.e.cluster.patch(PODS, pod["metadata"]["name"], body, NAMESPACE, "status")


@virtually
async def test_a_restart_of_config_manager_alone_is_said_with_its_cause_and_no_node_is_drained() -> None:
    async with open_scene(*nodes(1, product=L40S), serving=MPS) as scene:
        restart(scene, manager=0)
        since = scene.mark()
        restart(scene, manager=1)
        await scene.e.until(lambda: scene.events()["MPSClientsEnded"] == 1, "the Event", HOUR)
        words = "restarted once (OOMKilled, exit code 137) while the MPS daemon kept running"
        notes = [raw["note"] for raw in scene.e.cluster.objects(EVENTS) if raw["reason"] == "MPSClientsEnded"]
        assert words in notes[0]
        await scene.e.until(lambda: words in scene.transition("gpu-1").get("message", ""), "the node to say so", HOUR)
        restart(scene, manager=3)
        await scene.e.until(lambda: scene.events()["MPSClientsEnded"] == 2, "another Event", HOUR)
        restart(scene, manager=4, daemon=1)  # the node rebooted
        await asyncio.sleep(HOUR)
        assert scene.events()["MPSClientsEnded"] == 2
        restart(scene, manager=4, daemon=5)  # the daemon crashed
        await asyncio.sleep(HOUR)
        assert scene.events()["MPSClientsEnded"] == 2
        restart(scene, manager=5, daemon=5)
        await scene.e.until(lambda: scene.events()["MPSClientsEnded"] == 3, "one after the crashes", HOUR)
        assert scene.transition("gpu-1")["phase"] == "Synced"
        assert scene.node_writes(since)["gpu-1"] == 0
