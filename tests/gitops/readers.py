"""Argo CD and Flux as far as they read the health of an object, by the scripts and expressions of deploy/gitops."""

import json
from functools import cache
from typing import Any

import celpy
import yaml
from celpy.adapter import json_to_cel
from celpy.celtypes import MapType
from celpy.evaluation import CELEvalError
from hack.generate import ROOT
from lupa.lua51 import LuaRuntime

from gpusharing.kube.client import JSON

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
