"""A table of what was tested with NVIDIA's programs on rung 3, by GPU model. Only tests that passed are counted.

A test adds a row (model, column, number) to its `user_properties` under PROPERTY, and `hack.report` prints the sums.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum

PROPERTY = "asked of NVIDIA's programs"


class Asked(StrEnum):
    """A column of the table. Its value is the heading; `meaning` is its legend."""

    meaning: str

    def __new__(cls, title: str, meaning: str) -> "Asked":
        member = str.__new__(cls, title)
        member._value_ = title
        member.meaning = meaning
        return member

    LAYOUTS = (
        "layouts",
        "named layouts and all legal ones: mig-parted applied and asserted each, and exported it unchanged",
    )
    VERDICTS = (
        "verdicts",
        "layouts of other cards, or with one instance too many: mig-parted did what our verdict predicts",
    )
    TRAPS = (
        "traps",
        "of these: mig-parted reported success and left nothing to serve; we refuse them beforehand",
    )
    PLUGIN = (
        "plugin",
        "configurations served by the device plugin with exactly the predicted names and counts",
    )
    GFD = "GFD", "label sets of GPU feature discovery that are what the verifier expects"
    BAD_INPUT = (
        "bad input",
        "refusals and failures that ended as predicted: exit status, what is left on the GPU, the message",
    )
    MIG_MANAGER = (
        "mig-manager",
        "runs of mig-manager on the API server, from label to state, including those in which it hangs",
    )
    CHANGES = "changes", "changes of a node by the shipped operator, proven by five real sources"


class Results:
    """The sums over all passed tests, by model and column."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, properties: Iterable[tuple[str, object]]) -> None:
        """Add the rows (model, column, number) that one passed test left in its properties under PROPERTY to the sums
        of the table."""
        for name, row in properties:
            if name == PROPERTY and isinstance(row, tuple):
                model, column, number = row
                self._counts[str(model), str(column)] += int(number)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the table, with one row for each model, sorted by name, and a last row with the sums, and
        then its legend, a line for each column."""
        models = sorted({model for model, _ in self._counts})
        if not models:
            return
        width = max(map(len, models))
        yield f"{'model':{width}}  {'  '.join(Asked)}"
        for model in models:
            yield f"{model:{width}}  {self._row([self._counts[model, column] for column in Asked])}"
        sums = [sum(self._counts[model, column] for model in models) for column in Asked]
        yield f"{'in all':{width}}  {self._row(sums)}"
        for column in Asked:
            yield f"  {column:{max(map(len, Asked))}}  {column.meaning}"

    @staticmethod
    def _row(counts: Iterable[int]) -> str:
        return "  ".join(f"{count or '-':>{len(column)}}" for column, count in zip(Asked, counts, strict=True))
