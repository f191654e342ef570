"""The table of differences is held by tests: runs everywhere, without NVIDIA's programs."""

import re
from pathlib import Path

import pytest
from hack.cache import UnavailableError
from hack.nvidia import build
from hack.nvidia.differences import DIFFERENCES, Difference

PINNED = {"device-plugin": (build.DEVICE_PLUGIN.version,), "mig-parted": tuple(build.MIG_PARTED_PINS)}
"""The versions that rung 3 can play, by our folder."""


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.observed)
def test_a_difference_names_a_pinned_program_and_a_test_that_proves_it(difference: Difference) -> None:
    here = Path(__file__).parent
    tests = {name for path in here.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    pins = {program: PINNED[release.folder] for release in build.RELEASES for program in release.programs}
    assert difference.proven_by in tests
    assert difference.versions
    assert set(difference.versions) <= set(pins[difference.program])


def test_the_file_of_pins_that_stands_under_a_version_pins_that_version() -> None:
    assert [build.mig_parted(version).version for version in build.MIG_PARTED_PINS] == [*build.MIG_PARTED_PINS]
    with pytest.raises(UnavailableError, match="is not pinned"):
        build.mig_parted("v0.14.0")


def test_two_releases_of_one_folder_share_no_pins_and_our_own_program() -> None:
    new, old = (build.mig_parted(version).inputs() for version in build.MIG_PARTED_PINS)
    assert {path.name for path in {*new} & {*old}} == {"main.go"}
    assert {path.name for path in {*new} ^ {*old}} == {"go.mod", "go.sum", "go-v0.13.1.mod", "go-v0.13.1.sum"}
