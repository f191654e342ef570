"""`cost` by pod, with the fractions of KAI-Scheduler and HAMi, and with what was used, in a real Prometheus with a SIMULATED past (kubectl_gpusharing/usage/meter.py)."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.desk import Desk
from tests.cli.fakeprometheus import DAY, HELD, FakePrometheus, failure, vector
from tests.cli.history import Gauge, History, Node, Stretch, openmetrics, prometheus_with
from tests.cli.pastfleet import SHARED, WHOLE
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE
from kubectl_gpusharing.usage.bills import Part
from kubectl_gpusharing.usage.meter import divide
from kubectl_gpusharing.usage.prometheus import Series

BEGIN, UNTIL, HOURS = datetime(2026, 10, 1, tzinfo=UTC), "2026-10-02", 24
GIB = 2**30
EVERY = 240


def node(cluster: str, gpus: int, **stands: Any) -> Node:
    return Node("gpu-1", "pool-x", gpus, [Stretch((0, HOURS), **stands)], labels={"cluster": cluster})


def gauge(cluster: str, name: str, value: float, hours: tuple[float, float] = (0, HOURS), **labels: str) -> Gauge:
    return Gauge(name, {"cluster": cluster, "node": "gpu-1", **labels}, f"{value:g}", hours, EVERY)


def device(cluster: str, uuid: str, resource: str, slices: int = 1) -> Iterator[Gauge]:
    yield gauge(cluster, "gpusharing_device_slices", slices, uuid=uuid, resource=resource)
    yield gauge(cluster, "gpusharing_device_memory_bytes", 80 * GIB, uuid=uuid)
    yield Gauge("gpusharing_policy_gpu_hourly_price", {"cluster": cluster, "policy": "pool-x", "currency": "USD"}, "2")


def pod(
    cluster: str,
    uuid: str,
    name: tuple[str, str],
    memory: float,
    resource: str = "",
    hours: tuple[float, float] = (0, HOURS),
    sm: float | None = None,
) -> Iterator[Gauge]:
    """A pod on a GPU, with what it uses; without a resource it holds no slice of it."""
    labels = {"uuid": uuid, "namespace": name[0], "pod": name[1]}
    yield gauge(cluster, "gpusharing_pod_memory_used_bytes", memory * GIB, hours, **labels)
    if sm is not None:
        yield gauge(cluster, "gpusharing_pod_sm_ratio", sm, hours, **labels)
    if resource:
        yield gauge(cluster, "gpusharing_pod_slices", 1, hours, resource=resource, **labels)


def hami() -> Iterator[Gauge]:
    """What HAMi's scheduler tells, which is scraped without honorLabels."""
    scheduler = {"cluster": "hami", "node": "control-plane-1", "namespace": "kube-system", "pod": "hami-scheduler"}
    for uuid in ("u1", "u2"):
        labels = {**scheduler, "exported_node": "gpu-1", "device_uuid": uuid}
        yield Gauge("hami_gpu_memory_limit_bytes", labels, str(80 * GIB), every=EVERY)
    for namespace, uuid, size, hours in (("team-a", "u1", 40, (0, HOURS)), ("team-b", "u2", 20, (6, 18))):
        job = {"exported_node": "gpu-1", "exported_namespace": namespace, "exported_pod": "job", "device_uuid": uuid}
        labels = {**scheduler, **job, "container_index": "0"}
        yield Gauge("hami_vgpu_memory_allocated_bytes", labels, str(size * GIB), hours, EVERY)


def past() -> History:
    kai, quarter = "kai-resource-reservation", Fraction(1, 4)
    return History(
        BEGIN,
        HOURS,
        [
            node("pods", 2, held={("team-a", WHOLE): Fraction(2)}),
            node("shared", 1, held={("team-a", SHARED): quarter}, idle={SHARED: 3 * quarter}),
            node("kai", 2, held={(kai, WHOLE): Fraction(1), ("team-a", WHOLE): Fraction(1)}),
            node("kai-unused", 1, held={(kai, WHOLE): Fraction(1)}),
            node("kai-idle", 3, held={(kai, WHOLE): Fraction(3)}),
            node("hami", 2, stranded=Fraction(2)),
        ],
        [
            *device("pods", "u1", WHOLE),
            *device("pods", "u2", WHOLE),
            *pod("pods", "u1", ("team-a", "long"), 20, WHOLE, sm=0.5),
            *pod("pods", "u2", ("team-a", "first"), 60, WHOLE, hours=(0, 12)),
            *pod("pods", "u2", ("team-a", "second"), 60, WHOLE, hours=(12, HOURS)),
            *device("shared", "u1", SHARED, 4),
            *pod("shared", "u1", ("team-a", "part"), 10, SHARED, sm=0.5),
            *device("kai", "u1", WHOLE),
            *device("kai", "u2", WHOLE),
            *pod("kai", "u1", (kai, "gpu-reservation-1"), 0, WHOLE),
            *pod("kai", "u1", ("team-a", "large"), 30),
            *pod("kai", "u1", ("team-b", "small"), 10),
            *pod("kai", "u2", ("team-a", "whole"), 70, WHOLE),
            *device("kai-unused", "u1", WHOLE),
            *(part for uuid in ("u1", "u2", "u3") for part in device("kai-idle", uuid, WHOLE)),
            *(part for uuid in ("u1", "u2", "u3") for part in pod("kai-idle", uuid, (kai, f"gpu-{uuid}"), 0, WHOLE)),
            *pod("kai-idle", "u1", ("team-a", "large"), 30),
            *pod("kai-idle", "u1", ("team-b", "small"), 10),
            *pod("kai-idle", "u3", ("team-c", "late"), 1, hours=(6, 12)),
            *device("hami", "u1", WHOLE),
            *hami(),
        ],
        every=EVERY,
    )


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus_with(tmp_path_factory.mktemp("past"), openmetrics([past()])) as url:
        yield url


def ask(desk: Desk, url: str, cluster: str, by: str) -> Any:
    chosen = ("--match", f'cluster="{cluster}"', "--prometheus", url, "--by", by, "-o", "json")
    said = desk.type("cost", *chosen, "--window", "1d", "--until", UNTIL)
    assert (said.status, said.err) == (DONE, "")
    return json.loads(said.out)


def hours(bill: Any) -> dict[str, tuple[float, str]]:
    """GPU-hours, to the nearest, and basis, by name, or by part where nobody held them."""
    return {row["name"] or row["part"]: (round(row["gpuHours"]), row["basis"]) for row in bill["rows"]}


def check_sum(bill: Any, cost: float) -> None:
    assert bill["totals"][0]["cost"] == cost
    cents = sum(round(float(row["cost"]) * 100) for row in bill["rows"])
    assert cents == round(float(cost) * 100)


def test_the_time_of_a_namespace_is_divided_among_its_pods(desk: Desk, prometheus: str) -> None:
    bill = ask(desk, prometheus, "pods", "pod")
    assert hours(bill) == {
        "team-a/first": (12, "measured"),
        "team-a/long": (24, "measured"),
        "team-a/second": (12, "measured"),
    }
    check_sum(bill, 96.00)


@pytest.mark.parametrize(("by", "name"), [("pod", "/(unknown)"), ("namespace", "")])
def test_a_reserved_gpu_that_no_known_pod_uses_stays_with_the_reservation(
    desk: Desk, prometheus: str, by: str, name: str
) -> None:
    bill = ask(desk, prometheus, "kai-unused", by)
    assert hours(bill) == {f"kai-resource-reservation{name}": (24, "measured")}


@pytest.mark.parametrize(
    ("by", "billed"),
    [
        ("namespace", {"team-a": 18 + 24, "team-b": 6}),
        ("pod", {"team-a/large": 18, "team-b/small": 6, "team-a/whole": 24}),
        ("policy", {"pool-x": 24}),
    ],
)
def test_a_gpu_that_kai_divides_is_billed_to_the_pods_that_use_it(
    desk: Desk, prometheus: str, by: str, billed: dict[str, int]
) -> None:
    bill = ask(desk, prometheus, "kai", by)
    rows: dict[str, int] = {}
    for row in bill["rows"]:
        rows[row["name"]] = rows.get(row["name"], 0) + round(row["gpuHours"])
    assert rows == {**billed, **({"pool-x": 48} if by == "policy" else {})}
    assert {row["basis"] for row in bill["rows"]} == {"estimate", "measured"}
    check_sum(bill, 96.00)


def test_nobody_pays_for_a_reserved_gpu_of_a_neighbor(desk: Desk, prometheus: str) -> None:
    bill = ask(desk, prometheus, "kai-idle", "namespace")
    shares = {"team-a": 18, "team-b": 6, "team-c": 6, "kai-resource-reservation": 24 + 18}
    assert hours(bill) == {name: (number, "estimate") for name, number in shares.items()}
    check_sum(bill, 144.00)


MOMENTS = st.lists(  # of each reserved GPU, the memory that each pod uses
    st.dictionaries(
        st.integers(0, 3), st.dictionaries(st.sampled_from("abc"), st.integers(1, 80), max_size=3), max_size=4
    ),
    min_size=1,
    max_size=6,
)


@given(MOMENTS)
def test_each_moment_of_a_reserved_gpu_is_paid_by_its_users(moments: list[dict[int, dict[str, int]]]) -> None:
    paid: dict[str, float] = defaultdict(float)
    for gpus in moments:
        for shares in gpus.values():
            for name, memory in shares.items():
                paid[name] += memory / sum(shares.values())
            paid[""] += not shares
    reserved = float(sum(map(len, moments)))
    users = [Series({"node": "n", "namespace": name, "pod": "p"}, ((0.0, paid[name]),)) for name in "abc" if paid[name]]
    held = Series({"node": "n", "namespace": "kai-resource-reservation"}, ((0.0, 300 * reserved),))
    known = [Series({"node": "n"}, ((0.0, reserved),))]
    parts = divide(defaultdict(list, {Part.HELD: [held], "users": users, "reserved": known}))[Part.HELD]
    billed = {one.labels["namespace"] if "pod" in one.labels else "": one.value for one in parts}
    expected: dict[str, Any] = {name: pytest.approx(300 * part) for name, part in paid.items() if part}
    assert billed == (expected or {"": 0.0})


def test_fractions_of_hami_are_billed_as_they_were_reserved(desk: Desk, prometheus: str) -> None:
    bill = ask(desk, prometheus, "hami", "namespace")
    assert hours(bill) == {"team-a": (12, "reserved"), "team-b": (3, "reserved"), "stranded": (33, "")}
    check_sum(bill, 96.00)
    assert set(hours(ask(desk, prometheus, "hami", "pod"))) == {"team-a/job", "team-b/job", "stranded"}


def test_what_was_used_is_told_beside_what_was_held(desk: Desk, prometheus: str) -> None:
    (row,) = ask(desk, prometheus, "pods", "namespace")["rows"]
    assert (row["memoryUsed"], row["smUsed"]) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.5, abs=0.01)), (
        "20 and 60 of 80 GiB"
    )
    (row,) = ask(desk, prometheus, "pods", "policy")["rows"]
    assert (row["name"], row["memoryUsed"]) == ("pool-x", pytest.approx(0.5, abs=0.01))
    rows = {row["name"]: row for row in ask(desk, prometheus, "pods", "pod")["rows"]}
    assert rows["team-a/long"]["memoryUsed"] == pytest.approx(0.25, abs=0.01)
    assert rows["team-a/first"]["smUsed"] is None, "nobody tells"


def test_a_replica_that_does_more_than_its_part_used_more_than_all_of_it(desk: Desk, prometheus: str) -> None:
    held, idle = ask(desk, prometheus, "shared", "namespace")["rows"]
    assert (held["memoryUsed"], held["smUsed"]) == (pytest.approx(0.5, abs=0.01), pytest.approx(2.0, abs=0.01)), (
        "of a quarter"
    )
    assert (idle["memoryUsed"], idle["smUsed"]) == (None, None)
    said = desk.type(
        "cost", "--match", 'cluster="shared"', "--prometheus", prometheus, "--window", "1d", "--until", UNTIL
    )
    assert "MEM USED  SM USED" in said.out
    assert "50%       200%" in said.out


def test_a_bill_is_whole_although_the_query_for_what_was_used_is_refused(desk: Desk, fake: FakePrometheus) -> None:
    refused = failure(422, "execution", "query processing would load too many samples into memory")
    fake.answers = {"* 0 + on (": refused, **DAY}
    said = desk.type("cost", "--prometheus", fake.url, "--window", "1d", "-o", "json")
    assert said.status == DONE
    (remark,) = json.loads(said.out)["remarks"]
    assert not lacks(remark, "used", "unknown")
    assert "would load too many samples" in remark


def test_what_hami_allocates_is_billed_once_though_the_policy_of_its_node_changed() -> None:
    node = {"node": "n"}
    pods = [Series({**node, "namespace": name, "pod": "x"}, ((0.0, 60.0),)) for name in ("team-a", "team-b")]
    stranded = [Series({**node, "policy": policy}, ((0.0, 50.0),)) for policy in "ab"]
    parts = divide(defaultdict(list, {Part.STRANDED: stranded, "fractions": pods}))
    held = {
        name: sum(one.value for one in parts[Part.HELD] if one.labels["namespace"] == name)
        for name in ("team-a", "team-b")
    }
    assert held == {"team-a": pytest.approx(50), "team-b": pytest.approx(50)}
    assert [one.value for one in parts[Part.STRANDED]] == [pytest.approx(0)] * 2


def test_weights_that_are_no_numbers_are_left_out(desk: Desk, fake: FakePrometheus) -> None:
    slices = [({**HELD, "pod": name}, value) for name, value in (("a", "NaN"), ("b", "+Inf"), ("c", "3"), ("d", "0"))]
    fake.answers = {"(sum_over_time(gpusharing_pod_slices": vector(*slices), **DAY}
    said = desk.type("cost", "--prometheus", fake.url, "--window", "1d", "--by", "pod", "-o", "json")
    assert said.status in (DONE, CHANGES)
    assert [row["name"] for row in json.loads(said.out)["rows"] if row["part"] == "held"] == ["team-a/c"]
