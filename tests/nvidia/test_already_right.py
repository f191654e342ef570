"""Which GPUs does NVIDIA's mig-parted leave alone, which does it clear, and what does it leave behind? Our answers are the same, over instances and parts of them that came and went at random."""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hack.nvmlsim.models import find_model
from tests.agent.nvml_machine import Agent
from tests.nvidia.conftest import MakeSandbox
from tests.nvidia.programs import MigParted, entry_for

from gpusharing.kube.convert import observed_view
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, normalize
from gpusharing.planning.snapshot.views import GpuView
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.verify import find_leftover

pytestmark = pytest.mark.nvidia

GPUS = 8
MOST = 3
"""Instances of a target: where mig-parted finds no room it tries every ordering, of which seven instances have 5,040."""


def whole_instances(shown: dict[str, Any], model: str) -> Layout | None:
    """The layout of a GPU of the simulated machine; None if an instance of it is not one full compute instance."""
    slices = {profile.name: profile.slices for profile in find_model(model).profiles}
    instances = shown["instances"]
    if any([part["slices"] for part in one["compute"]] != [slices[one["profile"]]] for one in instances):
        return None
    return normalize(Counter(one["profile"] for one in instances))


def report(agent: Agent, index: int) -> GpuView:
    """One GPU as the planner sees it."""
    return observed_view(agent.ask("report")).gpus[index]


def targets_of(gpu: GpuView, exported: Layout, legal: list[Layout], dice: Random) -> Iterator[Layout]:
    """What the GPU may have, what mig-parted takes it for, and another layout."""
    near = [one for one in (gpu.layout, exported) if one in legal]
    yield from dict.fromkeys([*near, dice.choice([one for one in legal if sum(dict(one).values()) <= MOST])])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", ["h100-80gb", "a100-40gb", "a30"])
def test_a_gpu_that_we_keep_is_skipped_and_one_that_changes_is_repaired(
    model: str, seed: int, make_sandbox: MakeSandbox
) -> None:
    sandbox, dice = make_sandbox(*[model] * GPUS), Random(f"{model} {seed}")
    legal = [layout for layout in legal_layouts(find_model(model).profiles) if layout]
    seen = Counter[str]()
    with Agent(sandbox.simulator) as agent:
        for index in range(GPUS):
            agent.ask("shuffle", str(index), f"{model}-{seed}-{index}")
        for index in range(GPUS):
            gpu, rows = report(agent, index), rows_of(MigParted(sandbox, {}).export())
            for target in targets_of(gpu, normalize(rows[index]["mig-devices"]), legal, dice):
                wanted = [
                    *(row for at, row in rows.items() if at != index),
                    {**entry_for(target)[0], "devices": [index]},
                ]
                parted = MigParted(sandbox, {"wanted": wanted})
                skips = parted.check("wanted").status == 0
                leftover = find_leftover([gpu], [target])
                seen["kept" if gpu.layout == target else "leftover" if leftover else "repaired"] += 1
                if gpu.layout == target:
                    assert (skips, leftover) == (True, ""), gpu
                elif skips:
                    assert leftover, "mig-parted would leave what we do not count as right"
                applied = parted.apply("wanted")
                after = whole_instances(sandbox.simulator.show()["gpus"][index], model)
                assert leftover or (applied.status, after) == (0, target), (gpu, target, applied.output[-2000:])
                gpu = report(agent, index)
    assert seen["repaired"]


def rows_of(entry: migfile.Entry) -> dict[int, dict[str, Any]]:
    """What mig-parted exports, by GPU."""
    return {index: {**row, "devices": [index]} for row in entry for index in indexes_of(row)}


def indexes_of(row: dict[str, Any]) -> list[int]:
    return list(range(GPUS)) if row["devices"] == "all" else row["devices"]
