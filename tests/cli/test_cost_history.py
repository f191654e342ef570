"""`cost` and a real Prometheus with a SIMULATED past: the articles' fleet of 80 GPUs, and what goes wrong in a fleet (kubectl_gpusharing/usage/cost.py, kubectl_gpusharing/usage/meter.py)."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hack.generate import ROOT
from tests.cli.desk import Desk, Said
from tests.cli.history import openmetrics, prometheus_with
from tests.cli.pastfleet import SHARED, SHORT, SMALL, UNTIL, past
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED

pytestmark = pytest.mark.tools

GOLDENS = ROOT / "tests/cli/goldens"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus_with(tmp_path_factory.mktemp("past"), openmetrics(past())) as url:
        yield url


def ask(desk: Desk, url: str, *more: str, cluster: str = "east") -> Said:
    chosen = ("--match", f'cluster="{cluster}"', "--prometheus", url)
    window = ("7d", UNTIL) if cluster == "east" else ("2d", "2026-10-03")
    return desk.type("cost", *chosen, "--window", window[0], "--until", window[1], *more)


def golden(name: str, said: Said) -> None:
    path = GOLDENS / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(said.out)
    assert said.out == path.read_text()


def data(said: Said) -> Any:
    return json.loads(said.out)


def refused(desk: Desk, url: str, *more: str, cluster: str = "east") -> str:
    said = ask(desk, url, *more, cluster=cluster)
    assert (said.status, said.out) == (FAILED, "")
    return said.err


def part(desk: Desk, url: str, cluster: str, *more: str) -> tuple[str, Any]:
    """What is missing in a bill that is a part, which is one thing, and the bill."""
    said = ask(desk, url, "-o", "json", *more, cluster=cluster)
    assert said.status == CHANGES
    (missing,) = data(said)["missing"]
    return missing, data(said)


def test_the_fleet_of_the_articles_costs_what_its_gpu_hours_do_by_namespace_and_policy(
    desk: Desk, prometheus: str
) -> None:
    said = ask(desk, prometheus)
    assert (said.status, said.err) == (DONE, "")
    golden("cost.txt", said)
    golden("cost-policy.txt", ask(desk, prometheus, "--by", "policy"))


def test_the_page_shows_the_beginning_of_the_bill() -> None:
    page = (ROOT / "docs/how-to/cost.md").read_text()
    assert "\n".join((GOLDENS / "cost-policy.txt").read_text().splitlines()[:4]) in page


def test_the_amounts_are_those_of_a_pocket_calculator(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "-o", "json"))
    amounts = {(row["name"] or row["part"], row["resource"]): row["cost"] for row in found["rows"]}
    assert amounts["team-a", SMALL] == 8064.00, "60 slices of a quarter, 168 h, 3.20"
    assert amounts["team-b", SMALL] == 4972.80, "37 of them"
    assert amounts["idle", SMALL] == 4166.40, "31 of them"
    assert amounts["dev", SHARED] == 970.20, "21 replicas of a quarter, 168 h, 1.10"
    assert amounts["stranded", ""] == 175.54, "a seventh of 8 GPUs, 48 h, 3.20"
    assert amounts["transition", ""] == 51.20, "8 GPUs, 2 h, 3.20"
    pools = {pool["policy"]: (pool["gpuHours"], pool["cost"]) for pool in found["pools"]}
    assert pools == {
        "pool-a": (32 * 168, 17203.20),
        "pool-b": (24 * 168, 12902.40),
        "pool-c": (16 * 168, 7929.60),
        "pool-d": (8 * 168, 1478.40),
    }
    (total,) = found["totals"]
    assert (total["gpuHours"], total["cost"]) == (80 * 168, 39513.60)
    rows = sum(Decimal(str(row["cost"])) for row in found["rows"])
    assert rows == sum(Decimal(str(part)) for part in total["parts"].values()) == Decimal(str(total["cost"]))


@pytest.mark.parametrize("by", ["namespace", "policy", "team"])
def test_a_bill_has_the_same_rows_in_csv_and_json(desk: Desk, prometheus: str, by: str) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(desk, prometheus, "--by", by, "-o", "csv").out)))
    told = data(ask(desk, prometheus, "--by", by, "-o", "json"))["rows"]
    assert [(row["name"], row["part"], float(row["cost"])) for row in rows] == [
        (row["name"], row["part"], row["cost"]) for row in told
    ]
    assert {row["partial"] for row in rows} == {"no"}


def test_teams_are_a_label_of_their_namespaces_also_of_one_that_vanished(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "--by", "team", "-o", "json"))
    teams = {row["name"] for row in found["rows"] if row["part"] == "held"}
    assert teams == {"red", "blue", ""}
    assert found["totals"][0]["cost"] == 39513.60
    early = data(ask(desk, prometheus, "--by", "team", "-o", "json", "--until", "2026-10-05", "--window", "4d"))
    assert [row["cost"] for row in early["rows"] if row["resource"] == SHARED] == [554.40, 290.40]


def test_a_label_that_no_namespace_has_is_answered_with_how_to_get_it(desk: Desk, prometheus: str) -> None:
    told = refused(desk, prometheus, "--by", "cost-centre")
    assert "--metric-labels-allowlist=namespaces=[cost-centre]" in told


# --- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["restarts", "replaced"])
def test_an_agent_that_began_anew_loses_what_it_had_not_told_and_no_more(
    desk: Desk, prometheus: str, cluster: str
) -> None:
    found = data(ask(desk, prometheus, "-o", "json", cluster=cluster))
    (total,) = found["totals"]
    assert SHORT - 0.5 < total["gpuHours"] <= SHORT
    assert found["missing"] == []
    assert total["cost"] == round(total["gpuHours"] * 2, 2)


def test_a_gap_is_told_and_a_counter_bridges_it(desk: Desk, prometheus: str) -> None:
    missing, bill = part(desk, prometheus, "gaps")
    assert not lacks(missing.replace("11h", "10h"), "10h", "2 gaps")
    assert "2026-10-01T1" in missing
    assert bill["totals"][0]["gpuHours"] == pytest.approx(SHORT, abs=0.2)


def test_history_that_is_too_short_is_told(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="young")
    assert said.status == CHANGES
    assert "PARTIAL: the history begins at 2026-10-01T20:0" in said.out
    assert "1d4h of 2d" in said.out
    found = data(ask(desk, prometheus, "-o", "json", cluster="young"))
    assert found["totals"][0]["gpuHours"] == pytest.approx(28, abs=0.1)
    assert found["partial"]


def test_agents_that_are_gone_are_told(desk: Desk, prometheus: str) -> None:
    assert re.search(r"PARTIAL: .* 2026-10-01T20:0", ask(desk, prometheus, cluster="gone").out)


def test_what_has_no_price_has_its_hours_and_says_how_to_give_it_one(desk: Desk, prometheus: str) -> None:
    said = ask(desk, prometheus, cluster="unpriced")
    assert said.status == CHANGES
    assert "48.0 GPU-hours have no price." in said.out
    assert not lacks(said.out, "no price", "48.0 GPU-hours", "pool-x")


def test_a_price_below_0_is_left_out_and_told(desk: Desk, prometheus: str) -> None:
    told = data(ask(desk, prometheus, "-o", "json", cluster="negative"))
    assert not lacks(told["missing"][0], "node_gpu_hourly_cost", "gpu-1", "is -1")
    assert told["totals"][0]["cost"] is None


def test_two_currencies_have_two_totals(desk: Desk, prometheus: str) -> None:
    """Where nobody knows whether a device was shared, its time is an estimate."""
    said = ask(desk, prometheus, "-o", "json", cluster="mixed")
    assert [(one["cost"], one["currency"]) for one in data(said)["totals"]] == [
        (48.00, "EUR"), (96.00, "USD")
    ]  # fmt: skip
    assert said.status == DONE
    assert not lacks(data(said)["remarks"][0], "currencies", "EUR", "USD")
    assert [row["basis"] for row in data(said)["rows"]] == ["estimate", "measured"]


def test_two_prometheus_with_the_same_series_bill_nothing_twice(desk: Desk, prometheus: str) -> None:
    told = refused(desk, prometheus, cluster="double")
    assert not lacks(told, "gpu-1", "replica", "(a, b)")
    assert "--match 'replica=\"a\"'" in told
    chosen = ask(desk, prometheus, "--match", 'cluster="double",replica="a"', "-o", "json", cluster="double")
    assert data(chosen)["totals"][0]["cost"] == 96.00


def test_a_second_prometheus_that_came_and_went_within_a_day_is_found(desk: Desk, prometheus: str) -> None:
    assert not lacks(refused(desk, prometheus, cluster="passing"), "gpu-1", "replica", "(, b)")


def test_two_agents_that_only_a_namespace_tells_apart_are_not_to_be_chosen_by_it(desk: Desk, prometheus: str) -> None:
    told = refused(desk, prometheus, cluster="installed")
    assert not lacks(told, "gpu-1", "namespace", "(first, second)", "Remove one", "window")
    assert "--match" not in told


def test_a_selector_of_a_job_leaves_prices_as_they_are(desk: Desk, prometheus: str) -> None:
    assert "Choose one: --match 'job=\"agents\"'" in refused(desk, prometheus, cluster="jobs")
    chosen = ask(desk, prometheus, "--match", 'cluster="jobs",job="agents"', "-o", "json", cluster="jobs")
    assert (chosen.status, data(chosen)["totals"][0]["cost"]) == (DONE, 96.00)
    assert data(chosen)["simulated"] == ["gpu-1"]


@pytest.mark.parametrize(
    ("policy", "cost", "basis", "teams"),
    [
        ("pool-a", 17203.20, "measured", {"red", "blue"}),  # the policy's price
        ("pool-c", 7929.60, "measured", {""}),  # OpenCost's; its tenant has no label
        ("pool-d", 1478.40, "reserved", {"red", ""}),  # the chart's; the label of its tenant went away
    ],
)
def test_one_pool_alone_costs_what_it_does_in_the_whole_bill(
    desk: Desk, prometheus: str, policy: str, cost: str, basis: str, teams: set[str]
) -> None:
    chosen = ("--match", f'cluster="east",policy="{policy}"')
    for by in ("namespace", "team"):
        said = ask(desk, prometheus, *chosen, "--by", by, "-o", "json")
        told = data(said)
        assert (said.status, told["missing"]) == (DONE, [])
        assert [(pool["policy"], pool["cost"]) for pool in told["pools"]] == [(policy, cost)]
        assert {row["basis"] for row in told["rows"] if row["part"] == "held"} == {basis}
    assert {row["name"] for row in told["rows"] if row["part"] == "held"} == teams


@pytest.mark.parametrize("where", ['node="gpu-b-3"', 'policy=~"pool-b|x",node="gpu-b-3"'])
def test_one_node_alone_costs_what_its_hours_do(desk: Desk, prometheus: str, where: str) -> None:
    said = ask(desk, prometheus, "--match", f'cluster="east",{where}', "-o", "json")
    assert (said.status, data(said)["totals"][0]["cost"]) == (DONE, 4300.80), "8 GPUs, 168 h, 3.20"


def test_a_node_that_was_not_scraped_is_missed_although_others_were(desk: Desk, prometheus: str) -> None:
    missing, bill = part(desk, prometheus, "unseen")
    assert not lacks(missing, "no samples", "gpu-2 (11h)", "midnight in UTC")
    assert bill["totals"][0]["gpuHours"] == pytest.approx(84, abs=0.3)


def test_a_price_counts_by_how_long_it_was_told_whoever_told_it(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "-o", "json", "--window", "1d", cluster="leaders"))
    # 26 for one or two of 24 hours, and 2 else; the mean of the two who told it would be 14.
    assert 2.9 < float(found["pools"][0]["prices"][0]["gpuHour"]) < 4.1


@pytest.mark.parametrize("cluster", ["midnight", "after-midnight"])
@pytest.mark.parametrize("window", [("2d", "2026-10-03"), ("42h", "2026-10-02T20:00:00Z")])
def test_a_price_that_changes_at_midnight_counts_for_the_day_that_begins_to_the_cent(
    desk: Desk, prometheus: str, cluster: str, window: tuple[str, str]
) -> None:
    asked = ("--window", window[0], "--until", window[1], "-o", "json")
    found = data(ask(desk, prometheus, *asked, cluster=cluster))
    costs = (48.00, 96.00) if window[0] == "2d" else (44.00, 80.00)
    assert tuple(row["cost"] for row in found["rows"]) == costs
    assert [price["gpuHour"] for price in found["pools"][0]["prices"]] == [2.00, 4.00]


def test_what_opencost_does_not_know_yet_is_no_price_of_0(desk: Desk, prometheus: str) -> None:
    found = data(ask(desk, prometheus, "-o", "json", cluster="late"))
    assert found["totals"][0]["cost"] == 144.00


def test_days_on_which_no_namespace_had_a_label_are_told(desk: Desk, prometheus: str) -> None:
    missing, bill = part(desk, prometheus, "late", "--by", "team")
    assert {row["name"]: row["cost"] for row in bill["rows"]} == {"": 72.00, "red": 72.00}
    assert not lacks(missing, "1 day", "label team", "(no team)")


def test_a_namespace_with_several_teams_at_once_is_no_teams(desk: Desk, prometheus: str) -> None:
    missing, bill = part(desk, prometheus, "teams", "--by", "team")
    assert {row["name"]: row["cost"] for row in bill["rows"]} == {"": 192.00}
    assert not lacks(missing, "namespace team-a", "several values of team", "(no team)", "--match")
    for zone, team in (("a", "red"), ("b", "blue")):
        chosen = ("--match", f'cluster="teams",zone="{zone}"', "--by", "team", "-o", "json")
        said = ask(desk, prometheus, *chosen, cluster="teams")
        assert {row["name"]: row["cost"] for row in data(said)["rows"]} == {team: 96.00}
        assert said.status == DONE
    assert ask(desk, prometheus, cluster="teams").status == DONE


def test_clusters_that_ask_different_prices_have_none_together(desk: Desk, prometheus: str) -> None:
    missing, _ = part(desk, prometheus, "two")
    assert not lacks(missing, "policy pool-x", "several prices", "--match")
    chosen = ask(desk, prometheus, "--match", 'cluster="two",zone="b"', "-o", "json", cluster="two")
    assert data(chosen)["totals"][0]["cost"] == 192.00


def test_two_prices_at_once_are_found_also_if_one_of_them_was_gone_by_the_end_of_the_day(
    desk: Desk, prometheus: str
) -> None:
    missing, bill = part(desk, prometheus, "rivals")
    assert not lacks(missing, "24.0 GPU-hours", "pool-x", "several prices")
    assert {one["cost"] for one in bill["totals"]} == {None, 48.00}, "the other day has a price"


def test_a_successor_that_tells_another_price_for_a_moment_beside_the_first_is_no_rival(
    desk: Desk, prometheus: str
) -> None:
    said = ask(desk, prometheus, "-o", "json", cluster="handed")
    assert (said.status, data(said)["missing"]) == (DONE, [])


def test_a_window_without_any_history_says_what_to_look_at(desk: Desk, prometheus: str) -> None:
    told = refused(desk, prometheus, cluster="nowhere")
    assert not lacks(told, "no data", "meter")
    assert "monitoring.podMonitor.enabled=true" in told


def test_a_window_of_hours_is_one(desk: Desk, prometheus: str) -> None:
    assert data(ask(desk, prometheus, "-o", "json", "--window", "6h"))["totals"][0]["gpuHours"] == 480
