"""Time zones by name, from the package and never from the system, as a policy is handed to the planner."""

from datetime import UTC, datetime

from tests.build import make_spec

from gpusharing.kube.convert import find_zone, find_zones

BERLIN = "Europe/Berlin"


def test_a_zone_is_that_of_the_package_and_not_of_the_system() -> None:
    berlin = find_zone(BERLIN)
    assert berlin is not None
    assert datetime(2026, 7, 1, 12, tzinfo=UTC).astimezone(berlin).hour == 14
    assert find_zone("UTC") is UTC
    assert [find_zone(name) for name in ("localtime", "../zones", "europe/berlin")] == [None, None, None]


def test_a_policy_has_the_zones_that_it_names_and_none_that_does_not_exist() -> None:
    nightly = {"schedule": "0 22 * * *", "duration": "2h"}
    spec = make_spec(
        "Full",
        rollout={
            "windows": [{**nightly, "timeZone": BERLIN}, {**nightly, "timeZone": "Mars/Olympus"}],
            "blackouts": [{**nightly, "timeZone": "America/New_York"}],
        },
    )
    assert find_zones(spec) == {name: find_zone(name) for name in ("America/New_York", BERLIN, "UTC")}
    assert find_zones(make_spec("Full")) == {"UTC": UTC}
