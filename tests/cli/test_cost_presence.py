"""`cost` where agents come and go, are dead and are scraped twice, in a real Prometheus with a SIMULATED past (kubectl_gpusharing/usage/meter.py, kubectl_gpusharing/usage/absences.py): a restart is summed, a time that was metered twice is refused, and one that was not is told."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.cli.desk import Desk, Said
from tests.cli.history import Gauge, History, Node, openmetrics, prometheus_with
from tests.cli.history import Stretch as Standing
from tests.cli.pastfleet import WHOLE
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED
from kubectl_gpusharing.usage.absences import Absences, Stretch, describe_absences, silence_of

BEGIN, UNTIL, HOURS, EVERY = datetime(2026, 10, 1, tzinfo=UTC), "2026-10-01T08:00:00Z", 8, 60
"""When the stories begin and end, in hours, and the seconds between two scrapes."""
STORIES = 20
TARGETS = ("endpoint", "container", "instance", "pod", "uid", "job", "replica")
LOOKBACK = 5 / 60
"""Hours for which a Prometheus without marks of staleness, as this one is, goes on seeing what is gone."""


@dataclass
class Story:
    """A node with one GPU, whose agent restarts, is away, or is scraped twice."""

    name: str
    lives: list[tuple[float, float]] = field(default_factory=list)
    """Hours from and to."""
    away: float = 0.0
    """Hours between them."""
    twice: tuple[str, float, float] | None = None
    """By which label, and from and to which hour."""

    @property
    def metered(self) -> float:
        """Hours."""
        return sum(end - begin for begin, end in self.lives)

    @property
    def doubled(self) -> float:
        """Hours that were metered twice."""
        if self.twice is None:
            return 0.0
        _, first, last = self.twice
        return sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in self.lives)

    @property
    def allowed(self) -> float:
        """Hours that may have been: an agent that is gone is seen beside its successor for a moment."""
        return LOOKBACK * (len(list(self.nodes())) - 1)

    def nodes(self) -> Iterator[Node]:
        for number, (begin, end) in enumerate(self.lives):
            pod = {"pod": f"agent-{number}", "instance": f"10.0.0.{number}:8080", "uid": f"u-{number}"}
            yield self._scraped(begin, begin, end, pod)
            if self.twice is not None:
                label, first, last = self.twice
                if first < end and last > begin:
                    yield self._scraped(begin, max(begin, first), min(end, last), {**pod, label: f"other-{number}"})

    def _scraped(self, began: float, begin: float, end: float, labels: Mapping[str, str]) -> Node:
        """An agent that counts since `began`, and of which Prometheus has samples between two times."""
        stands = [Standing((began, HOURS), {("team-a", WHOLE): Fraction(1)})]
        where = {"cluster": self.name, "endpoint": "metrics", "container": "agent", "job": "agents", **labels}
        unseen = ((0.0, begin), (end, 999.0))
        return Node("gpu-1", "pool-x", 1, stands, slices={WHOLE: 1}, labels=where, unseen=unseen)


def story(number: int) -> Story:
    dice = random.Random(f"presence {number}")
    found, at = Story(f"s{number}"), 0.0
    while at < HOURS:
        end = min(float(HOURS), at + dice.choice([0.5, 1.5, 2.5, 4.0]))
        found.lives.append((at, end))
        pause = dice.choice([0.0, 0.0, 2 / 60, 0.5, 1.0]) if end < HOURS - 1.5 else 0.0
        found.away += pause
        at = end + pause
    if number < len(TARGETS) or dice.random() < 0.4:
        first = dice.uniform(0.0, 4.0)
        label = TARGETS[number] if number < len(TARGETS) else dice.choice(TARGETS)
        found.twice = (label, first, first + dice.choice([1.5, 3.5]))
    return found


PLAYED = [story(number) for number in range(STORIES)]


def replicated() -> Iterator[Node]:
    for one in PLAYED:
        yield Node(
            "gpu-2", "pool-x", 1, [Standing((0, HOURS), {("team-b", WHOLE): Fraction(1)})], labels={"cluster": one.name}
        )
        yield from one.nodes()


HALF_A_DAY = 12.0
JOB = "gpusharing-agent"
ALWAYS: tuple[float, float] = (-1.0, -1.0)


def node(cluster: str, name: str, unseen: tuple[float, float] = ALWAYS) -> Node:
    """One GPU that team-a holds all the time, whether its agent is seen or not."""
    stands = [Standing((0, HALF_A_DAY), {("team-a", WHOLE): Fraction(1)})]
    labels = {"cluster": cluster, "job": JOB}
    return Node(name, "pool-x", 1, stands, slices={WHOLE: 1}, unseen=(unseen,), labels=labels)


def gauge(cluster: str, name: str, value: str, hours: tuple[float, float] = (0, HALF_A_DAY), **labels: str) -> Gauge:
    return Gauge(name, {"cluster": cluster, **labels}, value, hours)


def silences() -> History:
    clusters = ("dead", "unread", "late", "never", "blind", "bare", "scaled", "policies")
    dead, late = (6.0, 99.0), (-1.0, 6.0)
    return History(
        BEGIN,
        HALF_A_DAY,
        [
            *(node(cluster, "gpu-1") for cluster in clusters),
            node("dead", "gpu-2", dead),
            node("unread", "gpu-2", dead),
            node("late", "gpu-2", late),
            node("scaled", "gpu-2", dead),
            node("scaled", "gpu-3", late),
            node("policies", "gpu-2", dead),
        ],
        [
            *(
                gauge(cluster, "gpusharing_policy_gpu_hourly_price", "2", policy="pool-x", currency="USD")
                for cluster in clusters
            ),
            gauge("dead", "up", "0", (6, 12), node="gpu-2", job=JOB),
            gauge("dead", "gpusharing_policy_nodes_without_agent", "1", (6, 12), policy="pool-x"),
            # Agents that run and cannot read.
            *(gauge("unread", "up", "1", node=name, job=JOB) for name in ("gpu-1", "gpu-2")),
            gauge("unread", "gpusharing_agent_ready", "1", node="gpu-1", job="pods"),
            gauge("unread", "gpusharing_agent_ready", "0", (6, 12), node="gpu-2", job="pods"),
            gauge("blind", "up", "1", node="gpu-9", job=JOB),
            gauge("blind", "gpusharing_agent_ready", "0", node="gpu-9", job=JOB),
            gauge("late", "up", "0", (0, 5), node="gpu-2", job=JOB),
            gauge("late", "gpusharing_policy_nodes_without_agent", "1", (0, 5), policy="pool-x"),
            gauge("never", "up", "0", node="gpu-9", job=JOB),
            gauge("never", "up", "0", node="gpu-8", job="others"),
            gauge("bare", "gpusharing_policy_nodes_without_agent", "2", policy="pool-x"),
            gauge("policies", "up", "0", node="gpu-9", job=JOB),
            gauge("policies", "up", "0", (6, 12), node="gpu-2", job=JOB),
        ],
        every=240,
    )


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    prices = [
        Gauge("gpusharing_policy_gpu_hourly_price", {"cluster": one.name, "policy": "pool-x", "currency": "USD"}, "2")
        for one in PLAYED
    ]
    past = History(BEGIN, HOURS, list(replicated()), prices, EVERY)
    with prometheus_with(tmp_path_factory.mktemp("past"), openmetrics([past, silences()])) as url:
        yield url


def ask(desk: Desk, url: str, cluster: str, *more: str, window: str = f"{HOURS}h", until: str = UNTIL) -> Said:
    chosen = ("--match", ",".join((f'cluster="{cluster}"', *more)), "--prometheus", url, "-o", "json")
    return desk.type("cost", *chosen, "--window", window, "--until", until)


@pytest.mark.tools
@pytest.mark.parametrize("told", PLAYED, ids=lambda one: f"{one.name} {one.twice and one.twice[0]} away {one.away:.2f}")
def test_a_gpu_is_billed_once_for_each_time_or_the_bill_is_refused(desk: Desk, prometheus: str, told: Story) -> None:
    said = ask(desk, prometheus, told.name)
    if said.status == FAILED:
        assert told.doubled > 0, said.err
        assert said.out == ""
        assert not lacks(said.err, "gpu-1", f"label {named(told)}")
        return
    assert told.doubled <= told.allowed + 0.05
    assert said.status == (CHANGES if told.away > 0.2 else DONE), said.err
    found = json.loads(said.out)
    (held,) = (row for row in found["rows"] if row["name"] == "team-a")
    ends = len(told.lives) * EVERY / 3600
    assert told.metered - ends <= held["gpuHours"] <= told.metered + told.doubled + ends
    check_missing(found["missing"], told)


def named(told: Story) -> str:
    """The label by which a bill of this story is refused: one to choose by, or the first of those of its target."""
    assert told.twice is not None
    label = told.twice[0]
    return "instance" if label in ("pod", "uid") and len(told.lives) > 1 else label


def check_missing(missing: list[str], told: Story) -> None:
    if told.away <= 0.2:
        assert missing == []
        return
    (text,) = missing
    (hours, minutes) = re.search(r"samples from gpu-1 \((?:(\d+)h)?(?:(\d+)m)?", text).groups()  # type: ignore[union-attr]  # it is there
    seen = int(hours or 0) + int(minutes or 0) / 60
    assert told.away - LOOKBACK * len(told.lives) - 0.05 <= seen <= told.away


def test_the_stories_have_all_that_can_happen() -> None:
    assert {one.twice[0] for one in PLAYED if one.twice} == set(TARGETS)
    assert sum(1 for one in PLAYED if one.twice is None and one.away > 0.2) >= 3
    assert any(one.twice is None and one.away == 0 and len(one.lives) > 2 for one in PLAYED)
    assert {one.twice[0] for one in PLAYED if one.twice and one.doubled > one.allowed + 0.05} == set(TARGETS)


@pytest.mark.tools
def test_of_two_scrapes_that_differ_in_their_endpoint_one_can_be_chosen(desk: Desk, prometheus: str) -> None:
    (told,) = (one for one in PLAYED[: len(TARGETS)] if one.twice and one.twice[0] == "endpoint")
    assert "--match 'endpoint=\"metrics\"'" in ask(desk, prometheus, told.name).err
    found = json.loads(ask(desk, prometheus, told.name, 'endpoint="metrics"').out)
    (held,) = (row for row in found["rows"] if row["name"] == "team-a")
    assert held["gpuHours"] == pytest.approx(told.metered, abs=len(told.lives) * EVERY / 3600)


@pytest.mark.tools
def test_two_agents_on_a_node_are_refused_with_all_labels_that_tell_them_apart(desk: Desk, prometheus: str) -> None:
    (told,) = (one for one in PLAYED[: len(TARGETS)] if one.twice and one.twice[0] == "pod")
    err = ask(desk, prometheus, told.name).err
    assert "and pod (agent-0" in err
    assert not lacks(err, "Stop one", "window")
    assert "--match" not in err


@pytest.mark.tools
def test_where_prometheus_looks_further_back_a_restart_is_one_all_the_same(desk: Desk, tmp_path: Path) -> None:
    told = Story("s", [(0.0, 3.0), (3.0, 8.0)])
    past = History(BEGIN, HOURS, list(told.nodes()), every=EVERY)
    with prometheus_with(tmp_path, openmetrics([past]), "--query.lookback-delta=15m") as url:
        said = ask(desk, url, told.name)
    assert said.status == CHANGES, said.err
    (held,) = (row for row in json.loads(said.out)["rows"] if row["name"] == "team-a")
    assert held["gpuHours"] == pytest.approx(HOURS, abs=2 * EVERY / 3600)


# --- agents that are dead, or came late --------------------------------------------------------------------------


def billed(desk: Desk, url: str, cluster: str, *more: str) -> tuple[int, Any]:
    said = ask(desk, url, cluster, *more, window=f"{HALF_A_DAY:g}h", until="2026-10-01T12:00:00Z")
    return said.status, json.loads(said.out)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("cluster", "whose"),
    [
        ("dead", "gpu-2 (5h"),
        ("late", "gpu-2 (5h"),
        ("never", "gpu-9 (11h"),
        ("unread", "gpu-2 (5h"),
        ("blind", "gpu-9 (11h"),
    ],
    ids=["until the end", "from the beginning", "all the time", "unread until the end", "never read"],
)
def test_a_bill_is_a_part_where_an_agent_is_dead_or_cannot_read(
    desk: Desk, prometheus: str, cluster: str, whose: str
) -> None:
    status, told = billed(desk, prometheus, cluster)
    (missing,) = told["missing"]
    assert status == CHANGES
    assert f"agent on {whose}" in missing
    assert "billed to anyone. Check: kubectl get pods" in missing
    assert told["remarks"] == []


@pytest.mark.tools
def test_nodes_without_an_agents_pod_make_a_bill_a_part(desk: Desk, prometheus: str) -> None:
    status, told = billed(desk, prometheus, "bare")
    (missing,) = told["missing"]
    assert status == CHANGES
    assert not lacks(missing, "2 nodes", "no Ready agent", "end")
    assert billed(desk, prometheus, "bare", 'node="gpu-1"') == (DONE, {**told, "missing": [], "partial": False})


@pytest.mark.tools
def test_nodes_that_came_or_left_are_named_and_the_bill_is_whole(desk: Desk, prometheus: str) -> None:
    status, told = billed(desk, prometheus, "scaled")
    came, left = told["remarks"]
    assert (status, told["missing"]) == (DONE, [])
    assert "gpu-3 (since 2026-10-01T06:0" in came
    assert "gpu-2 (until 2026-10-01T06:0" in left


@pytest.mark.tools
def test_the_bill_of_one_policy_misses_none_of_another_ones_nodes(desk: Desk, prometheus: str) -> None:
    _, told = billed(desk, prometheus, "policies", 'policy="pool-x"')
    (missing,) = told["missing"]
    assert "no response from the agent on gpu-2 (" in missing


# --- how long a node was not seen, as numbers --------------------------------------------------------------------


Day = tuple[Mapping[str, float], Mapping[str, float], Mapping[str, float], Sequence[Stretch]]
"""When each node was seen first and last, how often, and when none was."""


def absences(*days: Day) -> dict[str, float]:
    found = Absences(0.0, 172_800.0)
    for firsts, lasts, counts, holes in days:
        found.add(firsts, lasts, counts, holes)
    return dict(found.seconds)


NOTHING: Day = ({}, {}, {}, [])
FULL: Day = ({"n": 0.0}, {"n": 86_400.0}, {"n": 1441.0}, [])


def later(first: float, last: float, count: float) -> Day:
    return ({"n": first}, {"n": last}, {"n": count}, [])


AWAY: dict[str, tuple[tuple[Day, ...], dict[str, float]]] = {
    "always there": ((NOTHING, FULL, later(86_460.0, 172_800.0, 1440.0), NOTHING), {}),
    "away for five minutes": ((NOTHING, FULL, later(86_460.0, 172_800.0, 1435.0), NOTHING), {}),
    "away for six": ((NOTHING, FULL, later(86_460.0, 172_800.0, 1434.0), NOTHING), {"n": 360}),
    "away over midnight": ((NOTHING, FULL, later(90_000.0, 172_800.0, 1381.0), NOTHING), {"n": 3540}),
    "away when the window began": (
        (({}, {"n": -7200.0}, {}, []), later(3600.0, 86_400.0, 1381.0), NOTHING, NOTHING),
        {"n": 3600},
    ),
    "it came": ((NOTHING, later(3600.0, 86_400.0, 1381.0), NOTHING, NOTHING), {}),
    "away when the window ended": ((NOTHING, FULL, NOTHING, ({"n": 180_000.0}, {}, {}, [])), {"n": 86_400}),
    "away for all of the window": (
        (({}, {"n": -60.0}, {}, []), NOTHING, NOTHING, ({"n": 172_860.0}, {}, {}, [])),
        {"n": 172_860},
    ),
}


@pytest.mark.parametrize(("days", "told"), AWAY.values(), ids=AWAY)
def test_how_long_a_node_was_not_seen(days: tuple[Day, ...], told: dict[str, float]) -> None:
    assert absences(*days) == told


def test_a_time_in_which_prometheus_saw_nobody_is_no_nodes_own() -> None:
    down: Day = ({"n": 0.0}, {"n": 86_400.0}, {"n": 1441.0 - 599}, [(36_000.0, 72_000.0)])
    assert absences(NOTHING, down) == {}
    more: Day = ({"n": 0.0}, {"n": 86_400.0}, {"n": 1441.0 - 659}, [(36_000.0, 72_000.0)])
    assert absences(NOTHING, more) == {"n": 3600}


def test_many_nodes_are_told_by_the_first_few() -> None:
    (told,) = describe_absences({f"gpu-{number}": 3600.0 for number in range(9)})
    assert not lacks(told, "no samples", "gpu-0 (1h)", "gpu-1 (1h)", "gpu-2 (1h)", "6 more")


def seen(*told: tuple[float, float]) -> Absences:
    """A node in a window of a day, first and last seen before it, in it and after it."""
    found = Absences(0.0, 86_400.0)
    for first, last in told:
        if last < 0:
            found.add({}, {"n": last}, {}, [])
        elif first > 86_400:
            found.add({"n": first}, {}, {}, [])
        else:
            found.add({"n": first}, {"n": last}, {}, [])
    return found


DAY = (0.0, 86_400.0)
SILENT: dict[str, tuple[Absences, tuple[float, float], int]] = {
    "dead until the end": (seen((0.0, 36_000.0)), (36_060.0, 86_400.0), 50_340),
    "dead from the beginning": (seen((36_000.0, 86_400.0)), (0.0, 35_940.0), 35_880),
    "back after the window, an absence": (seen((0.0, 36_000.0), (90_000.0, 90_000.0)), (36_060.0, 86_400.0), 0),
    "seen before and after, an absence": (seen(DAY), (3600.0, 7200.0), 0),
    "dead since before the window": (seen((-60.0, -60.0)), DAY, 86_400),
    "first seen after the window": (seen((90_000.0, 90_000.0)), DAY, 86_340),
    "never seen": (seen(), DAY, 86_340),
}


@pytest.mark.parametrize(("absences", "down", "told"), SILENT.values(), ids=SILENT)
def test_how_long_an_agent_did_not_answer(absences: Absences, down: tuple[float, float], told: int) -> None:
    assert silence_of("n", absences, down) == told


def test_a_time_in_which_all_were_down_is_no_agents_own() -> None:
    found = seen((0.0, 36_000.0))
    found.add({}, {}, {}, [(36_000.0, 86_460.0)])
    assert silence_of("n", found, (36_060.0, 86_400.0)) == 0
