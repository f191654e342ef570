"""The spans of time in which nodes may start: windows minus blackouts.

union      windows that overlap or touch are one span; blackouts are cut out of it
length     a duration is elapsed time: six hours are six hours even when the clocks change
start      as in Debian's cron (cronsim): a start that does not exist on the day when the clocks go forward moves to
           the next minute that exists, and of a start that occurs twice the first one counts
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo

from cronsim import CronSim, CronSimError

from gpusharing.api.policy import Window, Windows
from gpusharing.api.validation import parse_duration
from gpusharing.planning.vocabulary.values import value

HORIZON = timedelta(days=8)
"""A longer span is shown as one without an end. No single window is longer than a week."""
FAR = timedelta(days=366)
"""Blackouts that follow each other without a gap for longer than this count as never ending. A single blackout lasts a
week at most."""
STEPS = 400
"""The most consecutive windows that are examined; if they have no gap, they count as a span without an end. For each
window, its schedule is searched in every pass. 400 steps are 400 days of daily windows, or 16 days of hourly ones."""
SHIFT = timedelta(hours=3)
"""How far beyond a moment to search: further than any change of the clock. If a schedule names minute and hour,
cronsim looks only at the time of day, and of two equal times takes the first."""


@value
class Span:
    """A time span in which nodes may start."""

    opens: datetime
    """The beginning of the span, or the time from which spans were searched if that is within the span."""
    closes: datetime | None
    """The end of the span, or None if it has no end within HORIZON."""

    def lasts(self, needed: timedelta, now: datetime) -> bool:
        """Whether at least `needed` of the span is left, counted from `now` or from its beginning if that is later.
        Always true for a span without an end."""
        return self.closes is None or self.closes - max(self.opens, now) >= needed


@value
class ZonedWindow:
    """A policy's window with its time zone, which the planner cannot look up by itself."""

    window: Window
    """The window as the policy has it."""
    zone: tzinfo | None
    """The time zone that the window names, or None if the time zone database does not have that name."""


def add_zones(windows: Windows, zones: Mapping[str, tzinfo]) -> tuple[ZonedWindow, ...]:
    """Return the windows in their order, each with its time zone from `zones`, which maps known names to zones, or
    with None if the name is unknown."""
    return tuple(ZonedWindow(window, zones.get(window.time_zone)) for window in windows)


def find_flaw(zoned: ZonedWindow) -> tuple[str, str] | None:
    """Return the name of the window's first invalid field, `timeZone` before `schedule`, and why it is invalid, or None
    if both are valid. A schedule that never matches a date is invalid too. The duration is not checked."""
    if zoned.zone is None:
        return (
            "timeZone",
            "the time zone database does not contain this name; use one from the database, for example Europe/Berlin",
        )
    try:
        next(CronSim(zoned.window.schedule, _BEGIN))
    except CronSimError as error:
        return (
            "schedule",
            f'it is not a valid cron schedule: {error}; a valid example is "0 22 * * 1-5"',
        )
    except StopIteration:
        return "schedule", 'it never matches a date; use a schedule that does, for example "0 22 * * 1-5"'
    return None


_SECOND = timedelta(seconds=1)
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def find_spans(
    windows: Sequence[ZonedWindow], blackouts: Sequence[ZonedWindow], after: datetime
) -> Iterator[Span]:
    """Yield, in order, the spans from `after` onward in which nodes may start, as far as they can be foreseen. A span
    that is longer than HORIZON is yielded without an end, and no span follows it. Each window must have been checked
    with `find_flaw`.

    Without windows nodes may start at any time except in blackouts. The iterator may be infinite.
    """
    allowed, forbidden = (
        [_Times.of(window) for window in windows],
        [_Times.of(window) for window in blackouts],
    )
    moment: datetime | None = after
    while moment is not None and (opens := _first(allowed, forbidden, moment)) is not None:
        ends = [_end(allowed, opens)] if allowed else []
        ends += [times.next(opens) for times in forbidden]
        closes = min((end for end in ends if end is not None), default=None)
        if closes is not None and closes - opens > HORIZON:
            closes = None
        yield Span(opens, closes)
        moment = closes


@value
class _Times:
    """One window, with a search for its starts and ends."""

    schedule: str
    """The cron schedule of the starts."""
    zone: tzinfo
    """The time zone of the schedule."""
    duration: timedelta
    """How long the window stays open after each start."""
    shift: timedelta
    """How far before or after a moment the search for a start has to begin."""

    @staticmethod
    def of(zoned: ZonedWindow) -> "_Times":
        """Return the times of a window, which must have a known time zone. The search for a start is widened by SHIFT
        unless the zone is UTC or the minute or the hour of the schedule begins with `*`."""
        window, zone = zoned.window, zoned.zone
        assert zone is not None, "a window without a flaw"
        named = zone is not UTC and not any(field.startswith("*") for field in window.schedule.split()[:2])
        shift = SHIFT if named else timedelta(0)
        return _Times(window.schedule, zone, parse_duration(window.duration), shift)

    def last(self, moment: datetime) -> datetime | None:
        """Return the last start at or before this moment, or None if there is none."""
        return self._find(moment + self.shift + _SECOND, lambda start: start <= moment, reverse=True)

    def next(self, moment: datetime) -> datetime | None:
        """Return the first start after this moment, or None if there is none."""
        return self._find(moment - self.shift, lambda start: start > moment, reverse=False)

    def until(self, moment: datetime) -> datetime:
        """Return the end of the opening that covers this moment, or the moment itself if the window is closed then. If
        several openings overlap, the one that started last counts."""
        start = self.last(moment)
        return moment if start is None else max(moment, start + self.duration)

    def _find(self, begin: datetime, fits: Callable[[datetime], bool], *, reverse: bool) -> datetime | None:
        """Return the first start after `begin`, or the last one before it if `reverse`, for which `fits` is true, in
        UTC. None if there is none. Fractions of a second in `begin` are ignored."""
        local = begin.replace(microsecond=0).astimezone(self.zone)
        starts = (start.astimezone(UTC) for start in CronSim(self.schedule, local, reverse=reverse))
        return next((start for start in starts if fits(start)), None)


def _first(allowed: Sequence[_Times], forbidden: Sequence[_Times], moment: datetime) -> datetime | None:
    """Return the first time from `moment` onward at which a window in `allowed` is open and none in `forbidden` is. If
    `allowed` is empty, only `forbidden` counts. None if no such time can be foreseen."""
    for _ in range(STEPS):
        after: datetime | None = moment
        if any(one.until(moment) > moment for one in forbidden):
            after = _end(forbidden, moment, FAR)
        elif allowed and all(one.until(moment) <= moment for one in allowed):
            after = min((start for one in allowed if (start := one.next(moment)) is not None), default=None)
        if after is None or after == moment:
            return after
        moment = after
    return None


def _end(times: Sequence[_Times], moment: datetime, horizon: timedelta = HORIZON) -> datetime | None:
    """Return when the windows that cover this moment, and the windows that follow them without a gap, are over.
    Returns `moment` if no window covers it, and None if the end is further away than `horizon` or cannot be foreseen.
    `times` must not be empty."""
    end = moment
    for _ in range(STEPS):
        reach = max(one.until(end) for one in times)
        if reach <= end:
            return end
        end = reach
        if end - moment > horizon:
            return None
    return None
