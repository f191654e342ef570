"""The files of tests/mutants: which test kills which mutant, and which mutants are equivalent to the product."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

LIST = Path("tests/mutants/killers.yaml")
SLIPS = Path("tests/mutants/slips.yaml")


@dataclass(frozen=True, slots=True)
class Killers:
    """The killers and the equivalent mutants that the files of tests/mutants name."""

    tests: Mapping[str, str]
    """The test that kills each mutant."""
    equivalent: Mapping[str, str]
    """The reason why no test could kill an equivalent mutant, by the mutant's name."""

    def find_gaps(self, mutants: Iterable[str]) -> list[str]:
        """Return one message for each mutant that is missing from the files or in both lists, for each entry that
        matches no mutant, and for each equivalent mutant without a reason. Empty if nothing is wrong."""
        known = set(mutants)
        named = self.tests.keys() | self.equivalent.keys()
        return [
            *(f"tests/mutants/killers.yaml names no killer: {name}" for name in sorted(known - named)),
            *(f"no such mutant: {name}" for name in sorted(named - known)),
            *(
                f"has a killer, so is not equivalent: {name}"
                for name in sorted(named)
                if name in self.tests and name in self.equivalent
            ),
            *(f"no reason is given: {name}" for name, why in self.equivalent.items() if not why.strip()),
        ]


def read_killers() -> Killers:
    """Return what killers.yaml and slips.yaml name together, from the checkout in the working directory. Raises
    FileNotFoundError if a file does not exist, and KeyError if one has no `killers`, or slips.yaml no `equivalent`."""
    killers, slips = yaml.safe_load(LIST.read_text()), yaml.safe_load(SLIPS.read_text())
    return Killers(
        killers["killers"] | _by_name(slips["killers"]),
        (killers.get("equivalent") or {}) | _by_name(slips["equivalent"]),
    )


def _by_name(grouped: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return, for each mutant, the test or the reason under which `grouped` lists it."""
    return {name: heading for heading, names in grouped.items() for name in names}
