"""MIG instances that are not one full compute instance, as an agent reports them and the planner reads them.

The oracle is the state of the simulated machine. tests/nvidia/test_already_right.py compares with NVIDIA's mig-parted.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hack.nvmlsim.models import find_model
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import Agent, needs_compiler

from gpusharing.kube.convert import observed_view
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, normalize

pytestmark = needs_compiler


def counted_by_mig_parted(instances: list[dict[str, Any]], model: str) -> Layout:
    """The compute instances, named as mig-parted's GetMigConfig does."""
    slices = {profile.name: profile.slices for profile in find_model(model).profiles}
    names = Counter(
        one["profile"] if part["slices"] == slices[one["profile"]] else f"{part['slices']}c.{one['profile']}"
        for one in instances
        for part in one["compute"]
    )
    return normalize(names)


def test_what_is_in_an_instance_is_reported_by_name(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("partition", "0", "2g.20gb")
        agent.ask("put", "0", "3g.40gb", "2", "1")
        agent.ask("put", "0", "1g.10gb")
        told = agent.ask("report")["gpus"][0]
    ids = {one["profile"]: one["id"] for one in machine.show()["gpus"][0]["instances"]}
    assert told["mig"].startswith("1x2g.20gb@")
    assert sorted(told["partialInstances"], key=lambda one: str(one["profile"])) == [
        {"id": ids["1g.10gb"], "profile": "1g.10gb"},
        {"id": ids["3g.40gb"], "profile": "3g.40gb", "compute": ["1c.3g.40gb", "2c.3g.40gb"]},
    ]


def test_one_compute_instance_that_is_too_small_is_no_whole_instance(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("partition", "0")
        agent.ask("put", "0", "3g.40gb", "2")
        told = agent.ask("report")
    (gpu, _) = told["gpus"]
    assert (gpu["mig"], [one["compute"] for one in gpu["partialInstances"]]) == ("Enabled", [["2c.3g.40gb"]])
    assert observed_view(told).gpus[0].layout == (("2c.3g.40gb", 1),)


def test_nothing_is_right_about_an_instance_of_which_the_driver_does_not_tell_what_is_in_it(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("partition", "0", "3g.40gb")
        machine.inject("nvmlDeviceGetAttributes", "NOT_SUPPORTED")
        (gpu, _) = observed_view(agent.ask("report")).gpus
    assert gpu.instances_withheld


def test_a_pod_on_a_part_of_an_instance_is_known_to_be_on_its_gpu(machine: Simulator) -> None:
    with Agent(machine) as agent:
        agent.ask("partition", "0")
        agent.ask("put", "0", "3g.40gb", "2", "1")
        (instance,) = agent.gpus()[0]["instances"]
    seen = {part["uuid"] for part in machine.show()["gpus"][0]["instances"][0]["compute"]}
    assert {uuid for _, uuid in instance["parts"]} == seen
    assert len(seen) == 2


@pytest.mark.parametrize("model", ["h100-80gb", "a100-40gb", "a30"])
def test_what_the_planner_calls_right_is_what_mig_parted_leaves_alone(tmp_path: Path, model: str) -> None:
    """Of 40 GPUs made at random. Where a GPU instance is empty, mig-parted sees less than we do."""
    layouts = set(legal_layouts(find_model(model).profiles))
    odd = 0
    for seed in range(4):
        machine = Simulator.create(tmp_path / f"state-{seed}", [model] * 10, seed=str(seed))
        with Agent(machine) as agent:
            for index in range(10):
                agent.ask("shuffle", str(index), f"{seed}-{index}")
            gpus = observed_view(agent.ask("report")).gpus
        for gpu, shown in zip(gpus, machine.show()["gpus"], strict=True):
            assert gpu.layout is not None
            theirs = counted_by_mig_parted(shown["instances"], model)
            empty = [one for one in shown["instances"] if not one["compute"]]
            odd += bool(gpu.partial)
            assert not gpu.instances_withheld
            assert (gpu.layout in layouts) == (not gpu.partial)
            if not empty:
                assert gpu.layout == theirs
            else:
                assert Counter(dict(gpu.layout)) - Counter(dict(theirs)) == Counter(
                    f"0c.{one['profile']}" for one in empty
                )
            for layout in layouts:
                assert gpu.layout != layout or theirs == layout, "a GPU that we keep is one that mig-parted skips"
    assert odd > 5
