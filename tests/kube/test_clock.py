"""The time of day comes from the API server once, and then goes on whatever anybody sets; and how long we wait after failures."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gpusharing.kube.clock import Backoff, SteadyClock, boot_time, half_to_one_and_a_half, wall_time

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class Machines:
    def __init__(self, wall: datetime = NOON) -> None:
        self.steady = 5000.0
        self.wall = wall
        self.server = NOON
        self.clock = SteadyClock(lambda: self.steady, lambda: self.wall)

    def passes(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += timedelta(seconds=seconds)
        self.server += timedelta(seconds=seconds)

    def ask(self, latency: float = 0.0) -> None:
        asked_at = self.clock.steady()
        self.passes(latency)
        self.clock.note_date(format_datetime(self.server, usegmt=True), asked_at)

    def error(self) -> float:
        """Seconds that our clock is ahead of NOON and what passed since."""
        return (self.clock() - NOON).total_seconds() - (self.steady - 5000.0)


def test_the_api_servers_time_is_taken_over_at_its_first_answer_to_half_a_second() -> None:
    machines = Machines(wall=NOON - timedelta(days=400))
    machines.ask()
    assert machines.error() == pytest.approx(0.5, abs=0.51)
    machines.passes(3600.25)
    assert machines.error() == pytest.approx(0.5, abs=0.51)


@pytest.mark.parametrize("step", [-600, 600, -86400])
def test_a_step_of_our_wall_clock_changes_nothing(step: int) -> None:
    machines = Machines()
    machines.ask()
    before = machines.error()
    machines.wall += timedelta(seconds=step)
    machines.passes(10)
    machines.ask()
    assert machines.error() == before


@pytest.mark.parametrize("step", [-600, 600])
def test_a_step_of_the_servers_clock_is_followed_by_no_more_than_clocks_drift(step: int) -> None:
    machines = Machines()
    machines.ask()
    before = machines.error()
    machines.server += timedelta(seconds=step)
    for _ in range(100):
        machines.passes(2)
        machines.ask()
    assert abs(machines.error() - before) == pytest.approx(0.1, abs=0.01)


def test_it_never_goes_back_while_it_follows_a_slower_server() -> None:
    machines = Machines()
    machines.ask()
    machines.server -= timedelta(seconds=600)
    seen = [machines.clock()]
    for _ in range(1000):
        machines.passes(0.001)
        machines.ask()
        seen.append(machines.clock())
    machines.passes(3600)
    seen.append(machines.clock())
    machines.ask()
    seen.append(machines.clock())
    assert seen == sorted(seen)


def test_two_clocks_that_drift_apart_stay_together() -> None:
    machines = Machines()
    machines.ask()
    for _ in range(20_000):
        machines.passes(2)
        machines.server += timedelta(seconds=2 * 0.0002)
        machines.ask()
    assert (machines.server - machines.clock()).total_seconds() == pytest.approx(0, abs=1.01)


def test_a_slow_answer_says_less_and_moves_nothing() -> None:
    machines = Machines()
    machines.ask()
    before = machines.error()
    machines.passes(1)
    machines.ask(latency=9.0)
    assert machines.error() == pytest.approx(before)


@pytest.mark.parametrize("date", ["", "soon", "Fri, 99 Foo 2026 12:00:00 GMT", "Fri, 20 Nov 99999 12:00:00 GMT"])
def test_a_header_that_is_no_date_is_ignored(date: str) -> None:
    machines = Machines()
    machines.clock.note_date(date, machines.clock.steady())
    assert machines.error() == 0
    machines.server += timedelta(days=1)
    machines.ask()
    assert machines.error() == pytest.approx(86400.5, abs=0.51), "the first answer is still to come"


def test_without_an_answer_it_begins_with_this_machines_own_time_and_goes_on_by_the_clock_that_sleeps_never() -> None:
    assert abs((SteadyClock()() - wall_time()).total_seconds()) < 1
    assert boot_time() <= boot_time()


def test_waits_double_up_to_a_limit_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0, lambda: 1.0)
    assert [backoff.after_failure() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.success()
    assert backoff.after_failure() == 1.0


def test_who_failed_together_does_not_come_back_together() -> None:
    waits = {Backoff(1.0, 5.0).after_failure() for _ in range(20)}
    assert len(waits) == 20
    assert 0.5 <= min(waits) <= max(waits) <= 1.5
    assert 0.5 <= half_to_one_and_a_half() <= 1.5
