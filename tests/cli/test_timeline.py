"""A rollout in time, from the nodes' histories (kubectl_gpusharing/pools/timeline.py)."""

from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW
from tests.cli.desk import Desk
from tests.cli.objects import gpunode, history, policy, pools_of
from tests.wording import lacks

from gpusharing.api.names import WAY
from gpusharing.planning.report.transition import MAX_HISTORY
from kubectl_gpusharing.pools.fleet import PoolStatus, State
from kubectl_gpusharing.pools.timeline import LETTERS, Timeline, describe_timeline, find_timeline
from kubectl_gpusharing.shell.drawing import PrintOptions, plain

JSON = dict[str, Any]
DONE = gpunode(
    "n-0",
    history=history(
        ("Pending", 50), ("Cordoned", 40), ("Draining", 38), ("Reconfiguring", 30), ("Verifying", 24), ("Synced", 20)
    ),
)
DRAINS = gpunode("n-1", "Draining", "PDB", history=history(("Pending", 50), ("Cordoned", 20), ("Draining", 16)))
WAITS = gpunode("n-2", "Pending", "BudgetFull", history=history(("Synced", 90000), ("Pending", 50)))


def pool(*nodes: JSON) -> PoolStatus:
    (found,), _ = pools_of([policy()], nodes)
    return found


def shown(*nodes: JSON, options: PrintOptions | None = None) -> str:
    return plain(describe_timeline(pool(*nodes), NOW, options or PrintOptions(80)))


def seen(*nodes: JSON) -> Timeline:
    found = find_timeline(pool(*nodes), NOW)
    assert found is not None
    return found


def test_a_rollout_that_goes_on_is_drawn_from_its_first_change_until_now() -> None:
    assert (
        shown(WAITS, DRAINS, DONE)
        == """\
  09:20:00Z to 10:00:00Z; each cell stands for 50s
  n-0  ccddddddddddrrrrrrrvvvvv████████████████████████  20m
  n-1  ░░░░░░░░░░░░░░░░░░░░░░░░cccccddddddddddddddddddd  Draining
  n-2  ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  Pending
  c Cordoned; d Draining; r Reconfiguring; v Verifying; █ done; ░ to go
"""
    )


def test_a_rollout_that_is_over_ends_with_its_last_change() -> None:
    begin, end, tracks = seen(DONE)
    assert (begin, tracks[0].took) == (NOW - timedelta(minutes=40), timedelta(minutes=20))
    assert end == NOW - timedelta(minutes=19), "a twentieth more, for the end to be seen"


def test_what_was_done_days_before_is_another_rollout() -> None:
    long_ago = history(("Cordoned", 4000), ("Synced", 3990))
    assert [track.node for track in seen(DRAINS, gpunode("n-9", history=long_ago))[2]] == ["n-1"]


def test_nights_of_a_rollout_with_windows_are_one_rollout() -> None:
    last_night = history(("Cordoned", 24 * 60), ("Synced", 24 * 60 - 10))
    _, _, tracks = seen(DRAINS, gpunode("n-9", history=last_night))
    assert [track.node for track in tracks] == ["n-9", "n-1"]
    assert "2026-11-19 10:00:00Z to 2026-11-20 10:00:00Z" in shown(DRAINS, gpunode("n-9", history=last_night))


def test_of_a_node_that_changed_twice_the_last_change_is_shown() -> None:
    twice = history(("Cordoned", 60), ("Synced", 50), ("Cordoned", 10), ("Synced", 5))
    assert seen(gpunode("n-0", history=twice))[0] == NOW - timedelta(minutes=10)


def test_how_long_a_change_took_is_not_told_if_its_begin_is_lost() -> None:
    retried = [(("Failed", "Reconfiguring")[number % 2], 100 - number) for number in range(MAX_HISTORY - 1)]
    _, _, (track,) = seen(gpunode("n-0", history=history(*retried, ("Synced", 50))))
    assert track.took is None
    _, _, (track,) = seen(gpunode("n-0", history=history(*retried[1:], ("Synced", 50))))
    assert track.took == timedelta(minutes=49)


def test_what_needs_a_person_is_seen_however_short_it_was() -> None:
    short = history(("Cordoned", 1000), ("Failed", 500), ("Reconfiguring", 499.9))
    assert "x" in shown(gpunode("n-0", "Reconfiguring", "Waits", history=short)).splitlines()[1]


def test_where_no_node_ever_changed_it_is_told() -> None:
    assert shown(gpunode("n-0"), WAITS) == "  The node histories contain no changes.\n"


EDITED = gpunode(
    "n-0",
    "Blocked",
    "PDBNeverAllows",
    history=history(("Pending", 9), ("Cordoned", 8), ("Reconfiguring", 6), ("Synced", 3), ("Blocked", 1)),
)
SINCE = NOW - timedelta(minutes=8)


def test_an_edit_that_is_blocked_on_every_node_leaves_the_rollout_before_it_the_last() -> None:
    begin, end, (track,) = seen(EDITED)
    assert (begin, end, track.took) == (SINCE, NOW - timedelta(minutes=2.75), timedelta(minutes=5))
    other = gpunode("n-1", history=history(("Cordoned", 8), ("Synced", 4)))
    assert [(one.node, one.took) for one in seen(EDITED, other)[2]] == [
        ("n-0", timedelta(minutes=5)),
        ("n-1", timedelta(minutes=4)),
    ]


def test_once_an_edit_changes_a_node_the_rollout_before_it_is_not_the_last() -> None:
    begun = gpunode("n-1", "Cordoned", "Waits", history=history(("Cordoned", 9), ("Synced", 4), ("Cordoned", 0.5)))
    begin, end, tracks = seen(EDITED, begun)
    assert (begin, end) == (NOW - timedelta(minutes=0.5), NOW)
    assert [[one.phase for one in track.stretches] for track in tracks] == [["Cordoned"], ["Blocked"]]


def test_a_clock_that_is_behind_draws_no_negative_time() -> None:
    ahead = gpunode("n-0", "Draining", "PDB", history=history(("Cordoned", -5), ("Draining", -10)))
    assert all(one.begin <= one.end for track in seen(ahead)[2] for one in track.stretches)


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100])
def test_no_line_of_a_timeline_is_longer_than_the_terminal_and_without_unicode_it_is_ascii(width: int) -> None:
    long_name = {**DRAINS, "metadata": {"name": "ip-10-0-12-34.eu-central-1.compute.internal"}}
    lines = shown(DONE, long_name, WAITS, options=PrintOptions(width)).splitlines()
    assert max(map(len, lines)) <= width
    assert any("ccdd" in line or "cd" in line for line in lines)
    assert shown(DONE, DRAINS, WAITS, options=PrintOptions(width, glyphs=False)).isascii()


def test_each_phase_of_a_change_has_a_letter_and_no_letter_is_a_glyph_of_a_state() -> None:
    assert set(WAY) < set(LETTERS)
    letters = set(LETTERS.values())
    assert len(letters) == len(LETTERS)
    assert letters.isdisjoint({glyph for one in State for glyph in (one.value.drawn, one.value.ascii)})


def test_of_many_nodes_the_first_are_drawn() -> None:
    nodes = [{**DRAINS, "metadata": {"name": f"n-{number:02}"}} for number in range(25)]
    assert not lacks(shown(*nodes), "5 more nodes", "-o wide")
    assert "n-24" in shown(*nodes, options=PrintOptions(80, wide=True))


def test_status_draws_it_when_it_is_asked_to(desk: Desk) -> None:
    assert "each cell stands for" in desk.type("status", "--timeline").out
    assert "each cell stands for" not in desk.type("status").out
