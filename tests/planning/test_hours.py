"""Whether a node may start by the policy's windows: against the time that is left, and what is told of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.build import make_node, make_policy
from tests.wording import lacks

from gpusharing.planning.pools.windows import Hours, find_hours, needed_time
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
    hourly, weekly = (
        {"schedule": "0 * * * *", "duration": "10m"},
        {"schedule": "30 1 * * 0", "duration": "6h"},
    )
    found = hours(at(8), windows=[hourly, weekly])
    assert reason(found) is Reason.WINDOW_CLOSED
    assert found.change is not None
    assert (found.change.weekday(), found.change.hour, found.change.minute) == (6, 1, 30)
    beside = [{"schedule": "0 1 * * 0", "duration": "8h"}]
    covered = hours(at(8), windows=[hourly, weekly], blackouts=beside)
    assert reason(covered) is Reason.WINDOW_TOO_SHORT


LIMIT = 30 + 10
"""Minutes of the two time limits after the point of no return."""
LATE = {
    "by as much again": (2 * LIMIT, LIMIT),
    "by a minute more": (2 * LIMIT + 1, 15),
    "by days": (3000, 15),
}


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
    assert (found.closed, found.next_window, found.listed, found.change) == (
        None,
        "open",
        ["now to open end"],
        None,
    )
