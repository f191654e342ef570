"""Stretches of time for queries to Prometheus: as typed, in days, and those without data."""

import re
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from gpusharing.api.times import from_rfc3339, to_rfc3339
from gpusharing.cli.shell.drawing import length
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.usage.prometheus.client import Prometheus

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
LEAST, MOST = 600, 366 * 86400
"""Seconds of a window: a counter needs some scrapes to grow in, and a year is a bill."""
DAY = 86400.0
SHORT = 600.0
"""Seconds: a shorter stretch is not a day of its own, because it may lie between two points of a subquery."""
LOOKBACK = 300.0
"""Seconds for which Prometheus keeps returning a value (--query.lookback-delta): shorter gaps are invisible."""
MOST_POINTS = 3000
"""Of one series in an answer; Prometheus refuses more than 11,000."""


def seconds_of(window: str, most: int = MOST) -> int:
    """A length of time. Raises Trouble."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", window)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not LEAST <= seconds <= most:
        raise Trouble(f"--window {window}: write 10m to {most // 86400}d, such as 12h, 30d or 4w")
    return seconds


def span_of(typed: Namespace, now: float, most: int = MOST) -> tuple[float, float]:
    """From when to when, by --window and --until; until `now` by default. Raises Trouble."""
    end = now
    if typed.until:
        until = from_rfc3339(f"{typed.until}T00:00:00Z" if len(typed.until) == 10 else typed.until)
        if until is None:
            raise Trouble(
                f"--until {typed.until}: write a day or a time, such as 2026-11-01 or 2026-11-01T06:00:00Z"
            )
        end = until.timestamp()
        if now and end > now + 60:
            raise Trouble(f"--until {typed.until} is in the future")
    return end - seconds_of(typed.window, most), end


def days(start: float, end: float) -> list[tuple[float, float]]:
    """The window in stretches of about a day at most, oldest first; the last ones are whole days."""
    found: list[tuple[float, float]] = []
    while end - start >= DAY + SHORT:
        found.append((end - DAY, end))
        end -= DAY
    return [*([(start, end)] if end > start else []), *reversed(found)]


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
    """The parts of the window for which Prometheus has no data; `query` has a value wherever there is data. `lost`:
    what follows from a gap; `points`: how closely to look, at most. Raises Trouble with the text `nothing` when that is
    all of it.
    """
    step = max(60.0, (end - start) / points)
    found = await prometheus.between(query, start, end, step)
    seen = sorted(at for one in found for at, _ in one.points)
    if not seen:
        raise Trouble(nothing)
    told: list[str] = []
    least = LOOKBACK + 2 * step
    if seen[0] - start > least:
        told.append(
            f"history begins at {moment(seen[0])}: {duration(end - seen[0])} of {duration(end - start)}"
        )
    holes = [(a, b) for a, b in pairwise(seen) if b - a > 2 * step + 1]
    if holes:
        (first, last), whole = holes[0], sum(b - a for a, b in holes)
        which = f"{counted(len(holes), 'gap')}, {'the first ' if len(holes) > 1 else ''}from"
        told.append(
            f"Prometheus has no data for {duration(whole)} in total, in {which} {moment(first)} to"
            f" {moment(last)}; {lost}"
        )
    if end - seen[-1] > least:
        told.append(f"Prometheus has had no data since {moment(seen[-1])}")
    return told


def moment(at: float) -> str:
    """A time, to the second, in UTC."""
    return to_rfc3339(datetime.fromtimestamp(round(at), UTC))


def duration(seconds: float) -> str:
    """A length of time, as people write it."""
    return length(timedelta(seconds=seconds))
