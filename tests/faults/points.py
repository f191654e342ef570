"""The points of the full fault matrix: the first and the last write of each sort that a scenario makes.
Two writes are of one sort when they ask the server for the same kind of change, whatever the names, times and random parts in them. A fault is played at the first or the last write of each sort, in one of the scenarios that make it (FULL=1) or in all of them (FULL=2), or at both writes (FULL=3): what lies between differs from them in the node only. The order of writes differs from run to run, so a case names the sort that its fault waits for. `python -m tests.faults.points FOLDER [DEPTH]` prints how many runs the full matrix has at that depth (1 by default), by scenario and in all."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hack.faultproxy import ProxiedWrite
from hack.faultproxy.calls import Aim, collection_of, object_of
from tests.faults.cases import KINDS, PROCESS, FaultCase, Scope, expected_in, share, shorten

from gpusharing.api import names
from gpusharing.kube.client import JSON

REFUSED = 400
"""HTTP statuses from here on: the server did not do it."""
FAULTS = tuple(dict.fromkeys(kind for kind, _ in KINDS))
"""Each fault once; its number is its place here."""


@dataclass(frozen=True, slots=True, order=True)
class Sort:
    """What a write asks for, apart from the object that it names."""

    verb: str
    resource: str
    """Plural: `nodes`."""
    subresource: str
    """`status`, `eviction`; empty without one."""
    change: tuple[str, ...]
    refused: bool

    @property
    def asked(self) -> str:
        """What is known of it when it is sent: all but whether the server refuses it."""
        where = f"{self.verb} {self.resource}{self.subresource and '/'}{self.subresource}"
        return f"{where}{(self.change and ': ') or ''}{', '.join(self.change)}"

    def __str__(self) -> str:
        return shorten(self.asked) + (" (refused)" if self.refused else "")


@dataclass(frozen=True, slots=True)
class Point:
    number: int
    """Of the write within its scenario, from 1."""
    sort: Sort
    which: Literal["first", "last", "only"]
    turn: int
    """Which of the writes that ask for the same, from 1; those that the server refused count as well."""

    @property
    def text(self) -> str:
        return f"{self.which} {self.sort}"


def sort_of(write: ProxiedWrite) -> Sort:
    return _sort_of(write.method, write.path, write.body, refused=write.status >= REFUSED)


def aim_at(asked: str) -> Aim:
    """Says yes to writes that ask for this, before the server has answered them."""

    def aims(method: str, path: str, body: bytes) -> bool:
        return _sort_of(method, path, json.loads(body) if body else None, refused=False).asked == asked

    return aims


def find_points(writes: Iterable[ProxiedWrite]) -> tuple[Point, ...]:
    """The first and the last write of each sort, by number; writes that the proxy does not count are left out."""
    found: dict[Sort, list[Point]] = {}
    turns: Counter[str] = Counter()
    for write in sorted(writes, key=lambda one: one.number):
        if write.number:
            sort = sort_of(write)
            turns[sort.asked] += 1
            found.setdefault(sort, []).append(Point(write.number, sort, "only", turns[sort.asked]))
    points = []
    for same in found.values():
        if len(same) == 1:
            points += same
        else:
            points += [replace(same[0], which="first"), replace(same[-1], which="last")]
    return tuple(sorted(points, key=lambda point: point.number))


def in_both(one: Iterable[ProxiedWrite], two: Iterable[ProxiedWrite]) -> tuple[ProxiedWrite, ...]:
    """The writes of one run that another one of the scenario made, too: of those that ask for the same, as many as both had. Which writes come is partly chance, and a fault at one that seldom comes never strikes."""
    left = Counter(sort_of(write).asked for write in two if write.number)
    found = []
    for write in sorted(one, key=lambda each: each.number):
        asked = sort_of(write).asked
        if write.number and left[asked]:
            left[asked] -= 1
            found.append(write)
    return tuple(found)


def all_cases(scenario: str, points: Iterable[Point], writes: int) -> Iterator[FaultCase]:
    """Every fault at every point of a scenario, with its depth, 2 or 3 (`share` makes 1 of some). `writes`: how many the recorded run made."""
    points = tuple(points)
    numbers = {sort: number for number, sort in enumerate(sorted({point.sort for point in points}))}
    for point in points:
        place = round((point.number - 0.5) / writes, 4)
        for kind, scope in KINDS:
            if scope == "one" and not _has_object(kind, point.sort):
                continue
            depth = _depth(point, numbers[point.sort], kind, scope)
            yield FaultCase(scenario, kind, scope, place, point.number, point.sort.asked, point.turn, depth)


def _depth(point: Point, number: int, kind: str, scope: Scope) -> int:
    """2 for one case of each sort and fault: at the first write on one object, or at the last on everything.

    Where the number of the sort and that of the fault add up to an even number it is the first. Where a fault has one scope only, the write alone alternates.
    """
    early = (number + FAULTS.index(kind)) % 2 == 0
    write, reach = ("first", "one") if early else ("last", "all")
    alone = kind in PROCESS or not _has_object(kind, point.sort)
    return 2 if point.which in (write, "only") and (alone or scope == reach) else 3


def _has_object(kind: str, sort: Sort) -> bool:
    """Whether a fault finds the object of such a write. What is only now created has no competitor, and nobody knows whose events are meant by a POST to a collection."""
    if sort.verb != "POST":
        return True
    return kind != "competitor" and (kind != "events-swallowed" or bool(sort.subresource))


# --- what a write changes ------------------------------------------------------------------------------------


def _sort_of(method: str, path: str, body: object, *, refused: bool) -> Sort:
    whole, resource = object_of(path), collection_of(path)
    front, _, name = whole.rpartition("/")
    subresource = path.rpartition("/")[2] if path != whole else ""
    found = body if isinstance(body, dict) else {}
    fixed = name if front.endswith(f"/{resource}") else str(_section(found, "metadata").get("name", ""))
    return Sort(method, resource, subresource, tuple(_find_change(resource, fixed, found)), refused)


def _find_change(resource: str, name: str, body: JSON) -> Iterator[str]:
    if resource == "configmaps":
        yield name
    if resource == "events":
        yield f"{body.get('type')} {body.get('reason')}"  # of a policy or, the same once more, of a GPUNode
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


def tell(folder: Path, depth: int = 1) -> None:
    """Share the cases out, and tell how many runs the full matrix has at this depth."""
    share(folder)
    by_scenario = expected_in(folder, depth)
    for scenario, cases in sorted(by_scenario.items()):
        print(f"{scenario}: {len(cases)} runs at {len({case.number for case in cases})} writes")
    total = sum(map(len, by_scenario.values()))
    print(f"faults: {total} runs in all, in {len(by_scenario)} scenarios")


if __name__ == "__main__":
    tell(Path(sys.argv[1]), *map(int, sys.argv[2:]))
