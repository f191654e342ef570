"""The table of differences is held by tests: runs everywhere, without NVIDIA's programs."""

import re
from pathlib import Path

import pytest
from hack.nvidia import build
from hack.nvidia.differences import DIFFERENCES, Difference


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.observed)
def test_a_difference_names_a_pinned_program_and_a_test_that_proves_it(difference: Difference) -> None:
    here = Path(__file__).parent
    tests = {
        name
        for path in here.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    pins = {program: release.version for release in build.RELEASES for program in release.programs}
    assert difference.proven_by in tests
    assert pins[difference.program] == difference.version
