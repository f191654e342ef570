"""The meter's series stay few for ever, and what goes and comes back is counted to the second all the same."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
import yaml
from hack.generate import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agent.scraping import GPUS, PARTS, CountingPrometheus

from gpusharing.agent.allotment import Allotment
from gpusharing.agent.loop import LoopSettings
from gpusharing.agent.meter import BOUNDS, LAG, OTHERS, Bounds, LaggingCounts, Meter, Metered
from gpusharing.api.times import parse_duration
from kubectl_gpusharing.usage.windows import UNITS

HOUR, DAY = 3600.0, 86400.0
SEVENTH = Fraction(1, 7)
RESOURCE = "nvidia.com/mig-1g.10gb"


def held(policy: str, *tenants: str, resource: str = RESOURCE) -> Allotment:
    """One GPU, a seventh of it for each of these tenants, the rest of it idle."""
    given_out = {(tenant, resource): SEVENTH for tenant in tenants}
    return Allotment(policy, given_out, {resource: 1 - SEVENTH * len(tenants)}, Fraction(0), Fraction(0))


def most(bounds: Bounds) -> int:
    policies = bounds.policies + 1
    held, idle = bounds.accounts + bounds.others + policies, bounds.idle + policies
    return held + idle + 3 * policies


def series(metered: Metered) -> int:
    return sum(map(len, metered.values()))


def test_a_tenant_too_many_shares_an_account_until_one_is_free() -> None:
    meter = Meter(lag=0, bounds=Bounds())
    for number in range(BOUNDS.accounts + 5):
        meter.turn(float(number), held("pool-b", f"team-{number}"))
    assert len(meter.metered["allocated"]) == BOUNDS.accounts + 1
    assert ("pool-b", OTHERS, RESOURCE) in meter.metered["allocated"]
    assert sum(meter.metered["allocated"].values()) == pytest.approx((BOUNDS.accounts + 4) / 7)
    late = 2 * HOUR
    meter.turn(late, held("pool-b", "team-new"))
    assert ("pool-b", "team-new", RESOURCE) in meter.metered["allocated"]
    assert len(meter.metered["allocated"]) <= 3, "those that held nothing for an hour made room"


@pytest.mark.parametrize(
    ("policy", "tenant", "resource", "held_idle_policies"),
    [("p{}", "a", "r", (17, 17, 17)), ("p", "t{}", "r", (129, 1, 1)), ("p", "a", "r{}", (161, 65, 1))],
    ids=["policies", "tenants", "resources"],
)
def test_a_node_tells_128_accounts_64_idle_resources_and_16_policies_apart_and_the_rest_are_others(
    policy: str, tenant: str, resource: str, held_idle_policies: tuple[int, int, int]
) -> None:
    meter = Meter(bounds=Bounds())
    for number in range(200):
        stands = held(policy.format(number), tenant.format(number), resource=resource.format(number))
        meter.turn(float(number), stands)
    told = meter.metered
    assert (len(told["allocated"]), len(told["idle"]), len(told["gpus"])) == held_idle_policies


@pytest.mark.parametrize(
    ("policy", "tenant", "resource"),
    [("p{}", "a", "r"), ("p", "t{}", "r"), ("p", "a", "r{}"), ("p{}", "t{}", "r{}"), ("p", "t{}", "r{}")],
    ids=["policies", "tenants", "resources", "all of them", "tenants and resources"],
)
@pytest.mark.parametrize("every", [1.0, 30.0, 3 * HOUR], ids=["every second", "every turn", "every three hours"])
def test_a_node_on_which_names_change_for_ever_has_a_bounded_number_of_series(
    policy: str, tenant: str, resource: str, every: float
) -> None:
    meter = Meter()
    for number in range(1500):
        stands = held(policy.format(number), tenant.format(number), resource=resource.format(number))
        meter.turn(number * every, stands)
        assert series(meter.metered) <= most(BOUNDS)


def test_what_is_told_apart_no_more_is_of_the_policy_still_and_of_others_if_that_is_one_too_many() -> None:
    meter = Meter(lag=0, bounds=Bounds(accounts=1, others=1, idle=1, policies=1))
    for number, (policy, resource) in enumerate((("p", "r"), ("p", "s"), ("p", "t"), ("q", "r"), ("q", "r"))):
        meter.turn(float(number), held(policy, f"team-{number}", resource=resource))
    told = meter.metered
    assert list(told["allocated"]) == [
        ("p", "team-0", "r"),
        ("p", OTHERS, "s"),
        ("p", OTHERS, OTHERS),
        (OTHERS, OTHERS, OTHERS),
    ]
    assert list(told["idle"]) == [("p", "r"), ("p", OTHERS), (OTHERS, OTHERS)]
    assert told["gpus"] == {("p",): 3.0, (OTHERS,): 1.0}
    assert sum(told["allocated"].values()) + sum(told["idle"].values()) == pytest.approx(4.0)


def turns(meter: Meter, prometheus: CountingPrometheus, stands: Allotment, times: Iterable[float]) -> None:
    for now in times:
        meter.turn(now, stands)
        prometheus.scrape(meter)


def every_minute(first: float, last: float) -> Iterable[float]:
    return (first + 60 * number for number in range(round((last - first) / 60) + 1))


def test_a_policy_that_is_gone_for_a_day_is_told_no_more_and_was_billed_in_full() -> None:
    meter, prometheus = Meter(bounds=Bounds()), CountingPrometheus()
    turns(meter, prometheus, held("pool-b", "team-a"), every_minute(0, HOUR))
    turns(meter, prometheus, held("pool-c", "team-a"), every_minute(HOUR, 20 * HOUR))
    assert {policy for policy, *_ in meter.metered["allocated"]} == {"pool-b", "pool-c"}
    turns(meter, prometheus, held("pool-c", "team-a"), every_minute(20 * HOUR, DAY + HOUR + 300))
    told = meter.metered
    assert {policy for counts in told.values() for policy, *_ in counts} == {"pool-c"}
    turns(meter, prometheus, held("pool-b", "team-a"), every_minute(DAY + HOUR + 360, DAY + 2 * HOUR + 360))
    turns(meter, prometheus, held("pool-c"), every_minute(DAY + 2 * HOUR + 420, DAY + 2 * HOUR + 720))
    assert prometheus.grown(GPUS, policy="pool-b") == pytest.approx(2 * HOUR + 60)
    assert prometheus.grown("slice", policy="pool-b") == pytest.approx((2 * HOUR + 60) / 7)


def test_an_agent_that_stood_still_for_a_day_forgets_nothing_that_it_has_not_told() -> None:
    meter, prometheus = Meter(), CountingPrometheus()
    turns(meter, prometheus, held("pool-b"), (0, 60))
    turns(meter, prometheus, held("pool-b", "team-a"), (120,))
    turns(meter, prometheus, held("pool-b"), (180, 2 * DAY))
    assert prometheus.grown("slice") == pytest.approx(60 / 7)
    account = ("pool-b", "team-a", RESOURCE)
    turns(meter, prometheus, held("pool-b"), (2 * DAY + 60, 2 * DAY + HOUR))
    assert account in meter.metered["allocated"], "told in full for an hour only"
    turns(meter, prometheus, held("pool-b"), (3 * DAY + 60,))
    assert account not in meter.metered["allocated"]


def test_a_counter_that_was_dropped_comes_back_as_0_for_as_long_as_a_new_one() -> None:
    counts = LaggingCounts(LAG)
    told = []
    for turn in range(120):
        now = 30.0 * turn
        if turn <= 20:
            counts.add(("a",), 30.0 if turn else 0.0, now)
        if turn == 100:
            counts.drop(now, HOUR / 2)
        if turn > 100:
            counts.add(("a",), 0.0 if turn == 101 else 30.0, now)
        told.append(counts.export(now).get(("a",)))
    assert told[:6] == [0, 0, 0, 90, 120, 150]
    assert told[99:108] == [600, None, 0, 0, 0, 90, 120, 150, 180]


def test_a_counter_that_goes_on_counting_is_never_dropped() -> None:
    counts = LaggingCounts(LAG)
    for turn in range(1, 1000):
        counts.add(("named, and nothing to count",), 0.0, 30.0 * turn)
        counts.drop(30.0 * turn, 100.0)
        counts.export(30.0 * turn)
        assert len(counts) == 1


FEW = Bounds(accounts=3, others=2, idle=2, policies=2, room_after=100.0, forget_after=200.0)
"""Patience that is longer than between two scrapes, as in life."""
MOMENTS = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.sampled_from(["p", "p", "q", "r", "s"]),
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=6, unique=True),
        st.sets(st.sampled_from("xyz")),
        st.booleans(),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(MOMENTS)
def test_every_second_is_billed_once_to_a_policy_though_series_are_dropped_and_shared(
    moments: list[tuple[int, str, list[tuple[str, str]], set[str], bool, int]],
) -> None:
    meter, prometheus, clock, scraped = Meter(LAG, FEW), CountingPrometheus(), 0.0, -LAG
    last = Allotment("p", {}, {}, Fraction(1), Fraction(0))
    for seconds, policy, tenants, idle, often, times in [*moments, (30, "p", [], set(), True, 12)]:
        each = Fraction(1, len(tenants) + len(idle) + 1)
        held_by = dict.fromkeys(tenants, each)
        last = Allotment(policy, held_by, dict.fromkeys(sorted(idle), each), each, Fraction(0))
        for _ in range(times):
            clock += seconds
            meter.turn(clock, last)
            if often or clock + 30 - scraped > LAG:
                prometheus.scrape(meter)
                scraped = clock
                assert prometheus.present <= most(FEW)
    for policy in prometheus.policies():
        billed = prometheus.grown(*PARTS, policy=policy)
        assert billed == pytest.approx(prometheus.grown(GPUS, policy=policy), abs=1e-6)
    begun = moments[0][0]
    assert clock - begun - LAG <= prometheus.grown(GPUS) <= clock - begun + 1e-6


VALUES = yaml.safe_load((ROOT / "deploy/helm/gpu-sharing-operator/values.yaml").read_text())
EVERY = VALUES["monitoring"]["podMonitor"]["interval"]
SCRAPE = float(int(EVERY[:-1]) * {"s": 1, **UNITS}[EVERY[-1]])
TURN = parse_duration(VALUES["agent"]["interval"]).total_seconds() * (1 + LoopSettings().jitter)
"""Seconds between two turns, at most."""
WHOLE = "nvidia.com/gpu"
IDLE = Allotment("pool-b", {}, {WHOLE: Fraction(1)}, Fraction(0), Fraction(0))
HELD = Allotment("pool-b", {("team-a", WHOLE): Fraction(1)}, {}, Fraction(0), Fraction(0))


def losses(every: float, comes: int) -> Iterator[tuple[float, float]]:
    """GPU-seconds that Prometheus has not when an agent ends just before its next scrape: of the GPU, and of a tenant that has it from the turn `comes` on. Scrapes and turns fall on each other in all ways."""
    for phase in range(round(SCRAPE)):
        meter, since = Meter(LAG), sum([every] * comes)
        times = accumulate([0.0, *[every] * (comes + 3), *[TURN] * 60])
        turns = [(at, HELD if at >= since else IDLE) for at in times]
        scrapes = [phase + 0.5 + number * SCRAPE for number in range(50)]
        for scraped, ended in pairwise(scrapes):
            while turns and turns[0][0] <= scraped:
                meter.turn(*turns.pop(0))
            if meter.metered["gpus"] and scraped > LAG + TURN:
                tenant = meter.metered["allocated"].get(("pool-b", "team-a", WHOLE), 0.0)
                yield ended - meter.metered["gpus"]["pool-b",], max(0.0, ended - since) - tenant


def worst(comes: int) -> tuple[float, float]:
    found = [loss for tenths in (270, 285, 299, 300, 315, 330) for loss in losses(tenths / 10, comes)]
    return max(whole for whole, _ in found), max(tenant for _, tenant in found)


def test_the_agent_turns_as_often_as_the_chart_says() -> None:
    assert parse_duration(VALUES["agent"]["interval"]).total_seconds() == LoopSettings().interval


@pytest.mark.parametrize(
    ("comes", "most"),
    [(0, TURN + SCRAPE), (12, LAG + TURN + SCRAPE)],
    ids=["all the same for long", "a tenant that has just come"],
)
def test_a_restart_loses_as_much_as_the_pages_tell_and_no_more(comes: int, most: float) -> None:
    whole, tenant = worst(comes)
    assert most - 2 < tenant < most, "the bound is one, and is reached"
    assert whole < most
    for page in ("docs/how-to/cost.md", "docs/adr/0043-the-meter.md"):
        assert f"at most {most:.0f} s" in " ".join((ROOT / page).read_text().split()), page
