"""`cost` and counters that are only read at both midnights of a day (kubectl_gpusharing/usage/meter.py, `_read_growth`), with a stand-in for Prometheus, SIMULATED, and with the agent's own meter."""

import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise

import pytest
from tests.cli.desk import Desk, Said
from tests.cli.fakeprometheus import GPU, HELD, MARK, NOW, Answer, FakePrometheus, vector
from tests.cli.test_cost_faults import heard_by

from gpusharing.agent.allotment import Allotment
from gpusharing.agent.meter import Meter, Metered
from kubectl_gpusharing.shell.troubles import DONE
from kubectl_gpusharing.usage.meter import find_growth, find_unsteady
from kubectl_gpusharing.usage.prometheus import Series
from kubectl_gpusharing.usage.queries import INFO_OF_GPUS

YESTERDAY, DAY = NOW - 86_400, 86_400
SUSPECTS = "group by (node) (count_over_time(gpusharing_gpu_seconds_total"
BEYOND = ({"what": INFO_OF_GPUS, "node": "gpu-2"}, "8")
"""A node of another pool, of which a selector of a policy chooses no counter."""


def ends(held: int, gpus: int = DAY) -> Answer:
    """The answer at one midnight: what team-a and the GPU of gpu-1 were metered for until then."""
    return vector(
        ({**HELD, "what": "held"}, str(held)),
        ({**GPU, "what": "gpus"}, str(gpus)),
        ({"what": INFO_OF_GPUS, "node": "gpu-1"}, "1"),
        BEYOND,
    )


def ask(desk: Desk, fake: FakePrometheus, *more: str) -> tuple[Said, list[str]]:
    """Return the bill of the day before NOW, and the queries that were sent for it."""
    fake.answers[SUSPECTS] = vector()
    queries = heard_by(fake)
    return desk.type("cost", "--prometheus", fake.url, "--window", "1d", "-o", "json", *more), queries


def test_a_node_that_ran_all_day_is_billed_by_the_ends_and_other_pools_cost_nothing(
    desk: Desk, fake: FakePrometheus
) -> None:
    fake.marks = {YESTERDAY: ends(7, 7), NOW: ends(7 + DAY, 7 + DAY)}
    said, queries = ask(desk, fake, "--match", 'policy="pool-x"')
    assert (said.status, json.loads(said.out)["totals"][0]["gpuHours"]) == (DONE, 24)
    assert not any("increase(" in query for query in queries)


def test_each_query_names_its_metrics_because_some_stores_refuse_a_pattern(desk: Desk, fake: FakePrometheus) -> None:
    _, queries = ask(desk, fake)
    assert any(MARK in query for query in queries)
    assert not any("__name__" in query for query in queries)


@pytest.mark.parametrize("empty", [{YESTERDAY}, {NOW}, {YESTERDAY, NOW}], ids=["before", "after", "both"])
@pytest.mark.parametrize("rest", [(), (BEYOND,)], ids=["nothing", "no counter"])
def test_a_day_without_counters_at_a_midnight_is_read_whole(
    desk: Desk, fake: FakePrometheus, empty: set[int], rest: tuple[tuple[Mapping[str, str], str], ...]
) -> None:
    """A Thanos that keeps raw samples for a short time only answers nothing about an older moment."""
    full = {YESTERDAY: ends(0, 0), NOW: ends(DAY)}
    fake.marks = full | dict.fromkeys(empty, vector(*rest))
    said, queries = ask(desk, fake)
    assert (said.status, json.loads(said.out)["totals"][0]["gpuHours"]) == (DONE, 24)
    assert sum("increase(gpusharing_gpu_seconds_total[" in query for query in queries) == 1


@pytest.mark.parametrize("absent", [YESTERDAY, NOW])
def test_a_node_whose_counters_are_absent_at_one_midnight_is_read_whole(
    desk: Desk, fake: FakePrometheus, absent: int
) -> None:
    there = ({**GPU, "node": "gpu-2", "what": "gpus"}, "5")
    alone = vector(there, ({"what": INFO_OF_GPUS, "node": "gpu-1"}, "1"))
    fake.marks = {YESTERDAY: ends(9, 9), NOW: ends(9 + 2 * DAY, 9 + 2 * DAY), absent: alone}
    said, queries = ask(desk, fake)
    assert json.loads(said.out)["totals"][0]["gpuHours"] == 24
    assert any("increase(" in query and 'node=~"gpu-1' in query for query in queries)


# --- with the agent's own meter ----------------------------------------------------------------------------------

RESOURCE = "nvidia.com/gpu"


def used(part: Fraction) -> Allotment:
    """Return the use of eight GPUs of which team-a holds this part and the rest is idle."""
    holders = {("team-a", RESOURCE): part} if part else {}
    return Allotment("pool-x", holders, {RESOURCE: 8 - part}, Fraction(0), Fraction(0))


def exported(metered: Metered) -> Iterator[Series]:
    """Yield what the query for the counters at one moment returns of a node with these counters."""
    rows: list[tuple[dict[str, str], float]] = [({"what": INFO_OF_GPUS}, 8.0)]
    for (_, namespace, _), seconds in metered["allocated"].items():
        rows.append(({"what": "held", "namespace": namespace}, seconds))
    rows += [({"what": "idle", "resource": resource}, seconds) for (_, resource), seconds in metered["idle"].items()]
    for name in ("stranded", "transition", "gpus"):
        rows += [({"what": name}, seconds) for seconds in metered[name].values()]
    for labels, value in rows:
        yield Series({"node": "gpu-1", **labels}, ((0.0, value),))


def midnights(days: int, jobs: Mapping[int, int], part: Fraction) -> Iterator[list[Series]]:
    """Yield what is known at the midnight before each of `days` days and after the last of them. `jobs` has the starts and lengths, in seconds, of jobs of team-a, each of which holds `part` of a GPU. The agent started a day before the first of the days, and reads every 20 s."""
    meter, nothing = Meter(), Fraction(0)
    for now in range(0, (days + 1) * DAY + 1, 20):
        running = any(at <= now < at + length for at, length in jobs.items())
        meter.turn(float(now), used(part if running else nothing))
        if now and now % DAY == 0:
            yield list(exported(meter.metered))


def unsteady(before: Iterable[Series], after: Iterable[Series]) -> set[str]:
    """Return the node of the meter if all its samples of the day must be read, or nothing."""
    return find_unsteady({"gpu-1"}, find_growth(before, after))


def test_a_short_job_whose_counter_was_dropped_and_came_back_the_same_is_not_lost() -> None:
    first, second = midnights(1, {600: 400, DAY + 50_000: 400}, Fraction(1))
    held = [series.value for mark in (first, second) for series in mark if series.labels["what"] == "held"]
    assert held == [400, 400]
    assert unsteady(first, second) == {"gpu-1"}


def test_rounding_makes_no_node_unsteady() -> None:
    marks = list(midnights(3, dict.fromkeys(range(90, 4 * DAY, 28_000), 27_960), Fraction(1, 7)))
    assert [unsteady(*pair) for pair in pairwise(marks)] == [set()] * 3
