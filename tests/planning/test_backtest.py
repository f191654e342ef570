"""`recommend` on SIMULATED traces whose future is known: what it costs against hindsight, and whom it gives too little.

The last line of a run with -s is what docs/adr/0047-a-layout-for-the-pool.md quotes.
"""

from dataclasses import dataclass, replace
from math import ceil

import pytest
from tests.planning.histories import H100, pool
from tests.planning.traces import DAY, KINDS, SIMULATED, Trace, make_pool

from gpusharing.planning.gpus.capacity import memory_of, plain_profiles, usable
from gpusharing.planning.gpus.needs import GIB, Doubt, Goal, Need, find_need
from gpusharing.planning.gpus.recommendation import Placed, Pool, Recommendation, recommend

PAST, FUTURE = 14 * DAY, 14 * DAY
POOLS = 20
WORKLOADS = 12
"""Of each pool: two of each kind."""


@dataclass(frozen=True)
class Played:
    """A pool, what was recommended, and what would have been with the future known."""

    traces: tuple[Trace, ...]
    told: Recommendation
    hindsight: Recommendation
    """By the same rules: the best layout that keeps headroom."""
    bare: Recommendation
    """For the highest peaks of the future and nothing above them: who decided so would have been lucky."""


def play(seed: int) -> Played:
    traces = make_pool(seed, workloads=WORKLOADS, hours=PAST + FUTURE)
    nodes = pool((8,) * 4 if seed % 2 else (4,) * 8)
    return Played(
        traces, advise(nodes, traces, 0), advise(nodes, traces, PAST), advise(nodes, traces, PAST, bare=True)
    )


def advise(nodes: Pool, traces: tuple[Trace, ...], begin: int, *, bare: bool = False) -> Recommendation:
    """By a fortnight from an hour on."""
    end = begin + FUTURE
    needs = []
    for trace in traces:
        need = find_need(trace.history(H100, begin, end), H100, Goal.COST)
        needs.append(replace(need, memory=ceil(trace.highest(H100, begin, end))) if bare else need)
    return recommend(nodes, needs, goal=Goal.COST)


@pytest.fixture(scope="module")
def played() -> list[Played]:
    return [play(seed) for seed in range(POOLS)]


def granted(one: Placed) -> tuple[float, float]:
    """Bytes and part of the compute of each pod."""
    if not one.profile:
        return one.gpus * memory_of(H100) * GIB, float(one.gpus)
    profile = next(each for each in plain_profiles(H100) if each.name == one.profile)
    return usable(H100, profile) * GIB, profile.slices / 7


def test_the_layout_takes_at_most_a_tenth_more_gpus_than_the_best_in_hindsight(played: list[Played]) -> None:
    told = sum(one.told.gpus for one in played)
    hindsight = sum(one.hindsight.gpus for one in played)
    bare = sum(one.bare.gpus for one in played)
    whole = sum(trace.pods for one in played for trace in one.traces)
    worst = max(one.told.gpus - one.hindsight.gpus for one in played)
    print(
        f"\n{SIMULATED}: {POOLS} pools, {POOLS * WORKLOADS} workloads, {whole} pods: {told} GPUs recommended,"
        f" {hindsight} in hindsight ({told / hindsight - 1:+.1%}, at most {worst:+d} in a pool),"
        f" {bare} without headroom ({told / bare - 1:+.1%}),"
        f" {whole} whole ({told / whole - 1:+.0%})"
    )
    assert told <= 1.1 * hindsight


def test_no_workload_gets_less_memory_than_its_highest_peak_in_the_future(played: list[Played]) -> None:
    assert [found for one in played for found in short_of_memory(one.traces, one.told)] == []


def test_who_plans_for_the_usual_use_is_caught(played: list[Played]) -> None:
    """The tests above can fail: by the median of the past, bursts and nights are found to be too little."""
    found = []
    for one in played:
        needs = [find_need(trace.history(H100, 0, PAST), H100, Goal.COST) for trace in one.traces]
        usual = [replace(need, memory=ceil(usual_of(need))) for need in needs]
        found += short_of_memory(one.traces, recommend(one.told.pool, usual, goal=Goal.COST))
    assert {name.rpartition("-")[0] for name, *_ in found} >= {"bursts", "daily"}


def usual_of(need: Need) -> float:
    """Half of the hourly peaks are above."""
    return sorted(sample.value for sample in need.history.memory)[need.samples // 2]


def short_of_memory(traces: tuple[Trace, ...], told: Recommendation) -> list[tuple[str, float, float]]:
    """Who would get less than the highest peak to come: GiB that are needed and given."""
    highest = [(trace, trace.highest(H100, PAST, PAST + FUTURE)) for trace in traces]
    places = by_name(told)
    return [
        (trace.name, most / GIB, granted(places[trace.name])[0] / GIB)
        for trace, most in highest
        if granted(places[trace.name])[0] < most
    ]


def test_no_workload_gets_less_compute_than_95_percent_of_its_future_needs(played: list[Played]) -> None:
    below = []
    for each in played:
        places = by_name(each.told)
        for trace in each.traces:
            future = sorted(used[1] for used in trace.hourly[PAST:] if used is not None)
            needed, part = future[ceil(0.95 * len(future)) - 1], granted(places[trace.name])[1]
            if part < needed:
                below.append((trace.name, needed, part))
    assert below == []


def by_name(told: Recommendation) -> dict[str, Placed]:
    """The place of each workload: all have one."""
    return {one.need.workload.name: one for one in told.placed}


def test_what_is_preallocated_is_found_and_nothing_else_is() -> None:
    for seed in range(POOLS):
        for trace in make_pool(seed, workloads=len(KINDS), hours=PAST):
            need = find_need(trace.history(H100, 0, PAST, told=False), H100, Goal.COST)
            assert (Doubt.PREALLOCATED in need.doubts) == (trace.kind == "preallocated"), trace.name
            assert (need.memory is None) == (trace.kind == "preallocated"), trace.name


def test_the_same_seed_is_the_same_pool_and_has_every_kind() -> None:
    one, same, other = (make_pool(seed, workloads=WORKLOADS, hours=DAY) for seed in (1, 1, 2))
    assert one == same != other
    assert {trace.kind for trace in one} == set(KINDS)


@pytest.mark.parametrize("days", [1, 3, 7])
def test_with_less_history_nobody_is_guessed_at(days: int) -> None:
    """Who ran for too few hours is left out and named, the others have a place."""
    traces = make_pool(0, workloads=WORKLOADS, hours=PAST)
    needs = [find_need(trace.history(H100, 0, days * DAY), H100, Goal.COST) for trace in traces]
    found = recommend(pool((8,) * 4), needs, goal=Goal.COST)
    assert {one.need.workload.name.rpartition("-")[0] for one in found.unplaced} == {"short-lived"}
    assert len(found.placed) == WORKLOADS - 2
