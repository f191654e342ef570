"""`cost` and a real Prometheus with a SIMULATED past: the articles' fleet of 80 GPUs, and what goes wrong in a fleet
(cli/cost.py, cli/metered.py)."""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hack.generate import ROOT
from tests.cli.desk import Desk, Said
from tests.cli.history import Gauge, History, Node, Stretch, openmetrics
from tests.cli.pastprometheus import prometheus_with

from gpusharing.cli.troubles import CHANGES, DONE, FAILED
from gpusharing.planning.gpus.shares import Extent, shares

BEGIN, UNTIL = datetime(2026, 10, 1, tzinfo=UTC), "2026-10-08"
HOURS = 168
SHORT = 48
"""Hours of the clusters in which something goes wrong."""
GOLDENS = ROOT / "tests/cli/goldens"
H100, CARD = {"1g.20gb": Extent(1, 2), "3g.40gb": Extent(3, 4), "2g.20gb": Extent(2, 2)}, Extent(7, 8)
SMALL, MIDDLE, OLD = (f"nvidia.com/mig-{name}" for name in ("1g.20gb", "3g.40gb", "2g.20gb"))
SHARED, WHOLE = "nvidia.com/gpu.shared", "nvidia.com/gpu"


def part(profile: str, count: int) -> Fraction:
    """The share of one instance in a layout of so many alike."""
    return shares([H100[profile]] * count, CARD)[0]


def split(counts: dict[tuple[str, str], int], resource: str, all_: int, share: Fraction) -> dict[str, Any]:
    """Slices that namespaces hold, and the idle rest, in GPUs."""
    held = {key: count * share for key, count in counts.items()}
    return {"held": held, "idle": {resource: (all_ - sum(counts.values())) * share}}


def fleet() -> Iterator[Node]:
    """The second article's pools A to D, with layouts that the cards have: an H100 holds 4 of 1g.20gb, not 7."""
    one = part("1g.20gb", 4)
    for number, (a, b) in enumerate([(15, 10), (15, 9), (15, 9), (15, 9)]):
        stands = split({("team-a", SMALL): a, ("team-b", SMALL): b}, SMALL, 32, one)
        yield Node(f"gpu-a-{number}", "pool-a", 8, [Stretch((0, HOURS), **stands)], slices={SMALL: 1})
    half = part("3g.40gb", 2)
    steady = split({("team-b", MIDDLE): 9}, MIDDLE, 16, half)
    for number in (1, 2):
        yield Node(f"gpu-b-{number}", "pool-b", 8, [Stretch((0, HOURS), **steady)], slices={MIDDLE: 1})
    # Divided anew on the third day, in two hours.
    third = part("2g.20gb", 3)
    before = split({("team-c", OLD): 24}, OLD, 24, third)
    after = split({("team-b", MIDDLE): 9}, MIDDLE, 16, half)
    stretches = [
        Stretch((0, 48), **before, stranded=8 - 24 * third),
        Stretch((48, 50), transition=Fraction(8)),
        Stretch((50, HOURS), **after),
    ]
    yield Node("gpu-b-3", "pool-b", 8, stretches, slices={MIDDLE: 1, OLD: 1})
    for number in (1, 2):
        all_ = split({("research", WHOLE): 8}, WHOLE, 8, Fraction(1))
        yield Node(f"gpu-c-{number}", "pool-c", 8, [Stretch((0, HOURS), **all_)], slices={WHOLE: 1})
    quarters = split({("dev", SHARED): 21}, SHARED, 32, Fraction(1, 4))
    card = "NVIDIA A100-SXM4-80GB"
    yield Node("gpu-d-1", "pool-d", 8, [Stretch((0, HOURS), **quarters)], card, slices={SHARED: 4})


def priced(cluster: str) -> Iterator[Gauge]:
    """Policies A and B have a price, OpenCost knows the nodes of C, and the chart the card of D."""
    where = {"cluster": cluster}
    for policy in ("pool-a", "pool-b", "pool-c"):
        labels = {**where, "policy": policy, "currency": "USD"}
        yield Gauge("gpusharing_policy_gpu_hourly_price", labels, "3.2")
    for node, price in (("gpu-c-1", "2.95"), ("gpu-c-2", "2.95"), ("gpu-d-1", "0")):
        yield Gauge("node_gpu_hourly_cost", {**where, "node": node, "instance_type": "x"}, price)
    card = {"product": "NVIDIA-A100-SXM4-80GB", "currency": "USD"}
    yield Gauge("gpusharing:product_gpu_hourly_price", {**where, **card}, "1.1")
    for namespace, team in (("team-a", "red"), ("team-b", "blue"), ("dev", "red")):
        labels = {**where, "namespace": namespace, "label_team": team}
        yield Gauge("kube_namespace_labels", labels, "1", hours=(0, 100 if namespace == "dev" else HOURS))


def whole(name: str, cluster: str, **more: Any) -> Node:
    """A GPU of its own for a namespace."""
    held = {("team-a", WHOLE): Fraction(1)}
    labels = {"cluster": cluster, **more.pop("labels", {})}
    stands = more.pop("stretches", [Stretch((0, SHORT), held)])
    return Node(name, "pool-x", 1, stands, slices={WHOLE: 1}, labels=labels, **more)


def rough() -> Iterator[Node]:
    """Clusters in which something goes wrong."""
    yield whole("gpu-1", "restarts", restarts=(10.0, 30.02, 30.5))
    yield whole("gpu-1", "gaps", unseen=((10.0, 20.0), (30.0, 31.0)))
    yield whole("gpu-1", "young", unseen=((0.0, 20.0),))
    yield whole("gpu-1", "gone", unseen=((20.0, 999.0),))
    yield whole("gpu-1", "unpriced")
    yield whole("gpu-1", "negative")
    yield whole("gpu-1", "mixed")
    yield Node(
        "gpu-2",
        "pool-y",
        1,
        [Stretch((0, SHORT), {("team-a", WHOLE): Fraction(1)})],
        labels={"cluster": "mixed"},
    )
    for replica in ("a", "b"):
        yield whole("gpu-1", "double", labels={"replica": replica})
    # For some hours of a day another Prometheus scraped the agents too.
    yield whole("gpu-1", "passing")
    yield whole("gpu-1", "passing", labels={"replica": "b"}, unseen=((0.0, 2.0), (20.0, 999.0)))
    # Somebody installed the agent a second time, in another namespace.
    for namespace in ("first", "second"):
        yield whole("gpu-1", "installed", labels={"namespace": namespace})
    # One Prometheus scrapes them twice.
    for job in ("agents", "pods"):
        yield whole("gpu-1", "jobs", labels={"job": job}, simulated=1)
    # One of two nodes was not scraped over midnight.
    yield whole("gpu-1", "unseen")
    yield whole("gpu-2", "unseen", unseen=((18.0, 30.0),))
    yield whole("gpu-1", "leaders")
    yield whole("gpu-1", "late")
    yield whole("gpu-1", "two", labels={"zone": "a"})
    yield whole("gpu-2", "two", labels={"zone": "b"})
    # The agent's pod was replaced: another series, which begins with 0.
    half = SHORT // 2
    held = {("team-a", WHOLE): Fraction(1)}
    yield whole("gpu-1", "replaced", stretches=[Stretch((0, half), held)], unseen=((half, 999.0),))
    successor = {"instance": "10.0.0.2:8080"}
    yield whole(
        "gpu-1", "replaced", stretches=[Stretch((half, SHORT), held)], unseen=((0, half),), labels=successor
    )


def other_prices() -> Iterator[Gauge]:
    """What the clusters of `rough` have."""
    name = "gpusharing_policy_gpu_hourly_price"
    dollars = {"policy": "pool-x", "currency": "USD"}
    for cluster in ("restarts", "gaps", "young", "gone", "mixed", "replaced", "passing", "unseen"):
        yield Gauge(name, {"cluster": cluster, **dollars}, "2")
    for replica in ("a", "b"):
        yield Gauge(name, {"cluster": "double", "replica": replica, **dollars}, "2")
    yield Gauge(name, {"cluster": "jobs", "job": "operator", **dollars}, "2")
    # The operator was replaced, with another price, for the last of 24 hours.
    yield Gauge(name, {"cluster": "leaders", "instance": "1", **dollars}, "2", hours=(0, 46))
    yield Gauge(name, {"cluster": "leaders", "instance": "2", **dollars}, "26", hours=(47, SHORT))
    labelled = {"cluster": "late", "namespace": "team-a", "label_team": "red"}
    yield Gauge("kube_namespace_labels", labelled, "1", hours=(30, SHORT))
    for zone, price in (("a", "2"), ("b", "4")):
        yield Gauge(name, {"cluster": "two", "zone": zone, **dollars}, price)
    for value, hours in (("0", (0, 10)), ("3", (11, SHORT))):
        yield Gauge("node_gpu_hourly_cost", {"cluster": "late", "node": "gpu-1"}, value, hours)
    yield Gauge(name, {"cluster": "mixed", "policy": "pool-y", "currency": "EUR"}, "1")
    yield Gauge("node_gpu_hourly_cost", {"cluster": "negative", "node": "gpu-1"}, "-1")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; the clusters are told apart by the label `cluster`."""
    nodes = [replace(one, labels={"cluster": "east"}) for one in fleet()]
    told = [
        History(BEGIN, HOURS, nodes, list(priced("east"))),
        History(BEGIN, SHORT, list(rough()), list(other_prices())),
    ]
    with prometheus_with(tmp_path_factory.mktemp("past"), openmetrics(told)) as url:
        yield url


def ask(desk: Desk, url: str, *more: str, cluster: str = "east") -> Said:
    """`cost` for a cluster, in all of its time unless told otherwise."""
    chosen = ("--selector", f'cluster="{cluster}"', "--prometheus", url)
    window = ("7d", UNTIL) if cluster == "east" else ("2d", "2026-10-03")
    return desk.type("cost", *chosen, "--window", window[0], "--until", window[1], *more)


def golden(name: str, said: Said) -> None:
    """What was said is what the file has; GOLDEN=write writes it."""
    path = GOLDENS / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(said.out)
    assert said.out == path.read_text()


def data(said: Said) -> Any:
    """Of -o json."""
    return json.loads(said.out)


def test_the_fleet_of_the_articles_costs_what_its_gpu_hours_do(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus)
    assert (said.status, said.err) == (DONE, "")
    golden("cost.txt", said)


def test_the_same_by_policy(desk: Desk, prometheus: str) -> None:
    golden("cost-policy.txt", ask(desk, prometheus, "--by", "policy"))


def test_the_page_shows_the_beginning_of_it() -> None:
    page = (ROOT / "docs/how-to/cost.md").read_text()
    assert "\n".join((GOLDENS / "cost-policy.txt").read_text().splitlines()[:4]) in page


def test_the_amounts_are_those_of_a_pocket_calculator(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "-o", "json"))
    amounts = {(row["name"] or row["part"], row["resource"]): row["cost"] for row in found["rows"]}
    assert amounts["team-a", SMALL] == "8064.00", "60 slices of a quarter, 168 h, 3.20"
    assert amounts["team-b", SMALL] == "4972.80", "37 of them"
    assert amounts["idle", SMALL] == "4166.40", "31 of them"
    assert amounts["dev", SHARED] == "970.20", "21 replicas of a quarter, 168 h, 1.10"
    assert amounts["stranded", ""] == "175.54", "a seventh of 8 GPUs, 48 h, 3.20"
    assert amounts["transition", ""] == "51.20", "8 GPUs, 2 h, 3.20"
    pools = {pool["policy"]: (pool["gpuHours"], pool["cost"]) for pool in found["pools"]}
    assert pools == {
        "pool-a": (32 * 168, "17203.20"),
        "pool-b": (24 * 168, "12902.40"),
        "pool-c": (16 * 168, "7929.60"),
        "pool-d": (8 * 168, "1478.40"),
    }
    (total,) = found["totals"]
    assert (total["gpuHours"], total["cost"]) == (80 * 168, "39513.60")
    rows = sum(Decimal(row["cost"]) for row in found["rows"])
    assert rows == sum(map(Decimal, total["parts"].values())) == Decimal(total["cost"])


def test_csv_and_json_have_the_same_rows(desk: Desk, prometheus: str) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(desk, prometheus, "-o", "csv").out)))
    told = data(ask(desk, prometheus, "-o", "json"))["rows"]
    assert [(row["name"], row["part"], row["cost"]) for row in rows] == [
        (row["name"], row["part"], row["cost"]) for row in told
    ]
    assert {row["partial"] for row in rows} == {"no"}


def test_teams_are_a_label_of_their_namespaces_also_of_one_that_vanished(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "--by", "team", "-o", "json"))
    teams = {row["name"] for row in found["rows"] if row["part"] == "held"}
    assert teams == {"red", "blue", ""}
    assert found["totals"][0]["cost"] == "39513.60"
    early = data(
        ask(desk, prometheus, "--by", "team", "-o", "json", "--until", "2026-10-05", "--window", "4d")
    )
    assert [row["cost"] for row in early["rows"] if row["resource"] == SHARED] == ["554.40", "290.40"]


def test_a_label_that_no_namespace_has_is_answered_with_how_to_get_it(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, "--by", "cost-centre")
    assert (said.status, said.out) == (FAILED, "")
    assert "--metric-labels-allowlist=namespaces=[cost-centre]" in said.err


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["restarts", "replaced"])
def test_an_agent_that_began_anew_loses_what_it_had_not_told_and_no_more(
    desk: Desk, prometheus: str, cluster: str
) -> None:
    found = data(ask(desk, prometheus, "-o", "json", cluster=cluster))
    (total,) = found["totals"]
    assert SHORT - 0.5 < total["gpuHours"] <= SHORT
    assert found["missing"] == []
    assert Decimal(total["cost"]) == round(Decimal(total["gpuHours"]) * 2, 2)


def test_a_gap_is_told_and_a_counter_bridges_it(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, "-o", "json", cluster="gaps")
    assert said.status == CHANGES
    (missing,) = data(said)["missing"]
    assert "Prometheus has no data for 10h in total, in 2 gaps, the first from 2026-10-01T1" in (
        missing.replace("11h", "10h")
    )
    assert data(said)["totals"][0]["gpuHours"] == pytest.approx(SHORT, abs=0.2)


def test_history_that_is_too_short_is_told(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="young")
    assert said.status == CHANGES
    assert "PARTIAL: history begins at 2026-10-01T20:0" in said.out
    assert "1d4h of 2d" in said.out
    found = data(ask(desk, prometheus, "-o", "json", cluster="young"))
    assert found["totals"][0]["gpuHours"] == pytest.approx(28, abs=0.1)
    assert found["partial"]


def test_agents_that_are_gone_are_told(desk: Desk, prometheus: str) -> None:
    assert (
        "PARTIAL: Prometheus has had no data since 2026-10-01T20:0"
        in ask(desk, prometheus, cluster="gone").out
    )


def test_what_has_no_price_has_its_hours_and_says_how_to_give_it_one(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="unpriced")
    assert said.status == CHANGES
    assert "48.0 GPU-hours have no price." in said.out
    assert "no price is known for 48.0 GPU-hours of pool-x: Prometheus has none; set" in " ".join(
        said.out.split()
    )


def test_a_price_below_0_is_left_out_and_told(desk: Desk, prometheus: str) -> None:
    told = data(ask(desk, prometheus, "-o", "json", cluster="negative"))
    assert told["missing"][0] == (
        "node_gpu_hourly_cost of node gpu-1 is -1, which is left out: a price is 0 or more"
    )
    assert told["totals"][0]["cost"] is None


def test_two_currencies_have_two_totals(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, "-o", "json", cluster="mixed")
    assert [(one["cost"], one["currency"]) for one in data(said)["totals"]] == [
        ("48.00", "EUR"), ("96.00", "USD")
    ]  # fmt: skip
    assert said.status == DONE
    assert "in several currencies (EUR, USD): nothing is converted" in data(said)["remarks"][0]


def test_where_nobody_knows_whether_a_device_was_shared_its_time_is_an_estimate(
    desk: Desk, prometheus: str
) -> None:
    rows = data(ask(desk, prometheus, "-o", "json", cluster="mixed"))["rows"]
    assert [row["basis"] for row in rows] == ["estimate", "measured"]


def test_two_prometheus_with_the_same_series_bill_nothing_twice(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="double")
    assert (said.status, said.out) == (FAILED, "")
    assert "gpu-1 would be billed twice: its series differ in the label replica (a, b)" in said.err
    assert "--selector 'replica=\"a\"'" in said.err
    chosen = ask(
        desk, prometheus, "--selector", 'cluster="double",replica="a"', "-o", "json", cluster="double"
    )
    assert data(chosen)["totals"][0]["cost"] == "96.00"


def test_a_second_prometheus_that_came_and_went_within_a_day_is_found(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="passing")
    assert (said.status, said.out) == (FAILED, "")
    assert "gpu-1 would be billed twice: its series differ in the label replica (, b)" in said.err


def test_two_agents_that_only_a_namespace_tells_apart_are_not_to_be_chosen_by_it(
    desk: Desk, prometheus: str
) -> None:
    said = ask(desk, prometheus, cluster="installed")
    assert (said.status, said.out) == (FAILED, "")
    assert "gpu-1 would be billed twice: its series differ in the label namespace (first, second)" in said.err
    assert "Remove one, and ask for a time in which there was one" in said.err
    assert "--selector" not in said.err


def test_a_selector_of_a_job_leaves_prices_as_they_are(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="jobs")
    assert "Choose one: --selector 'job=\"agents\"'" in said.err
    chosen = ask(desk, prometheus, "--selector", 'cluster="jobs",job="agents"', "-o", "json", cluster="jobs")
    assert (chosen.status, data(chosen)["totals"][0]["cost"]) == (DONE, "96.00")
    assert data(chosen)["simulated"] == ["gpu-1"]


@pytest.mark.parametrize(
    ("policy", "cost", "basis", "teams"),
    [
        ("pool-a", "17203.20", "measured", {"red", "blue"}),  # the policy's price
        ("pool-c", "7929.60", "measured", {""}),  # OpenCost's; its tenant has no label
        ("pool-d", "1478.40", "reserved", {"red", ""}),  # the chart's; the label of its tenant went away
    ],
)
def test_one_pool_alone_costs_what_it_does_in_the_whole_bill(
    desk: Desk, prometheus: str, policy: str, cost: str, basis: str, teams: set[str]
) -> None:
    chosen = ("--selector", f'cluster="east",policy="{policy}"')
    for by in ("namespace", "team"):
        said = ask(desk, prometheus, *chosen, "--by", by, "-o", "json")
        told = data(said)
        assert (said.status, told["missing"]) == (DONE, [])
        assert [(pool["policy"], pool["cost"]) for pool in told["pools"]] == [(policy, cost)]
        assert {row["basis"] for row in told["rows"] if row["part"] == "held"} == {basis}
    assert {row["name"] for row in told["rows"] if row["part"] == "held"} == teams


@pytest.mark.parametrize("where", ['node="gpu-b-3"', 'policy=~"pool-b|x",node="gpu-b-3"'])
def test_one_node_alone_costs_what_its_hours_do(desk: Desk, prometheus: str, where: str) -> None:
    said = ask(desk, prometheus, "--selector", f'cluster="east",{where}', "-o", "json")
    assert (said.status, data(said)["totals"][0]["cost"]) == (DONE, "4300.80"), "8 GPUs, 168 h, 3.20"


def test_a_node_that_was_not_scraped_is_missed_although_others_were(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, "-o", "json", cluster="unseen")
    assert said.status == CHANGES
    (missing,) = data(said)["missing"]
    assert missing.startswith("Prometheus did not see gpu-2 for a while, and 12.")
    assert data(said)["totals"][0]["gpuHours"] == pytest.approx(84, abs=0.3)


def test_a_price_counts_by_how_long_it_was_told_whoever_told_it(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "-o", "json", "--window", "1d", cluster="leaders"))
    # 26 for one or two of 24 hours, and 2 else; the mean of the two who told it would be 14.
    assert 2.9 < float(found["pools"][0]["prices"][0]["gpuHour"]) < 4.1


def test_what_opencost_does_not_know_yet_is_no_price_of_0(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "-o", "json", cluster="late"))
    assert found["totals"][0]["cost"] == "144.00"


def test_days_on_which_no_namespace_had_a_label_are_told(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, "--by", "team", "-o", "json", cluster="late")
    assert said.status == CHANGES
    assert {row["name"]: row["cost"] for row in data(said)["rows"]} == {"": "72.00", "red": "72.00"}
    assert data(said)["missing"] == [
        "on 1 day Prometheus knew no namespace with the label team: usage on those days is listed under (no team)"
    ]


def test_clusters_that_ask_different_prices_have_none_together(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, "-o", "json", cluster="two")
    assert said.status == CHANGES
    (missing,) = data(said)["missing"]
    assert missing.endswith(
        "policy pool-x has several prices at once, as when several clusters have it: choose one by --selector"
    )
    chosen = ask(desk, prometheus, "--selector", 'cluster="two",zone="b"', "-o", "json", cluster="two")
    assert data(chosen)["totals"][0]["cost"] == "192.00"


def test_a_window_without_any_history_says_what_to_look_at(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="nowhere")
    assert (said.status, said.out) == (FAILED, "")
    assert "has no data of the meter in this window" in said.err
    assert "monitoring.podMonitor.enabled=true" in said.err


def test_a_window_of_hours_is_one(desk: Desk, prometheus: str) -> None:
    assert data(ask(desk, prometheus, "-o", "json", "--window", "6h"))["totals"][0]["gpuHours"] == 480
