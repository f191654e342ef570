"""Time zones by their IANA names, from the pinned package `tzdata`: the same answer everywhere, whatever the system
has.

Its data is a constant of the program, as our table of cards is.
"""

from datetime import UTC, tzinfo
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo


@cache
def find_zone(name: str) -> tzinfo | None:
    """The zone of this name; None when the database has none."""
    if name == "UTC":
        return UTC
    if name not in _names():
        return None
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=name)


@cache
def _names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())
