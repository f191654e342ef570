"""A pytest plugin: a test that needs something that this machine lacks fails, unless LEAVE_OUT names its part (`PARTS`).

Later tests that would fail with the same message are skipped, so that each missing thing is reported once a process.
"""

import os
from collections.abc import Generator

import pytest

from hack.cache import UnavailableError
from hack.verbs import find_rung

PARTS = {
    "rung2": "the control plane (Go, or KUBEBUILDER_ASSETS)",
    "rung3": "NVIDIA's programs (Linux, root, Go and a C compiler)",
    "rung4": "real nodes (Debian's packages, Linux, root, Go and a C compiler)",
    "rung5": "a real GPU",
    "tools": "programs that rungs 0 and 1 build with Go or a C compiler",
    "browser": "a browser that renders the page of the plugin",
    "sanitizers": "ASan and UBSan around the simulated NVML",
    "root": "root, for rights and namespaces of containers on rungs 0 and 1",
}
"""The parts that can be left out, and what each needs."""
FIXTURES = ("browser", "sanitizers")
"""The fixtures that are parts of their own, even if the test that uses one also belongs to another part."""


class PartUnavailableError(UnavailableError):
    """The named part of PARTS cannot run here. A plain UnavailableError is attributed to the test's first part."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(why)
        self.part = part


def left_out() -> frozenset[str]:
    """Return the parts in $LEAVE_OUT. Raises UnavailableError if one is unknown."""
    names = frozenset(os.environ.get("LEAVE_OUT", "").replace(",", " ").split())
    if unknown := sorted(names - PARTS.keys()):
        raise UnavailableError(f"LEAVE_OUT names {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return names


def require(part: str, why_not: str | None) -> None:
    """Raise PartUnavailableError if `why_not` says why the part cannot run, or skip the test if it is left out."""
    if part in left_out():
        pytest.skip(f"left out on purpose by LEAVE_OUT={part}")
    if why_not:
        raise PartUnavailableError(part, why_not)


def parts_of(item: pytest.Item) -> list[str]:
    """Return the parts in PARTS of a test: FIXTURES first, then its rung from 2 on, or `tools`."""
    parts = [name for name in FIXTURES if name in getattr(item, "fixturenames", ())]
    if (rung := find_rung(item)) >= 2:
        parts.append(f"rung{rung}")
    elif item.get_closest_marker("tools"):
        parts.append("tools")
    return parts


class Required:
    """Turns an UnavailableError of a test or fixture into a failure or a skip."""

    def __init__(self) -> None:
        try:
            self._left_out = left_out()
        except UnavailableError as error:
            raise pytest.UsageError(str(error)) from error
        self._failed: dict[str, str] = {}
        """The first test that failed because something is missing, by the message of its error."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark the tests of the parts that LEAVE_OUT names as skipped, so that no fixture builds anything for them."""
        for item in items if self._left_out else ():
            for part in self._left_out.intersection(parts_of(item)):
                item.add_marker(pytest.mark.skip(reason=f"left out on purpose by LEAVE_OUT={part}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._report_once(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._report_once(item))

    def _report_once(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        except UnavailableError as caught:
            error = caught
        part = error.part if isinstance(error, PartUnavailableError) else next(iter(parts_of(item)), "")
        first = self._failed.setdefault(str(error), item.nodeid)
        if first != item.nodeid:
            pytest.skip(f"something that this test needs is unavailable here: see the failure of {first}")
        advice = (
            f"Or skip it on purpose: LEAVE_OUT={part}"
            if part
            else "To make LEAVE_OUT skip this test, mark it with `tools`."
        )
        pytest.fail(f"{error}\n{advice}", pytrace=False)
