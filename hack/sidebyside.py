"""The distribution of tests over several workers (pytest-xdist, `-n`). Each worker has control planes of its own.

The tests of a file stay together, except for `APART`, `BY_SCENARIO` and `LOOKED_BACK_AT`. Each worker collects the tests
itself, and xdist runs none if their names or order differ between processes, as with a set or an object's address.
xdist's own groups do not work with pytest 9.2 (pytest-dev/pytest-xdist#1386), and would change the names of tests.
"""

import re
from collections.abc import Iterable

import pytest
from xdist.scheduler import LoadScopeScheduling

LOOK_BACK = "tests/integration/test_rights.py"
"""The file whose tests read which API calls the tests of other files made, in the log of the shared control plane."""
LOOKED_BACK_AT = frozenset(
    f"tests/integration/{name}.py"
    for name in (
        "test_bad_input",
        "test_drain",
        "test_hardware",
        "test_maintenance",
        "test_modes",
        "test_process",
        "test_workloads",
    )
)
"""The files whose API calls LOOK_BACK reads. They run before it on the same worker."""
APART = frozenset(
    {
        "tests/demo/test_demo.py",
        "tests/embedded/test_crash.py",
        "tests/hack/test_report.py",
        "tests/integration/test_faults.py",
        "tests/integration/test_faults_around.py",
        "tests/planning/test_invariants.py",
    }
)
"""Files with a few long tests whose shared fixtures cost less than a worker that waits for the file's end."""
LONGEST = ("tests/chart/test_kills.py", "tests/nvidia/test_effects.py")
"""Units of few tests that take minutes, which xdist would put last: they are assigned first."""
BY_SCENARIO = "tests/integration/test_crash.py"
"""The file whose tests of one scenario stay together: their kills are compared with the same undisturbed runs."""
_SCENARIO = re.compile(r"\[(.+?)(?:-\d+)?\]$")
"""The scenario in the name of a test of BY_SCENARIO, which may end in the number of a part."""


def unit(nodeid: str) -> str:
    """Return the unit of work of a test: its file, or in BY_SCENARIO its scenario, or in APART the test alone."""
    path = nodeid.split("::", 1)[0]
    if path in LOOKED_BACK_AT:
        return LOOK_BACK
    if path == BY_SCENARIO and (match := _SCENARIO.search(nodeid)):
        return f"{path}[{match[1]}]"
    return nodeid if path in APART else path


class SideBySide(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """xdist's scheduler for whole files, but with our units, which are assigned from both ends of the list."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)

    def _assign_work_unit(self, node: object) -> None:
        if longest := [each for each in LONGEST if each in self.workqueue]:
            self.workqueue.move_to_end(longest[0], last=False)
        elif self.nodes.index(node) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def scheduler(config: pytest.Config, log: object) -> SideBySide | None:
    """Return our scheduler for pytest_xdist_make_scheduler, unless `--dist` names another."""
    return SideBySide(config, log) if config.getvalue("dist") == "load" else None


ADDRESS = re.compile(r"0x[0-9a-f]{8,}")


def check_parameters(definition: pytest.Function) -> None:
    """Raise UsageError if the parameters of a test are a set, which has no order."""
    for mark in definition.iter_markers("parametrize"):
        values = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
        if isinstance(values, set | frozenset):
            raise pytest.UsageError(f"{definition.nodeid}: a set of parameters has no order; sort it")


def check_names(items: Iterable[pytest.Item]) -> None:
    """Raise UsageError for a test whose name shows an address or a set, and so differs between processes."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None:
            continue
        sets = (value for value in call.params.values() if isinstance(value, set | frozenset) and len(value) > 1)
        if ADDRESS.search(call.id) or any(str(value) in call.id for value in sets):
            raise pytest.UsageError(
                f"{item.nodeid}: its name differs in the next process, because it shows a set or an address; give it"
                " `ids` or a tuple"
            )
