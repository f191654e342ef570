"""Windows and blackouts as spans of time: cron, elapsed time, zones, and the two nights on which the clocks change."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest

from gpusharing.api.policy import Window
from gpusharing.kube.convert import find_zone
from gpusharing.planning.pools.windows import ZonedWindow, find_flaw, find_spans

BERLIN, ANGELES = "Europe/Berlin", "America/Los_Angeles"


def window(schedule: str, duration: str, zone: str = "UTC") -> ZonedWindow:
    return ZonedWindow(Window(schedule=schedule, duration=duration, time_zone=zone), find_zone(zone))


def moment(text: str) -> datetime:
    """`2026-11-20 22:00`, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def spans(after: str, *windows: ZonedWindow, blackouts: tuple[ZonedWindow, ...] = (), count: int = 1) -> list[str]:
    """The next spans as `from to to`, in UTC."""
    found = islice(find_spans(windows, blackouts, moment(after)), count)
    return [
        f"{span.opens:%Y-%m-%d %H:%M} to {'the end of time' if span.closes is None else f'{span.closes:%d %H:%M}'}"
        for span in found
    ]


NIGHTS = window("0 22 * * 1-5", "6h", BERLIN)
HALF_PAST_TWO = window("30 2 * * *", "2h", BERLIN)
WORKDAYS_9_TO_5 = window("0 21 * * 1-5", "8h", ANGELES)
CASES: dict[str, tuple[list[str], list[str]]] = {
    "a night of the week": (spans("2026-11-20 10:00", NIGHTS), ["2026-11-20 21:00 to 21 03:00"]),
    "after Friday comes Monday": (
        spans("2026-11-20 10:00", NIGHTS, count=2)[1:], ["2026-11-23 21:00 to 24 03:00"]),
    "in the middle of one": (spans("2026-11-20 23:30", NIGHTS), ["2026-11-20 23:30 to 21 03:00"]),
    "at its very end it is over": (spans("2026-11-21 03:00", NIGHTS), ["2026-11-23 21:00 to 24 03:00"]),
    "no zone is UTC": (spans("2026-11-20 10:00", window("0 22 * * *", "1h")), ["2026-11-20 22:00 to 20 23:00"]),
    "two that overlap are one": (
        spans("2026-11-20 10:00", window("0 22 * * *", "2h"), window("0 23 * * *", "3h")),
        ["2026-11-20 22:00 to 21 02:00"]),
    "two that touch are one": (
        spans("2026-11-20 10:00", window("0 22 * * *", "2h"), window("0 0 * * *", "2h")),
        ["2026-11-20 22:00 to 21 02:00"]),
    "a blackout is cut out": (
        spans("2026-11-20 10:00", NIGHTS, blackouts=(window("30 23 * * *", "1h"),), count=2),
        ["2026-11-20 21:00 to 20 23:30", "2026-11-21 00:30 to 21 03:00"]),
    "a blackout that covers the beginning": (
        spans("2026-11-20 10:00", NIGHTS, blackouts=(window("0 20 * * *", "2h"),)), ["2026-11-20 22:00 to 21 03:00"]),
    "blackouts alone leave the rest": (
        spans("2026-12-23 10:00", blackouts=(window("0 0 24 12 *", "72h"),), count=2),
        ["2026-12-23 10:00 to 24 00:00", "2026-12-27 00:00 to the end of time"]),
    "blackouts in a row end with the last, weeks later": (
        spans("2026-12-25 10:00", blackouts=(window("0 0 24 12 *", "168h"), window("0 0 31 12 *", "168h"))),
        ["2027-01-07 00:00 to the end of time"]),
    "blackouts without end leave nothing": (
        spans("2026-12-23 10:00", NIGHTS, blackouts=(window("* * * * *", "1m"),)), []),
    "one that is longer than its recurrence is always open": (
        spans("2026-11-20 10:00", window("0 0 * * *", "48h")), ["2026-11-20 10:00 to the end of time"]),
    "every minute for a minute is always open": (
        spans("2026-11-20 10:00", window("* * * * *", "1m")), ["2026-11-20 10:00 to the end of time"]),
    "in the middle of one that comes once a year": (
        spans("2026-01-01 12:00", window("0 0 1 1 *", "24h")), ["2026-01-01 12:00 to 02 00:00"]),
    "a leap day is looked for": (
        spans("2026-11-20 10:00", window("0 0 29 2 *", "3h")), ["2028-02-29 00:00 to 29 03:00"]),
    "the last Friday of a month": (
        spans("2026-11-20 10:00", window("0 1 * * 5L", "3h")), ["2026-11-27 01:00 to 27 04:00"]),
    "Friday night lasts until Saturday": (
        spans("2026-11-21 12:00", WORKDAYS_9_TO_5), ["2026-11-21 12:00 to 21 13:00"]),
    "a start that does not exist is at the next minute that does": (
        spans("2026-03-28 23:00", HALF_PAST_TWO, count=2),
        ["2026-03-29 01:00 to 29 03:00", "2026-03-30 00:30 to 30 02:30"]),
    "a start that is there twice is the first": (
        spans("2026-10-24 23:00", HALF_PAST_TWO, count=2),
        ["2026-10-25 00:30 to 25 02:30", "2026-10-26 01:30 to 26 03:30"]),
    "in the second of two hours the start of the first counts": (
        spans("2026-10-25 01:10", HALF_PAST_TWO), ["2026-10-25 01:10 to 25 02:30"]),
    "six hours are six hours on the short night": (
        spans("2026-03-28 12:00", window("0 22 * * *", "6h", BERLIN)), ["2026-03-28 21:00 to 29 03:00"]),
    "six hours are six hours on the long night": (
        spans("2026-10-24 12:00", window("0 22 * * *", "6h", BERLIN)), ["2026-10-24 20:00 to 25 02:00"]),
}  # fmt: skip


@pytest.mark.parametrize(("found", "expected"), CASES.values(), ids=CASES.keys())
def test_when_nodes_may_start(found: list[str], expected: list[str]) -> None:
    assert found == expected


FLAWS = {
    "days of the week the wrong way round": (window("0 0 * * 5-1", "1h"), "schedule", "day-of-week"),
    "a minute that no hour has": (window("61 * * * *", "1h"), "schedule", "minute"),
    "a day that no year has": (window("0 0 31 2 *", "1h"), "schedule", "day-of-month"),
    "a weekday that no such month has": (window("0 0 30 2 *", "1h"), "schedule", "day-of-month"),
    "a zone that does not exist": (window("0 0 * * *", "1h", "Mars/Olympus"), "timeZone", "Europe/Berlin"),
    "a continent": (window("0 0 * * *", "1h", "Europe"), "timeZone", "Europe/Berlin"),
    "a file beside the zones": (window("0 0 * * *", "1h", "__init__"), "timeZone", "Europe/Berlin"),
}


@pytest.mark.parametrize(("given", "field", "said"), FLAWS.values(), ids=FLAWS.keys())
def test_a_window_that_nobody_can_follow_is_found_out(given: ZonedWindow, field: str, said: str) -> None:
    flaw = find_flaw(given)
    assert flaw is not None
    assert flaw[0] == field
    assert said in flaw[1]


def test_a_window_that_can_be_followed_has_no_flaw() -> None:
    assert [find_flaw(one) for one in (NIGHTS, HALF_PAST_TWO, window("*/5 0-3,22 * jan,dec sun", "1m"))] == [None] * 3


def test_spans_come_in_order_and_never_touch() -> None:
    given = (
        window("7 */5 * * *", "3h"),
        window("0 3 * * 2", "30h", ANGELES),
        window("30 1 * * *", "45m", BERLIN),
    )
    found = list(islice(find_spans(given, (window("0 */4 * * *", "25m", BERLIN),), moment("2026-10-20 00:00")), 60))
    assert all(span.closes is not None and span.closes - span.opens > timedelta(0) for span in found)
    assert all(one.closes is not None and one.closes < two.opens for one, two in pairwise(found))
