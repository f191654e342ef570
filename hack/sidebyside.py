"""Who plays which tests when workers play them side by side (pytest-xdist, `-n`): each has control planes of its own.

A file stays together, because its fixtures are made once. The tests of `APART` go one by one, those of `BY_SCENARIO` by
scenario, and `LOOKED_BACK_AT` as one.
Every other worker begins at the end of the list, where rung 2 waits for its control plane: meanwhile the rest computes.

Workers collect the tests each for itself, and no test is played when their lists differ. So names and order of tests
must be the same in every process. A set stands in an order that each Python process draws anew (PYTHONHASHSEED), and an
object without a `repr` shows its address: half of the runs, or nearly all, go well, and the next one does not begin.

xdist's own groups are lost with pytest 9.2 (pytest-dev/pytest-xdist#1386), and its names of tests would be other ones.
"""

import re
from collections.abc import Iterable

import pytest
from xdist.scheduler import LoadScopeScheduling

LOOK_BACK = "tests/integration/test_rights.py"
"""Looks back at what other files were seen to use, in the log of the one control plane that they share with it."""
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
"""They run before it on the same worker."""
APART = frozenset(
    {
        "tests/demo/test_demo.py",
        "tests/embedded/test_crash.py",
        "tests/hack/test_report.py",
        "tests/integration/test_faults.py",
        "tests/planning/test_invariants.py",
    }
)
"""Files of few long tests that share nothing dear."""
BY_SCENARIO = "tests/integration/test_crash.py"
"""The tests of one scenario go together: all its kills are compared with the same undisturbed runs."""
_SCENARIO = re.compile(r"\[(.+?)(?:-\d+)?\]$")
"""The scenario in the name of a test of BY_SCENARIO, which may end in the number of a part."""


def unit(nodeid: str) -> str:
    """What a test stays together with: equal for tests that one worker plays one after the other."""
    path = nodeid.split("::", 1)[0]
    if path in LOOKED_BACK_AT:
        return LOOK_BACK
    if path == BY_SCENARIO and (found := _SCENARIO.search(nodeid)):
        return f"{path}[{found[1]}]"
    return nodeid if path in APART else path


class SideBySide(LoadScopeScheduling):  # type: ignore[misc]  # xdist tells mypy nothing
    """xdist's scheduler of whole files, with our units, taken from both ends."""

    def _split_scope(self, nodeid: str) -> str:
        """See LoadScopeScheduling."""
        return unit(nodeid)

    def _assign_work_unit(self, node: object) -> None:
        """See LoadScopeScheduling: it takes the first unit."""
        if self.nodes.index(node) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def scheduler(config: pytest.Config, log: object) -> SideBySide | None:
    """For pytest_xdist_make_scheduler; None when another way was asked for by `--dist`."""
    return SideBySide(config, log) if config.getvalue("dist") == "load" else None


ADDRESS = re.compile(r"0x[0-9a-f]{8,}")


def check_parameters(definition: pytest.Function) -> None:
    """Raise UsageError when a set gives a test its parameters: they would come in any order."""
    for mark in definition.iter_markers("parametrize"):
        values = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
        if isinstance(values, set | frozenset):
            raise pytest.UsageError(f"{definition.nodeid}: a set of parameters has no order; sort it")


def check_names(items: Iterable[pytest.Item]) -> None:
    """Raise UsageError when the name of a test is another one in the next process."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None:
            continue
        sets = (
            value for value in call.params.values() if isinstance(value, set | frozenset) and len(value) > 1
        )
        if ADDRESS.search(call.id) or any(str(value) in call.id for value in sets):
            raise pytest.UsageError(
                f"{item.nodeid}: differs in the next process, because it shows a set or an address; give it `ids` or a"
                " tuple"
            )
