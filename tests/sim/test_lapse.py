"""The SIMULATED clock that goes on when every agent has turned and was seen (hack/sim/agentpages.py)."""

from hack.sim.agentpages import STEP, Lapse


def test_a_step_waits_for_every_agent_and_for_whoever_looks() -> None:
    lapse = Lapse()
    begin = lapse.at
    one, other = lapse.join("one"), lapse.join("other")
    assert (one(), one()) == (begin, begin), "a turn alone is not enough, however often"
    lapse.record_scrape("one")
    lapse.record_scrape("other")
    assert lapse.at == begin, "one agent has not turned"
    assert other() == begin + STEP
    lapse.record_scrape("one")
    lapse.record_scrape("other")
    assert lapse.at == begin + STEP


def test_an_agent_that_has_ended_is_not_waited_for() -> None:
    lapse = Lapse()
    begin = lapse.at
    one, _ = lapse.join("one"), lapse.join("other")
    one()
    lapse.record_scrape("one")
    lapse.leave("other")
    assert lapse.at == begin + STEP
    lapse.leave("one")
    lapse.record_scrape("one")
    assert lapse.at == begin + STEP, "with nobody there it stands"


def test_it_never_tells_a_time_to_come() -> None:
    lapse = Lapse()
    clock = lapse.join("one")
    begin = clock()
    for _ in range(120):
        clock()
        lapse.record_scrape("one")
    assert lapse.at >= begin + 100 * STEP
    assert lapse.at < begin + 6 * 3600
