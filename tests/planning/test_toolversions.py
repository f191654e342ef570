"""What device plugins serve differently by version. Rung 3 holds `merged` against the real 0.19.3."""

import pytest

from gpusharing.planning.wanted.toolversions import merged, merges_suffixes, panics_for_mps, suffixed


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("v0.19.3", True),
        ("0.17.1-ubi8", True),
        ("v0.20.0", False),
        ("v1.0.0", False),
        ("", False),
        ("sha256:0.1", False),
    ],
    ids=[
        "the last old one",
        "with an image suffix",
        "the first new one",
        "a later one",
        "unknown",
        "a digest",
    ],
)
def test_a_version_is_too_old_only_when_it_is_known_to_be(version: str, old: bool) -> None:
    assert merges_suffixes(version) is old


@pytest.mark.parametrize(
    ("version", "panics"),
    [
        ("v0.18.2", False),
        ("v0.19.0", True),
        ("v0.19", True),
        ("0.19.3-ubi9", True),
        ("v0.19.4", False),
        ("v0.20.0", False),
        ("", False),
        ("sha256:0.19.1", False),
    ],
)
def test_a_version_cannot_switch_to_mps_only_when_it_is_known_not_to(version: str, panics: bool) -> None:
    assert panics_for_mps(version) is panics


def test_the_first_profile_with_a_suffix_is_named() -> None:
    assert suffixed([None, (("2g.20gb", 1),), (("1g.10gb", 2), ("1g.10gb+me", 1))]) == "1g.10gb+me"
    assert suffixed([(("1g.24gb-me", 1),)]) == "1g.24gb-me"
    assert suffixed([None, (("7g.80gb", 1),)]) == ""


def test_suffixed_names_are_added_to_the_plain_ones_and_renamed_ones_stay_renamed() -> None:
    predicted = {
        "nvidia.com/mig-1g.10gb": 2,
        "nvidia.com/mig-1g.10gb.me": 1,
        "nvidia.com/mig-1g.24gb-me": 3,
        "nvidia.com/mig-1g.24gb.gfx.shared": 4,
        "nvidia.com/mig-2g.20gb.shared": 2,
        "nvidia.com/gpu": 1,
    }
    assert merged(predicted) == {
        "nvidia.com/mig-1g.10gb": 3,
        "nvidia.com/mig-1g.24gb": 3,
        "nvidia.com/mig-1g.24gb.shared": 4,
        "nvidia.com/mig-2g.20gb.shared": 2,
        "nvidia.com/gpu": 1,
    }
