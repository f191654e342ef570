"""What was asked of NVIDIA's programs on rung 3, model by model. The tests count, and only those that pass are added.

A test hangs a row (model, column, number) on its `user_properties` under PROPERTY; `hack.report` prints the sum.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum

PROPERTY = "asked of NVIDIA's programs"


class Asked(StrEnum):
    """A column of the table; the text beside it is its legend."""

    meaning: str

    def __new__(cls, title: str, meaning: str) -> "Asked":
        """The heading, and what one of it is."""
        member = str.__new__(cls, title)
        member._value_ = title
        member.meaning = meaning
        return member

    LAYOUTS = (
        "layouts",
        "every named and every legal own layout: mig-parted applied, asserted and exported it as the same",
    )
    VERDICTS = (
        "verdicts",
        "layouts of other cards, or with one instance too many: it ended as our verdict says",
    )
    TRAPS = "traps", "of these: it said success and left nothing to serve; we refuse them before"
    PLUGIN = (
        "plugin",
        "configurations served by the device plugin with exactly the predicted names and counts",
    )
    GFD = "GFD", "label sets of GPU feature discovery that are what the verifier expects"
    BAD_INPUT = "bad input", "refusals and failures that ended as we say: program, what is left, what is told"
    MIG_MANAGER = (
        "mig-manager",
        "runs of mig-manager on the API server: its way from label to state, wedges too",
    )
    CHANGES = "changes", "changes of a node by the shipped operator, proven by five real sources"


class Results:
    """The table."""

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, properties: Iterable[tuple[str, object]]) -> None:
        """Take over what one passed test has counted."""
        for name, row in properties:
            if name == PROPERTY and isinstance(row, tuple):
                model, column, number = row
                self._counts[str(model), str(column)] += int(number)

    def lines(self) -> Iterator[str]:
        """The table with its legend; nothing when nothing was counted."""
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
        return "  ".join(
            f"{count or '-':>{len(column)}}" for column, count in zip(Asked, counts, strict=True)
        )
