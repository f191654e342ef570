"""A pytest plugin: a test whose rung or program cannot be had here fails, unless LEAVE_OUT names it.

`LEAVE_OUT="rung4 browser"` leaves out on purpose what it names (`PARTS`), whether or not it could run here: these tests
are skipped, with that reason. Any other test fails with one sentence that says what is missing and what to do. Tests
that lack the same are skipped after the first one of them has failed: the run is a failure, and says so once.
"""

import os
from collections.abc import Generator, Mapping

import pytest

from hack.cache import UnavailableError
from hack.verbs import find_rung

PARTS = {
    "rung2": "the control plane (Go, or KUBEBUILDER_ASSETS)",
    "rung3": "NVIDIA's programs (Linux, root, Go and a C compiler)",
    "rung4": "real nodes (Debian's packages, Linux, root, Go and a C compiler)",
    "rung5": "a real GPU",
    "tools": "what rungs 0 and 1 build with Go or a C compiler",
    "browser": "a browser that looks at the page of the plugin",
    "sanitizers": "ASan and UBSan around the simulated NVML",
    "root": "rights and namespaces of containers, made on rungs 0 and 1",
}
"""What can be left out, and what each needs."""
FIXTURES = ("browser", "sanitizers")
"""Fixtures that are a part of their own, whatever else their tests need."""


class PartUnavailableError(UnavailableError):
    """A part that has a name of its own in PARTS cannot run here."""

    def __init__(self, part: str, why: str) -> None:
        """Keep the `part`, which else would be the rung of the test."""
        super().__init__(why)
        self.part = part


def left_out(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the parts that LEAVE_OUT names, separated by blanks or commas.

    Raises:
        UnavailableError: one of the names is not a part.
    """
    names = frozenset(environ.get("LEAVE_OUT", "").replace(",", " ").split())
    if unknown := sorted(names - PARTS.keys()):
        raise UnavailableError(f"LEAVE_OUT names {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return names


def require(part: str, why_not: str | None) -> None:
    """Skip the calling test if LEAVE_OUT names `part`; else fail it if `why_not` says why the part cannot run here."""
    if part in left_out():
        pytest.skip(f"left out on purpose by LEAVE_OUT={part}")
    if why_not:
        raise PartUnavailableError(part, why_not)


def parts_of(item: pytest.Item) -> list[str]:
    """The parts that a test belongs to: those of its fixtures, and its rung from 2 on, or `tools` if marked so."""
    parts = [name for name in FIXTURES if name in getattr(item, "fixturenames", ())]
    if (rung := find_rung(item)) >= 2:
        parts.append(f"rung{rung}")
    elif item.get_closest_marker("tools"):
        parts.append("tools")
    return parts


class Required:
    """The plugin. Tests and fixtures only have to let an UnavailableError pass: it is told here."""

    def __init__(self) -> None:
        """Refuse a LEAVE_OUT that names nothing we know."""
        try:
            self._left_out = left_out()
        except UnavailableError as error:
            raise pytest.UsageError(str(error)) from error
        self._failed: dict[str, str] = {}
        """The first test that failed for want of something, by what was said of it."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip what LEAVE_OUT names, so that no fixture builds anything for it. All markers are there by now."""
        for item in items:
            for part in self._left_out.intersection(parts_of(item)):
                item.add_marker(pytest.mark.skip(reason=f"left out on purpose by LEAVE_OUT={part}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell once what the fixtures of a test cannot have."""
        return (yield from self._tell_once(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell once what a test itself cannot have."""
        return (yield from self._tell_once(item))

    def _tell_once(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        except UnavailableError as caught:
            error = caught
        part = error.part if isinstance(error, PartUnavailableError) else next(iter(parts_of(item)), "tools")
        first = self._failed.setdefault(str(error), item.nodeid)
        if first != item.nodeid:
            pytest.skip(f"what it needs cannot be had here: see the failure of {first}")
        pytest.fail(f"{error}\nOr leave it out on purpose: LEAVE_OUT={part}", pytrace=False)
