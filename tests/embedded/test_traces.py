"""What a program left behind is believed for a while, and then the node says who claims what and what is missing."""

import asyncio

from tests.embedded.scene import FULL, HOUR, MIXED, Scene, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import PODS

STATE = names.LABEL_MIG_STATE


def crash_mig_manager(scene: Scene, *, up: bool = False) -> str:
    """The container of mig-manager's pod is in a CrashLoopBackOff, or runs again; returns the pod's name."""
    (pod,) = scene.e.cluster.objects(PODS, label_selector="app=nvidia-mig-manager")
    state = {"running": {}} if up else {"waiting": {"reason": "CrashLoopBackOff"}}
    status = {
        "conditions": [{"type": "Ready", "status": str(up)}],
        "containerStatuses": [{"name": "main", "ready": up, "restartCount": 7, "state": state}],
    }
    scene.e.cluster.patch(PODS, pod["metadata"]["name"], {"status": status}, "gpu-operator", subresource="status")
    return str(pod["metadata"]["name"])


@virtually
async def test_a_run_whose_mig_manager_died_is_told_with_its_pod_and_goes_on_when_that_runs_again() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply(MIXED)
        await scene.e.until(lambda: scene.labels("gpu-1").get(STATE) == "pending", "a run", HOUR)
        name = crash_mig_manager(scene)
        await asyncio.sleep(60)
        assert scene.transition("gpu-1")["message"] == "mig-manager is applying the configuration"
        await asyncio.sleep(60)
        transition = scene.transition("gpu-1")
        assert (transition["phase"], transition["reason"]) == ("Reconfiguring", "ActuationInProgress")
        assert transition["message"].endswith(f"says label {STATE}=pending; its pod {name} is not Ready")
        crash_mig_manager(scene, up=True)
        await scene.ready()
        assert scene.deleted() == []


@virtually
async def test_a_run_at_rest_whose_mig_manager_died_needs_a_person_after_two_minutes_and_drains_nothing() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        mark = scene.mark()
        name = crash_mig_manager(scene)
        scene.person("gpu-1", {"metadata": {"labels": {STATE: "pending"}}})
        await asyncio.sleep(60)
        assert scene.transition("gpu-1")["reason"] == "ActuatorBusy"
        await asyncio.sleep(60)
        transition = scene.transition("gpu-1")
        assert (transition["phase"], transition["reason"], transition["waitingFor"]) == (
            "Blocked",
            "ActuatorMissing",
            "Person",
        )
        claim = f"label {STATE}=pending says that mig-manager is at work on gpu-1"
        assert transition["message"].startswith(f"{claim}, but its pod {name} is not Ready")
        assert claim in (await scene.until_condition("Stalled", "True", "Blocked"))["message"]
        await asyncio.sleep(HOUR)
        assert scene.transition("gpu-1")["message"].startswith(claim)
        assert (scene.cordoned("gpu-1"), scene.node_writes(mark)) == (False, {})
        crash_mig_manager(scene, up=True)
        await scene.ready()


@virtually
async def test_a_driver_pod_that_died_with_operands_paused_needs_a_person_after_an_hour() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await asyncio.sleep(60)
        label = f"{names.LABEL_DEPLOY_PREFIX}dcgm"
        scene.person("gpu-1", {"metadata": {"labels": {label: "paused-for-driver-upgrade"}}})
        await scene.reason("gpu-1", "ForeignMaintenance")
        await asyncio.sleep(HOUR - 60)
        assert scene.transition("gpu-1")["waitingFor"] == "Others"
        await asyncio.sleep(120)
        transition = scene.transition("gpu-1")
        assert (transition["reason"], transition["waitingFor"]) == ("ForeignMaintenance", "Person")
        assert f"label {label}=paused-for-driver-upgrade says that NVIDIA's driver is being" in transition["message"]
        assert "kubectl get pods -A -l app.kubernetes.io/component=nvidia-driver" in transition["message"]
        scene.person("gpu-1", {"metadata": {"labels": {label: "true"}}})
        await scene.ready()
