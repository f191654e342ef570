"""Estimate how long a pool's change may still take, from how long past changes of its nodes took. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from gpusharing.cli.pools.fleet import OTHERS, PERSON, NodeStatus, PoolStatus, State
from gpusharing.cli.pools.timeline import read_stretches

_BY_THE_CLOCK = frozenset({"WindowClosed", "CanarySoak"})
"""The reasons of nodes that wait for a window or for the canary's soak."""


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
    open_ended = any(
        node.state in (State.BLOCKED, State.FAILED) or node.deadline == PERSON or node.reason in _BY_THE_CLOCK
        for node in left
    )
    if not left or pool.paused or open_ended:
        return None
    took = durations(pool.members, now)
    if not took:
        return None
    each = timedelta(seconds=median(one.total_seconds() for one in took))
    gone = [taken for node in left if (taken := _changes(node, now)[1]) is not None]
    if any(one > max(took) for one in gone) or not (gone or any(node.deadline != OTHERS for node in left)):
        return None
    rounds = -(-len(left) // max(1, len(gone)))
    rest = each * rounds - min(gone, default=timedelta())
    return Estimate(max(rest, timedelta()), len(left), each, len(took))


def durations(members: Iterable[NodeStatus], now: datetime) -> list[timedelta]:
    """Return how long each past change of these nodes took, from its first phase to Synced. A change that does not end
    in Synced, such as one that was given up, is left out. One that failed and was then retried to Synced counts as one
    change, without the time in Failed. If the history no longer includes the beginning of a change, it is measured from
    the oldest phase."""
    return [took for node in members for took in _changes(node, now)[0]]


def _changes(node: NodeStatus, now: datetime) -> tuple[list[timedelta], timedelta | None]:
    """Return how long each past change of a node took (`durations`), and how long the one that is under way has taken
    so far, without the time in Failed. The second result is None if no change is under way."""
    lengths: list[timedelta] = []
    # The phase that the node is in may be missing in the history; its time then counts as that of the change.
    taken = now - node.entered if node.entered is not None and not node.history else None
    for stretch in read_stretches(node, now):
        if stretch.moves:
            lasted = timedelta() if stretch.state is State.FAILED else stretch.end - stretch.begin
            taken = lasted if taken is None else taken + lasted
            continue
        if taken is not None and stretch.state is State.DONE:
            lengths.append(taken)
        taken = None
    return lengths, taken if node.state is State.MOVES else None
