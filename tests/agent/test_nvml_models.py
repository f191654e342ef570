"""Every simulated card model, and who holds its MIG devices, through nvidia-ml-py and the shipped reader. SIMULATED."""

from pathlib import Path
from typing import Any

import pytest
from hack.nvmlsim.models import simulated_cards
from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_machine import Agent, finish, needs_compiler, start

from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import maximal_layouts

pytestmark = needs_compiler
CARDS = simulated_cards()


def largest(card: Card) -> list[str]:
    """Profiles of a layout that fills the card, the largest first, so that the driver finds a place for each."""
    plain = tuple(profile for profile in card.profiles if not any(sign in profile.name for sign in "+-"))
    sizes = {profile.name: profile.size for profile in plain}
    layouts = [[name for name, count in layout for _ in range(count)] for layout in maximal_layouts(plain)]
    most_kinds = max(layouts, key=lambda names: (len(set(names)), names))
    return sorted(most_kinds, key=lambda name: -sizes[name])


def test_the_models_that_the_issue_names_are_among_the_simulated_ones() -> None:
    keys = [card.key for card in CARDS]
    for named in ("a30", "a100-40gb", "a100-80gb", "h100-80gb", "h200", "b200", "rtx-pro-6000", "v100", "t4", "l40s"):
        assert any(key.startswith(named) for key in keys), named


@pytest.mark.parametrize("card", CARDS, ids=[f"a {card.key}" for card in CARDS])
def test_it_is_read_as_the_card_table_has_it_whole_and_divided(tmp_path: Path, card: Card) -> None:
    machine = Simulator.create(tmp_path / "state", [card.key], seed="test")
    with Agent(machine) as agent:
        reading = agent.ask("read")
        (model,), (gpu,) = reading["models"], reading["gpus"]
        assert model["product"] == card.products[0]
        assert {p["name"]: (p["profile_id"], tuple(p["starts"]), p["size"]) for p in model["profiles"]} == {
            p.name: (p.profile_id, p.starts, p.size) for p in card.profiles
        }
        assert (gpu["access"], gpu["recovery_action"], gpu["xid"]) == ("Ok", "None", None)
        if not card.profiles:
            assert (gpu["mig_mode"], model["mig_mode_change"]) == ("NotSupported", "Unknown")
            return
        wanted = largest(card)
        agent.ask("partition", "0", *wanted)
        (divided,) = agent.gpus()
        assert divided["mig_mode"] == "Enabled"
        assert sorted(i["profile"] for i in divided["instances"]) == sorted(wanted)
        assert all(i["uuid"].startswith("MIG-") for i in divided["instances"])
        units = [unit for i in divided["instances"] for unit in range(i["start"], i["start"] + i["size"])]
        assert len(units) == len(set(units))


def held_by_named_processes(machine: Simulator) -> dict[str, Any]:
    """What the agent reports of an H100 in three parts: a trainer, an MPS client with its server, a nameless one."""
    with Agent(machine) as agent:
        agent.ask("partition", "0", "3g.40gb", "1g.10gb", "1g.10gb")
        instances = agent.gpus()[0]["instances"]
    ids = {i["profile"]: i["id"] for i in instances}
    small = [i["id"] for i in instances if i["profile"] == "1g.10gb"]
    machine.add_process(0, 4_000_001, "/usr/bin/python3 train.py", gpu_instance=ids["3g.40gb"], compute_instance=0)
    machine.add_process(0, 4_000_002, "tritonserver", mps=True, gpu_instance=small[0], compute_instance=0)
    machine.add_process(0, 4_000_003, gpu_instance=small[1], compute_instance=0)
    observed: dict[str, Any] = finish(start(machine, module="nvml_observe"))
    return observed


def test_an_observation_names_who_uses_a_divided_gpu(tmp_path: Path) -> None:
    machine = Simulator.create(tmp_path / "state", ["h100-80gb", "h100-80gb"], seed="test")
    observed = held_by_named_processes(machine)
    divided, whole = observed["gpus"]
    assert divided["mig"].startswith("1x3g.40gb+2x1g.10gb@")
    assert whole["mig"] == "Disabled"
    assert observed["programs"] == "0 python3; 0 tritonserver; 0"
    assert (observed["allocated"]["nvidia.com/mig-3g.40gb"], observed["pods"]) == (1, 3)
    assert (observed["requestID"], observed["error"], observed["simulated"]) == ("r1", "", False)


def test_what_a_gpu_is_called_is_asked_once(machine: Simulator) -> None:
    with Agent(machine) as agent:
        named = [gpu["product"] for gpu in agent.gpus()]
        machine.inject("nvmlDeviceGetName", "GPU_IS_LOST")
        assert [gpu["product"] for gpu in agent.gpus()] == named
    with Agent(machine) as another:
        assert {gpu["access"] for gpu in another.gpus()} == {"Lost"}
