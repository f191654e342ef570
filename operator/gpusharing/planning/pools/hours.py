"""Whether the windows of a policy let a node start now, when the next one may, and when a series of changes would end.

A node starts only if enough of the window is left for its change: drain.timeout plus the time that the slowest of the
pool's last 20 changes took. A change that has begun may finish after the window.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from heapq import nlargest
from itertools import islice

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import to_rfc3339
from gpusharing.api.validation import parse_duration
from gpusharing.planning.pools.calendar import Span, ZonedWindow, add_zones, find_flaw, find_spans
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.attempts import actuation_limit
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

RECENT = 20
"""How many recent changes of a pool are considered; the slowest of them sets the time expected for the next one."""
UNKNOWN = timedelta(minutes=15)
"""How long a change is expected to take while the pool has no finished changes."""
FORESEEN = 200
"""The most spans through which the end of a rollout is foreseen."""
SHOWN = 3
"""The most spans that are shown."""
LOOKED_AT = 40
"""The most spans that are examined in the search for spans that are long enough."""


@value
class Hours:
    """What the windows of a policy allow at one moment."""

    spans: tuple[Span, ...] = ()
    """The next spans in which a node can start, at most SHOWN. Empty if nodes may start at any time, or never (see
    `closed`)."""
    closed: Finding | None = None
    """Why no node starts now, or None if nodes may start."""
    change: datetime | None = None
    """When the passing of time alone may change the answer, or None if it does not."""

    @property
    def next_window(self) -> str:
        """The value of a status column: `open until <end of the window>` if nodes may start now, or `open` if it has no
        end. Otherwise the time at which nodes may start next: windows too short for a change do not count, nor does one
        that is open with too little time left. Empty if nodes may start at any time, or never."""
        if not self.spans:
            return ""
        span = self.spans[0]
        if self.closed is not None:
            return to_rfc3339(span.opens)
        return "open" if span.closes is None else f"open until {to_rfc3339(span.closes)}"

    @property
    def listed(self) -> list[str]:
        """The spans as the plan shows them, such as `now to <time>` or `<time> to open end`."""
        begins = ["now" if self.closed is None else to_rfc3339(span.opens) for span in self.spans[:1]]
        begins += [to_rfc3339(span.opens) for span in self.spans[1:]]
        ends = ["open end" if span.closes is None else to_rfc3339(span.closes) for span in self.spans]
        return [f"{begin} to {end}" for begin, end in zip(begins, ends, strict=True)]


def needed_time(spec: GPUSharingPolicySpec, nodes: Iterable[NodeView]) -> timedelta:
    """Return how much of a window must be left so that a node may start: drain.timeout plus the expected duration of
    the change.

    A change is expected to take as long as the slowest of the last RECENT changes, or UNKNOWN if there were none, but
    never longer than its time limits. Each node counts with its last proven change only. Changes of unknown duration
    are ignored, and so are those that took more than twice the limits, because they waited for a person (ADR 63).
    """
    proofs, limit = [node.verified for node in nodes], actuation_limit(spec)
    known = [(one.changed_at, timedelta(seconds=one.took)) for one in proofs if one and one.changed_at]
    last = nlargest(RECENT, [(when, took) for when, took in known if timedelta(0) < took <= 2 * limit])
    slowest = max((took for _, took in last), default=UNKNOWN)
    return parse_duration(spec.drain.timeout) + min(slowest, limit)


def find_hours(
    spec: GPUSharingPolicySpec, zones: Mapping[str, tzinfo], nodes: Iterable[NodeView], now: datetime
) -> Hours:
    """Return what the windows of a policy allow now: ALWAYS if it has neither windows nor blackouts. If a window is
    invalid (InvalidWindow), or none leaves enough time for a change (WindowTooShort, see `needed_time`), the result has
    no spans, its `closed` says why, and its `change` is None. If only the present moment does not suit (WindowClosed),
    `closed` names the next start, which is also `change`. If nodes may start now, `change` is the first second at which
    too little of the window is left, or None if it has no end. `zones` maps the names of the known time zones to the
    zones; `nodes` are the nodes of the policy."""
    rollout = spec.rollout
    if not rollout.windows and not rollout.blackouts:
        return ALWAYS
    windows, blackouts = add_zones(rollout.windows, zones), add_zones(rollout.blackouts, zones)
    if flaw := _flaw(windows, blackouts):
        return Hours(closed=Finding(Reason.INVALID_WINDOW, " ".join(flaw)))
    needed = needed_time(spec, nodes)
    minute = now.replace(second=0, microsecond=0)
    candidates, longest = _spans(windows, blackouts, needed, minute)
    long_ones = tuple(one for one in windows if parse_duration(one.window.duration) >= needed)
    if not candidates and long_ones:
        # There may be so many short spans before it that no long one was examined.
        candidates, _ = _spans(long_ones, blackouts, needed, minute)
    spans = tuple(span for span in candidates if span.lasts(needed, now))[:SHOWN]
    if not spans:
        without, _ = _spans(windows, (), needed, minute)
        why = _blacked_out if blackouts and without else _too_short
        return Hours(closed=Finding(Reason.WINDOW_TOO_SHORT, why(needed, longest)))
    first = spans[0]
    if first.opens <= now:
        return Hours(spans, None, None if first.closes is None else first.closes - needed + _MOMENT)
    message = (
        "changes do not start outside spec.rollout.windows, during spec.rollout.blackouts, or with less than"
        f" {_text(needed)} of the window left; the next change may start at {to_rfc3339(first.opens)}"
    )
    return Hours(spans, Finding(Reason.WINDOW_CLOSED, message, first.opens), first.opens)


def foresee_end(
    spec: GPUSharingPolicySpec,
    zones: Mapping[str, tzinfo],
    nodes: Iterable[NodeView],
    begins: datetime,
    lengths: Sequence[timedelta],
) -> datetime | None:
    """Return when a series of consecutive changes with these `lengths` ends, or `begins` if there are none. Each starts
    when the previous one has ended (the first at `begins`), or later if the windows do not let a node start yet; it may
    end after its window. None if a window is invalid, or if the series needs more than FORESEEN spans. Other
    parameters: `find_hours`."""
    windows, blackouts = (add_zones(rows, zones) for rows in (spec.rollout.windows, spec.rollout.blackouts))
    if _flaw(windows, blackouts):
        return None
    needed, moment = needed_time(spec, nodes), begins
    spans = islice(find_spans(windows, blackouts, begins.replace(second=0, microsecond=0)), FORESEEN)
    span = next(spans, None)
    for length in lengths:
        while span is not None and not span.lasts(needed, moment):
            span = next(spans, None)
        if span is None:
            return None
        moment = max(moment, span.opens) + length
    return moment


ALWAYS = Hours()
UNJUDGED = Hours(closed=Finding(Reason.WINDOW_CLOSED, "the windows have not been evaluated yet"))
_MOMENT = timedelta(seconds=1)
Zoned = tuple[ZonedWindow, ...]
"""Windows or blackouts of a policy, in its order."""


@lru_cache(maxsize=512)
def _spans(
    windows: Zoned, blackouts: Zoned, needed: timedelta, minute: datetime
) -> tuple[tuple[Span, ...], timedelta]:
    """Return the first SHOWN + 1 of the next LOOKED_AT spans that last at least `needed`, and the length of the
    longest span examined; spans without an end do not count for that length. Cached for each minute, which is exact
    because no schedule has seconds."""
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
    """Return the path and the message of the first invalid window of a policy, or None if all are valid (`_flaw`).
    `zones` maps the names of the known time zones to the zones."""
    return _flaw(add_zones(spec.rollout.windows, zones), add_zones(spec.rollout.blackouts, zones))


@lru_cache(maxsize=512)
def _flaw(windows: Zoned, blackouts: Zoned) -> tuple[str, str] | None:
    """Return the path of the invalid field of the first invalid window, and a message with its value (`find_flaw`).
    Windows are checked before blackouts, each in the given order. None if all are valid."""
    for field, listed in (("windows", windows), ("blackouts", blackouts)):
        for index, zoned in enumerate(listed):
            if (flaw := find_flaw(zoned)) is not None:
                (name, why), window = flaw, zoned.window
                value = window.time_zone if name == "timeZone" else window.schedule
                path = f"spec.rollout.{field}[{index}].{name}"
                return path, f'"{value}": {why}. No change starts until this is corrected'
    return None


def _too_short(needed: timedelta, longest: timedelta) -> str:
    """Return the message that no window stays open for as long as `needed`. `longest` is the longest time that any
    window stays open, or zero if none opens."""
    left = f"are open for at most {_text(longest)}" if longest else "are never open"
    return (
        f"{_needs(needed)}, but spec.rollout.windows, minus spec.rollout.blackouts, {left}: lengthen a window,"
        " for example to duration: 6h, or shorten spec.drain.timeout"
    )


def _blacked_out(needed: timedelta, longest: timedelta) -> str:
    """Return the message that blackouts leave too little of windows that would otherwise be long enough. `longest` is
    the longest time that they leave. The message does not advise longer windows, which would not help."""
    left = f"at most {_text(longest)}" if longest else "nothing"
    return (
        f"{_needs(needed)}, but as far as can be foreseen spec.rollout.blackouts leave {left} of the time in which"
        " nodes could start: shorten or remove a blackout"
    )


def _needs(needed: timedelta) -> str:
    """Return the clause that says how much of its window a change needs."""
    slowest = f"the duration of the slowest of the last {RECENT} changes"
    return f"a change needs {_text(needed)} left in its window (drain.timeout plus {slowest})"


def _text(length: timedelta) -> str:
    """Return a duration in whole minutes, rounded up, such as `1h30m`."""
    hours, minutes = divmod(-(-int(length.total_seconds()) // 60), 60)
    return f"{hours}h{minutes}m" if hours and minutes else f"{hours}h" if hours else f"{minutes}m"
