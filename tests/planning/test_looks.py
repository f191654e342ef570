"""Blocked nodes share a few looks at their pods per poll, in turn."""

from tests.build import NOW, at

from gpusharing.planning.snapshot.memory import LOOKS, Look, count_recent, find_due
from gpusharing.planning.snapshot.records import SpecVersion

POLL = 5.0


def look(seconds: float, tries: int = 1) -> Look:
    """One look, so many seconds from now."""
    return Look(SpecVersion("uid-pool-b", "r1"), "", at(seconds), tries, ())


def test_those_that_wait_longest_come_first_and_no_more_than_a_few_per_poll() -> None:
    looks = {f"n{n:02}": look(-100 + n) for n in range(40)}
    assert find_due(looks.items(), NOW, POLL) == {f"n{n:02}" for n in range(LOOKS)}


def test_looks_of_the_last_poll_count() -> None:
    looks = {f"n{n:02}": look(-100) for n in range(40)} | {f"m{n}": look(-n) for n in range(3)}
    assert len(find_due(looks.items(), NOW, POLL)) == LOOKS - 3
    assert count_recent(looks.values(), NOW, POLL) == 3
    assert count_recent(looks.values(), at(5), POLL) == 0


def test_nobody_is_looked_at_before_its_time() -> None:
    looks = {"early": look(-4), "due": look(-10, 2), "later": look(-10, 3)}
    assert find_due(looks.items(), NOW, POLL) == {"due"}


def test_forty_blocked_nodes_all_get_their_turn() -> None:
    looks, seen = {f"n{n}": look(-60, 9) for n in range(40)}, []
    for second in range(60):
        for name in find_due(looks.items(), at(second), POLL):
            seen.append(name)
            looks[name] = look(second, 9)
    assert sorted(seen) == sorted(looks)


def test_after_many_looks_by_others_nobody_is_looked_at_until_the_next_poll() -> None:
    looks = {f"n{n:02}": look(-100) for n in range(40)} | {f"m{n:02}": look(-1) for n in range(LOOKS + 3)}
    assert find_due(looks.items(), NOW, POLL) == frozenset()


def test_a_node_that_is_blocked_for_years_is_looked_at_once_a_minute() -> None:
    assert look(0, 10**6).due(POLL) == at(60)
