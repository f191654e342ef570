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
        """Start without any state."""
        self.stage = stage
        self.fleet: JSON = {}
        """All policies and GPUNodes at the last call of `keep_fleet`; empty before."""
        self.rollout: list[JSON] = []
        """One policy and its GPUNodes, in order: the first and the last state, and between them, for each combination
        of phases and reasons of the nodes, the state that was read most often."""
        self._reads: list[tuple[JSON, int]] = []
        """The states since the last one of `rollout`, which have all the same outline, and how often each was read."""

    async def keep_fleet(self) -> None:
        """Read all policies and GPUNodes into `fleet`."""
        self.fleet = await _read(self.stage)

    @asynccontextmanager
    async def following(self, policy: str) -> AsyncIterator[None]:
        """Add states of this policy to `rollout` while the block runs: the first, the last, and between them one for
        each outline (`_choose`). A state that lasts less than LOOK_SECONDS may be missed. If the block raises or a
        state cannot be read meanwhile, the block ends and that error is raised, the block's if there are both; the last
        state is then not added."""
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
        """Read the state of this policy every LOOK_SECONDS until the task is canceled, and count in `_reads` how often
        each state (without its time) was read in a row; the latest of equal states is kept. When the outline changes,
        first call `_choose` for the states before. Errors of `_read` end the task."""
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
        """Add the state that was read most often among `_reads`, of several the earliest, to `rollout`, unless the last
        state there has the same outline. Empty `_reads` in any case."""
        state, _ = max(self._reads, key=lambda read: read[1])
        if _outline(state) != _outline(self.rollout[-1]):
            self.rollout.append(state)
        self._reads = []

    def write(self, path: Path) -> None:
        """Write what was collected to a JSON file, in place of an earlier one: `fleet`, and the list `rollout`, with
        one state in each line. `rollout` must not be empty."""
        states = [json.dumps(state, separators=(",", ":")) for state in (self.fleet, *self.rollout)]
        path.write_text(f'{{"fleet":\n{states[0]},\n"rollout":[\n' + ",\n".join(states[1:]) + "\n]}\n")


async def _read(stage: Stage, policy: str = "") -> JSON:
    """Return the time of this call (`taken`), the policies and the GPUNodes (`policies`, `gpunodes`), with the fields
    that are recorded. `policy` limits them to this policy and the nodes whose transition names it. Raises KubeError if
    they cannot be listed, and KeyError if any policy in the cluster has no status, or any GPUNode lacks its report or
    transition."""
    policies = [_policy(raw) for raw in await list_of(stage.client, POLICIES)]
    nodes = [_node(raw) for raw in await list_of(stage.client, GPUNODES)]
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "policies": [one for one in policies if policy in ("", one["metadata"]["name"])],
        "gpunodes": [one for one in nodes if policy in ("", one["status"]["transition"].get("policy"))],
    }


def _without_time(state: JSON) -> JSON:
    """Return the state without the time when it was read."""
    return {key: value for key, value in state.items() if key != "taken"}


def _outline(state: JSON) -> object:
    """Return what has to differ for two states to count as different: whether the policies have a plan, and the phases
    and reasons of the nodes."""
    pools = ["plan" in one["status"] for one in state["policies"]]
    moves = [one["status"]["transition"] for one in state["gpunodes"]]
    return pools, [(move.get("phase"), move.get("reason")) for move in moves]


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
