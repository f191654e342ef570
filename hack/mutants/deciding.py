"""A plugin of pytest that notes in which tests an operand decides: only these can notice that it is missing."""

from collections import defaultdict
from collections.abc import Iterable

from hack.mutants.slips import PROBE, Slip, add_probes
from hack.mutants.transplant import plant_source


class Deciding:
    """Notes in which tests an operand decides. The modules of the slips are changed for it, permanently."""

    def __init__(self, slips: Iterable[Slip]) -> None:
        self._modules = {slip.module: slip.path for slip in slips}
        self._now = ""
        self.tests: defaultdict[str, list[str]] = defaultdict(list)

    def pytest_collection_finish(self) -> None:
        """See pytest. Tests may have imported the modules by now."""
        for module, path in self._modules.items():
            plant_source(f"gpusharing.{module}", add_probes(module, path.read_text()), {PROBE: self._probe})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """See pytest."""
        self._now = nodeid

    def _probe(self, name: str, decides_if: bool | None, value: object) -> object:
        """Return the value of an operand that is reached, after noting the test if the operand decides there."""
        if decides_if in (None, bool(value)) and self._now not in self.tests[name][-1:]:
            self.tests[name].append(self._now)
        return value
