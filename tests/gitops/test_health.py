"""What Argo CD and Flux make of our objects, as the operator and the agents wrote them in a SIMULATED cluster."""

import json
from functools import cache
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from celpy.celtypes import MapType
from celpy.evaluation import CELEvalError
from hack.generate import ROOT
from hack.sim.workloads import SimWorkload
from lupa.lua51 import LuaRuntime
from tests.embedded.scene import FULL, L40S, MIXED, SLICED, Scene, node, nodes, open_scene, pdb
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import GPUNODES, JSON, POLICIES

FOLDER = ROOT / "deploy" / "gitops"
ARGO = yaml.safe_load((FOLDER / "argocd-cm.yaml").read_text())["data"]
FLUX = {
    one["kind"]: one
    for one in yaml.safe_load((FOLDER / "flux-health-checks.yaml").read_text())["spec"]["healthCheckExprs"]
}


def argo_cd(kind: str, obj: JSON) -> tuple[str, str]:
    """(status, message) of the Lua script: a global `obj` goes in, a table comes out; no standard library but ipairs.

    Argo CD runs gopher-lua, which is Lua 5.1, with the libraries closed.
    """
    lua = LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    kept = {"ipairs", "pairs"}
    for name in [name for name in lua.globals() if name not in kept]:
        lua.globals()[name] = None
    lua.globals()["obj"] = _table(lua, obj)
    health = lua.execute(ARGO[f"resource.customizations.health.gpusharing.dev_{kind}"])
    return str(health["status"]), str(health["message"])


def _table(lua: LuaRuntime, value: Any) -> Any:
    if isinstance(value, dict):
        # An explicit null is an absent key in Lua.
        return lua.table_from({k: _table(lua, v) for k, v in value.items() if v is not None})
    if isinstance(value, list):
        return lua.table_from([_table(lua, item) for item in value])
    return value


def flux(kind: str, obj: JSON) -> str:
    """InProgress, Failed or Current. An expression that cannot be evaluated means: wait.

    Raises: AssertionError: two expressions hold at once, so that the answer depends on the order in which they are asked.
    """
    words = {"inProgress": "InProgress", "failed": "Failed", "current": "Current"}
    holds = [word for key, word in words.items() if _holds(FLUX[kind][key], json.dumps(obj))]
    assert len(holds) <= 1, holds
    return holds[0] if holds else "InProgress"


def _holds(expression: str, obj: str) -> bool:
    fields = json_to_cel(json.loads(obj))
    assert isinstance(fields, MapType), "an object of the API"
    try:
        return bool(_program(expression).evaluate({str(name): value for name, value in fields.items()}))
    except CELEvalError:
        return False


@cache
def _program(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


# --- what they make of our objects ---------------------------------------------------------------------------

Shown = dict[str, tuple[str, str]]


def shown(scene: Scene) -> Shown:
    kinds = (("GPUSharingPolicy", POLICIES), ("GPUNode", GPUNODES))
    return {
        raw["metadata"]["name"]: (argo_cd(kind, raw)[0], flux(kind, raw))
        for kind, resource in kinds
        for raw in scene.e.cluster.objects(resource)
    }


@virtually
async def test_a_rollout_is_shown_as_a_person_would_see_it() -> None:
    async with open_scene(*nodes(2), node("gpu-9", L40S, pool="l"), start=False) as scene:
        scene.apply(SLICED)
        assert shown(scene)["pool-b"] == ("Progressing", "InProgress"), "nobody has looked at it yet"
        scene.e.start_operator()
        await scene.ready()
        done = shown(scene)
        assert done["pool-b"] == done["gpu-1"] == ("Healthy", "Current")
        assert done["gpu-9"] == ("Healthy", "Current"), "no policy owns it"

        scene.apply(MIXED)
        assert shown(scene)["pool-b"] == ("Progressing", "InProgress"), "status is of the generation before"
        name = await scene.any_fenced()
        working = shown(scene)
        assert working["pool-b"] == working[name] == ("Progressing", "InProgress")
        await scene.ready()
        assert shown(scene)["pool-b"] == ("Healthy", "Current")


@virtually
async def test_what_needs_a_person_is_degraded() -> None:
    async with open_scene(node("gpu-1"), node("gpu-9", L40S, pool="l")) as scene:
        scene.apply(MIXED, name="wrong-card", pool="l")
        scene.apply({"mode": "MIG"}, name="invalid")
        await scene.serve(FULL)
        scene.e.software.inject("gpu-1", "failed")
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Failed")
        await scene.until_condition("Stalled", "True", "NodesFailed")
        found = shown(scene)
        assert found["wrong-card"] == found["invalid"] == ("Degraded", "Failed")
        assert found["pool-b"] == found["gpu-1"] == ("Degraded", "Failed")


@virtually
async def test_what_a_person_chose_is_suspended_and_holds_up_nothing_else() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply(FULL, name="empty", pool="nowhere")
        await scene.serve(SLICED)
        scene.apply(MIXED, rollout={"paused": True})
        await scene.until_condition("Ready", "False", "RolloutInProgress")
        found = shown(scene)
        assert found["empty"] == ("Suspended", "Current"), "an autoscaled pool may have no node today"
        assert found["pool-b"][0] == "Suspended"


@virtually
async def test_a_node_that_waits_for_a_person_is_suspended() -> None:
    budget = pdb("keep", "llm", minAvailable=1)
    async with open_scene(node("gpu-1"), workloads=[SimWorkload("llm", 1)], budgets=[budget]) as scene:
        await scene.running("llm", 1)
        await scene.serve(FULL)
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Blocked")
        assert shown(scene)["gpu-1"] == ("Suspended", "InProgress")


@virtually
async def test_a_sick_gpu_is_degraded() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.e.software.inject("gpu-1", "sick-gpu")

        def sick() -> bool:
            rows = scene.e.gpunode("gpu-1")["status"].get("conditions") or ()
            return any(row["status"] == "False" for row in rows)

        await scene.e.until(sick, "condition Healthy=False", 600)
        assert shown(scene)["gpu-1"] == ("Degraded", "Failed")


DAMAGED: dict[str, JSON] = {
    "no status": {"metadata": {"generation": 1}, "spec": {}},
    "an empty status": {"metadata": {"generation": 1}, "spec": {}, "status": {}},
    "no conditions": {"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 1}},
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("kind", FLUX)
def test_an_object_that_is_not_filled_in_yet_waits(kind: str, what: str) -> None:
    assert (argo_cd(kind, DAMAGED[what])[0], flux(kind, DAMAGED[what])) == ("Progressing", "InProgress")


def test_an_agent_without_a_driver_is_degraded_with_its_words() -> None:
    obj = {"metadata": {}, "status": {"observed": {"error": "NVMLNotLoaded"}}}
    assert argo_cd("GPUNode", obj) == ("Degraded", "NVMLNotLoaded")
    assert flux("GPUNode", obj) == "Failed"


def test_a_policy_that_goes_is_waited_for() -> None:
    obj: Any = {"metadata": {"generation": 1, "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}
    assert argo_cd("GPUSharingPolicy", obj)[0] == "Progressing"


def test_both_know_both_kinds() -> None:
    kinds = {"GPUSharingPolicy", "GPUNode"}
    assert {key.rpartition("_")[2] for key in ARGO} == set(FLUX) == kinds
