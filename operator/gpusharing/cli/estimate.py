"""How long a pool may still take, by how long its changes took before: pure. It is told with what it was made from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from gpusharing.api.names import Phase
from gpusharing.cli.fleet import Pool, Seen, State, Step, known_phase


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left, by what was."""

    left: timedelta
    nodes: int
    """Nodes that still have to change."""
    each: timedelta
    """The median of the past changes."""
    changes: int
    """How many those were."""


def find_estimate(pool: Pool) -> Estimate | None:
    """None: nothing is to go, nothing was seen before, or some node waits for a person, which nobody can foresee."""
    left = [seen for seen in pool.members if seen.state is not State.DONE]
    if not left or pool.paused or any(seen.state in (State.BLOCKED, State.FAILED) for seen in left):
        return None
    took = durations(pool.members)
    if not took:
        return None
    each = timedelta(seconds=median(one.total_seconds() for one in took))
    beside = max(1, sum(seen.state is State.MOVES for seen in left))
    rounds = -(-len(left) // beside)
    return Estimate(each * rounds, len(left), each, len(took))


def durations(members: Iterable[Seen]) -> list[timedelta]:
    """How long each change took that the histories show from its beginning to its good end."""
    return [took for seen in members for took in _changes(seen.history)]


def _changes(history: Sequence[Step]) -> list[timedelta]:
    found: list[timedelta] = []
    began: datetime | None = None
    for step in history:
        phase = known_phase(step.phase)
        if phase is not None and phase.in_flight:
            began = step.at if began is None else began
            continue
        if phase is Phase.SYNCED and began is not None and (ended := step.at) is not None and ended >= began:
            found.append(ended - began)
        began = None
    return found
