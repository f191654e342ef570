"""May a policy start nodes now, when may it next, and when would a series of changes end?

A change starts only if enough of the window is left for it (`needed_time`), and may finish after the window.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property, lru_cache
from heapq import nlargest
from itertools import islice

from cronsim import CronSim, CronSimError

from gpusharing.api.policy import GPUSharingPolicySpec, Window, Windows
from gpusharing.api.times import parse_duration, to_rfc3339
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.attempts import actuation_limit
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import in_minutes
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

HORIZON = timedelta(days=8)
"""A longer span is shown as one without an end. No single window is longer than a week."""
FAR = timedelta(days=366)
"""Blackouts without a gap for longer than this count as never ending. A single one lasts a week at most."""
STEPS = 400
"""The most consecutive windows that are examined: 400 days of daily ones, or 16 days of hourly ones."""
SHIFT = timedelta(hours=3)
"""How far beyond a moment to search: further than any change of the clock. If a schedule names minute and hour, cronsim
looks only at the time of day, and of two equal times takes the first."""
_SECOND = timedelta(seconds=1)
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@value
class Span:
    """A time span in which nodes may start."""

    opens: datetime
    closes: datetime | None
    """The end of the span, or None if it has none within HORIZON."""

    def lasts(self, needed: timedelta, now: datetime) -> bool:
        """Whether at least `needed` of the span is left, counted from `now`, or from its beginning if that is later."""
        return self.closes is None or self.closes - max(self.opens, now) >= needed


@value(slots=False)  # no slots, because it has cached properties
class ZonedWindow:
    """A policy's window with its time zone, which the planner cannot look up by itself."""

    window: Window
    zone: tzinfo | None
    """The time zone, or None if the database does not have it, which only `find_flaw` accepts."""

    @cached_property
    def duration(self) -> timedelta:
        return parse_duration(self.window.duration)

    @cached_property
    def _shift(self) -> timedelta:
        named = not any(field.startswith("*") for field in self.window.schedule.split()[:2])
        return SHIFT if named and self.zone is not UTC else timedelta(0)

    def find_next(self, moment: datetime) -> datetime | None:
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
    return tuple(ZonedWindow(window, zones.get(window.time_zone)) for window in windows)


def find_flaw(zoned: ZonedWindow) -> tuple[str, str] | None:
    """Return the name of the window's first invalid field and why it is invalid. The duration is not checked."""
    if zoned.zone is None:
        why = "the time zone database does not contain this name; use one from the database"
        return "timeZone", f"{why}, for example Europe/Berlin"
    example = '"0 22 * * 1-5"'
    try:
        next(CronSim(zoned.window.schedule, _BEGIN))
    except CronSimError as error:
        return "schedule", f"it is not a valid cron schedule: {error}; a valid example is {example}"
    except StopIteration:
        return "schedule", f"it never matches a date; use a schedule that does, for example {example}"
    return None


def find_spans(windows: Sequence[ZonedWindow], blackouts: Sequence[ZonedWindow], after: datetime) -> Iterator[Span]:
    """Yield, in order, the spans from `after` onward in which nodes may start; possibly without end.

    A duration is elapsed time even when the clocks change. A start is that of Debian's cron (cronsim): one that does
    not exist on the day when the clocks go forward moves to the next minute that exists, and of one that occurs twice
    the first counts. No window may have a flaw.
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


def _first(windows: Sequence[ZonedWindow], blackouts: Sequence[ZonedWindow], moment: datetime) -> datetime | None:
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


RECENT = 20
"""How many recent changes of a pool are considered. The slowest of them sets the time expected for the next one."""
UNKNOWN = timedelta(minutes=15)
"""How long a change is expected to take while the pool has no finished changes."""
FORESEEN = 200
"""The most spans through which the end of a rollout is foreseen."""
SHOWN = 3
LOOKED_AT = 40
"""The most spans that are examined in the search for spans that are long enough."""
Zoned = tuple[ZonedWindow, ...]


@value
class Hours:
    """What the windows of a policy allow at one moment."""

    spans: tuple[Span, ...] = ()
    """The next spans in which a node can start. Empty if nodes may start at any time, or never (see `closed`)."""
    closed: Finding | None = None
    """Why no node starts now, or None if nodes may start."""
    change: datetime | None = None
    """When the passing of time alone may change the answer, or None if it does not."""

    @property
    def next_window(self) -> str:
        """When nodes may start next, or until when they may start now; empty if at any time, or never."""
        if not self.spans:
            return ""
        span = self.spans[0]
        if self.closed is not None:
            return to_rfc3339(span.opens)
        return "open" if span.closes is None else f"open until {to_rfc3339(span.closes)}"

    @property
    def listed(self) -> list[str]:
        """The spans as the plan shows them, such as `now to <time>` or `<time> to open end`."""
        shown = []
        for number, span in enumerate(self.spans):
            opens = "now" if number == 0 and self.closed is None else to_rfc3339(span.opens)
            shown.append(f"{opens} to {'open end' if span.closes is None else to_rfc3339(span.closes)}")
        return shown


ALWAYS = Hours()
UNJUDGED = Hours(closed=Finding(Reason.WINDOW_CLOSED, "the windows have not been evaluated yet"))


def needed_time(spec: GPUSharingPolicySpec, nodes: Iterable[NodeView]) -> timedelta:
    """Return how much of a window must be left so that a node may start.

    Changes that took more than twice the time limits waited for a person, and do not count (ADR 63).
    """
    proofs, limit = [node.verified for node in nodes], actuation_limit(spec)
    known = [(one.changed_at, timedelta(seconds=one.took)) for one in proofs if one and one.changed_at]
    last = nlargest(RECENT, [(when, took) for when, took in known if timedelta(0) < took <= 2 * limit])
    slowest = max((took for _, took in last), default=UNKNOWN)
    return parse_duration(spec.drain.timeout) + min(slowest, limit)


def find_hours(
    spec: GPUSharingPolicySpec, zones: Mapping[str, tzinfo], nodes: Iterable[NodeView], now: datetime
) -> Hours:
    """Return what the windows of a policy allow now. `zones` has the known time zones."""
    rollout = spec.rollout
    if not rollout.windows and not rollout.blackouts:
        return ALWAYS
    windows, blackouts = add_zones(rollout.windows, zones), add_zones(rollout.blackouts, zones)
    if flaw := _flaw(windows, blackouts):
        return Hours(closed=Finding(Reason.INVALID_WINDOW, " ".join(flaw)))
    needed = needed_time(spec, nodes)
    minute = now.replace(second=0, microsecond=0)
    candidates, longest = _spans(windows, blackouts, needed, minute)
    long_ones = tuple(one for one in windows if one.duration >= needed)
    if not candidates and long_ones:
        # There may be so many short spans before it that no long one was examined.
        candidates, _ = _spans(long_ones, blackouts, needed, minute)
    spans = tuple(span for span in candidates if span.lasts(needed, now))[:SHOWN]
    if not spans:
        blacked_out = bool(blackouts and _spans(windows, (), needed, minute)[0])
        return Hours(closed=_too_short(needed, longest, blacked_out=blacked_out))
    first = spans[0]
    if first.opens <= now:
        return Hours(spans, None, None if first.closes is None else first.closes - needed + _SECOND)
    message = (
        "changes do not start outside spec.rollout.windows, during spec.rollout.blackouts, or with less than"
        f" {in_minutes(needed)} of the window left; the next change may start at {to_rfc3339(first.opens)}"
    )
    return Hours(spans, Finding(Reason.WINDOW_CLOSED, message, first.opens), first.opens)


@value
class Course:
    """When a series of changes would begin and end."""

    begins: datetime
    ends: datetime
    spans: int
    """In how many spans of its windows changes begin."""


def foresee_course(
    spec: GPUSharingPolicySpec,
    zones: Mapping[str, tzinfo],
    nodes: Iterable[NodeView],
    begins: datetime,
    lengths: Sequence[timedelta],
) -> Course | None:
    """Return the course of consecutive changes with these `lengths`; the last may end after its window.

    None if a window is invalid or the end is too far away.
    """
    windows, blackouts = (add_zones(rows, zones) for rows in (spec.rollout.windows, spec.rollout.blackouts))
    if _flaw(windows, blackouts):
        return None
    needed, moment = needed_time(spec, nodes), begins
    spans = islice(find_spans(windows, blackouts, begins.replace(second=0, microsecond=0)), FORESEEN)
    span = next(spans, None)
    used: list[Span] = []
    for length in lengths:
        while span is not None and not span.lasts(needed, moment):
            span = next(spans, None)
        if span is None:
            return None
        used += [] if span in used[-1:] else [span]
        moment = max(moment, span.opens) + length
    return Course(max(begins, used[0].opens) if used else begins, moment, len(used))


@lru_cache(maxsize=512)
def _spans(windows: Zoned, blackouts: Zoned, needed: timedelta, minute: datetime) -> tuple[tuple[Span, ...], timedelta]:
    """Return the first spans that last long enough, and the length of the longest examined one, cached by minute."""
    long_enough, longest = [], timedelta(0)
    for span in islice(find_spans(windows, blackouts, minute), LOOKED_AT):
        if span.closes is not None:
            longest = max(longest, span.closes - span.opens)
        if span.lasts(needed, minute):
            long_enough.append(span)
        if len(long_enough) > SHOWN:
            break
    return tuple(long_enough), longest


def find_window_flaw(spec: GPUSharingPolicySpec, zones: Mapping[str, tzinfo]) -> tuple[str, str] | None:
    """Return the path of the policy's first invalid window and what is wrong with it."""
    return _flaw(add_zones(spec.rollout.windows, zones), add_zones(spec.rollout.blackouts, zones))


@lru_cache(maxsize=512)
def _flaw(windows: Zoned, blackouts: Zoned) -> tuple[str, str] | None:
    for field, listed in (("windows", windows), ("blackouts", blackouts)):
        for index, zoned in enumerate(listed):
            if (flaw := find_flaw(zoned)) is not None:
                (name, why), window = flaw, zoned.window
                value = window.time_zone if name == "timeZone" else window.schedule
                path = f"spec.rollout.{field}[{index}].{name}"
                return path, f'"{value}": {why}. No change starts until this is corrected'
    return None


def _too_short(needed: timedelta, longest: timedelta, *, blacked_out: bool) -> Finding:
    slowest = f"the duration of the slowest of the last {RECENT} changes"
    needs = f"a change needs {in_minutes(needed)} left in its window (drain.timeout plus {slowest})"
    if blacked_out:  # longer windows would not help
        left = f"at most {in_minutes(longest)}" if longest else "nothing"
        why = (
            f"as far as can be foreseen spec.rollout.blackouts leave {left} of the time in which"
            " nodes could start: shorten or remove a blackout"
        )
    else:
        left = f"are open for at most {in_minutes(longest)}" if longest else "are never open"
        why = (
            f"spec.rollout.windows, minus spec.rollout.blackouts, {left}: lengthen a window,"
            " for example to duration: 6h, or shorten spec.drain.timeout"
        )
    return Finding(Reason.WINDOW_TOO_SHORT, f"{needs}, but {why}")
