"""Under which drivers no GPU is repartitioned: CVE-2026-24197 as NVIDIA's own record has it, and what admins name."""

import pytest

from gpusharing.planning.gpus.drivers import FIXED, find_driver_flaw

AFFECTED = {
    "535.0": "535.309.01",
    "535.288.01": "535.309.01",
    "535.309": "535.309.01",
    "580.95.05": "580.159.03",
    "580.159.02": "580.159.03",
    "595.58.03": "595.71.05",
}


@pytest.mark.parametrize("version", AFFECTED)
def test_an_affected_driver_is_named_with_the_version_that_is_fixed(version: str) -> None:
    flaw = find_driver_flaw(version, (), refuse_affected=True)
    assert version in flaw
    assert "CVE-2026-24197" in flaw
    assert flaw.endswith(f"update it to {AFFECTED[version]}")
    assert find_driver_flaw(version, (), refuse_affected=False) == ""


@pytest.mark.parametrize("version", [*FIXED.values(), "580.173.02", "595.91.07", "610.43.02"])
def test_a_fixed_or_newer_driver_is_good(version: str) -> None:
    assert find_driver_flaw(version, (), refuse_affected=True) == ""


@pytest.mark.parametrize("version", ["450.80.02", "570.195.03", "590.48.01"])
def test_of_a_branch_that_nvidia_does_not_list_nothing_is_guessed(version: str) -> None:
    assert find_driver_flaw(version, (), refuse_affected=True) == ""


@pytest.mark.parametrize("version", ["", "unknown", "580.x", "580.", ".580", "9" * 5000, "580.-1"])
def test_a_version_that_cannot_be_read_is_judged_by_nobody(version: str) -> None:
    assert find_driver_flaw(version, ("570", version), refuse_affected=True) == ""


@pytest.mark.parametrize(
    ("version", "named", "refused"),
    [
        ("570.86.10", "570", True),
        ("570.86.10", "570.86", True),
        ("570.86.10", "570.86.10", True),
        ("570.86.10", "570.8", False),
        ("570.86", "570.86.10", False),
        ("5700.1", "570", False),
        ("595.91.07", "595.91.7", True),
    ],
)
@pytest.mark.parametrize("refuse_affected", [True, False])
def test_an_admin_names_versions_or_their_beginnings(
    version: str, named: str, refused: bool, refuse_affected: bool
) -> None:
    flaw = find_driver_flaw(version, ("111", named), refuse_affected=refuse_affected)
    assert (f"operator.unsafeDrivers ({named})" in flaw) is refused
