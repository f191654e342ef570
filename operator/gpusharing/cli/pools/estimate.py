"""How long a pool may still take, by how long its changes took before. Pure. It is shown with what it is based on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from gpusharing.api.gpunode import HistoryEntry
from gpusharing.api.names import Phase
from gpusharing.api.times import from_rfc3339
from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, known_phase

PERSON, OTHERS = "person", "others"
"""What the operator gives as the deadline of a wait that a person or others end (planning/report/transition.py)."""
_BY_THE_CLOCK = frozenset({"WindowClosed", "CanarySoak"})


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left, estimated from past changes."""

    left: timedelta
    """How long the rest may take."""
    nodes: int
    """Nodes that still have to change."""
    each: timedelta
    """The median of the past changes."""
    changes: int
    """How many those were."""


def find_estimate(pool: PoolStatus, now: datetime) -> Estimate | None:
    """None: nothing is left, nothing was seen before, or it cannot be foreseen: some node waits for a person or for
    a window, has been in its change for longer than any before it, or all wait for something outside these nodes."""
    left = [seen for seen in pool.members if seen.state is not State.DONE]
    if not left or pool.paused or any(_waits_for_others(seen) for seen in left):
        return None
    took = durations(pool.members)
    if not took:
        return None
    each = timedelta(seconds=median(one.total_seconds() for one in took))
    gone = [now - began for seen in left if (began := _began(seen)) is not None]
    if any(one > max(took) for one in gone) or not (gone or any(seen.deadline != OTHERS for seen in left)):
        return None
    rounds = -(-len(left) // max(1, len(gone)))
    rest = each * rounds - min(gone, default=timedelta())
    return Estimate(max(rest, timedelta()), len(left), each, len(took))


def _waits_for_others(seen: Seen) -> bool:
    """Its next step is a person's, or comes with a time of day."""
    return (
        seen.state in (State.BLOCKED, State.FAILED) or seen.deadline == PERSON or seen.reason in _BY_THE_CLOCK
    )


def _began(seen: Seen) -> datetime | None:
    """When its current change began; None: it is in none, or that is unknown."""
    if seen.state is not State.MOVES:
        return None
    began = seen.entered
    for step in reversed(seen.history):
        phase = known_phase(step.phase)
        entered = from_rfc3339(step.at)
        if phase is None or not phase.in_flight or entered is None:
            break
        began = entered if began is None else min(began, entered)
    return began


def durations(members: Iterable[Seen]) -> list[timedelta]:
    """How long each change took that the histories show from its beginning to its good end."""
    return [took for seen in members for took in _changes(seen.history)]


def _changes(history: Sequence[HistoryEntry]) -> list[timedelta]:
    found: list[timedelta] = []
    began: datetime | None = None
    for step in history:
        phase = known_phase(step.phase)
        if phase is not None and phase.in_flight:
            began = from_rfc3339(step.at) if began is None else began
            continue
        ended = from_rfc3339(step.at) if phase is Phase.SYNCED else None
        if began is not None and ended is not None and ended >= began:
            found.append(ended - began)
        began = None
    return found
