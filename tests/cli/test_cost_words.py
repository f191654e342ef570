"""What may be typed for `cost`, which price counts, and how amounts are written (kubectl_gpusharing/usage/cost.py, kubectl_gpusharing/usage/prometheus.py, kubectl_gpusharing/usage/meter.py, kubectl_gpusharing/usage/queries.py, kubectl_gpusharing/shell/drawing.py, kubectl_gpusharing/usage/windows.py)."""

from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise

import pytest
from tests.wording import lacks

from kubectl_gpusharing.shell.arguments import Arguments, parse
from kubectl_gpusharing.shell.drawing import simulated_sentence
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.bills import HOUR, Price, Prices, read_prices
from kubectl_gpusharing.usage.cost import amount, hours_of, money, query_of
from kubectl_gpusharing.usage.endpoints import endpoint_from_url
from kubectl_gpusharing.usage.meter import find_growth, find_unsteady
from kubectl_gpusharing.usage.prometheus import Series
from kubectl_gpusharing.usage.queries import (
    COUNTERS,
    INFO_OF_GPUS,
    MeterQuery,
    growth_queries,
    label_of,
    mark_query,
    queries_of,
    selector_of,
    simulated_query,
    without_labels,
)
from kubectl_gpusharing.usage.windows import Days, days


@pytest.mark.parametrize("window", ["", "30", "30x", "0d", "9m", "400d", "-1d", "1.5h", "9999999d"])
def test_a_window_that_is_none(window: str) -> None:
    with pytest.raises(Trouble, match=r"10m to 366d, .* 12h"):
        query_of(typed(f"--window={window}"), 1_790_000_000.0)


def test_windows() -> None:
    queries = [query_of(typed("--window", one), 1_790_000_000.0) for one in ("10m", "12h", "30d", "4w")]
    assert [query.end - query.start for query in queries] == [600, 43200, 2592000, 2419200]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", ""),
        ('cluster="east"', 'cluster="east"'),
        ('{cluster="east", a!~"b|c"}', 'cluster="east", a!~"b|c"'),
        ('a="say \\"x\\", }"', 'a="say \\"x\\", }"'),
    ],
)
def test_selectors(typed: str, told: str) -> None:
    assert selector_of(typed) == told


@pytest.mark.parametrize("typed", ["east", "cluster=east", 'a="b"}[5m]) or vector(1', 'a="b" c="d"', 'a="b",,', '"a"'])
def test_a_selector_that_is_none(typed: str) -> None:
    with pytest.raises(Trouble, match="use matchers such as"):
        selector_of(typed)


DAY = Days((86400.0,), 86400)


def typed(*words: str) -> Arguments:
    told = parse(("cost", *words))
    assert told.verb == "cost"
    return told


def test_a_day_begins_at_midnight_in_utc() -> None:
    wish = query_of(typed("--until", "2026-11-01", "--window", "31d"), 0.0)
    assert (wish.start, wish.end) == (1790812800, 1793491200)
    assert query_of(typed("--until", "2026-11-01T01:00:00+01:00"), 0.0).end == wish.end


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--until", "yesterday"), "date .* 2026-11-01"),
        (("--until", "2999-01-01"), "is in the future"),
        (("--currency", "dollar"), "use three capital letters, for example USD"),
        (("--by", "a b"), "namespace, policy, pod, .* team"),
        (("--by", ""), "namespace, policy, pod, "),
    ],
)
def test_what_cannot_be_meant_is_answered_with_what_can(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(Trouble, match=told):
        query_of(typed(*words), 1_790_000_000.0)


def test_labels_are_called_as_kube_state_metrics_calls_them() -> None:
    assert label_of("team") == "label_team"
    assert label_of("example.com/cost-centre") == "label_example_com_cost_centre"
    assert label_of("costCentre") == "label_cost_centre", "as kube-state-metrics has it"
    assert label_of("Team2A/fooBarHTTP") == "label_team2_a_foo_bar_http"
    assert label_of("namespace") == ""


def test_what_selects_agents_selects_no_prices() -> None:
    assert without_labels('cluster="a,b", job="x",replica=~"1|2"') == 'cluster="a,b",replica=~"1|2"'
    assert without_labels('node="gpu-1"') == ""
    query = MeterQuery(0, 86400, "team", 'job="x"')
    queries = queries_of(query, DAY)
    assert [name for name, promql in queries.items() if "job=" in promql] == ["suspects"]
    growth = growth_queries(query, 86400)
    assert [name for name, promql in growth.items() if "job=" in promql] == [*COUNTERS]
    assert mark_query(query).count("job=") == 6


def test_what_selects_a_policy_selects_all_that_has_no_policy() -> None:
    query = MeterQuery(0, 86400, "team", 'cluster="east",policy="a"')
    queries = [*growth_queries(query, 86400).values(), *queries_of(query, DAY).values(), mark_query(query)]
    assert all('cluster="east"' in promql for promql in queries)
    parted = [promql.count("policy=") for promql in queries]
    assert parted == [1, 1, 1, 1, 1, 0, 2, 0, 0, 1, 0, 2, 0, 0, 5]


@pytest.mark.parametrize("label", ["namespace", "exported_namespace", "resource", "uuid", "currency"])
@pytest.mark.parametrize("matcher", ['{}="a"', '{}!~"a"', 'policy="x", {}=~"a"'])
def test_a_part_of_a_bill_is_refused_with_what_may_be_chosen(label: str, matcher: str) -> None:
    with pytest.raises(Trouble) as refused:
        query_of(typed("--match", matcher.format(label)), 1_790_000_000.0)
    assert not lacks(str(refused.value), "only some", f"label {label}")
    assert 'such as cluster="east"' in str(refused.value)


def test_no_choice_of_tenants_or_pools_hides_that_a_node_is_simulated() -> None:
    typed = 'cluster="east",policy="a",namespace="b",exported_namespace="b",node="n",job="x"'
    assert simulated_query(typed, 60) == (
        'max by (node) (max_over_time(gpusharing_agent_simulated{cluster="east"}[60s])) > 0'
    )
    assert simulated_sentence([]) == ""
    assert simulated_sentence(["a", "b", "c", "d"]).startswith("SIMULATED: a, b, c and 1 more ")
    assert not lacks(simulated_sentence([""]), "SIMULATED", "without a name")


def test_a_window_is_cut_at_midnight_and_days_are_asked_for_together() -> None:
    assert days(0, 86460) == [Days((86460,), 86460)], "a minute may have no point of a subquery"
    assert days(-60, 86400) == [Days((86400,), 86460)]
    assert days(3600, 90000) == [Days((86400,), 82800), Days((90000,), 3600)]
    assert days(0, 172800) == [Days((86400, 172800), 86400)]
    assert days(0, 600) == [Days((600,), 600)]
    month = days(0, 30 * 86400)
    assert [len(group.ends) for group in month] == [4] * 7 + [2]
    assert month[0].start == 0
    assert all(after.start == before.ends[-1] for before, after in pairwise(month))


# --- prices ------------------------------------------------------------------------------------------------------


def one(value: float, **labels: str) -> Series:
    return Series(labels, ((0.0, value),))


def found(node: str, policy: str, told: Mapping[str, list[Series]]) -> Price | str:
    return read_prices(defaultdict(list, told), "CHF").find(node, policy)


TOLD = {
    "opencost": [one(2.5, node="gpu-1"), one(0, node="gpu-2")],
    "policies": [one(3.2, policy="pool-x", currency="USD")],
    "products": [one(1.1, product="NVIDIA-A100", currency="EUR")],
    "cards": [one(1, node="gpu-3", product="NVIDIA A100")],
}


def test_opencost_wins_then_the_policy_then_the_chart() -> None:
    assert found("gpu-1", "pool-x", TOLD) == Price(Fraction("2.5"), "CHF", "OpenCost")
    assert found("gpu-2", "pool-x", TOLD) == Price(Fraction("3.2"), "USD", "policy"), "0 is what OpenCost does not know"
    assert found("gpu-3", "pool-y", TOLD) == Price(Fraction("1.1"), "EUR", "chart")
    assert found("gpu-4", "pool-y", TOLD) == "Prometheus has none"


def test_a_node_whose_cards_cost_different_amounts_has_no_price() -> None:
    told = {
        "products": [one(1, product="a", currency="USD"), one(2, product="b", currency="USD")],
        "cards": [one(1, node="gpu-1", product="a"), one(1, node="gpu-1", product="b")],
    }
    assert found("gpu-1", "pool-x", told) == "its GPUs (a, b) have different prices"
    assert found("gpu-1", "pool-x", {**told, "products": told["products"][:1]}) == "Prometheus has none"


@pytest.mark.parametrize("nameless", [{}, {"product": ""}])
def test_a_gpu_that_could_not_be_read_for_a_moment_takes_no_price_from_its_node(
    nameless: dict[str, str],
) -> None:
    told = {"products": TOLD["products"], "cards": [*TOLD["cards"], one(1, node="gpu-3", **nameless)]}
    assert found("gpu-3", "pool-y", told) == Price(Fraction("1.1"), "EUR", "chart")
    assert found("gpu-4", "", {"cards": [one(1, node="gpu-4", **nameless)]}) == "Prometheus has none"


def test_prices_of_several_clusters_have_no_mean() -> None:
    places = {"node": ("gpu-1", ""), "policy": ("gpu-2", "pool-x"), "product": ("gpu-3", "pool-y")}
    for label, (node, policy) in places.items():
        name = {"node": "gpu-1", "policy": "pool-x", "product": "NVIDIA A100"}[label]
        rivals = [one(9, **{label: name})]
        why = found(node, policy, {**TOLD, "rivals": rivals})
        assert f"{label} {name.replace(' ', '-')} has several prices at once" in str(why)
        assert isinstance(found(node, policy, {**TOLD, "rivals": [one(9, other=name)]}), Price)


def test_a_policy_whose_currency_changed_has_no_price_on_that_day() -> None:
    told = [one(1, policy="pool-x", currency="USD"), one(1, policy="pool-x", currency="EUR")]
    assert not lacks(found("gpu-1", "pool-x", {"policies": told}), "policy pool-x", "currencies", "EUR, USD", "--match")


def test_a_price_without_a_currency_is_left_out() -> None:
    prices = read_prices(defaultdict(list, {"policies": [one(1, policy="pool-x")]}), "USD")
    assert not lacks(prices.find("gpu-1", "pool-x"), "price", "invalid")
    (fault,) = prices.faults
    assert not lacks(fault, "gpusharing_policy_gpu_hourly_price", "policy pool-x", "is 1", "currency")
    assert Prices().find("gpu-1", "") == "Prometheus has none"


# --- numbers -----------------------------------------------------------------------------------------------------


def test_amounts_are_exact_and_hours_to_a_tenth() -> None:
    assert money(123_456_789, "USD") == "USD 1,234,567.89"
    assert money(5) == "0.05"
    assert money(None, "") == "unknown"
    assert hours_of(1234 * HOUR + HOUR // 4) == "1,234.2"
    assert [amount(Fraction(one)) for one in ("3.2", "0.333333", "12")] == ["3.20", "0.333333", "12.00"]


def test_an_address_is_taken_without_its_last_slash() -> None:
    assert endpoint_from_url("http://x:9090/prom/", "", "").url == "http://x:9090/prom"


PROXY = {"HTTPS_PROXY": "http://proxy.example.com:3128", "NO_PROXY": "near.example.com"}
PROXIES = {
    "https://far.example.com": "http://proxy.example.com:3128",
    "https://near.example.com": None,
    "http://far.example.com": None,
    "https://127.0.0.1:9090": None,
}


@pytest.mark.parametrize("url", PROXIES)
def test_an_address_is_reached_through_the_proxy_of_the_environment_as_an_api_server_is(url: str) -> None:
    assert endpoint_from_url(url, "", "", PROXY).proxy == PROXIES[url]


def test_a_proxy_that_cannot_be_used_is_refused_in_one_sentence() -> None:
    with pytest.raises(Trouble, match=r"^HTTPS_PROXY names a proxy that cannot be used here"):
        endpoint_from_url("https://far.example.com", "", "", {"HTTPS_PROXY": "socks5://proxy:1080"})


def mark(held: float, idle: float, gpus: float | None = None, node: str = "n", count: int = 2) -> list[Series]:
    """The counters of a node with `count` GPUs, in seconds."""
    told = {
        "held": held,
        "idle": idle,
        "gpus": held + idle if gpus is None else gpus,
        INFO_OF_GPUS: count,
    }
    return [Series({"what": name, "node": node}, ((0.0, value),)) for name, value in told.items()]


def test_a_counter_grows_by_the_difference_and_one_that_is_new_by_all_of_it() -> None:
    before, after = mark(100, 50), [*mark(160, 50), *mark(7, 0, node="new")]
    growth = find_growth(before, after)
    held = {series.labels["node"]: series.value for series in growth["held"]}
    assert held == {"n": 60, "new": 7}
    assert [series.value for series in growth[INFO_OF_GPUS]] == [2, 2], "a number, not a counter"


STEADY = mark(86_400, 86_400)
BEFORE = mark(5e5, 3e5)
ENDS = {
    "began with the day": ([], STEADY, False),
    "steady": (BEFORE, mark(5e5 + 86_400, 3e5 + 86_400), False),
    "scraped later": (BEFORE, mark(5e5 + 86_460, 3e5 + 86_460), False),
    "scraped too late": (BEFORE, mark(5e5 + 86_461, 3e5 + 86_461), True),
    "restarted": (BEFORE, mark(100, 50), True),
    "restarted when young": (mark(100, 50), mark(86_400, 43_200), True),
    "gone": (BEFORE, [], True),
    "unseen before": ([], BEFORE, True),
    "a part restarted": (BEFORE, mark(5e5 + 43_200, 3e5 + 86_400, 8e5 + 172_800), True),
    "other GPUs": (BEFORE, mark(5e5 + 86_400, 3e5 + 86_400, count=3), True),
    "rounded": (BEFORE, mark(5e5 + 86_400, 3e5 + 86_399.1, 8e5 + 172_800), False),
    "a part lost a second": (BEFORE, mark(5e5 + 86_400, 3e5 + 86_398.9, 8e5 + 172_800), True),
}


@pytest.mark.parametrize(("before", "after", "unsteady"), ENDS.values(), ids=ENDS)
def test_the_ends_of_a_day_say_which_nodes_need_a_closer_look(
    before: list[Series], after: list[Series], unsteady: bool
) -> None:
    assert find_unsteady(["n"], find_growth(before, after)) == ({"n"} if unsteady else set())
