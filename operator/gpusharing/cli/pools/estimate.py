"""Estimate how long a pool's change may still take, from how long past changes of its nodes took. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from gpusharing.api.gpunode import HistoryEntry
from gpusharing.api.names import Phase
from gpusharing.api.times import from_rfc3339
from gpusharing.cli.pools.fleet import OTHERS, PERSON, NodeStatus, PoolStatus, State, known_phase

_BY_THE_CLOCK = frozenset({"WindowClosed", "CanarySoak"})


@dataclass(frozen=True, slots=True)
class Estimate:
    """The time that is left, and the numbers that it is based on."""

    left: timedelta
    """How long the rest of the change may take."""
    nodes: int
    """How many nodes still have to change."""
    each: timedelta
    """The median length of the past changes."""
    changes: int
    """How many past changes there were."""


def find_estimate(pool: PoolStatus, now: datetime) -> Estimate | None:
    """Return how long the rest of a pool's change may take. Return None if nothing is left, if no past change is known,
    or if the end cannot be foreseen: the pool is paused, a node is blocked, skipped or failed, a node waits for a
    person, a window or the canary's soak, a node has been changing for longer than any past change took, or no node is
    changing and all wait for other nodes or programs."""
    left = [node for node in pool.members if node.state is not State.DONE]
    if not left or pool.paused or any(_is_open_ended(node) for node in left):
        return None
    took = durations(pool.members)
    if not took:
        return None
    each = timedelta(seconds=median(one.total_seconds() for one in took))
    gone = [now - began for node in left if (began := _began(node)) is not None]
    if any(one > max(took) for one in gone) or not (gone or any(node.deadline != OTHERS for node in left)):
        return None
    rounds = -(-len(left) // max(1, len(gone)))
    rest = each * rounds - min(gone, default=timedelta())
    return Estimate(max(rest, timedelta()), len(left), each, len(took))


def _is_open_ended(node: NodeStatus) -> bool:
    """Whether past changes do not show how long the node will still take: it is blocked, skipped or failed, it waits
    for a person, or it waits for a window (WindowClosed) or for the canary's soak (CanarySoak)."""
    return (
        node.state in (State.BLOCKED, State.FAILED) or node.deadline == PERSON or node.reason in _BY_THE_CLOCK
    )


def _began(node: NodeStatus) -> datetime | None:
    """Return when the node's current change began; None if that is unknown, or if no change is under way. A failed
    change does not count as under way."""
    if node.state is not State.MOVES:
        return None
    began = node.entered
    for step in reversed(node.history):
        phase = known_phase(step.phase)
        entered = from_rfc3339(step.at)
        if phase is None or not phase.in_flight or entered is None:
            break
        began = entered if began is None else min(began, entered)
    return began


def durations(members: Iterable[NodeStatus]) -> list[timedelta]:
    """Return how long each past change of these nodes took, from its first phase to Synced. A change that does not end
    in Synced, such as one that was given up, is left out. One that failed and was then retried to Synced counts as one
    change, including the time in Failed. If the history no longer includes the beginning of a change, it is measured
    from the oldest phase."""
    return [took for node in members for took in _changes(node.history)]


def _changes(history: Sequence[HistoryEntry]) -> list[timedelta]:
    """Return how long each change in one history took, from its first phase to Synced. A change that has not ended in
    Synced, because it was given up or is still under way or failed, is left out."""
    lengths: list[timedelta] = []
    began: datetime | None = None
    for step in history:
        phase = known_phase(step.phase)
        if phase is not None and phase.in_flight:
            began = from_rfc3339(step.at) if began is None else began
            continue
        ended = from_rfc3339(step.at) if phase is Phase.SYNCED else None
        if began is not None and ended is not None and ended >= began:
            lengths.append(ended - began)
        began = None
    return lengths
