"""Windows and blackouts as spans of time, and whether a node may start by them with the time that is left."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from tests.build import make_node, make_policy
from tests.wording import lacks

from gpusharing.api.policy import Window
from gpusharing.kube.convert import find_zone
from gpusharing.planning.pools.windows import Hours, ZonedWindow, find_flaw, find_hours, find_spans, needed_time
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.reasons import Reason

NIGHTLY = {"schedule": "0 22 * * *", "duration": "2h"}


def at(hour: int, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 11, 20, hour, minute, second, tzinfo=UTC)


def hours(now: datetime, *nodes: NodeView, timeout: str = "15m", **rollout: Any) -> Hours:
    policy = make_policy(rollout=rollout, drain={"timeout": timeout})
    assert policy.spec is not None
    return find_hours(policy.spec, policy.zones, nodes, now)


def reason(found: Hours) -> Reason | None:
    return None if found.closed is None else found.closed.reason


def changed(minutes: int, day: int) -> NodeView:
    """A node whose last change took so long, and was proven on that day of November."""
    proof = Verified(
        "pool-b", "x", "y", layout="1x full", gpus=1, changed_at=datetime(2026, 11, day, tzinfo=UTC), took=minutes * 60
    )
    return make_node(f"n{minutes}", verified=proof)


def test_without_windows_nodes_start_at_any_time() -> None:
    assert hours(at(12)) == Hours()
    assert (hours(at(12)).next_window, hours(at(12)).listed) == ("", [])


def test_outside_a_window_no_node_starts_and_the_message_says_until_when() -> None:
    found = hours(at(12), windows=[NIGHTLY])
    assert reason(found) is Reason.WINDOW_CLOSED
    assert found.closed is not None
    assert (found.closed.until, found.change) == (at(22), at(22))
    assert "2026-11-20T22:00:00Z" in found.closed.message
    assert found.next_window == "2026-11-20T22:00:00Z"
    assert found.listed[0] == "2026-11-20T22:00:00Z to 2026-11-21T00:00:00Z"
    assert len(found.listed) == 3


def test_within_a_window_nodes_start_while_enough_of_it_is_left() -> None:
    begins, last, late = at(22), at(23, 30), at(23, 30, 1)
    assert [reason(hours(now, windows=[NIGHTLY])) for now in (begins, last, late)] == [None, None, Reason.WINDOW_CLOSED]
    found = hours(begins, windows=[NIGHTLY])
    assert found.next_window == "open until 2026-11-21T00:00:00Z"
    assert found.listed[0] == "now to 2026-11-21T00:00:00Z"
    assert found.change == late
    assert "30m of the window left" in str(hours(late, windows=[NIGHTLY]).closed)


def test_a_start_needs_the_drain_and_the_slowest_of_the_last_20_changes() -> None:
    spec = make_policy(drain={"timeout": "20m"}).spec
    assert spec is not None
    assert needed_time(spec, []) == timedelta(minutes=35)
    assert needed_time(spec, [make_node(), changed(3, 2), changed(9, 1)]) == timedelta(minutes=29)
    old = [changed(50, 1), *(changed(2, day) for day in range(2, 22))]
    assert needed_time(spec, old) == timedelta(minutes=22)


def test_a_long_window_is_found_behind_however_many_that_are_too_short() -> None:
    hourly, weekly = ({"schedule": "0 * * * *", "duration": "10m"}, {"schedule": "30 1 * * 0", "duration": "6h"})
    found = hours(at(8), windows=[hourly, weekly])
    assert reason(found) is Reason.WINDOW_CLOSED
    assert found.change is not None
    assert (found.change.weekday(), found.change.hour, found.change.minute) == (6, 1, 30)
    beside = [{"schedule": "0 1 * * 0", "duration": "8h"}]
    covered = hours(at(8), windows=[hourly, weekly], blackouts=beside)
    assert reason(covered) is Reason.WINDOW_TOO_SHORT


LIMIT = 30 + 10
"""Minutes of the two time limits after the point of no return."""
LATE = {"by as much again": (2 * LIMIT, LIMIT), "by a minute more": (2 * LIMIT + 1, 15), "by days": (3000, 15)}


@pytest.mark.parametrize(("took", "counts"), LATE.values(), ids=LATE)
def test_what_ended_after_its_time_limit_counts_as_that_unless_it_must_have_waited_for_a_person(
    took: int, counts: int
) -> None:
    spec = make_policy(drain={"timeout": "20m"}).spec
    assert spec is not None
    assert needed_time(spec, [changed(took, 2)]) == timedelta(minutes=20 + counts)
    assert needed_time(spec, [changed(took, 2), changed(3, 1)]) == timedelta(
        minutes=20 + (counts if counts == LIMIT else 3)
    )


def test_a_blackout_wins_over_a_window() -> None:
    found = hours(at(22, 5), windows=[NIGHTLY], blackouts=[{"schedule": "0 21 * * *", "duration": "2h"}])
    assert found.closed is not None
    assert found.closed.until == at(23)


def test_a_window_that_is_never_open_long_enough_is_named_with_how_long_it_is() -> None:
    found = hours(at(12), windows=[{"schedule": "0 22 * * *", "duration": "20m"}])
    assert reason(found) is Reason.WINDOW_TOO_SHORT
    assert found.closed is not None
    assert all(text in found.closed.message for text in ("needs 30m", "for at most 20m", "duration: 6h"))
    assert found.closed.until is None
    leap = {"schedule": "0 22 29 2 *", "duration": "20m"}
    both = hours(at(12), windows=[leap], blackouts=[{"schedule": "0 21 29 2 *", "duration": "3h"}])
    assert "are never open: lengthen a window" in str(both.closed), "without the blackout it is too short as well"


ENDLESS = {"schedule": "* * * * *", "duration": "1m"}
NOTHING = "leave nothing of the time"
BLACKED_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "blackouts without an end": ({"windows": [NIGHTLY], "blackouts": [ENDLESS]}, NOTHING),
    "blackouts without an end, and no window": ({"blackouts": [ENDLESS]}, NOTHING),
    "every day, all day": (
        {"windows": [NIGHTLY], "blackouts": [{"schedule": "0 0 * * *", "duration": "24h"}]}, NOTHING),
    "every window, all of it": (
        {"windows": [NIGHTLY], "blackouts": [{"schedule": "0 21 * * *", "duration": "3h"}]}, NOTHING),
    "every window, most of it": (
        {"windows": [NIGHTLY], "blackouts": [{"schedule": "20 22 * * *", "duration": "100m"}]}, "leave at most 20m"),
}  # fmt: skip


@pytest.mark.parametrize(("rollout", "left"), BLACKED_OUT.values(), ids=BLACKED_OUT)
def test_where_blackouts_leave_too_little_of_windows_that_are_long_enough_the_blackouts_are_named(
    rollout: dict[str, Any], left: str
) -> None:
    found = hours(at(12), **rollout)
    assert reason(found) is Reason.WINDOW_TOO_SHORT
    assert found.closed is not None
    assert not lacks(found.closed.message, "30m", "drain.timeout")
    assert f"spec.rollout.blackouts {left}" in found.closed.message
    assert found.closed.message.endswith("shorten or remove a blackout")
    assert (found.closed.until, found.change) == (None, None)


def test_blackouts_that_follow_each_other_for_two_weeks_have_an_end_that_is_told() -> None:
    weeks = [{"schedule": f"0 0 {day} 12 *", "duration": "168h"} for day in (24, 31)]
    now, end = datetime(2026, 12, 25, 12, tzinfo=UTC), datetime(2027, 1, 7, tzinfo=UTC)
    alone, nightly = hours(now, blackouts=weeks), hours(now, windows=[NIGHTLY], blackouts=weeks)
    opens = end.replace(hour=22)
    assert [reason(one) for one in (alone, nightly)] == [Reason.WINDOW_CLOSED] * 2
    assert [one.change for one in (alone, nightly)] == [end, opens]
    assert nightly.closed is not None
    assert nightly.closed.until == opens
    assert nightly.closed.message.endswith("the next change may start at 2027-01-07T22:00:00Z")


def test_a_window_that_nobody_can_follow_keeps_everything_closed_and_is_named() -> None:
    wrong = {**NIGHTLY, "timeZone": "Mars/Olympus"}
    found = hours(at(22), windows=[NIGHTLY, wrong])
    assert reason(found) is Reason.INVALID_WINDOW
    assert 'spec.rollout.windows[1].timeZone "Mars/Olympus"' in str(found.closed)
    blackout = hours(at(22), windows=[NIGHTLY], blackouts=[{"schedule": "0 0 * * 5-1", "duration": "1h"}])
    assert 'spec.rollout.blackouts[0].schedule "0 0 * * 5-1"' in str(blackout.closed)


def test_the_text_is_the_same_while_nothing_changes() -> None:
    texts = {str(replace(hours(at(12, minute), windows=[NIGHTLY]))) for minute in range(0, 60, 7)}
    assert len(texts) == 1
    assert len({hours(at(22, minute), windows=[NIGHTLY]).next_window for minute in range(0, 60, 7)}) == 1


def test_always_open_is_told_as_open() -> None:
    found = hours(at(12), windows=[{"schedule": "0 0 * * *", "duration": "48h"}])
    assert (found.closed, found.next_window, found.listed, found.change) == (None, "open", ["now to open end"], None)


# --- windows and blackouts as spans of time --------------------------------------------------------------------------

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
    "after Friday comes Monday": (spans("2026-11-20 10:00", NIGHTS, count=2)[1:], ["2026-11-23 21:00 to 24 03:00"]),
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
    "Friday night lasts until Saturday": (spans("2026-11-21 12:00", WORKDAYS_9_TO_5), ["2026-11-21 12:00 to 21 13:00"]),
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
    given = (window("7 */5 * * *", "3h"), window("0 3 * * 2", "30h", ANGELES), window("30 1 * * *", "45m", BERLIN))
    found = list(islice(find_spans(given, (window("0 */4 * * *", "25m", BERLIN),), moment("2026-10-20 00:00")), 60))
    assert all(span.closes is not None and span.closes - span.opens > timedelta(0) for span in found)
    assert all(one.closes is not None and one.closes < two.opens for one, two in pairwise(found))
