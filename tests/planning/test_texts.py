"""What the agent writes of profiles, layouts and GPUs is what the operator reads."""

import re
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusharing.api.gpunode import COMPUTE_MODES, INDEXES, MAX_PROGRAMS, MIG, PROFILE, PROGRAMS, ComputeMode
from gpusharing.api.gpunode import PROFILES as PATTERN
from gpusharing.planning.gpus.cards import CARDS, Card, Profile
from gpusharing.planning.gpus.geometry import normalize
from gpusharing.planning.gpus.texts import (
    key_of,
    read_compute_modes,
    read_indexes,
    read_mig,
    read_profile,
    read_profiles,
    read_programs,
    write_compute_modes,
    write_indexes,
    write_mig,
    write_profile,
    write_profiles,
    write_programs,
)

PROFILES = sorted({profile for card in CARDS for profile in card.profiles}, key=repr)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_profile_of_the_table_is_read_as_it_was_written(profile: Profile) -> None:
    text = write_profile(profile)
    assert re.fullmatch(PROFILE, text)
    assert read_profile(text) == profile


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.key)
def test_the_profiles_of_a_card_are_read_as_they_were_written(card: Card) -> None:
    text = write_profiles(card.profiles)
    assert re.fullmatch(PATTERN, text)
    assert read_profiles(text) == card.profiles


@given(st.sets(st.integers(0, 200), min_size=1))
def test_indexes_are_read_as_they_were_written(indexes: set[int]) -> None:
    assert re.fullmatch(INDEXES, write_indexes(indexes))
    assert read_indexes(write_indexes(indexes)) == indexes


@pytest.mark.parametrize("text", ["", "x", "3-", "1,,2", "0-1 "])
def test_no_gpus_are_read_from_a_text_of_another_form(text: str) -> None:
    assert read_indexes(text) == set()


def test_a_profile_is_written_as_the_reference_shows_it() -> None:
    assert write_profile(Profile("3g.40gb", (0, 4), 4, 2, 3, 40, 9)) == "3g.40gb id=9 max=2 placements={0,4}:4"
    assert write_profile(Profile("2g.48gb+gfx", (), 0, 1, 2, 48)) == "2g.48gb+gfx max=1"


@given(st.lists(st.sampled_from([*(profile.name for profile in PROFILES), ""]), max_size=14))
def test_a_layout_is_read_as_it_was_written(names: list[str]) -> None:
    instances = [(name, f"MIG-{number}") for number, name in enumerate(names)]
    text = write_mig("Enabled", instances)
    assert re.fullmatch(MIG, text)
    assert read_mig(text) == (normalize(Counter(names)), key_of(uuid for _, uuid in instances) if names else "")


@pytest.mark.parametrize("mode", ["Disabled", "NotSupported"])
def test_without_mig_there_is_no_layout(mode: str) -> None:
    assert write_mig(mode, ()) == mode
    assert read_mig(mode) == (None, "")


def test_instances_that_were_made_anew_differ_in_their_hash() -> None:
    before, after = (write_mig("Enabled", [("7g.80gb", uuid)]) for uuid in ("MIG-a", "MIG-b"))
    assert before != after
    assert read_mig(before)[0] == read_mig(after)[0]


GPUS_OF_PROGRAM = st.sets(st.integers(0, 200), min_size=1)


@given(st.dictionaries(st.sampled_from(["", "python3", "a (program b, started by c)", "7 5"]), GPUS_OF_PROGRAM))
def test_programs_are_read_as_they_were_written(programs: dict[str, set[int]]) -> None:
    written = write_programs(programs.items())
    assert re.fullmatch(PROGRAMS, written)
    assert read_programs(written) == [*programs.items()]


@given(st.lists(st.sampled_from(get_args(ComputeMode)), max_size=16))
def test_compute_modes_are_read_as_they_were_written(modes: list[ComputeMode]) -> None:
    written = write_compute_modes(modes)
    assert re.fullmatch(COMPUTE_MODES, written)
    assert [read_compute_modes(written).get(index, "Default") for index in range(len(modes))] == modes


def test_gpus_in_one_compute_mode_are_named_together() -> None:
    assert write_compute_modes(["ExclusiveProcess", "Default", "ExclusiveProcess", "ExclusiveProcess"]) == (
        "0,2-3 ExclusiveProcess"
    )


def test_a_compute_mode_that_only_a_newer_agent_knows_is_not_default() -> None:
    assert read_compute_modes("0 Shared; 1 Prohibited") == {0: "Unknown", 1: "Prohibited"}
    assert read_compute_modes("nonsense") == {}


def test_gpus_in_a_row_are_written_as_a_range() -> None:
    written = write_programs([("a", [3]), ("b", [5, 0, 1, 2]), ("", [0, 1, 4, 6, 7])])
    assert written == "3 a; 0-2,5 b; 0-1,4,6-7"


@pytest.mark.parametrize(
    "name",
    [
        "nvidia-cuda-mps-server ",
        "nvidia-cuda-mps-server\n",
        " nvidia-cuda-mps-server",
        "a; 0 nvidia-cuda-mps-server",
        "nvidia-cuda-mps-server; 0 a",
        "a\nb",
        "x" * 2000,
    ],
)
def test_no_name_of_a_program_becomes_that_of_another_or_too_long_for_the_api_server(name: str) -> None:
    written = write_programs([(name, range(0, 64, 2))] * MAX_PROGRAMS)
    assert len(written) <= 16384
    programs = read_programs(written)
    assert len(programs) == MAX_PROGRAMS
    for read, gpus in programs:
        assert read not in ("", "nvidia-cuda-mps-server")
        assert gpus == {*range(0, 64, 2)}


def test_a_program_in_another_form_keeps_every_gpu_busy() -> None:
    ((name, gpus),) = read_programs("nonsense")
    assert (name, {0, 63} <= gpus) == ("", True)
