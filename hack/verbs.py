"""Decides which verb of the Makefile runs which test. Every test belongs to exactly one verb.

`pytest --verb=test-cluster` runs the tests of `make test-cluster` and no others. Without the option, pytest runs
whatever it collects.
"""

import inspect
from enum import StrEnum
from pathlib import Path

import pytest

RUNGS = {0: "pure", 1: "embedded", 2: "control plane", 3: "NVIDIA's programs", 4: "real nodes", 5: "real GPU"}
"""The rungs of the test ladder (docs/design/faults.md#rungs) by number."""

MARKERS = {"gpu": 5, "e2e": 4, "nvidia": 3, "cluster": 2}
"""The rung of a test that carries the marker."""

EMBEDDED = frozenset({"agent", "controller", "demo", "embedded", "integration", "nvmlsim", "sim"})
"""Folders of tests that run our loops, the FakeCluster or the simulators in the test's process (rung 1)."""

ABOUT_HACK = frozenset({"bench", "faults", "hack", "images"})
ABOVE = frozenset({"e2e", "integration"})
"""Folders that have tests of rungs 2 and 4 only."""

BUILDERS = frozenset({"helm"})
"""Fixtures that build a program with Go or a C compiler; a test that uses one gets the marker `tools`."""


class MakeVerb(StrEnum):
    """A verb of the Makefile that runs tests."""

    TEST = "test"
    LONG = "test-long"
    HACK = "test-hack"
    CLUSTER = "test-cluster"
    CRASH = "test-crash"
    NVIDIA = "test-nvidia"
    NODES = "e2e"
    FAULTS = "test-faults"
    GPU = "test-gpu"


MARKED = {
    "gpu": MakeVerb.GPU,
    "e2e": MakeVerb.NODES,
    "nvidia": MakeVerb.NVIDIA,
    "faults": MakeVerb.FAULTS,
    "crash": MakeVerb.CRASH,
    "cluster": MakeVerb.CLUSTER,
    "tools": MakeVerb.CLUSTER,
    "long": MakeVerb.LONG,
}
"""The verb of a test that carries the marker. A test with several belongs to the first of them."""


def add_markers(item: pytest.Item) -> None:
    fixtures = set(getattr(item, "fixturenames", ()))
    if "control_plane" in fixtures:
        item.add_marker("cluster")
    if BUILDERS & fixtures:
        item.add_marker("tools")


def find_rung(item: pytest.Item) -> int:
    """Return the highest rung of a test's markers, or else 1 for what runs a loop, and 0."""
    marks = _find_marks(item)
    for marker, rung in MARKERS.items():
        if marker in marks:
            return rung
    embedded = folder_of(item) in EMBEDDED or inspect.iscoroutinefunction(getattr(item, "function", None))
    return 1 if embedded else 0


def find_verb(item: pytest.Item) -> MakeVerb:
    """Return the verb that runs a test: that of its first marker in MARKED, or of its folder."""
    marks = _find_marks(item)
    for marker, verb in MARKED.items():
        if marker in marks:
            return verb
    return MakeVerb.HACK if folder_of(item) in ABOUT_HACK else MakeVerb.TEST


def _find_marks(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}


ONLY_IN = {
    MakeVerb.HACK: ABOUT_HACK,
    MakeVerb.LONG: frozenset({"embedded"}),
    MakeVerb.CRASH: frozenset({"integration"}),
    MakeVerb.FAULTS: frozenset({"integration"}),
    MakeVerb.NVIDIA: frozenset({"nvidia"}),
    MakeVerb.NODES: frozenset({"e2e"}),
    MakeVerb.GPU: frozenset({"agent"}),
}
"""The folders that have all tests of a verb. To collect everything takes each worker 19 s of CPU."""
NOT_IN = {
    MakeVerb.TEST: ABOUT_HACK | ABOVE,
    MakeVerb.CLUSTER: frozenset({"conformance", "controller", "embedded", "faults", "gitops", "planning"}),
}
"""The folders that have no test of a verb."""


def is_elsewhere(path: Path, verb: MakeVerb | None) -> bool:
    """Whether no test in the folder or file `path` belongs to the verb, so that pytest need not import it."""
    if verb is None or path.parent.name != "tests" or path.name == "conftest.py":
        return False
    return path.name not in ONLY_IN[verb] if verb in ONLY_IN else path.name in NOT_IN[verb]


def folder_of(item: pytest.Item) -> str:
    """Return the folder below `tests`, or the file directly in it, that contains a test."""
    parts = item.path.parts
    return parts[parts.index("tests") + 1] if "tests" in parts else ""
