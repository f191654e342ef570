"""`cost` where Prometheus answers in part, or with numbers that cannot be, and counters that are only read at both midnights of a day (kubectl_gpusharing/usage/absences.py, kubectl_gpusharing/usage/meter.py, kubectl_gpusharing/usage/queries.py). With a stand-in for Prometheus, SIMULATED, and with the agent's own meter."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise

import pytest
from tests.cli.desk import Desk, Said
from tests.cli.fakeprometheus import GPU, HELD, MARK, NOW, Answer, FakePrometheus, vector
from tests.cli.test_cost import ask
from tests.wording import lacks

from gpusharing.agent.allotment import Allotment
from gpusharing.agent.meter import Meter, Metered
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED
from kubectl_gpusharing.usage.meter import find_growth, find_unsteady
from kubectl_gpusharing.usage.prometheus import Series
from kubectl_gpusharing.usage.queries import INFO_OF_GPUS

SUSPECTS = "group by (node) (count_over_time(gpusharing_gpu_seconds_total"


def heard_by(fake: FakePrometheus) -> list[str]:
    asked: list[str] = []
    answer = fake.answer

    def heard(path: str, query: str) -> Answer:
        asked.append(query)
        return answer(path, query)

    fake.answer = heard  # type: ignore[method-assign]  # it is the stand-in's own
    return asked


@pytest.mark.parametrize("lost", ["min", "max", "count"])
def test_a_store_that_answers_only_some_of_the_questions_about_a_node_makes_the_answer_a_part(
    desk: Desk, fake: FakePrometheus, lost: str
) -> None:
    seen = {"min": str(NOW - 86400), "max": str(NOW), "count": "1441"}
    for function, value in seen.items():
        asked = f"{function}_over_time(timestamp(max by (node) (gpusharing"
        told = vector(warnings=["store x is away"]) if function == lost else vector(({"node": "gpu-1"}, value))
        fake.answers = {asked: told, **fake.answers}
    said = ask(desk, fake)
    assert said.status == CHANGES
    assert "PARTIAL: Prometheus warns: store x is away." in said.out


@pytest.mark.parametrize("value", ["1e303", "-1e303", "1.1e15", "NaN", "+Inf", "-Inf"])
@pytest.mark.parametrize(
    ("asked", "labels", "named"),
    [
        ("gpusharing_slice_seconds_total", HELD, "value {} s of a meter counter on gpu-1"),
        ("increase(gpusharing_gpu_seconds_total", GPU, "value {} s of a meter counter on gpu-1"),
        (
            "(avg by (policy, currency) (gpusharing_policy_gpu_hourly_price",
            {"policy": "pool-x", "currency": "USD"},
            "of policy pool-x is {}",
        ),
        ("(avg by (node) (node_gpu_hourly_cost", {"node": "gpu-1"}, "of node gpu-1 is {}"),
    ],
)
def test_a_number_that_cannot_be_is_left_out_and_told(
    desk: Desk, fake: FakePrometheus, asked: str, labels: dict[str, str], named: str, value: str
) -> None:
    fake.answers = {asked: vector((labels, value)), **{k: v for k, v in fake.answers.items() if k != asked}}
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (CHANGES, "")
    assert named.format(f"{float(value):g}") in " ".join(json.loads(said.out)["missing"])


IDLE = {**GPU, "resource": "nvidia.com/gpu"}
PARTS, REST, WHOLE = (
    "gpusharing_slice_seconds_total",
    "gpusharing_idle_slice_seconds_total",
    "increase(gpusharing_gpu_seconds_total",
)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (
            {PARTS: vector((HELD, "43200"), ({**HELD, "policy": "pool-y"}, "36000"))},
            ("pool-y", "10.0 GPU-hours", "metered", "0.0"),
        ),
        (
            {
                PARTS: vector((HELD, "0"), ({**HELD, "node": "gpu-2"}, "86400")),
                REST: vector(),
                WHOLE: vector((GPU, "86400"), ({**GPU, "node": "gpu-2"}, "0")),
                "group by (node) (count_over_time": vector(*(({"node": f"gpu-{one}"}, "1") for one in (1, 2))),
            },
            ("pool-x on gpu-1, gpu-2", "metered", "48.0 GPU-hours"),
        ),
        (
            {PARTS: vector((HELD, "NaN")), REST: vector((IDLE, "NaN")), WHOLE: vector((GPU, "NaN"))},
            ("nan s", "gpu-1", "not a number"),
        ),
        (
            {"(avg by (policy, currency)": vector(({"policy": "pool-x", "currency": "USD"}, "NaN"))},
            ("gpusharing_policy_gpu_hourly_price", "policy pool-x", "nan", "not a number"),
        ),
    ],
    ids=["parts without a whole", "nodes that cancel out", "no number at all", "a price that is none"],
)
def test_a_sum_that_is_broken_somewhere_is_told(
    desk: Desk, fake: FakePrometheus, answers: dict[str, Answer], told: tuple[str, ...]
) -> None:
    fake.answers = {**answers, **{text: one for text, one in fake.answers.items() if text not in answers}}
    said = ask(desk, fake, "-o", "json")
    assert said.status == CHANGES
    assert any(not lacks(one, *told) for one in json.loads(said.out)["missing"])
    assert ("Prometheus has none" in said.out) == ("pool-y" in told), "for there is one that is left out"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"a\x1b[31m": "x"}, "differ in the label a?[31m (x, y)"),
        ({"replica": 'x"\\'}, r"""--match 'replica="x\"\\"'"""),
        ({"replica": "it's"}, """--match 'replica="it'"'"'s"'"""),
    ],
    ids=["a name that would paint", "a value with quotes", "a value that ends the shell's quotes"],
)
def test_labels_are_told_so_that_they_can_be_read_and_typed(
    desk: Desk, fake: FakePrometheus, labels: dict[str, str], told: str
) -> None:
    others = dict.fromkeys(labels, "y")
    twice = vector(({**GPU, **labels}, "1"), ({**GPU, **others}, "1"))
    fake.answers = {"and on (node, policy)": twice, **fake.answers}
    said = ask(desk, fake)
    assert (said.status, said.out) == (FAILED, "")
    assert told in said.err
    assert "\x1b" not in said.err


@pytest.mark.parametrize("function", ["min", "max", "count"])
@pytest.mark.parametrize("what", ["(gpusharing_gpu_seconds_total", "(up"])
def test_a_time_that_cannot_be_is_no_time(desk: Desk, fake: FakePrometheus, function: str, what: str) -> None:
    seen = {"min": str(NOW - 86400), "max": str(NOW), "count": "1441", function: "1e303"}
    fake.answers |= {
        f"{name}_over_time(timestamp(max by (node) {what}": vector(({"node": "gpu-1"}, value))
        for name, value in seen.items()
    }
    said = ask(desk, fake)
    assert "Traceback" not in said.err
    assert said.status in (DONE, CHANGES)


@pytest.mark.parametrize(
    ("window", "whole", "parts", "told"),
    [("10m", 600, 548, False), ("10m", 600, 652, False), ("10m", 600, 530, True), ("1d", 86_400, 85_000, True)],
)
def test_ends_of_what_came_in_a_short_window_are_no_missing_series(
    desk: Desk, fake: FakePrometheus, window: str, whole: int, parts: int, *, told: bool
) -> None:
    del fake.answers["gpusharing_idle_slice_seconds_total"]
    fake.answers["gpusharing_slice_seconds_total"] = vector((HELD, str(parts)))
    fake.answers["increase(gpusharing_gpu_seconds_total"] = vector((GPU, str(whole)))
    said = ask(desk, fake, "--window", window)
    assert said.status == (CHANGES if told else DONE)
    assert ("adds up to" in said.out) == told


@pytest.mark.parametrize(("nodes", "stretches"), [(3, 1), (300, 4)], ids=["a few", "too many to name"])
def test_nodes_that_were_away_are_looked_at_by_name_or_a_day_at_a_time(
    desk: Desk, fake: FakePrometheus, nodes: int, stretches: int
) -> None:
    away = [({"node": f"gpu-{number}"}, "1") for number in range(nodes)]
    fake.answers[SUSPECTS] = vector(*away)
    asked = heard_by(fake)
    desk.type("cost", "--prometheus", fake.url, "--window", "4d")
    looks = [query for query in asked if query.startswith("count_over_time(timestamp(")]
    assert len(looks) == stretches
    assert all(('node=~"gpu-0|gpu-1|gpu-2"' in query) == (nodes == 3) for query in looks)


@pytest.mark.parametrize("name", ['x"} or vector(1) #', "A b", "a\\nb"])
def test_a_name_that_is_no_nodes_is_not_put_into_a_query(desk: Desk, fake: FakePrometheus, name: str) -> None:
    fake.answers[SUSPECTS] = vector(({"node": name}, "1"))
    asked = heard_by(fake)
    assert ask(desk, fake).status == DONE
    assert asked
    assert not any(name in query for query in asked)


def test_a_short_window_asks_for_no_day_of_anything(desk: Desk, fake: FakePrometheus) -> None:
    asked = heard_by(fake)
    assert desk.type("cost", "--prometheus", fake.url, "--window", "6h").err == ""
    spans = {span for query in asked for span in re.findall(r"\[(\w+)", query)}
    assert spans == {"21600s", "21600001ms", "20400s", "600s", "300s"}


# --- both midnights of a day ------------------------------------------------------------------------------------

YESTERDAY, DAY = NOW - 86_400, 86_400
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


def billed(desk: Desk, fake: FakePrometheus, *more: str) -> tuple[Said, list[str]]:
    """Return the bill of the day before NOW, and the queries that were sent for it."""
    fake.answers[SUSPECTS] = vector()
    queries = heard_by(fake)
    return ask(desk, fake, "-o", "json", *more), queries


def test_a_node_that_ran_all_day_is_billed_by_the_ends_and_other_pools_cost_nothing(
    desk: Desk, fake: FakePrometheus
) -> None:
    fake.marks = {YESTERDAY: ends(7, 7), NOW: ends(7 + DAY, 7 + DAY)}
    said, queries = billed(desk, fake, "--match", 'policy="pool-x"')
    assert (said.status, json.loads(said.out)["totals"][0]["gpuHours"]) == (DONE, 24)
    assert not any("increase(" in query for query in queries)


def test_each_query_names_its_metrics_because_some_stores_refuse_a_pattern(desk: Desk, fake: FakePrometheus) -> None:
    _, queries = billed(desk, fake)
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
    said, queries = billed(desk, fake)
    assert (said.status, json.loads(said.out)["totals"][0]["gpuHours"]) == (DONE, 24)
    assert sum("increase(gpusharing_gpu_seconds_total[" in query for query in queries) == 1


@pytest.mark.parametrize("absent", [YESTERDAY, NOW])
def test_a_node_whose_counters_are_absent_at_one_midnight_is_read_whole(
    desk: Desk, fake: FakePrometheus, absent: int
) -> None:
    there = ({**GPU, "node": "gpu-2", "what": "gpus"}, "5")
    alone = vector(there, ({"what": INFO_OF_GPUS, "node": "gpu-1"}, "1"))
    fake.marks = {YESTERDAY: ends(9, 9), NOW: ends(9 + 2 * DAY, 9 + 2 * DAY), absent: alone}
    said, queries = billed(desk, fake)
    assert json.loads(said.out)["totals"][0]["gpuHours"] == 24
    assert any("increase(" in query and 'node=~"gpu-1' in query for query in queries)


# --- with the agent's own meter ----------------------------------------------------------------------------------

RESOURCE = "nvidia.com/gpu"


def used(part: Fraction) -> Allotment:
    holders = {("team-a", RESOURCE): part} if part else {}
    return Allotment("pool-x", holders, {RESOURCE: 8 - part}, Fraction(0), Fraction(0))


def exported(metered: Metered) -> Iterator[Series]:
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
    return find_unsteady({"gpu-1"}, find_growth(before, after))


def test_a_short_job_whose_counter_was_dropped_and_came_back_the_same_is_not_lost() -> None:
    first, second = midnights(1, {600: 400, DAY + 50_000: 400}, Fraction(1))
    held = [series.value for mark in (first, second) for series in mark if series.labels["what"] == "held"]
    assert held == [400, 400]
    assert unsteady(first, second) == {"gpu-1"}


def test_rounding_makes_no_node_unsteady() -> None:
    marks = list(midnights(3, dict.fromkeys(range(90, 4 * DAY, 28_000), 27_960), Fraction(1, 7)))
    assert [unsteady(*pair) for pair in pairwise(marks)] == [set()] * 3
