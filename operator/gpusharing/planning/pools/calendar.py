"""The spans of time in which nodes may start: windows minus blackouts.

union      windows that overlap or touch are one span; blackouts are cut out of it
length     a duration is elapsed time: six hours are six hours even when the clocks change
start      as in Debian's cron (cronsim): a start that does not exist on the day when the clocks go forward moves to
           the next minute that exists, and of a start that occurs twice the first one counts
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property

from cronsim import CronSim, CronSimError

from gpusharing.api.policy import Window, Windows
from gpusharing.api.validation import parse_duration
from gpusharing.planning.vocabulary.values import value

HORIZON = timedelta(days=8)
"""A longer span is shown as one without an end. No single window is longer than a week."""
FAR = timedelta(days=366)
"""Blackouts that follow each other without a gap for longer than this count as never ending. A single one lasts a week at most."""
STEPS = 400
"""The most consecutive windows that are examined: 400 days of daily windows, or 16 days of hourly ones. Without a gap, they count as a span without an end."""
SHIFT = timedelta(hours=3)
"""How far beyond a moment to search: further than any change of the clock. If a schedule names minute and hour, cronsim looks only at the time of day, and of two equal times takes the first."""
_SECOND = timedelta(seconds=1)
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@value
class Span:
    """A time span in which nodes may start."""

    opens: datetime
    closes: datetime | None
    """None if the span has no end within HORIZON."""

    def lasts(self, needed: timedelta, now: datetime) -> bool:
        """Whether at least `needed` of the span is left, counted from `now` or from its beginning if that is later."""
        return self.closes is None or self.closes - max(self.opens, now) >= needed


@value(slots=False)  # no slots, because it has cached properties
class ZonedWindow:
    """A policy's window with its time zone, which the planner cannot look up by itself."""

    window: Window
    zone: tzinfo | None
    """None if the time zone database does not have the name. Only `find_flaw` accepts such a window."""

    @cached_property
    def duration(self) -> timedelta:
        return parse_duration(self.window.duration)

    @cached_property
    def _shift(self) -> timedelta:
        named = not any(field.startswith("*") for field in self.window.schedule.split()[:2])
        return SHIFT if named and self.zone is not UTC else timedelta(0)

    def find_next(self, moment: datetime) -> datetime | None:
        """Return the first start after this moment, or None if there is none."""
        return self._find(moment - self._shift, lambda start: start > moment, reverse=False)

    def stays_open(self, moment: datetime) -> datetime:
        """Return until when the window stays open; the moment itself if it is closed then."""
        start = self._find(moment + self._shift + _SECOND, lambda start: start <= moment, reverse=True)
        return moment if start is None else max(moment, start + self.duration)

    def _find(self, begin: datetime, fits: Callable[[datetime], bool], *, reverse: bool) -> datetime | None:
        local = begin.replace(microsecond=0).astimezone(self.zone)
        starts = CronSim(self.window.schedule, local, reverse=reverse)
        return next((start for local in starts if fits(start := local.astimezone(UTC))), None)


def add_zones(windows: Windows, zones: Mapping[str, tzinfo]) -> tuple[ZonedWindow, ...]:
    """Return the windows with their time zones; `zones` has the zones that are known, by name."""
    return tuple(ZonedWindow(window, zones.get(window.time_zone)) for window in windows)


def find_flaw(zoned: ZonedWindow) -> tuple[str, str] | None:
    """Return the name of the window's first invalid field and why it is invalid, or None; the duration is not checked."""
    example = '"0 22 * * 1-5"'
    if zoned.zone is None:
        why = "the time zone database does not contain this name; use one from the database"
        return "timeZone", f"{why}, for example Europe/Berlin"
    try:
        next(CronSim(zoned.window.schedule, _BEGIN))
    except CronSimError as error:
        return "schedule", f"it is not a valid cron schedule: {error}; a valid example is {example}"
    except StopIteration:
        return "schedule", f"it never matches a date; use a schedule that does, for example {example}"
    return None


def find_spans(
    windows: Sequence[ZonedWindow], blackouts: Sequence[ZonedWindow], after: datetime
) -> Iterator[Span]:
    """Yield, in order, the spans from `after` onward in which nodes may start; possibly without end.

    No window may have a flaw. Without windows, nodes may start at any time except in blackouts.
    """
    moment: datetime | None = after
    while moment is not None and (opens := _first(windows, blackouts, moment)) is not None:
        ends = [_end(windows, opens)] if windows else []
        ends += [blackout.find_next(opens) for blackout in blackouts]
        closes = min((end for end in ends if end is not None), default=None)
        if closes is not None and closes - opens > HORIZON:
            closes = None
        yield Span(opens, closes)
        moment = closes


def _first(
    windows: Sequence[ZonedWindow], blackouts: Sequence[ZonedWindow], moment: datetime
) -> datetime | None:
    for _ in range(STEPS):
        after: datetime | None = moment
        if any(one.stays_open(moment) > moment for one in blackouts):
            after = _end(blackouts, moment, FAR)
        elif windows and all(one.stays_open(moment) <= moment for one in windows):
            starts = (one.find_next(moment) for one in windows)
            after = min((start for start in starts if start is not None), default=None)
        if after is None or after == moment:
            return after
        moment = after
    return None


def _end(windows: Sequence[ZonedWindow], moment: datetime, horizon: timedelta = HORIZON) -> datetime | None:
    end = moment
    for _ in range(STEPS):
        reach = max(one.stays_open(end) for one in windows)
        if reach <= end:
            return end
        end = reach
        if end - moment > horizon:
            break
    return None
