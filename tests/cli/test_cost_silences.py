"""`cost` where an agent is dead until the end of the window, or came late, in a real Prometheus with a SIMULATED past (kubectl_gpusharing/usage/absences.py)."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from tests.cli.desk import Desk
from tests.cli.history import Gauge, History, Node, Stretch, openmetrics
from tests.cli.pastfleet import WHOLE
from tests.cli.pastprometheus import prometheus_with
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE
from kubectl_gpusharing.usage.absences import Absences, silence_of

BEGIN, UNTIL, HOURS = datetime(2026, 10, 1, tzinfo=UTC), "2026-10-01T12:00:00Z", 12.0
JOB = "gpusharing-agent"
ALWAYS: tuple[float, float] = (-1.0, -1.0)


def node(cluster: str, name: str, unseen: tuple[float, float] = ALWAYS) -> Node:
    """One GPU that team-a holds all the time, whether its agent is seen or not."""
    stands = [Stretch((0, HOURS), {("team-a", WHOLE): Fraction(1)})]
    labels = {"cluster": cluster, "job": JOB}
    return Node(name, "pool-x", 1, stands, slices={WHOLE: 1}, unseen=(unseen,), labels=labels)


def gauge(cluster: str, name: str, value: str, hours: tuple[float, float] = (0, HOURS), **labels: str) -> Gauge:
    return Gauge(name, {"cluster": cluster, **labels}, value, hours)


def past() -> History:
    clusters = ("dead", "unread", "late", "never", "blind", "bare", "scaled", "policies")
    dead, late = (6.0, 99.0), (-1.0, 6.0)
    return History(
        BEGIN,
        HOURS,
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
    """Its address; the clusters are told apart by the label `cluster`."""
    with prometheus_with(tmp_path_factory.mktemp("past"), openmetrics([past()])) as url:
        yield url


def ask(desk: Desk, url: str, cluster: str, *more: str) -> tuple[int, Any]:
    chosen = ("--match", ",".join((f'cluster="{cluster}"', *more)), "--prometheus", url, "-o", "json")
    said = desk.type("cost", *chosen, "--window", f"{HOURS:g}h", "--until", UNTIL)
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
    status, told = ask(desk, prometheus, cluster)
    (missing,) = told["missing"]
    assert status == CHANGES
    assert f"agent on {whose}" in missing
    assert "billed to anyone. Check: kubectl get pods" in missing
    assert told["remarks"] == []


@pytest.mark.tools
def test_nodes_without_an_agents_pod_make_a_bill_a_part(desk: Desk, prometheus: str) -> None:
    status, told = ask(desk, prometheus, "bare")
    (missing,) = told["missing"]
    assert status == CHANGES
    assert not lacks(missing, "2 nodes", "no Ready agent", "end")
    assert ask(desk, prometheus, "bare", 'node="gpu-1"') == (DONE, {**told, "missing": [], "partial": False})


@pytest.mark.tools
def test_nodes_that_came_or_left_are_named_and_the_bill_is_whole(desk: Desk, prometheus: str) -> None:
    status, told = ask(desk, prometheus, "scaled")
    came, left = told["remarks"]
    assert (status, told["missing"]) == (DONE, [])
    assert "gpu-3 (since 2026-10-01T06:0" in came
    assert "gpu-2 (until 2026-10-01T06:0" in left


@pytest.mark.tools
def test_the_bill_of_one_policy_misses_none_of_another_ones_nodes(desk: Desk, prometheus: str) -> None:
    _, told = ask(desk, prometheus, "policies", 'policy="pool-x"')
    (missing,) = told["missing"]
    assert "no response from the agent on gpu-2 (" in missing


# --- as numbers --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("absences", "down", "told"),
    [
        (seen((0.0, 36_000.0)), (36_060.0, 86_400.0), 50_340),
        (seen((36_000.0, 86_400.0)), (0.0, 35_940.0), 35_880),
        (seen((0.0, 36_000.0), (90_000.0, 90_000.0)), (36_060.0, 86_400.0), 0),  # an absence
        (seen((0.0, 86_400.0)), (3600.0, 7200.0), 0),  # an absence
        (seen((-60.0, -60.0)), (0.0, 86_400.0), 86_400),
        (seen((90_000.0, 90_000.0)), (0.0, 86_400.0), 86_340),
        (seen(), (0.0, 86_400.0), 86_340),
    ],
    ids=[
        "dead until the end",
        "dead from the beginning",
        "back after the window",
        "seen before and after",
        "dead since before the window",
        "first seen after the window",
        "never seen",
    ],
)
def test_how_long_an_agent_did_not_answer(absences: Absences, down: tuple[float, float], told: int) -> None:
    assert silence_of("n", absences, down) == told


def test_a_time_in_which_all_were_down_is_no_agents_own() -> None:
    found = seen((0.0, 36_000.0))
    found.add({}, {}, {}, [(36_000.0, 86_460.0)])
    assert silence_of("n", found, (36_060.0, 86_400.0)) == 0
