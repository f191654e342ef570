"""The state in the middle of the story, as data from which the README's picture is drawn (hack/generate_picture.py).

`python -m hack.demo --record hack/demo/blocked.json` writes it again; a test in tests/demo fails when that is due.
"""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from gpusharing.kube.client import GPUNODES, JSON, POLICIES
from gpusharing.kube.paging import list_of
from hack.demo.stage import Stage

RECORD = Path(__file__).with_name("blocked.json")
"""The record from which the picture is drawn. SIMULATED, as the whole demo is."""
OF_POLICY = {"observedGeneration", "summary", "plan"}
OF_PLAN = {"hash", "disruption", "nodes", "nodeCount", "pods"}


async def record(stage: Stage, path: Path) -> None:
    """Write the present policies and GPUNodes to `path`, as users see them, without the fields that `kubectl
    gpusharing status` does not read. Raises KeyError if a policy has no status, or a GPUNode no report or no
    transition."""
    taken = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "policies": [_policy(raw) for raw in await list_of(stage.client, POLICIES)],
        "gpunodes": [_node(raw) for raw in await list_of(stage.client, GPUNODES)],
    }
    await asyncio.to_thread(path.write_text, json.dumps(taken, indent=1) + "\n")


def _policy(raw: JSON) -> JSON:
    """Return the fields of a policy that are recorded: name and generation, mode and rollout, and OF_POLICY of its
    status, with only OF_PLAN of the plan. Raises KeyError if it has no status."""
    status = _some(raw["status"], OF_POLICY)
    if plan := status.get("plan"):
        status["plan"] = _some(plan, OF_PLAN)
    return {
        "metadata": _some(raw["metadata"], {"name", "generation"}),
        "spec": _some(raw["spec"], {"mode", "rollout"}),
        "status": status,
    }


def _node(raw: JSON) -> JSON:
    """Return the fields of a GPUNode that are recorded: its name, its transition without the blockers, and from its
    report whether it is simulated, the number of pods, and the GPUs. Each GPU becomes an empty object, because only
    their number matters. Raises KeyError if it has no report or no transition."""
    status, observed = raw["status"], raw["status"]["observed"]
    reported = {**_some(observed, {"simulated", "pods"}), "gpus": [{} for _ in observed["gpus"]]}
    transition = {key: value for key, value in status["transition"].items() if key != "blockers"}
    return {
        "metadata": {"name": raw["metadata"]["name"]},
        "status": {"transition": transition, "observed": reported},
    }


def _some(raw: Mapping[str, object], keys: set[str]) -> JSON:
    """Return the entries of `raw` that have one of these keys."""
    return {key: value for key, value in raw.items() if key in keys}
