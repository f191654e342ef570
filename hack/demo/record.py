"""States of the demo's cluster, as data from which the README's pictures are drawn (hack/generate_picture.py): all
pools in the middle of the demo, and one pool's rollout from its plan to its end.

`python -m hack.demo --record hack/demo/record.json` writes them again; a test in tests/demo fails when that is due.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from gpusharing.kube.client import GPUNODES, JSON, POLICIES
from gpusharing.kube.lists import list_of
from hack.demo.stage import Stage

RECORD = Path(__file__).with_name("record.json")
"""The record from which the pictures are drawn. SIMULATED, as the whole demo is."""
OF_POLICY = {"observedGeneration", "summary", "plan"}
OF_PLAN = {"hash", "disruption", "nodes", "nodeCount", "pods"}
LOOK_SECONDS = 0.05
"""How often the rollout is read while it is recorded."""


class Recorder:
    """Collects states of the cluster of a `Stage`, and writes them to a file."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.fleet: JSON = {}
        """All policies and GPUNodes at the last call of `keep_fleet`; empty before."""
        self.rollout: list[JSON] = []
        """One policy and its GPUNodes, in order: the first and the last state, and between them, for each combination
        of phases and reasons of the nodes, the state that was read most often."""
        self._reads: list[tuple[JSON, int]] = []
        """The states since the last one of `rollout`, which have all the same outline, and how often each was read."""

    async def keep_fleet(self) -> None:
        self.fleet = await _read(self.stage)

    @asynccontextmanager
    async def following(self, policy: str) -> AsyncIterator[None]:
        """Record the states of a policy during the block. One that lasts less than LOOK_SECONDS may be missed."""
        self.rollout.append(await _read(self.stage, policy))
        try:
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(self._follow(policy))
                yield
                follower.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[-1] from None
        self.rollout.append(await _read(self.stage, policy))

    async def _follow(self, policy: str) -> None:
        while True:
            state = await _read(self.stage, policy)
            if self._reads and _outline(state) != _outline(self._reads[0][0]):
                self._choose()
            if self._reads and _without_time(state) == _without_time(self._reads[-1][0]):
                self._reads[-1] = (state, self._reads[-1][1] + 1)
            else:
                self._reads.append((state, 1))
            await asyncio.sleep(LOOK_SECONDS)

    def _choose(self) -> None:
        """Keep the state that was read most often, unless the last one has the same outline."""
        state, _ = max(self._reads, key=lambda read: read[1])
        if _outline(state) != _outline(self.rollout[-1]):
            self.rollout.append(state)
        self._reads = []

    def write(self, path: Path) -> None:
        """Write what was collected to a JSON file, with one state in each line."""
        states = [json.dumps(state, separators=(",", ":")) for state in (self.fleet, *self.rollout)]
        path.write_text(f'{{"fleet":\n{states[0]},\n"rollout":[\n' + ",\n".join(states[1:]) + "\n]}\n")


async def _read(stage: Stage, policy: str = "") -> JSON:
    policies = [_policy(raw) for raw in await list_of(stage.client, POLICIES)]
    nodes = [_node(raw) for raw in await list_of(stage.client, GPUNODES)]
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "policies": [one for one in policies if policy in ("", one["metadata"]["name"])],
        "gpunodes": [one for one in nodes if policy in ("", one["status"]["transition"].get("policy"))],
    }


def _without_time(state: JSON) -> JSON:
    return {key: value for key, value in state.items() if key != "taken"}


def _outline(state: JSON) -> object:
    pools = ["plan" in one["status"] for one in state["policies"]]
    moves = [one["status"]["transition"] for one in state["gpunodes"]]
    return pools, [(move.get("phase"), move.get("reason")) for move in moves]


def _policy(raw: JSON) -> JSON:
    status = _some(raw["status"], OF_POLICY)
    if plan := status.get("plan"):
        status["plan"] = _some(plan, OF_PLAN)
    return {
        "metadata": _some(raw["metadata"], {"name", "generation"}),
        "spec": _some(raw["spec"], {"mode", "rollout"}),
        "status": status,
    }


def _node(raw: JSON) -> JSON:
    status, observed = raw["status"], raw["status"]["observed"]
    reported = {**_some(observed, {"simulated", "pods"}), "gpus": [{} for _ in observed["gpus"]]}
    transition = {key: value for key, value in status["transition"].items() if key != "blockers"}
    return {"metadata": {"name": raw["metadata"]["name"]}, "status": {"transition": transition, "observed": reported}}


def _some(raw: Mapping[str, object], keys: set[str]) -> JSON:
    return {key: value for key, value in raw.items() if key in keys}
