"""Every model: what it says about itself, MIG on, instances as the placements allow, MIG devices, and off again."""

import pytest
from hack.nvmlsim.models import find_model, profile_index, simulated_cards
from tests.nvmlsim.conftest import MakeMachine
from tests.nvmlsim.machine import SimMachine

from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import maximal_layouts

pytestmark = pytest.mark.tools

INVALID_ARGUMENT, NOT_SUPPORTED, IN_USE, INSUFFICIENT_RESOURCES = 2, 3, 19, 23
NOT_FOUND = 6
MIG_CARDS = [card for card in simulated_cards() if card.profiles]
ASKED_FOR = (
    "a30", "a100-40gb", "a100-80gb", "h100-80gb", "h200", "b200", "rtx-pro-6000-blackwell", "v100-16gb", "t4", "l40s",
)  # fmt: skip


@pytest.mark.parametrize("model", ASKED_FOR)
def test_the_models_the_issue_asks_for_are_there(model: str) -> None:
    assert find_model(model) in simulated_cards()


@pytest.mark.parametrize("card", MIG_CARDS, ids=lambda card: card.key)
def test_a_card_reports_exactly_the_profiles_and_placements_of_the_card_table(
    card: Card, make_machine: MakeMachine
) -> None:
    machine = make_machine(card.key)
    reported = machine.ask("profiles", gpu=0)
    expected = sorted(
        (
            profile_index(profile, card),
            profile.profile_id,
            f"MIG {profile.name}",
            profile.max_count,
            profile.slices,
            [[start, profile.size] for start in profile.starts],
        )
        for profile in card.profiles
    )
    assert [(p["index"], p["id"], p["name"], p["max"], p["slices"], p["placements"]) for p in reported] == expected
    total = machine.ask("gpu_report", gpu=0)["memory_mib"]
    assert {p["name"].removeprefix("MIG "): name_of(p, total) for p in reported} == {
        profile.name: profile.name for profile in card.profiles
    }


def name_of(profile: dict[str, int | str], total_mib: int) -> str:
    """The name that NVIDIA's programs compute from the memory sizes (go-nvlib v0.10.0, mig_profile.go)."""
    suffix = str(profile["name"]).partition("gb")[2]
    eighths = -(-int(profile["memory_mib"]) * 8 // total_mib)
    gigabytes = int(-(-total_mib // 1024) * eighths / 8 + 0.5)
    return f"{profile['slices']}g.{gigabytes}gb{suffix}"


@pytest.mark.parametrize("card", MIG_CARDS, ids=lambda card: card.key)
@pytest.mark.parametrize("place", ["the driver's choice", "given places"])
def test_every_profile_can_be_created_as_often_as_it_says_and_once_more_is_refused(
    card: Card, place: str, make_machine: MakeMachine
) -> None:
    machine = make_machine(card.key)
    machine.simulator.set_gpu(0, mig_current=1, mig_pending=1)
    fillings = [
        {
            "profile_ids": [profile.profile_id] * profile.max_count,
            "starts": profile.starts[: profile.max_count] if place == "given places" else (),
        }
        for profile in card.profiles
    ]
    results = machine.ask("fill_with_each", gpu=0, fillings=fillings)
    for profile, filling, result in zip(card.profiles, fillings, results, strict=True):
        taken = [start for _, start, _ in result["made"]]
        assert len(set(taken)) == profile.max_count
        assert set(taken) <= set(profile.starts)
        assert not filling["starts"] or taken == list(filling["starts"])
        assert result["once_more"] == {"error": INSUFFICIENT_RESOURCES}
        assert result["names"] == [f"{card.products[0]} MIG {profile.name}"] * profile.max_count
        assert result["left"] == []


@pytest.mark.parametrize("card", MIG_CARDS, ids=lambda card: card.key)
def test_every_maximal_layout_of_our_geometry_can_be_built_and_then_nothing_fits_any_more(
    card: Card, make_machine: MakeMachine
) -> None:
    machine = make_machine(card.key)
    machine.simulator.set_gpu(0, mig_current=1, mig_pending=1)
    ids = {profile.name: profile.profile_id or 0 for profile in card.profiles}  # 7g has id 0
    layouts = [[ids[name] for name, count in layout for _ in range(count)] for layout in maximal_layouts(card.profiles)]
    results = machine.ask("build_layouts", gpu=0, layouts=layouts)
    assert [result["built"] for result in results] == [sorted(layout) for layout in layouts]
    assert [result["room_for"] for result in results] == [[]] * len(layouts)


# NVIDIA's MIG user guide prints the first three orders of ids; the others follow from the same rule.
@pytest.mark.parametrize(
    ("profile_ids", "ids"),
    [
        ([19] * 7, [13, 11, 12, 7, 8, 9, 10]),
        ([9, 9], [2, 1]),
        ([19, 14, 5], [13, 5, 1]),
        ([9, 19, 19, 19, 19], [2, 7, 8, 9, 10]),
        ([0], [0]),
    ],
    ids=["seven 1g", "two 3g", "1g 2g 4g", "3g and four 1g", "7g"],
)
def test_the_driver_chooses_places_as_the_user_guide_shows(
    profile_ids: list[int], ids: list[int], h100: SimMachine
) -> None:
    assert [instance[0] for instance in h100.ask("create", gpu=0, profile_ids=profile_ids)] == ids


def test_small_instances_first_leave_no_room_that_large_first_would_have_had(h100: SimMachine) -> None:
    assert h100.ask("create", gpu=0, profile_ids=[19, 19, 14, 9]) == {"error": INSUFFICIENT_RESOURCES}
    h100.ask("destroy_all", gpu=0)
    assert len(h100.ask("create", gpu=0, profile_ids=[9, 14, 19, 19])) == 4


def test_a_place_that_is_taken_or_no_place_is_refused(h100: SimMachine) -> None:
    h100.ask("create", gpu=0, profile_ids=[9], starts=[4])
    assert h100.ask("create", gpu=0, profile_ids=[19], starts=[5]) == {"error": INSUFFICIENT_RESOURCES}
    assert h100.ask("create", gpu=0, profile_ids=[9], starts=[2]) == {"error": INVALID_ARGUMENT}
    assert h100.ask("create", gpu=0, profile_ids=[77]) == {"error": INVALID_ARGUMENT}
    assert h100.ask("instances", gpu=0) == [[2, 9, 4, 4]]


def test_all_media_engines_share_the_card_only_with_instances_that_have_none(make_machine: MakeMachine) -> None:
    machine = make_machine("rtx-pro-6000-blackwell")
    machine.simulator.set_gpu(0, mig_current=1, mig_pending=1)
    all_engines, none, plain = 65, 67, 14
    assert len(machine.ask("create", gpu=0, profile_ids=[all_engines, none, none, none])) == 4
    machine.ask("destroy_all", gpu=0)
    machine.ask("create", gpu=0, profile_ids=[all_engines])
    assert machine.ask("create", gpu=0, profile_ids=[plain]) == {"error": INSUFFICIENT_RESOURCES}
    machine.ask("destroy_all", gpu=0)
    machine.ask("create", gpu=0, profile_ids=[plain])
    assert machine.ask("create", gpu=0, profile_ids=[all_engines]) == {"error": INSUFFICIENT_RESOURCES}


def test_a_gpu_instance_can_be_split_into_compute_instances(h100: SimMachine) -> None:
    h100.simulator.set_gpu(0, mig_current=1)
    assert h100.ask("create", gpu=0, profile_ids=[9]) == [[2, 4, 4]]
    assert h100.ask("compute_profiles", gpu=0, gpu_instance=2) == [[0, 1, 3, 20], [1, 2, 1, 40], [2, 3, 1, 60]]
    assert h100.ask("create_compute", gpu=0, gpu_instance=2, profile_ids=[0]) == {"error": INSUFFICIENT_RESOURCES}
    h100.ask("destroy_compute", gpu=0, gpu_instance=2, compute_instance=0)
    assert h100.ask("create_compute", gpu=0, gpu_instance=2, profile_ids=[1, 0]) == [[0, 0, 2], [1, 2, 1]]
    assert [device["name"] for device in h100.ask("mig_devices", gpu=0)] == [
        "NVIDIA H100 80GB HBM3 MIG 2c.3g.40gb",
        "NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb",
    ]


def test_a_mig_device_knows_its_parent_its_instances_and_its_size(h100: SimMachine) -> None:
    h100.ask("create", gpu=0, profile_ids=[9, 14])
    first, second = h100.ask("mig_devices", gpu=0)
    uuid = first.pop("uuid")
    assert uuid.startswith("MIG-")
    assert first == {
        "index": 0, "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "parent": 0, "is_mig": 1, "gpu_instance": 2,
        "compute_instance": 0, "memory_mib": 40448, "sms": 60, "processes": [],
    }  # fmt: skip
    assert second["uuid"] != uuid
    h100.ask("destroy_compute", gpu=0, gpu_instance=2, compute_instance=0)
    assert [device["index"] for device in h100.ask("mig_devices", gpu=0)] == [1], "an index may be a gap"
    h100.ask("create_compute", gpu=0, gpu_instance=2, profile_ids=[2])
    assert next(device["uuid"] for device in h100.ask("mig_devices", gpu=0)) == uuid, "same place, same UUID"


def test_a_handle_of_a_destroyed_instance_is_invalid(h100: SimMachine) -> None:
    assert h100.ask("stale_handle", gpu=0, profile_id=19) == {"after": {"error": INVALID_ARGUMENT}}


def test_an_instance_is_found_by_its_id_only(h100: SimMachine) -> None:
    assert h100.ask("destroy_gpu_instance", gpu=0, gpu_instance=7) == {"error": NOT_FOUND}
    h100.ask("create", gpu=0, profile_ids=[19], starts=[0])
    assert h100.ask("destroy_gpu_instance", gpu=0, gpu_instance=7) == {"error": IN_USE}, "it has a compute instance"


@pytest.mark.parametrize("model", ["v100-16gb", "t4", "l40s"])
def test_a_card_without_mig_says_so_and_otherwise_works(model: str, make_machine: MakeMachine) -> None:
    machine = make_machine(model)
    card = find_model(model)
    report = machine.ask("gpu_report", gpu=0)
    assert report["name"] == card.products[0]
    assert report["compute_capability"] == list(card.compute_capability)
    assert f"0x{report['pci_device_id']:08X}" == card.pci_device_ids[0]
    assert report["mig_mode"] == {"error": NOT_SUPPORTED}
    assert report["max_mig"] == 0
    assert machine.ask("set_mode", gpu=0, mode=1) == {"error": NOT_SUPPORTED}
    assert machine.ask("profiles", gpu=0) == []
    assert machine.ask("create", gpu=0, profile_ids=[19]) == {"error": NOT_SUPPORTED}
