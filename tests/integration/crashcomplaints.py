"""What a run of the crash matrix must not do, measured at runs that nothing disturbed."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.integration.crash import CrashOutcome, Scenario, Theatre

EXTRA_WRITES = 3
"""More than in the undisturbed run that a crash may cost. A successor that gives a slot back before it knows enough to begin with the next node writes the claims once more, and the policy's finalizer goes and comes."""
TELLING = ("/status", " events")
MOST_TOLD = 8
"""As on rung 1: statuses and Events follow the pace of a run, and nothing is decided from them."""
ASKING = "PATCH gpunodes"
MOST_ASKED = 8
"""On a busy machine a reading is soon too old to prove anything, and the agent is asked anew. Rung 1 counts these requests among the writes that act: in virtual time a reading is as old as the operator lets it become."""
ONCE, REPAIR = "PATCH clusterpolicies", "PATCH daemonsets"
"""Set once and never again: not one more is allowed for a crash."""
LIMIT = 80
"""No scenario has that many writes; a run that goes on for ever must end."""


@dataclass
class KillReport:
    """What came of killing the operator at every write of one part of a scenario."""

    undisturbed: list[CrashOutcome]
    points: int = 0
    complaints: list[str] = field(default_factory=list)


@dataclass
class Kills:
    """Plays scenarios on one stage; what the parts of a scenario share is played once."""

    theatre: Theatre
    _undisturbed: dict[str, list[CrashOutcome]] = field(default_factory=dict)
    _past: dict[str, int] = field(default_factory=dict)
    """The lowest number of a write, by scenario, that a run did not come to."""

    def undisturbed(self, scenario: Scenario) -> list[CrashOutcome]:
        if scenario.name not in self._undisturbed:
            one, two = self.theatre.run(scenario), self.theatre.run(scenario)
            assert one.state == two.state, difference(one.state, two.state)
            self._undisturbed[scenario.name] = [one, two]
        return self._undisturbed[scenario.name]

    def kill(self, scenario: Scenario, part: int = 0, parts: int = 1) -> KillReport:
        """Play it with a kill -9 after write part + 1, part + 1 + parts ... to its end."""
        report = KillReport(self.undisturbed(scenario))
        for number in range(part + 1, LIMIT, parts):
            if number >= self._past.get(scenario.name, LIMIT):
                break
            outcome = self.theatre.run(scenario, kill_at=number)
            if outcome.restarts == 0:
                self._past[scenario.name] = number
                break
            report.points += 1
            at = next((write.what for write in outcome.log if write.number == number), "?")
            for complaint in complaints(scenario, report.undisturbed, outcome):
                report.complaints.append(f"after write {number} ({at}): {complaint}")
        return report


def complaints(scenario: Scenario, reference: list[CrashOutcome], outcome: CrashOutcome) -> Iterator[str]:
    """What a run did that it must not."""
    if outcome.restarts != 1:
        yield f"{outcome.restarts} restarts"
    if outcome.state != reference[0].state:
        yield f"another end: {difference(reference[0].state, outcome.state)}"
    twice = [uid for uid, count in outcome.evicted.items() if count > 1]
    if twice:
        yield f"evicted twice: {twice}"
    if sum(outcome.evicted.values()) != sum(reference[0].evicted.values()):
        yield f"{sum(outcome.evicted.values())} evictions"
    for what in (ONCE, REPAIR):
        if (now := outcome.applied.count(what)) != (once := reference[0].applied.count(what)):
            yield f"{now} times {what}, undisturbed {once}"
    yield from too_many(scenario, reference, outcome)


def too_many(scenario: Scenario, reference: list[CrashOutcome], outcome: CrashOutcome) -> Iterator[str]:
    """What a crash costs. With quick publishing, how many moments a status shows depends on the pace of a run."""

    def acting(one: CrashOutcome) -> Counter[str]:
        return Counter(write for write in one.applied if not write.endswith((*TELLING, ASKING)))

    most = max(map(acting, reference), key=Counter.total)
    if (now := acting(outcome)).total() > most.total() + EXTRA_WRITES:
        yield f"{now.total()} writes that act, undisturbed {most.total()}; more: {dict(now - most)}"
    asked = max(one.applied.count(ASKING) for one in reference)
    if outcome.applied.count(ASKING) > asked + MOST_ASKED:
        yield f"the agent was asked {outcome.applied.count(ASKING)} times, undisturbed {asked}"
    told = max(len(one.applied) for one in reference)
    if scenario.publish_period > 1 and len(outcome.applied) > told + MOST_TOLD:
        yield f"{len(outcome.applied)} writes, undisturbed {told}"


def difference(wanted: object, found: object, path: str = "") -> str:
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted({*wanted, *found})
        parts = (difference(wanted.get(key), found.get(key), f"{path}.{key}") for key in keys)
        return "; ".join(part for part in parts if part)
    return "" if wanted == found else f"{path}: {json.dumps(wanted)} -> {json.dumps(found)}"
