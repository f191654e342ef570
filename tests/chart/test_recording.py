"""Recording rules of usage, played by promtool on the agent's metrics and a SIMULATED dcgm-exporter's, and what the queries of docs/how-to/usage.md answer on a node."""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml
from hack.dashboards import TENANT, WASTE, Dashboard
from hack.generate import ROOT
from hack.sim.dcgmexporter import DCGMValues, SetUp, samples, stored_labels
from hack.sim.gpu import SimulatedGPUs
from prometheus_client.registry import CollectorRegistry
from tests.chart.charts import CHART
from tests.chart.test_monitoring import AGENT, filled_in, promtool
from tests.fakes.gpus import FixedPods, OneNode

from gpusharing.agent.library import DeviceUse, Instance, PodID, ProcessUse, Use
from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.metrics import UsageCollector
from gpusharing.agent.podresources import Holdings, PodDevices

pytestmark = pytest.mark.tools

RULES = CHART / "files" / "recording.yaml"
GIB, MIB = 1024**3, 1024**2
TRAIN, SERVE = ("team-a", "train"), ("team-b", "serve")
WHOLE = DeviceUse(0, "GPU-0", "GPU-0", 30 * GIB, 80 * GIB, reports_sm=True)
LARGE = DeviceUse(1, "GPU-1", "MIG-b", 7 * GIB, 40 * GIB, Instance("3g.40gb", 0, 4, 2, "MIG-b"))
SMALL = DeviceUse(1, "GPU-1", "MIG-a", None, None, Instance("1g.10gb", 6, 1, 13, "MIG-a"))
USE = Use(
    (WHOLE, LARGE, SMALL),
    (
        ProcessUse(1, "GPU-0", 20 * GIB, 60, PodID("1", *TRAIN)),
        ProcessUse(2, "MIG-b", 7 * GIB, None, PodID("2", *SERVE)),
    ),
)
LARGE_NAME, SMALL_NAME = "nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb"
HOLDINGS = Holdings(
    by_pod=(PodDevices(*TRAIN, "nvidia.com/gpu", ("GPU-0",)), PodDevices(*SERVE, LARGE_NAME, ("MIG-b",))),
    allocatable=(("nvidia.com/gpu", "GPU-0"), (LARGE_NAME, "MIG-b"), (SMALL_NAME, "MIG-a")),
)
METERED = [
    DCGMValues(0, "GPU-0", 0.9, 30_720, pod=TRAIN),
    DCGMValues(1, "GPU-1", 0.5, 7_168, "3g.40gb", "2", SERVE),
    DCGMValues(1, "GPU-1", 0.0, 12, "1g.10gb", "13"),
]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def agent(*, honor: bool) -> Series:
    loop = AgentLoop("gpu-01", OneNode().client, SimulatedGPUs("gpu-01", []), FixedPods())
    loop.use = USE, HOLDINGS
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop))
    target = {"node": "gpu-01", "namespace": "gpusharing-agent", "pod": "gpusharing-agent-x"}
    return {
        (sample.name, _frozen(stored_labels(sample.labels, target, honor=honor))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def exporter(setup: SetUp) -> Series:
    return {(name, _frozen(labels)): value for name, labels, value in samples(METERED, setup)}


def _frozen(labels: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((key, value) for key, value in labels.items() if value)


def _selector(name: str, labels: Iterable[tuple[str, str]]) -> str:
    pairs = ", ".join(f'{key}="{value}"' for key, value in sorted(labels))
    return f"{name}{{{pairs}}}"


def play(tmp_path: Path, stored: Series, expected: Mapping[str, Mapping[str, float]], growth: str = "") -> None:
    """Let promtool evaluate the rules and compare: rule, or a query, to labels to value. `growth`: what is added to a counter in a minute."""
    series = {
        _selector(*key): f"{value}{growth if key[0].endswith('_total') else ''}x5" for key, value in stored.items()
    }
    samples = {
        rule: {f"{rule if ' ' not in rule else ''}{{{labels}}}": value for labels, value in rows.items()}
        for rule, rows in expected.items()
    }
    play_series(tmp_path, series, samples, "3m")


def play_series(
    tmp_path: Path, series: Mapping[str, str], expected: Mapping[str, Mapping[str, float]], at: str
) -> None:
    """The same of series and samples in promtool's own notation, with a value a minute; `at`: when to look."""
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": rule,
                "eval_time": at,
                "exp_samples": [{"labels": labels, "value": value} for labels, value in rows.items()],
            }
            for rule, rows in expected.items()
        ],
    }
    (tmp_path / RULES.name).write_text(RULES.read_text())
    tests = tmp_path / "tests.yaml"
    tests.write_text(yaml.safe_dump({"rule_files": [RULES.name], "evaluation_interval": "1m", "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", str(tests))


ON_NODE = 'node="gpu-01"'
ON_WHOLE = 'node="gpu-01", gpu="0", uuid="GPU-0"'
ON_LARGE = 'node="gpu-01", gpu="1", uuid="MIG-b", profile="3g.40gb"'
ON_SMALL = 'node="gpu-01", gpu="1", uuid="MIG-a", profile="1g.10gb"'
OF_PODS: dict[str, dict[str, float]] = {
    "gpusharing:pod_memory_used_bytes": {
        f'namespace="team-a", pod="train", {ON_WHOLE}': 20 * GIB,
        f'namespace="team-b", pod="serve", {ON_LARGE}': 7 * GIB,
    },
    "gpusharing:pod_processes": {
        f'namespace="team-a", pod="train", {ON_WHOLE}': 1,
        f'namespace="team-b", pod="serve", {ON_LARGE}': 1,
    },
    "gpusharing:pod_slices": {
        f'namespace="team-a", pod="train", {ON_WHOLE}, resource="nvidia.com/gpu"': 1,
        f'namespace="team-b", pod="serve", {ON_LARGE}, resource="{LARGE_NAME}"': 1,
    },
    "gpusharing:slices_idle:sum": {
        'node="gpu-01", resource="nvidia.com/gpu"': 0,
        f'node="gpu-01", profile="3g.40gb", resource="{LARGE_NAME}"': 0,
        f'node="gpu-01", profile="1g.10gb", resource="{SMALL_NAME}"': 1,
    },
    "gpusharing:slices:sum": {
        'node="gpu-01", resource="nvidia.com/gpu"': 1,
        f'node="gpu-01", profile="3g.40gb", resource="{LARGE_NAME}"': 1,
        f'node="gpu-01", profile="1g.10gb", resource="{SMALL_NAME}"': 1,
    },
}  # fmt: skip
WITHOUT_DCGM: dict[str, dict[str, float]] = {
    **OF_PODS,
    "gpusharing:slice_utilization:ratio": {f'{ON_WHOLE}, source="agent"': 0.6},
    "gpusharing:slice_memory_used_bytes": {
        f'{ON_WHOLE}, source="agent"': 30 * GIB,
        f'{ON_LARGE}, source="agent"': 7 * GIB,
    },
}
WITH_DCGM: dict[str, dict[str, float]] = {
    **OF_PODS,
    "gpusharing:slice_utilization:ratio": {
        f'{ON_WHOLE}, source="dcgm-exporter"': 0.9,
        f'{ON_LARGE}, source="dcgm-exporter"': 0.5,
        f'{ON_SMALL}, source="dcgm-exporter"': 0,
    },
    "gpusharing:slice_memory_used_bytes": {
        f'{ON_WHOLE}, source="agent"': 30 * GIB,
        f'{ON_LARGE}, source="agent"': 7 * GIB,
        f'{ON_SMALL}, source="dcgm-exporter"': 12 * MIB,
    },
}
WAYS = [
    SetUp(old, host, honor)
    for old, host, honor in itertools.product((False, True), ("Hostname", "hostname"), (False, True))
]


def way(setup: SetUp) -> str:
    namespace = "the old labels" if setup.old_namespace else "the labels of today"
    return f"{namespace}, {setup.hostname}, {'with' if setup.honor_labels else 'without'} honorLabels"


@pytest.mark.parametrize("honor", [True, False], ids=["with honorLabels", "without honorLabels"])
def test_without_dcgm_the_rules_tell_what_the_agent_tells(tmp_path: Path, honor: bool) -> None:
    play(tmp_path, agent(honor=honor), WITHOUT_DCGM)


@pytest.mark.parametrize("setup", WAYS, ids=way)
def test_dcgms_numbers_are_joined_however_it_is_set_up_and_scraped(tmp_path: Path, setup: SetUp) -> None:
    play(tmp_path, agent(honor=setup.honor_labels) | exporter(setup), WITH_DCGM)


def test_two_exporters_of_the_same_gpus_count_once(tmp_path: Path) -> None:
    both = exporter(SetUp()) | exporter(SetUp(old_namespace=True, hostname="hostname"))
    play(tmp_path, agent(honor=True) | both, WITH_DCGM)


def test_dcgm_on_gpus_of_which_no_agent_tells_records_nothing_of_slices(tmp_path: Path) -> None:
    play(tmp_path, exporter(SetUp()), {rule: {} for rule in WITH_DCGM})


def in_cluster(cluster: str, told: str) -> str:
    return re.sub(r"(GPU|MIG)-(?=\w)", rf"\1-{cluster}-", told)


def labelled(cluster: str, stored: Series) -> Series:
    return {
        (
            name,
            frozenset({("cluster", cluster), *((key, in_cluster(cluster, one)) for key, one in labels)}),
        ): value
        for (name, labels), value in stored.items()
    }


@pytest.mark.parametrize("named", [True, False], ids=["with its cluster", "without its cluster"])
def test_two_clusters_with_nodes_and_pods_of_the_same_names_are_told_apart(tmp_path: Path, *, named: bool) -> None:
    """dcgm-exporter is scraped by a job of its own."""
    stored: Series = {}
    for cluster in ("east", "west"):
        stored |= labelled(cluster, agent(honor=True))
        stored |= {
            (name, labels if named else labels - {("cluster", cluster)}): value
            for (name, labels), value in labelled(cluster, exporter(SetUp())).items()
        }
    expected = {
        rule: {
            f'cluster="{cluster}", {in_cluster(cluster, labels)}': value
            for cluster in ("east", "west")
            for labels, value in rows.items()
        }
        for rule, rows in WITH_DCGM.items()
    }
    play(tmp_path, stored, expected)


def test_memory_that_pods_of_a_cluster_demand_is_compared_with_that_clusters_gpus(tmp_path: Path) -> None:
    stored: Series = {}
    for cluster, each in (("east", 30), ("west", 50)):
        gpu = {"cluster": cluster, "node": "gpu-01", "gpu": "0", "uuid": "GPU-0"}
        stored["gpusharing_device_memory_bytes", _frozen(gpu)] = 80
        stored["gpusharing_device_slices", _frozen({**gpu, "resource": "nvidia.com/gpu.shared"})] = 2
        for pod in ("x", "y"):
            whose = _frozen({**gpu, "namespace": "a", "pod": pod})
            stored["gpusharing_pod_memory_used_bytes", whose] = each
            stored["gpusharing_pod_slices", whose] = 1
    rows = {f'cluster="east", {ON_WHOLE}': 0.75, f'cluster="west", {ON_WHOLE}': 1.25}
    play(tmp_path, stored, {"gpusharing:shared_memory_demand:ratio": rows})


def panel(dashboard: Dashboard, title: str) -> str:
    (found,) = {one.expression for one in dashboard.panels if one.title == title and one.kind == "timeseries"}
    return filled_in(found, {"$__rate_interval": "3m", "$__range": "3m", "$price": "2"})


@pytest.mark.parametrize("honor", [True, False], ids=["with honorLabels", "without honorLabels"])
def test_panels_tell_tenants_and_their_pods_apart_however_the_agent_is_scraped(tmp_path: Path, honor: bool) -> None:
    target = {"node": "gpu-01", "namespace": "gpusharing-agent", "pod": "gpusharing-agent-x"}
    stored: Series = {}
    for namespace, pod, processes, seconds in (("team-a", "busy", 3, 15), ("team-b", "lazy", 0, 45)):
        device = {"gpu": "0", "uuid": "GPU-0", "namespace": namespace, "pod": pod}
        tenant = {"policy": "pool-a", "namespace": namespace, "resource": "nvidia.com/gpu.shared"}
        for name, labels, value in (
            ("gpusharing_pod_slices", {**device, "resource": "nvidia.com/gpu.shared"}, 1),
            ("gpusharing_pod_processes", device, processes),
            ("gpusharing_slice_seconds_total", tenant, seconds),
        ):
            stored[name, _frozen(stored_labels(labels, target, honor=honor))] = value
    expected: dict[str, dict[str, float]] = {
        panel(TENANT, "Slices held by idle pods"): {'namespace="team-b"': 1},
        panel(TENANT, "GPUs held"): {'namespace="team-a"': 0.5, 'namespace="team-b"': 0.5},
        panel(WASTE, "Cost by namespace"): {'namespace="team-a"': 0.05, 'namespace="team-b"': 0.05},
        "gpusharing:namespace_slice_seconds_total": {
            f'{ON_NODE}, policy="pool-a", namespace="{namespace}", resource="nvidia.com/gpu.shared"': value
            for namespace, value in (("team-a", 105), ("team-b", 135))
        },
    }
    play(tmp_path, stored, expected, growth="+30")


def records() -> set[str]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"] for rule in group["rules"]}


def test_every_record_is_tested_and_says_gpusharing() -> None:
    assert records() - WITH_DCGM.keys() == {
        "gpusharing:dcgm_engine_active:ratio",
        "gpusharing:dcgm_memory_used_bytes",
        "gpusharing:namespace_slice_seconds_total",  # beside the panels that ask for it
        "gpusharing:shared_memory_demand:ratio",  # tests/chart/alerts.yaml
    }


PAGE = ROOT / "docs/how-to/usage.md"
HOUR = {"[30d]": "[1h]", "[1d]": "[1h]", "86400": "3600"}
ON = 'node="n", gpu="0", uuid="GPU-0"'
SHARED = 'resource="nvidia.com/gpu.shared"'
BUSY, LAZY = f'{ON}, namespace="a", pod="busy"', f'{ON}, namespace="b", pod="lazy"'
TOLD = {
    f"gpusharing_device_slices{{{ON}, {SHARED}}}": "4x70",
    f"gpusharing_device_slices_allocated{{{ON}, {SHARED}}}": "3x70",
    f"gpusharing_device_memory_bytes{{{ON}}}": "80x70",
    f"gpusharing_device_memory_used_bytes{{{ON}}}": "60x70",
    f"gpusharing_device_unattributed_processes{{{ON}}}": "0x70",
    'gpusharing_device_unattributed_processes{node="n", gpu="1", uuid="GPU-1"}': "2x70",
    f"gpusharing_device_sm_ratio{{{ON}}}": "0.9x70",
    f"gpusharing_pod_slices{{{BUSY}, {SHARED}}}": "2x70",
    f"gpusharing_pod_slices{{{LAZY}, {SHARED}}}": "1x70",
    f"gpusharing_pod_memory_used_bytes{{{BUSY}}}": "40x70",
    f"gpusharing_pod_memory_used_bytes{{{LAZY}}}": "0x70",
    f"gpusharing_pod_processes{{{BUSY}}}": "3x70",
    f"gpusharing_pod_processes{{{LAZY}}}": "0x70",
    f"gpusharing_pod_sm_ratio{{{BUSY}}}": "0.9x70",
    'gpusharing_xid_errors_total{node="n", gpu="0", xid="31"}': "0x30 1x40",
    'gpusharing_agent_gpu_info{node="n", gpu="0"}': "1x70",
    'gpusharing_gpu_seconds_total{node="n", policy="p"}': "0+60x70",
    f'gpusharing_slice_seconds_total{{node="n", policy="p", namespace="a", {SHARED}}}': "0+30x70",
    f'gpusharing_idle_slice_seconds_total{{node="n", policy="p", {SHARED}}}': "0+15x70",
    'gpusharing_stranded_slice_seconds_total{node="n", policy="p"}': "0+9x70",
    'gpusharing_transition_slice_seconds_total{node="n", policy="p"}': "0+6x70",
}
"""A GPU of four replicas: a pod that computes holds two, one that does nothing one."""


def of(labels: str, metric: str = "") -> str:
    """A sample as promtool writes it, with the name that some queries keep."""
    return f"{metric}{{{labels}}}"


ANSWERS: dict[str, Mapping[str, float]] = {
    "memory by pod, also on a shared GPU": {
        of('namespace="a", pod="busy"'): 40, of('namespace="b", pod="lazy"'): 0
    },
    "slices that nobody holds": {of(f'node="n", {SHARED}'): 1},
    "how full each GPU or MIG device is": {of(ON): 0.75},
    "which pods compute on a GPU without MIG": {of(BUSY, "gpusharing_pod_sm_ratio"): 0.9},
    "processes that belong to no known pod": {
        of('node="n", gpu="1", uuid="GPU-1"', "gpusharing_device_unattributed_processes"): 2
    },
    "faults of the card that the driver reported": {of('node="n", gpu="0", xid="31"'): 1},
    "how busy each slice is, MIG included": {
        of(f'{ON}, source="agent"', "gpusharing:slice_utilization:ratio"): 0.9
    },
    "memory in use on each slice": {
        of(f'{ON}, source="agent"', "gpusharing:slice_memory_used_bytes"): 60
    },
    "memory by pod, slice by slice": {
        of(BUSY, "gpusharing:pod_memory_used_bytes"): 40, of(LAZY, "gpusharing:pod_memory_used_bytes"): 0
    },
    "how busy the slices of a team are": {
        of(f'node="n", uuid="GPU-0", namespace="{team}"'): 0.9 for team in "ab"
    },
    "slices that are held and do nothing": {of(f"{LAZY}, {SHARED}", "gpusharing:pod_slices"): 1},
    "the share of slices that is idle, by node and profile": {of(f'node="n", {SHARED}'): 0.25},
    "GPU-hours of each namespace in a month": {of('namespace="a"'): 0.5},
    "GPU-hours of slices that nobody held": {of('policy="p"'): 0.25},
    "GPU-hours that the layout strands": {of('policy="p"'): 0.15},
    "GPU-hours that changes took": {of('policy="p"'): 0.1},
    "what these four add up to": {of('policy="p"'): 1},
    "which part of the time was metered at all": {of(""): 1},
}  # fmt: skip
"""By what one wants to know."""


def test_every_query_of_the_page_answers_what_it_is_for(tmp_path: Path) -> None:
    """Each of an hour, instead of a day or a month."""
    rows = re.findall(r"^\|([^|]*)\| `([^`]+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert {wish.strip() for wish, _ in rows} == ANSWERS.keys(), "every query is tried"
    assert {name for _, query in rows for name in re.findall(r"gpusharing[\w:]+", query)} <= {*AGENT, *records()}
    expected = {filled_in(query, HOUR): ANSWERS[wish.strip()] for wish, query in rows}
    play_series(tmp_path, TOLD, expected, "65m")
