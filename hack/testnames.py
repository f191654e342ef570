"""Names and order of tests that are the same in every process.

Workers side by side (pytest-xdist, `-n`) collect the tests each for itself, and no test is played when their lists
differ. A set stands in an order that each Python process draws anew (PYTHONHASHSEED), and an object without a `repr`
shows its address: half of the runs, or nearly all, go well, and the next one does not begin.
"""

import re
from collections.abc import Iterable

import pytest

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
