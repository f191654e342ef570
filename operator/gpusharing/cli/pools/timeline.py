"""A pool's last rollout in time: which node was in which phase from when to when, from the nodes' histories. Pure.

A history holds the last 20 transitions of a node, so what is older than these is not there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, known_phase, state_of

REST = timedelta(days=1)
"""Changes with less than this between them are one rollout: with windows it continues each night."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A node in one phase."""

    phase: str
    """The phase."""
    reason: str
    """Why the node was in it."""
    begin: datetime
    """When it entered it."""
    end: datetime
    """When it left it, or now."""

    @property
    def state(self) -> State:
        """How the node stood."""
        return state_of(self.phase)

    @property
    def moves(self) -> bool:
        """The change was under way: in a phase of one, or failed in it."""
        phase = known_phase(self.phase)
        return phase is not None and phase.in_flight


@dataclass(frozen=True, slots=True)
class Track:
    """One node on its way."""

    node: str
    """Name of the node."""
    stretches: tuple[Stretch, ...]
    """One after the other, the oldest first."""
    took: timedelta | None
    """From the beginning of the change to its good end; None: it has not succeeded, or not begun."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A rollout from its first change to its last, or to now if it is not over."""

    begin: datetime
    """When the first change began."""
    end: datetime
    """When the last change ended, or now."""
    tracks: tuple[Track, ...]
    """In the order in which the changes began; nodes whose change has not begun come last."""


def find_timeline(pool: PoolStatus, now: datetime) -> Timeline | None:
    """The last rollout of a pool. None: the histories show no change."""
    changes = [(seen, change) for seen in pool.members if (change := _last_change(seen, now))]
    begin = _beginning([moving for _, change in changes if (moving := _moving(change))])
    if begin is None:
        return None
    shown = [(seen, change) for seen, change in changes if _belongs(seen, change, begin)]
    over = all(seen.state is State.DONE for seen, _ in shown)
    # A change that ended well leaves room for its end to be seen.
    end = max(change[-1].begin if over else change[-1].end for _, change in shown)
    if over:
        end += (end - begin) / 20
    tracks = [Track(seen.name, _within(change, begin, end), _took(change)) for seen, change in shown]
    return Timeline(begin, end, tuple(sorted(tracks, key=lambda track: _order(track, end))))


def _last_change(seen: Seen, now: datetime) -> tuple[Stretch, ...]:
    """What the history shows after the state of rest before the last one; empty: nothing but rest."""
    steps = [(step, step.at) for step in seen.history if step.at is not None]
    ends = [*(at for _, at in steps), now][1:]
    stretches = [
        Stretch(step.phase, step.reason, at, max(at, end))
        for (step, at), end in zip(steps, ends, strict=True)
    ]
    rests = [number for number, one in enumerate(stretches[:-1]) if one.state is State.DONE]
    change = stretches[rests[-1] + 1 :] if rests else stretches
    return tuple(change) if any(one.state is not State.DONE for one in change) else ()


def _moving(change: Sequence[Stretch]) -> tuple[datetime, datetime] | None:
    """From when to when something was done on the node."""
    moving = [one for one in change if one.moves]
    return (moving[0].begin, moving[-1].end) if moving else None


def _beginning(spans: Iterable[tuple[datetime, datetime]]) -> datetime | None:
    """Of the last rollout; None: there was none."""
    begin: datetime | None = None
    for first, last in sorted(spans, key=lambda span: span[1], reverse=True):
        if begin is not None and begin - last > REST:
            break
        begin = first if begin is None else min(begin, first)
    return begin


def _belongs(seen: Seen, change: Sequence[Stretch], begin: datetime) -> bool:
    moving = _moving(change)
    return seen.state is not State.DONE or (moving is not None and moving[0] >= begin)


def _within(change: Iterable[Stretch], begin: datetime, end: datetime) -> tuple[Stretch, ...]:
    cut = (replace(one, begin=max(one.begin, begin), end=min(one.end, end)) for one in change)
    return tuple(one for one in cut if one.begin < one.end)


def _took(change: Sequence[Stretch]) -> timedelta | None:
    moving = _moving(change)
    return None if moving is None or change[-1].state is not State.DONE else change[-1].begin - moving[0]


def _order(track: Track, end: datetime) -> tuple[datetime, str]:
    return next((one.begin for one in track.stretches if one.moves), end), track.node


def busiest(track: Track, begin: datetime, end: datetime) -> Stretch | None:
    """What a cell of this time shows: what needs a person, else what lasted longest. None: nothing is known of it."""
    found: Stretch | None = None
    most = (False, timedelta(0))
    for one in track.stretches:
        lasted = min(one.end, end) - max(one.begin, begin)
        weight = (one.state in (State.BLOCKED, State.FAILED), lasted)
        if lasted > timedelta(0) and weight >= most:
            found, most = one, weight
    return found
