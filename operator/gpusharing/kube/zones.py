"""Time zones by their IANA names, from the pinned package `tzdata`: the same data everywhere, whatever the system has.

They are read here, when a policy is converted, because the planner reads no files.
"""

from datetime import UTC, tzinfo
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

from gpusharing.api.policy import GPUSharingPolicySpec


def find_zones(spec: GPUSharingPolicySpec) -> dict[str, tzinfo]:
    """Return UTC and the known time zones that the windows and blackouts of the policy name, by name."""
    named = {window.time_zone for window in (*spec.rollout.windows, *spec.rollout.blackouts)}
    zones = {name: find_zone(name) for name in sorted({"UTC", *named})}
    return {name: zone for name, zone in zones.items() if zone is not None}


@cache
def find_zone(name: str) -> tzinfo | None:
    if name == "UTC":
        return UTC
    if name not in _names():
        return None
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


@cache
def _names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())
