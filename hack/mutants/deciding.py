"""A pytest plugin that records in which tests an operand decides: other tests cannot notice that it is missing."""

from collections import defaultdict
from collections.abc import Iterable

from hack.mutants.slips import PROBE, Slip, add_probes
from hack.mutants.transplant import plant_source


class Deciding:
    """Records, by the name of a slip, the ids of the tests in which the operand that it leaves out decides.

    To see that, it plants probes in the modules of the slips. They stay there until the process ends.
    """

    def __init__(self, slips: Iterable[Slip]) -> None:
        self._modules = {slip.module: slip.path for slip in slips}
        self._now = ""
        self.tests: defaultdict[str, list[str]] = defaultdict(list)

    def pytest_collection_finish(self) -> None:
        """Plant the probes. This comes after the collection, in which tests have imported the modules."""
        for module, path in self._modules.items():
            plant_source(f"gpusharing.{module}", add_probes(module, path.read_text()), {PROBE: self._probe})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember which test is running."""
        self._now = nodeid

    def _probe(self, name: str, decides_if: bool | None, value: object) -> object:
        """Record the running test if the operand decides with this value, and return the value unchanged.

        See `add_probes` for the arguments.
        """
        if decides_if in (None, bool(value)) and self._now not in self.tests[name][-1:]:
            self.tests[name].append(self._now)
        return value
