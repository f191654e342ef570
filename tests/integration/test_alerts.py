"""The chart's alerts fire in a real Prometheus, which scrapes operator and agents while SIMULATED nodes have trouble. The panels of its dashboards have data there; DCGM's numbers are SIMULATED too."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hack.cluster.api import Object
from hack.cluster.process import free_ports, wait_until
from hack.dashboards import panels
from hack.faultproxy import FaultProxy, PlayedRefusal
from hack.sim.dcgmexporter import DCGMValues
from hack.sim.gpu import SimulatedGPUs
from hack.sim.pods import ANNOTATION_MEMORY
from tests.chart.charts import CHART
from tests.chart.scraping import RunningPrometheus, dcgm_exporter, page, scraping
from tests.chart.test_monitoring import alerts, filled_in, queries, variables
from tests.fakes.tls import Identity
from tests.integration.product import FULL, H100, HELD, L40S, MIXED, NODES, SECONDS, SLICED, Pool, Product
from tests.integration.workloads import PODS, Workload, guard, pod_spec

from hack import launch

NOWHERE = "nvidia.com/mig-7g.80gb"
KEEP = "example.com/keep"
AWAY = {"key": "example.com/away", "effect": "NoExecute"}
CLUSTER_WIDE = "cluster"


def hurried(rules: str) -> str:
    """The rules with a second for every `for:` and every age, ten for every range, and one abandoned change. Nothing else differs from the chart's."""
    sooner = re.sub(r"> 1500$", "> 1", rules, flags=re.MULTILINE).replace(
        "_abandoned_changes) >= 3", "_abandoned_changes) >= 1"
    )
    return re.sub(r"\[\w+\]", "[10s]", re.sub(r"^( +for:) \w+$", r"\1 1s", sooner, flags=re.MULTILINE))


@dataclass
class Trouble:
    """What goes on: the pools by what is wrong in them, and who watches."""

    pools: dict[str, Pool]
    seen: RunningPrometheus
    operator: launch.LaunchedProcess

    def name(self, pool: str) -> str:
        return self.pools[pool].name

    def node(self, pool: str) -> str:
        return self.pools[pool].nodes[0]


CARDS = {
    **dict.fromkeys(("well", "drifted", "orphan", "blocked"), (H100,)),
    "failed": (H100, H100),
    **dict.fromkeys(("silent", "unread", "hung", "sick", "stuck", "refused", "tired", "crowded"), (L40S,)),
}
"""By pool the cards, one for each of its nodes."""
FIRES: dict[str, Callable[[Trouble], str]] = {
    "GPUSharingRolloutStuck": lambda trouble: trouble.name("stuck"),
    "GPUSharingDrainBlocked": lambda trouble: trouble.name("blocked"),
    "GPUSharingNodeBlocked": lambda trouble: trouble.name("blocked"),
    "GPUSharingChangesAbandoned": lambda trouble: trouble.name("tired"),
    "GPUSharingDrift": lambda trouble: trouble.name("drifted"),
    "GPUSharingStarvation": lambda trouble: NOWHERE,
    "GPUSharingMemoryOvercommitted": lambda trouble: trouble.node("crowded"),
    "GPUSharingGPUUnhealthy": lambda trouble: trouble.node("sick"),
    "GPUSharingAgentDown": lambda trouble: trouble.node("silent"),
    "GPUSharingAgentMissing": lambda trouble: trouble.name("silent"),
    "GPUSharingAgentNotReady": lambda trouble: trouble.node("unread"),
    "GPUSharingReadingHangs": lambda trouble: trouble.node("hung"),
    "GPUSharingRowRemapFailed": lambda trouble: trouble.node("sick"),
    "GPUSharingNodeFailed": lambda trouble: trouble.name("failed"),
    "GPUSharingRolloutHalted": lambda trouble: trouble.name("failed"),
    "GPUSharingOrphanNode": lambda trouble: CLUSTER_WIDE,
    "GPUSharingAPIErrors": lambda trouble: "pods",
    "GPUSharingSimulated": lambda trouble: trouble.node("well"),
}
"""By alert, whom or what it is about here."""
LINGER: dict[str, Object] = {"stuck": {"timeout": "4s", "onTimeout": "Hold"}, "refused": {}, "tired": {"timeout": "4s"}}
"""Pools with a pod that does not go when it is evicted, and what else their drains say."""
LAST = "GPUSharingOperatorDown"
"""Fired by a test of its own: there are no other numbers of the operator any more."""


def targets(product: Product, operator_port: int, pools: dict[str, Pool]) -> list[dict[str, Any]]:
    """The scrapes as the chart's PodMonitors make them."""
    operator = {"targets": [f"127.0.0.1:{operator_port}"], "labels": {"namespace": launch.NAMESPACE}}
    return [
        product.scraped(node for pool in pools.values() for node in pool.nodes),
        {"job_name": "gpusharing-operator", "static_configs": [operator]},
    ]


@pytest.fixture(scope="module")
def trouble(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    folder, api = tmp_path_factory.mktemp("prometheus"), product.api
    (port,) = free_ports(1)
    rules = {name: hurried((CHART / "files" / name).read_text()) for name in ("rules.yaml", "recording.yaml")}
    identity = Identity(folder / "tls")
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(api.url, api.ca_pem, tls=identity.context()))
        door = launch.Door(proxy.url, identity.authority)
        operator = stack.enter_context(product.operator("alerts", door, metrics_port=str(port), **HELD))
        pools = {word: stack.enter_context(product.pool(*cards, gpus=1)) for word, cards in CARDS.items()}
        exporter = dcgm_exporter(stack.enter_context(page([busy(pools["crowded"])])))
        seen = stack.enter_context(scraping(folder, [*targets(product, port, pools), exporter], rules))
        stack.callback(let_go, product, pools)
        # It looks for its targets some seconds after its start, and what grew before its first scrape did not grow.
        wait_until(lambda: bool(seen.ask(GROWS)), SECONDS, "a scrape of the operator")
        prepare(product, pools)
        begin(product, pools, proxy)
        yield Trouble(pools, seen, operator)


def busy(pool: Pool) -> DCGMValues:
    """What a SIMULATED dcgm-exporter measures of the one GPU of its first node."""
    (gpu,) = SimulatedGPUs(pool.nodes[0], [L40S]).look()
    return DCGMValues(0, gpu.uuid, 0.7, 61_440)


def prepare(product: Product, pools: dict[str, Pool]) -> None:
    for word in LINGER:
        metadata: Object = {"name": f"{pools[word].name}-kept", "finalizers": [KEEP]}
        pools[word].create(PODS, {"metadata": metadata, "spec": pod_spec(pools[word].nodes[0])})
    workload = Workload(pools["blocked"], pools["blocked"].nodes[0], 1)
    workload.wait_running(1)
    guard(pools["blocked"], workload.app, 0, minAvailable=1)
    for node in pools["failed"].nodes:
        pools["failed"].inject("refuse", node)
    pools["orphan"].hold()
    for word in ("well", "drifted", "failed", "orphan"):
        pools[word].apply(MIXED)
    for word in ("silent", "unread", "hung", "sick"):
        pools[word].apply(FULL)
    for word in ("blocked", "crowded"):
        pools[word].apply(SLICED)
    for word, drain in LINGER.items():
        kept = kept_pod(pools[word])
        pools[word].wait(lambda kept=kept: product.api.get(kept)["status"]["phase"] == "Running", "the pod")
        pools[word].apply({**SLICED, "drain": {"unmanagedPods": "Evict", "strandedPods": "Allow", **drain}})
    orphan = pools["orphan"]
    orphan.wait_held()
    product.api.delete(orphan.path)
    product.api.merge_patch(orphan.path, {"metadata": {"finalizers": None}})
    pools["refused"].wait_phase("Draining")
    for word in ("well", "drifted", "silent", "unread", "hung", "sick", "crowded"):
        pools[word].wait_synced()


def begin(product: Product, pools: dict[str, Pool], proxy: FaultProxy) -> None:
    well, drifted, crowded = pools["well"], pools["drifted"], pools["crowded"]
    metadata = {"name": f"{well.name}-starves"}
    well.create(PODS, {"metadata": metadata, "spec": pod_spec(well.nodes[0], NOWHERE)})
    drifted.apply({**MIXED, "rollout": {"paused": True}})
    drifted.inject("lose-instances")
    pools["sick"].inject("sick-gpu,broken-row")
    pools["unread"].inject("no-nvml")
    pools["hung"].inject("hang-nvml")
    # As where a role was changed. A node that is being drained has its pods listed in every pass.
    refusal = PlayedRefusal(403, reason="Forbidden")
    proxy.fail("GET", "/api/v1/pods", refusal, query=f"spec.nodeName={pools['refused'].nodes[0]}")
    product.api.merge_patch(f"{NODES}/{pools['silent'].nodes[0]}", {"spec": {"taints": [AWAY]}})
    (resource,) = crowded.offered()
    more: Object = {"metadata": {"annotations": {ANNOTATION_MEMORY: "30"}}}
    Workload(crowded, crowded.nodes[0], 2, resource=resource, more=more).wait_running(2)


def kept_pod(pool: Pool) -> str:
    return f"{PODS}/{pool.name}-kept"


def let_go(product: Product, pools: dict[str, Pool]) -> None:
    """What would hold up the end."""
    for kept in (kept_pod(pools[word]) for word in LINGER):
        if product.exists(kept):
            product.api.merge_patch(kept, {"metadata": {"finalizers": None}})
    pools["hung"].inject("unhang-nvml")


def about(labels: dict[str, str]) -> tuple[str, str]:
    keys = ("policy", "node", "resource")
    return labels["alertname"], next((labels[key] for key in keys if key in labels), CLUSTER_WIDE)


def test_each_trouble_fires_its_alert_about_its_object_and_none_about_the_pool_that_is_well(trouble: Trouble) -> None:
    expected = {(alert, whose(trouble)) for alert, whose in FIRES.items()}
    calm = (trouble.name("well"), trouble.node("well"), CLUSTER_WIDE)
    firing: set[tuple[str, str]] = set()

    def as_expected() -> bool:
        nonlocal firing
        firing = {about(labels) for labels in trouble.seen.firing()}
        # Awaited too: on a busy machine a scrape or two may fail, and the alerts are hurried.
        unasked = {(name, whose) for name, whose in firing if whose in calm} - expected
        return expected <= firing and not unasked

    try:
        wait_until(as_expected, SECONDS, "the alerts that are due to fire, and no others about the calm pool")
    except TimeoutError as error:
        shown = {word: pool.transition() for word, pool in trouble.pools.items()}
        missing, others = sorted(expected - firing), sorted(firing - expected)
        raise TimeoutError(f"{error}: {missing} are missing, {others} are there; {shown}") from None


GROWS = "gpusharing_actions_total"
"""There from 0 on, and it grows only while nodes are changed."""
MOVES = ("gpusharing_transitions_total", GROWS, "gpusharing_api_requests_total", "gpusharing_agent_readings_total")
"""Counters that grow while the pools above are changed."""
HASTE = {"$__rate_interval": "10s", "$__range": "2m", "$price": "2"}


def has_data(found: list[dict[str, Any]], above: float) -> bool:
    return any(above < float(value) < math.inf for series in found for _, value in series["values"])


def test_no_number_and_a_constant_0_are_no_data() -> None:
    def told(*values: str) -> list[dict[str, Any]]:
        return [{"values": [[1, "NaN"]]}, {"values": [[second, value] for second, value in enumerate(values)]}]

    assert not has_data([], -math.inf)
    assert not has_data(told("NaN", "+Inf", "-Inf"), -math.inf)
    assert has_data(told("NaN", "0"), -math.inf)
    assert not has_data(told("0", "0"), 0.0)
    assert has_data(told("0", "0.2"), 0.0)


def test_every_panel_of_the_dashboards_has_had_data(trouble: Trouble) -> None:
    for query in queries():
        assert trouble.seen.ask(filled_in(query, HASTE)) is not None, "Prometheus would have refused it"
    waiting = {(name, panel.title): filled_in(panel.expression, HASTE) for name, panel in panels()}

    def told() -> bool:
        for key, query in list(waiting.items()):
            above = 0.0 if any(name in query for name in MOVES) else -math.inf
            if has_data(trouble.seen.ask(f"({query})[10m:1s]"), above):
                del waiting[key]
        return not waiting

    try:
        wait_until(told, SECONDS, "data of every panel")
    except TimeoutError as error:
        raise TimeoutError(f"{error}; none for {sorted(waiting)}") from None


def test_every_variable_of_the_dashboards_has_values(trouble: Trouble) -> None:
    """As Grafana asks for them: the values of a label, and the series themselves where it does not know that the data source has these. Nothing here has a label `cluster`: its variable offers All, and no more."""
    policies = {pool.name for word, pool in trouble.pools.items() if word != "orphan"}
    offered: dict[str, set[str]] = {"cluster": set(), "policy": policies, "namespace": {"default"}}
    told: dict[str, tuple[set[str], set[str]]] = {}

    def is_offered(name: str) -> bool:
        metric, label = variables()[name]
        series = trouble.seen.series(metric)
        values, others = set(trouble.seen.values(metric, label)), {one.get(label, "") for one in series}
        told[name] = values, others - {""}
        return bool(series) and offered[name] <= values == others - {""}

    assert variables().keys() == offered.keys()
    try:
        wait_until(lambda: all(map(is_offered, offered)), SECONDS, "the values of every variable")
    except TimeoutError as error:
        raise TimeoutError(f"{error}; there are {told}, and due are {offered}") from None
    assert told["cluster"] == (set(), set())


def test_an_operator_that_ends_fires_the_alert_of_the_whole_cluster(trouble: Trouble) -> None:
    trouble.operator.stop()
    wait_until(lambda: (LAST, CLUSTER_WIDE) in map(about, trouble.seen.firing()), SECONDS, "the alert")


def test_every_alert_of_the_chart_has_its_trouble_here() -> None:
    assert {*FIRES, LAST} == {rule["alert"] for rule in alerts()}, "a new alert needs its cause in FIRES"


def test_only_durations_are_hurried() -> None:
    for name in ("rules.yaml", "recording.yaml"):
        text = (CHART / "files" / name).read_text()
        before, after = (yaml.safe_load(one) for one in (text, hurried(text)))
        for group, fast in zip(before["groups"], after["groups"], strict=True):
            for rule, hasty in zip(group["rules"], fast["rules"], strict=True):
                sooner = rule["expr"].replace("> 1500", "> 1").replace("_changes) >= 3", "_changes) >= 1")
                assert hasty["expr"] == re.sub(r"\[\w+\]", "[10s]", sooner)
                assert {**rule, "expr": "", "for": ""} == {**hasty, "expr": "", "for": ""}
                assert ("for" in rule) == ("for" in hasty)
