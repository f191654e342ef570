"""Which time does a verb look at, and in which steps is it read?"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby, pairwise
from math import ceil

from gpusharing.api.times import from_rfc3339, to_rfc3339
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.drawing import length
from kubectl_gpusharing.shell.session import T, side_by_side
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus import Prometheus, Series

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
LEAST, MOST = 600, 366 * 86400
"""The window in seconds: a counter needs several scrapes to grow, and a year is enough for a bill."""
DAY = 86400.0
SHORT = 600.0
"""The shortest stretch, in seconds: a shorter one may lie between two points of a subquery."""
AT_ONCE = 4
"""How many days one query covers, at most. Answers stay small, and several queries can run at a time."""
LOOKBACK = 300.0
"""Seconds for which Prometheus keeps returning a value (--query.lookback-delta). Shorter gaps are invisible."""
MOST_POINTS = 3000
"""The highest number of points of one series in an answer; Prometheus refuses more than 11,000."""
Answers = defaultdict[str, list[Series]]
"""The answers for one stretch of time, by the names of their queries; empty if a query was not necessary."""


def span_of(typed: Arguments, now: float, most: int = MOST) -> tuple[float, float]:
    """Return the window of `--window` and `--until`, in seconds since 1970. If `now` is 0, it may end in the future."""
    end = now
    if typed.until:
        until = from_rfc3339(f"{typed.until}T00:00:00Z" if len(typed.until) == 10 else typed.until)
        if until is None:
            raise Trouble(
                f"--until {typed.until}: use a date or a timestamp, for example 2026-11-01 or 2026-11-01T06:00:00Z"
            )
        end = until.timestamp()
        if now and end > now + 60:
            raise Trouble(f"--until {typed.until} is in the future")
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", typed.window)
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    if not LEAST <= seconds <= most:
        raise Trouble(f"--window {typed.window}: use a length from 10m to {most // 86400}d, for example 12h, 30d or 4w")
    return end - seconds, end


@dataclass(frozen=True, slots=True)
class Days:
    """Stretches of equal length, each of which begins at the end of the one before it."""

    ends: tuple[float, ...]
    """The end of each stretch, in seconds since 1970, oldest first; at most AT_ONCE."""
    seconds: int

    @property
    def start(self) -> float:
        return self.ends[0] - self.seconds

    async def read(self, prometheus: Prometheus, queries: Mapping[str, str]) -> list[Answers]:
        """Run these queries concurrently and return their answers for each stretch, infinite and NaN included."""
        # A single point needs no step, and a proxy would move it to a multiple of one.
        step, span = self.seconds if len(self.ends) > 1 else 1, (self.ends[0], self.ends[-1])
        found = await side_by_side(*(prometheus.between_all(query, *span, step) for query in queries.values()))
        answers = [Answers(list) for _ in self.ends]
        for name, series in zip(queries, found, strict=True):
            for day, end in zip(answers, self.ends, strict=True):
                points = ((one.labels, point) for one in series for point in one.points)
                day[name] = [Series(labels, (point,)) for labels, point in points if abs(point[0] - end) < 1]
        return answers

    async def read_apart(self, prometheus: Prometheus, queries: Mapping[str, str]) -> list[Answers]:
        """Do as `read`, one stretch after another: Prometheus refuses to load too many samples at a time."""
        apart = [await Days((end,), self.seconds).read(prometheus, queries) for end in self.ends]
        return [*chain.from_iterable(apart)]


def days(start: float, end: float) -> list[Days]:
    """Divide a window at each midnight of UTC, oldest first, into groups of up to AT_ONCE whole days.

    A rest that is shorter than SHORT is part of the day beside it.
    """
    midnights = (day * DAY for day in range(ceil((start + SHORT) / DAY), int((end - SHORT) // DAY) + 1))
    groups = []
    for seconds, pairs in groupby(pairwise((start, *midnights, end)), lambda pair: round(pair[1] - pair[0])):
        ends = [until for _, until in pairs]
        groups += [Days(tuple(batch), seconds) for batch in batched(ends, AT_ONCE)]
    return groups


def batched(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


async def find_gaps(
    prometheus: Prometheus,
    query: str,
    start: float,
    end: float,
    *,
    nothing: str,
    lost: str,
    points: float = MOST_POINTS,
) -> list[str]:
    """Return one sentence for each kind of gap in the data of `query`, sampled at about `points` times at most.

    `lost` is a clause about the consequence of a gap. Raises Trouble with the message `nothing` without any data.
    """
    step = max(60.0, (end - start) / points)
    answer = await prometheus.between(query, start, end, step)
    times = sorted(at for series in answer for at, _ in series.points)
    if not times:
        raise Trouble(nothing)
    sentences, least = list[str](), LOOKBACK + 2 * step
    if times[0] - start > least:
        sentences.append(
            f"the history begins at {moment(times[0])} and covers {duration(end - times[0])} of {duration(end - start)}"
        )
    holes = [(a, b) for a, b in pairwise(times) if b - a > 2 * step + 1]
    if holes:
        (first, last), whole = holes[0], sum(b - a for a, b in holes)
        which = f"{counted(len(holes), 'gap')}, {'the first ' if len(holes) > 1 else ''}from"
        sentences.append(
            f"Prometheus has no data for {duration(whole)} in total, in {which} {moment(first)} to"
            f" {moment(last)}; {lost}"
        )
    if end - times[-1] > least:
        sentences.append(f"Prometheus has had no data since {moment(times[-1])}")
    return sentences


def moment(at: float) -> str:
    return to_rfc3339(datetime.fromtimestamp(round(at), UTC))


def duration(seconds: float) -> str:
    return length(timedelta(seconds=seconds))
