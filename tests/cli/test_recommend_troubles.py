"""`recommend` as it is typed, and all that a Prometheus can answer instead of a pool's history (kubectl_gpusharing/usage/recommend.py, kubectl_gpusharing/usage/prometheus.py, kubectl_gpusharing/usage/histories.py): one sentence and an exit status, or an answer with PARTIAL."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.desk import JSON, Desk, Said, wrong
from tests.cli.fakeprometheus import HOURS, LABELS, NOW, Answer, FakePrometheus, failure, success, vector
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE
from kubectl_gpusharing.usage.prometheus import NARROW_QUERY

pytestmark = pytest.mark.usefixtures("used")

HOUR = 3600


def peaks(value: str, first: int = 0, last: int = HOURS, off: int = 0, /, **labels: str) -> JSON:
    """A series with the same value at these hours of the window, by `off` seconds beside what was asked for."""
    begin = NOW - (HOURS - 1) * HOUR + off
    points = [[begin + hour * HOUR, value] for hour in range(first, last)]
    return {"metric": {**LABELS, **labels}, "values": points}


def matrix(*series: JSON, **more: Any) -> Answer:
    return success("matrix", series, **more)


def there(*hours: tuple[float, float]) -> Answer:
    """Something is told in these hours of the window, each minute."""
    begin = NOW - HOURS * HOUR
    points = [
        [begin + minute * 60, "1"] for first, last in hours for minute in range(round(first * 60), round(last * 60) + 1)
    ]
    return matrix({"metric": {}, "values": points})


def ask(desk: Desk, fake: FakePrometheus, *more: str) -> Said:
    return desk.type("recommend", "--prometheus", fake.url, "--window", f"{HOURS}h", *more)


def refused(desk: Desk, fake: FakePrometheus, *more: str) -> str:
    return wrong(desk, "recommend", "--prometheus", fake.url, "--window", f"{HOURS}h", *more)


def workloads(said: Said) -> dict[str, JSON]:
    return {row["name"]: row for row in json.loads(said.out)["workloads"]}


def test_the_whole_program_tells_it_and_needs_no_cluster(desk: Desk, fake: FakePrometheus) -> None:
    desk.kubeconfig.unlink()
    said = desk.start("recommend", "--prometheus", fake.url, "--window", f"{HOURS}h")
    assert (said.status, said.err) == (DONE, "")
    assert "Layout: 7x1g.10gb on every GPU" in said.out
    fake.ranges["DCGM_FI_DEV_FB_USED"] = failure(503, "timeout", "query timed out")
    assert not lacks(refused(desk, fake), fake.url, "query timed out", NARROW_QUERY)


# --- no Prometheus, or another program ---------------------------------------------------------------------------


def test_where_no_service_of_the_cluster_looks_like_one(desk: Desk) -> None:
    desk.server.lists["/api/v1/services"] = []
    assert not lacks(wrong(desk, "recommend"), "no Service", "context desk", "--service")


NO_DATA: dict[str, Answer] = {
    "a page": (200, "text/html", b"<html>Grafana</html>"),
    "not found": (404, "text/plain", b"404 page not found\n"),
    "cut": (200, "application/json", b'{"status": "success", "data": {"resultType": "vec'),
    "no text": (200, "application/json", b"\xff\xfe\x00"),
    "nested": (200, "application/json", b"[" * 100_000),
    "no object": (200, "application/json", b'"success"'),
    "no data": (200, "application/json", b'{"status": "success"}'),
    "no labels": success("vector", [{"metric": None, "value": [NOW, "1"]}]),
    "a label that is a number": success("vector", [{"metric": {"a": 1}, "value": [NOW, "1"]}]),
    "a value that is none": success("vector", [{"metric": {}, "value": [NOW, "many"]}]),
    "a value beyond all": success("vector", [{"metric": {}, "value": [NOW, 10**400]}]),
    "a gateway": (502, "text/html", b"bad gateway"),
    "a way to log in": (302, "text/html", b"<a>Found</a>"),
    "a Service without pods": (503, "application/json", b'{"kind": "Status", "message": "no endpoints available"}'),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_stops_being_one_in_the_middle(desk: Desk, fake: FakePrometheus, name: str) -> None:
    fake.ranges["DCGM_FI_DEV_FB_USED"] = NO_DATA[name]
    assert "does not respond like a Prometheus" in refused(desk, fake)


# --- too much ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "query processing would load too many samples into memory in query execution",
        "expanding series: the query hit the max number of series limit (limit: 100000 series)",
        "the query exceeded the maximum number of series (limit: 100000 series)",
        "exceeded series limit: limit 100000 violated (got 100001)",
        "exceeded maximum resolution of 11,000 points per timeseries",
    ],
    ids=["Prometheus", "Cortex", "Mimir", "a store gateway", "Prometheus, of points"],
)
def test_a_limit_of_prometheus_is_told_with_how_to_ask_for_less(desk: Desk, fake: FakePrometheus, said: str) -> None:
    fake.ranges["DCGM_FI_DEV_FB_USED"] = failure(422, "execution", said)
    assert not lacks(refused(desk, fake), fake.url, said, NARROW_QUERY)


def test_an_error_that_is_no_limit_has_no_such_hint(desk: Desk, fake: FakePrometheus) -> None:
    fake.ranges["DCGM_FI_DEV_FB_USED"] = failure(422, "execution", "vector cannot contain metrics twice")
    assert refused(desk, fake).endswith(": vector cannot contain metrics twice\n")


def test_what_was_cut_at_a_limit_is_a_part(desk: Desk, fake: FakePrometheus) -> None:
    warned = matrix(peaks("6144"), warnings=["results truncated due to limit"])
    fake.ranges["DCGM_FI_DEV_FB_USED"] = warned
    said = ask(desk, fake)
    assert (said.status, said.err) == (CHANGES, "")
    assert not lacks(said.out, "PARTIAL", "results truncated due to limit")


# --- too little --------------------------------------------------------------------------------------------------


def test_less_history_than_it_takes(desk: Desk, fake: FakePrometheus) -> None:
    fake.ranges["DCGM_FI_DEV_FB_USED"] = matrix(peaks("6144", HOURS - 5))
    told = refused(desk, fake)
    assert not lacks(told, "1 workload", "team-a/llm", "5", "24 hourly peaks", "24 h", "--window")


def test_a_history_that_begins_in_the_window_is_a_part(desk: Desk, fake: FakePrometheus) -> None:
    fake.ranges["count("] = there((4, HOURS))
    said = ask(desk, fake)
    assert (said.status, said.err) == (CHANGES, "")
    assert not lacks(said.out, "PARTIAL", "2026-09-19T22:00:00Z", "1d2h of 1d6h")


def test_gaps_are_a_part_in_every_output(desk: Desk, fake: FakePrometheus) -> None:
    fake.ranges["count("] = there((0, 5), (7, HOURS))
    told = ask(desk, fake)
    assert told.status == CHANGES
    assert not lacks(told.out, "PARTIAL", "2h", "1 gap")
    data = ask(desk, fake, "-o", "json")
    assert (data.status, json.loads(data.out)["partial"]) == (CHANGES, True)
    assert len(json.loads(data.out)["missing"]) == 1
    table = ask(desk, fake, "-o", "csv")
    assert table.status == CHANGES
    assert {row["partial"] for row in csv.DictReader(io.StringIO(table.out))} == {"yes"}


def test_a_file_of_a_part_says_so(desk: Desk, fake: FakePrometheus, tmp_path: Path) -> None:
    fake.ranges["count("] = there((0, 5), (7, HOURS))
    name = tmp_path / "pool.yaml"
    assert ask(desk, fake, "--write", str(name)).status == CHANGES
    assert not lacks(name.read_text(), "# PARTIAL", "2h")


def test_a_prometheus_that_knows_nothing_of_gpus(desk: Desk, fake: FakePrometheus) -> None:
    fake.ranges["count("] = matrix()
    assert not lacks(
        refused(desk, fake), "has no GPU metrics in this window", "dcgmExporter.serviceMonitor.enabled=true"
    )


# --- what misleads -----------------------------------------------------------------------------------------------


def test_two_prometheus_with_the_same_series_count_no_pod_twice(desk: Desk, fake: FakePrometheus) -> None:
    for name, value in (("DCGM_FI_DEV_FB_USED", "6144"), ("quantile_over_time(0.95, DCGM", "0.1")):
        both = (peaks(value, Hostname="gpu-1", instance=one) for one in ("a:9400", "b:9400"))
        fake.ranges[name] = matrix(*both)
    fake.answers["max_over_time((count"] = vector(({}, "2"))
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    assert workloads(said)["llm"]["pods"] == 1
    assert json.loads(said.out)["gpus"] == 1


def test_two_of_several_clusters_are_not_mixed(desk: Desk, fake: FakePrometheus) -> None:
    fake.ranges["DCGM_FI_DEV_FB_USED"] = matrix(*(peaks("6144", cluster=name) for name in ("east", "west")))
    assert not lacks(refused(desk, fake), "(east, west)")


def test_a_window_of_minutes_is_too_little_and_not_nothing(desk: Desk, fake: FakePrometheus) -> None:
    told = refused(desk, fake, "--window", "20m")
    assert "--window" in told
    assert "no pod used a GPU" not in told


def test_its_own_clock_says_when_now_is_and_what_is_still_to_come(desk: Desk, fake: FakePrometheus) -> None:
    data = json.loads(ask(desk, fake, "-o", "json").out)
    assert (data["from"], data["until"]) == ("2026-09-19T18:00:00Z", "2026-09-21T00:00:00Z")
    told = refused(desk, fake, "--until", "2026-09-22")
    assert told == "error: --until 2026-09-22 is in the future\n"


@pytest.mark.parametrize("clock", ["-1", "0", "1e18", "1e300"])
def test_a_clock_that_is_no_clock(desk: Desk, fake: FakePrometheus, clock: str) -> None:
    fake.instead = lambda path: vector(({}, clock))
    when = "before 2001" if float(clock) < 1e9 else "after 2096"
    assert not lacks(refused(desk, fake), fake.url, when)


@pytest.mark.parametrize("off", [-2400, -900, 900, 2400])
def test_points_beside_the_times_that_were_asked_for_are_in_the_nearest_hour_or_left_out(
    desk: Desk, fake: FakePrometheus, off: int
) -> None:
    fake.moves = off
    old = {"namespace": "team-z", "pod": "old-0", "UUID": "GPU-2"}
    fake.ranges["DCGM_FI_DEV_FB_USED"] = matrix(peaks("6144", 0, HOURS, off), peaks("6144", 0, 1, off, **old))
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    found = workloads(said)
    assert set(found) == {"llm"}
    assert found["llm"]["samples"] == HOURS - (abs(off) > HOUR / 2)


def test_a_namespace_that_vanished_is_named_and_left_out(desk: Desk, fake: FakePrometheus) -> None:
    gone = {"namespace": "team-z", "pod": "old-0"}
    fake.ranges["DCGM_FI_DEV_FB_USED"] = matrix(peaks("6144", 4), peaks("6144", 0, 4, **gone))
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    assert set(workloads(said)) == {"llm"}
    assert any("team-z/old" in one and "left out" in one for one in json.loads(said.out)["remarks"])


@pytest.mark.parametrize("value", ["-5", "1e300", "9223372036854775794"])
def test_values_that_no_gpu_has_are_left_out(desk: Desk, fake: FakePrometheus, value: str) -> None:
    """DCGM writes what it does not know as a number near 2^63."""
    odd = {"pod": "odd-6b8f9c7d5-bcdfg", "UUID": "GPU-2"}
    fake.ranges["DCGM_FI_DEV_FB_USED"] = matrix(peaks("6144"), peaks(value, **odd))
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    assert workloads(said)["odd"]["peakBytes"] is None
    assert workloads(said)["llm"]["advice"] == "1g.10gb"


@pytest.mark.parametrize("value", ["-5", "1e300"])
def test_so_are_those_of_an_agent(desk: Desk, fake: FakePrometheus, value: str) -> None:
    odd = {"uuid": "GPU-1", "node": "gpu-1", "namespace": "team-a", "pod": "llm-6b8f9c7d5-x2k4p"}
    told = {"metric": odd, "values": peaks(value)["values"]}
    fake.ranges = {"max_over_time(gpusharing_pod_memory_used_bytes": matrix(told), **fake.ranges}
    said = ask(desk, fake, "-o", "json")
    assert (said.status, said.err) == (DONE, "")
    assert workloads(said)["llm"]["peakBytes"] == pytest.approx(6 * 2**30, rel=0.06)
