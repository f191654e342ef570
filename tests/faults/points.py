"""The points of the full fault matrix: the first and the last write of each sort that a scenario makes.

Two writes are of one sort when they ask the server for the same kind of change, whatever the names, times and random
parts in them. A fault is played at the first and at the last write of each sort: what lies between differs from them in
the node only.

`python -m tests.faults.points FOLDER` prints how many runs the full matrix has, by scenario and in all.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hack.faultproxy import Write
from hack.faultproxy.calls import collection_of, object_of
from tests.faults.cases import KINDS, FaultCase, expected_in

from gpusharing.api import names
from gpusharing.kube.client import JSON

DOMAIN = re.compile(r"\b[a-z0-9.-]+\.[a-z]+/")
REFUSED = 400
"""HTTP statuses from here on: the server did not do it."""


@dataclass(frozen=True, slots=True)
class Sort:
    """What a write asks for, apart from the object that it names."""

    verb: str
    resource: str
    """Plural: `nodes`."""
    subresource: str
    """`status`, `eviction`; empty without one."""
    change: tuple[str, ...]
    """What it sets and removes, in order."""
    refused: bool
    """The server did not do it."""

    def __str__(self) -> str:
        """For people, without the domains of labels and annotations."""
        where = f"{self.verb} {self.resource}{self.subresource and '/'}{self.subresource}"
        what = DOMAIN.sub("", ", ".join(self.change))
        return f"{where}{what and ': '}{what}{' (refused)' if self.refused else ''}"


@dataclass(frozen=True, slots=True)
class Point:
    """A write at which every fault is played."""

    number: int
    """Of the write within its scenario, from 1."""
    sort: Sort
    which: Literal["first", "last", "only"]
    """Which write of its sort."""

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.which} {self.sort}"


def sort_of(write: Write) -> Sort:
    """The sort of a write."""
    front, _, name = object_of(write.path).rpartition("/")
    subresource = write.path.rpartition("/")[2] if write.path != object_of(write.path) else ""
    body = write.body if isinstance(write.body, dict) else {}
    resource = collection_of(write.path)
    fixed = name if front.endswith(f"/{resource}") else _section(body, "metadata").get("name", "")
    change = tuple(_find_change(resource, fixed, body))
    return Sort(write.method, resource, subresource, change, write.status >= REFUSED)


def find_points(writes: Iterable[Write]) -> tuple[Point, ...]:
    """The first and the last write of each sort, by number; writes that the proxy does not count are left out."""
    numbers: dict[Sort, list[int]] = {}
    for write in sorted(writes, key=lambda one: one.number):
        if write.number:
            numbers.setdefault(sort_of(write), []).append(write.number)
    points = []
    for sort, found in numbers.items():
        if len(found) == 1:
            points.append(Point(found[0], sort, "only"))
        else:
            points += [Point(found[0], sort, "first"), Point(found[-1], sort, "last")]
    return tuple(sorted(points, key=lambda point: point.number))


def all_cases(scenario: str, points: Iterable[Point], writes: int) -> Iterator[FaultCase]:
    """Every fault at every point of a scenario. `writes`: how many the recorded run made."""
    for point in points:
        place = round((point.number - 0.5) / writes, 4)
        for kind, scope in KINDS:
            yield FaultCase(scenario, kind, scope, place, point.number, point.text)


# --- what a write changes ------------------------------------------------------------------------------------


def _find_change(resource: str, name: str, body: JSON) -> Iterator[str]:
    if resource == "configmaps":
        yield name
    if resource == "events":
        yield f"{body.get('type')} {body.get('reason')} of a {_section(body, 'regarding').get('kind')}"
        return
    metadata = _section(body, "metadata")
    yield from _keys("label", _section(metadata, "labels"))
    yield from _annotations(_section(metadata, "annotations"))
    if "finalizers" in metadata:
        yield f"finalizers {' '.join(sorted(metadata['finalizers'] or ())) or 'removed'}"
    yield from _spec(_section(body, "spec"))
    yield from _status(_section(body, "status"))


def _keys(what: str, written: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(written):
        yield f"{what} {key}{' removed' if written[key] is None else ''}"


def _annotations(written: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(written):
        text = written[key]
        if key == names.ANNOTATION_FENCE and text:
            fence = json.loads(text)
            yield f"fence {fence['stage']}{', a run is owed' if fence.get('owed') else ''}"
        elif key == names.ANNOTATION_CLAIMS and text:
            yield f"{len(json.loads(text)['claims'])} claims"
        else:
            yield from _keys("annotation", {key: text})


def _spec(written: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(written):
        if key == "unschedulable":
            yield "cordon" if written[key] else "uncordon"
        elif key == "request":
            yield f"request{', quiet' if written[key].get('quiet') else ''}"
        else:
            yield f"spec.{key}"


def _status(written: Mapping[str, Any]) -> Iterator[str]:
    if transition := _section(written, "transition"):
        yield f"phase {transition.get('phase')} ({transition.get('reason')})"
    for row in written.get("conditions") or ():
        yield f"{row['type']} {row['status']} ({row['reason']})"


def _section(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = body.get(key)
    return found if isinstance(found, Mapping) else {}


def tell(folder: Path) -> None:
    """How many runs the full matrix has."""
    by_scenario = expected_in(folder)
    for scenario, cases in sorted(by_scenario.items()):
        print(f"{scenario}: {len(cases)} runs at {len(cases) // len(KINDS)} writes")
    total = sum(map(len, by_scenario.values()))
    print(f"faults: {total} runs in all, in {len(by_scenario)} scenarios")


if __name__ == "__main__":
    tell(Path(sys.argv[1]))
