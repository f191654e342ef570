"""Alerts, dashboard and scrape targets; the alerts are checked by promtool, of Debian's package."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.generate import ROOT
from hack.promtool import ensure
from prometheus_client import Counter, Gauge, Histogram
from tests.chart.charts import CHART, IMAGE, Helm, find

from gpusharing.agent.metrics import FAMILIES
from gpusharing.controller.gauges import GAUGES
from gpusharing.controller.metrics import Metrics

RULES = CHART / "files" / "rules.yaml"
RECORDING = CHART / "files" / "recording.yaml"
RUNBOOK = ROOT / "docs" / "how-to" / "alerts.md"
DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
FOR_NOW = {"$__rate_interval": "5m", "$__range": "6h", "$price": "2"}
"""Grafana's words, and values of the variables that are no regular expression."""
TESTS = Path(__file__).with_name("alerts.yaml")

OPERATOR = {
    "gpusharing_actions_total": {"action", "result"},
    "gpusharing_api_requests_total": {"verb", "resource", "status"},
    "gpusharing_build_info": {"version", "component"},
    "gpusharing_drain_blocked_pods": {"policy", "reason"},
    "gpusharing_drain_blocked_seconds": {"policy", "reason"},
    "gpusharing_leader": set(),
    "gpusharing_orphan_nodes": set(),
    "gpusharing_stopped": set(),
    "gpusharing_pass_seconds": {"step"},
    "gpusharing_pending_pods": {"resource"},
    "gpusharing_phase_seconds": {"phase"},
    "gpusharing_policy_budget_allowed_nodes": {"policy"},
    "gpusharing_policy_budget_used_nodes": {"policy"},
    "gpusharing_policy_condition": {"policy", "type", "status", "reason"},
    "gpusharing_policy_drifted_nodes": {"policy"},
    "gpusharing_policy_gpu_hourly_price": {"policy", "currency"},
    "gpusharing_policy_gpus": {"policy", "mode"},
    "gpusharing_policy_halted": {"policy"},
    "gpusharing_policy_mps_clients_ended_total": {"policy"},
    "gpusharing_policy_nodes": {"policy", "phase"},
    "gpusharing_policy_nodes_without_agent": {"policy"},
    "gpusharing_policy_abandoned_changes": {"policy"},
    "gpusharing_policy_blocked_seconds": {"policy", "reason"},
    "gpusharing_policy_without_agent_seconds": {"policy"},
    "gpusharing_policy_slices": {"policy", "resource"},
    "gpusharing_policy_slices_idle": {"policy", "resource"},
    "gpusharing_policy_transitions_total": {"policy"},
    "gpusharing_policy_unhealthy_nodes": {"policy", "reason"},
    "gpusharing_transitions_total": {"phase", "reason"},
}
AGENT = {
    "gpusharing_agent_faults_total": {"part"},
    "gpusharing_agent_allocated_devices": {"resource"},
    "gpusharing_agent_gpu_critical_xid": {"gpu"},
    "gpusharing_agent_gpu_ecc_uncorrected": {"gpu"},
    "gpusharing_agent_gpu_healthy": {"gpu"},
    "gpusharing_agent_gpu_info": {"gpu", "uuid", "product"},
    "gpusharing_agent_gpu_mig_enabled": {"gpu"},
    "gpusharing_agent_gpu_mig_instances": {"gpu", "profile"},
    "gpusharing_agent_gpu_processes": {"gpu"},
    "gpusharing_agent_gpu_recovery_action": {"gpu", "action"},
    "gpusharing_agent_gpu_row_remap_failed": {"gpu"},
    "gpusharing_agent_gpu_row_remap_pending": {"gpu"},
    "gpusharing_agent_pods": set(),
    "gpusharing_agent_quiet": set(),
    "gpusharing_agent_reading_seconds_total": set(),
    "gpusharing_agent_readings_total": {"outcome"},
    "gpusharing_agent_ready": set(),
    "gpusharing_agent_simulated": set(),
    "gpusharing_agent_writes_total": {"outcome"},
    "gpusharing_build_info": {"version", "component"},
    "gpusharing_device_info": {"gpu", "uuid", "profile", "gpu_uuid", "instance_id", "placement"},
    "gpusharing_device_memory_bytes": {"gpu", "uuid", "profile"},
    "gpusharing_device_memory_used_bytes": {"gpu", "uuid", "profile"},
    "gpusharing_device_slices": {"gpu", "uuid", "profile", "resource"},
    "gpusharing_device_slices_allocated": {"gpu", "uuid", "profile", "resource"},
    "gpusharing_device_sm_ratio": {"gpu", "uuid", "profile"},
    "gpusharing_device_unattributed_memory_bytes": {"gpu", "uuid", "profile"},
    "gpusharing_device_unattributed_processes": {"gpu", "uuid", "profile"},
    "gpusharing_gpu_pods_hour_max": {"gpu", "uuid"},
    "gpusharing_gpu_seconds_total": {"policy"},
    "gpusharing_gpu_slices_hour_max": {"gpu", "uuid"},
    "gpusharing_idle_slice_seconds_total": {"policy", "resource"},
    "gpusharing_pod_memory_used_bytes": {"namespace", "pod", "gpu", "uuid", "profile"},
    "gpusharing_pod_processes": {"namespace", "pod", "gpu", "uuid", "profile"},
    "gpusharing_pod_slices": {"namespace", "pod", "gpu", "uuid", "profile", "resource"},
    "gpusharing_pod_sm_ratio": {"namespace", "pod", "gpu", "uuid", "profile"},
    "gpusharing_slice_seconds_total": {"policy", "namespace", "resource"},
    "gpusharing_stranded_slice_seconds_total": {"policy"},
    "gpusharing_transition_slice_seconds_total": {"policy"},
    "gpusharing_usage_left_out": set(),
    "gpusharing_xid_errors_total": {"gpu", "xid"},
}
"""Every metric and its labels, on which people's own alerts and dashboards stand: more may come, none may go."""
TARGET = {"node", "namespace", "pod", "job", "le"}
MADE = {"cluster", "is", "part"}
"""Labels that somebody else's Prometheus adds, and those that panels make themselves."""
WORDS = {"by", "sum", "count", "rate", "increase", "or", "unless", "on", "vector", "histogram_quantile"}


def promtool(*arguments: str) -> str:
    done = subprocess.run([ensure("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def drawn() -> list[dict[str, Any]]:
    return [panel for file in DASHBOARDS for panel in json.loads(file.read_text())["panels"]]


def filled_in(query: str, words: Mapping[str, str] = FOR_NOW) -> str:
    for word, value in words.items():
        query = query.replace(word, value)
    return re.sub(r"\$\w+", ".*", query)


def queries() -> list[str]:
    return [target["expr"] for panel in drawn() for target in panel["targets"]]


def variables() -> dict[str, tuple[str, str]]:
    """By variable of the dashboards the metric and the label that Grafana asks for its values."""
    found = {}
    for file in DASHBOARDS:
        for one in json.loads(file.read_text())["templating"]["list"]:
            if one["type"] == "query":
                asked = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", one["query"]["query"])
                assert asked, f"{file.stem}, {one['name']}: nobody tries such a query"
                found[one["name"]] = asked[1], asked[2]
    return found


def recorded() -> dict[str, set[str]]:
    """The recording rules, with the labels by which they are told apart."""
    rules = yaml.safe_load(RECORDING.read_text())["groups"][0]["rules"]
    return {rule["record"]: set().union(*_groupings(rule["expr"])) | {"source"} for rule in rules}


def _groupings(query: str) -> list[set[str]]:
    return [set(re.split(r",\s*", text)) for text in re.findall(r"by \(([^)]*)\)", query)]


@pytest.mark.tools
def test_promtool_accepts_the_rules_and_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    for file in (RULES, RECORDING, TESTS):
        shutil.copy(file, tmp_path)
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(tmp_path / RULES.name))
    assert "SUCCESS" in promtool("test", "rules", str(tmp_path / TESTS.name))


@pytest.mark.tools
def test_promtool_accepts_every_query_of_the_dashboards(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": filled_in(one)} for number, one in enumerate(queries())]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_every_panel_looks_at_the_chosen_clusters_and_no_variable_is_for_nothing() -> None:
    assert [file.stem for file in DASHBOARDS] == ["fleet", "rollout", "tenant", "waste"]
    for file in DASHBOARDS:
        model = json.loads(file.read_text())
        asked = {word for panel in model["panels"] for word in re.findall(r"\$(\w+)", str(panel["targets"]))}
        names = {one["name"] for one in model["templating"]["list"]}
        assert names == {word for word in asked if not word.startswith("__")} | {"datasource"}, file.stem
        for panel in model["panels"]:
            for target in panel["targets"]:
                metrics = re.findall(r"\bgpusharing[_:][\w:]+", target["expr"])
                assert len(metrics) == target["expr"].count('cluster=~"$cluster"'), panel["title"]


def test_every_alert_is_tested_and_says_how_bad_and_what_it_is() -> None:
    tested = set(re.findall(r"GPUSharing\w+", TESTS.read_text()))
    assert {rule["alert"] for rule in alerts()} == tested, "tests/chart/alerts.yaml has a case for each alert"
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_every_alert_is_explained_and_every_explanation_is_of_an_alert() -> None:
    found = re.split(r"^## (GPUSharing\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    sections = dict(zip(found[::2], found[1::2], strict=True))
    assert list(sections) == [rule["alert"] for rule in alerts()], "docs/how-to/alerts.md, in the order of rules.yaml"
    for name, text in sections.items():
        parts = re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE)
        assert parts == ["What it means.", "Look at", "What to do.", "It ends"], name


def test_every_alert_names_the_object_that_it_is_about() -> None:
    for rule in alerts():
        texts = " ".join(rule["annotations"].values())
        if rule["alert"] not in ("GPUSharingOperatorDown", "GPUSharingOrphanNode"):  # of the whole cluster
            assert "{{ $labels." in texts, f"rules.yaml: the text of {rule['alert']} names no object by a label"


def test_the_names_of_the_metrics_are_final() -> None:
    own, metrics = {}, Metrics()
    for metric in (*vars(metrics).values(), *vars(metrics.process).values()):
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.collect()
            own[f"{family.name}_total" if family.type == "counter" else family.name] = metric
    gauges = {name: {"policy", *labels} for name, _, _, labels in GAUGES}
    assert OPERATOR.keys() == own.keys() | gauges.keys(), "a new metric of the operator goes into OPERATOR of this file"
    assert {name: OPERATOR[name] for name in gauges} == gauges
    for name, labels in ((name, labels) for name, labels in OPERATOR.items() if name in own):
        if labels:
            assert own[name].labels(**dict.fromkeys(labels, "x")), "another label would raise ValueError"
        assert next(iter(own[name].collect())).samples, f"{name} has labels that OPERATOR does not name"
    agent = {f"gpusharing_{name}": {*labels} for name, (labels, _) in FAMILIES.items()}
    assert agent == AGENT, "a new metric of the agent goes into AGENT of this file"


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in alerts())])
def test_alerts_and_panels_ask_for_metrics_and_labels_that_there_are(query: str) -> None:
    known = {**OPERATOR, **AGENT, **recorded(), "up": set()}
    names = set(re.findall(r"\b(?:gpusharing[_:][\w:]+|up)\b", query.replace('job="gpusharing-agent"', 'job=""')))
    bare = {name.removesuffix("_bucket") for name in names}
    assert bare
    assert bare <= known.keys()
    labels = set().union(*(known[name] for name in bare)) | TARGET | MADE
    grouped = set().union(*_groupings(query))
    asked = set(re.findall(r"(\w+)(?:=|!)[=~]?\"", query))
    assert grouped | asked <= labels, query


def test_every_variable_asks_for_a_metric_and_a_label_that_there_are() -> None:
    known = {**OPERATOR, **AGENT, **recorded()}
    for name, (metric, label) in variables().items():
        assert label in known[metric] | MADE, name


def test_the_rules_reach_the_prometheus_rule_with_labels_and_runbook(helm: Helm) -> None:
    rule = find(
        helm.template(
            "--set",
            "monitoring.prometheusRule.enabled=true,monitoring.prometheusRule.additionalRuleLabels.team=gpu,"
            "monitoring.prometheusRule.runbookUrl=https://docs.test/alerts",
        ),
        "PrometheusRule",
        "gpusharing",
    )
    group, recording = rule["spec"]["groups"]
    assert recording == yaml.safe_load((CHART / "files" / "recording.yaml").read_text())["groups"][0]
    for one, own in zip(group["rules"], alerts(), strict=True):
        assert one["annotations"].pop("runbook_url") == f"https://docs.test/alerts#{own['alert'].lower()}"
        assert one["labels"].pop("team") == "gpu"
        assert one == own


@pytest.mark.parametrize("home", ["https://git.example/team/gpu-sharing-operator", ""])
def test_the_runbook_of_a_released_chart_is_the_page_of_its_repository(helm: Helm, tmp_path: Path, home: str) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "home": home, "version": "1.2.3"}))
    text = helm.must("template", "x", str(chart), *IMAGE, "--set", "monitoring.prometheusRule.enabled=true")
    rule = find([one for one in yaml.safe_load_all(text) if one], "PrometheusRule", "gpusharing")
    urls = {one["alert"]: one["annotations"].get("runbook_url") for one in rule["spec"]["groups"][0]["rules"]}
    page = f"{home}/blob/v1.2.3/{RUNBOOK.relative_to(ROOT)}"
    assert urls == {one["alert"]: f"{page}#{one['alert'].lower()}" if home else None for one in alerts()}


def test_each_dashboard_reaches_its_config_map_unchanged(helm: Helm) -> None:
    objects = helm.template("--set", "monitoring.grafanaDashboard.create=true")
    for file in DASHBOARDS:
        found = find(objects, "ConfigMap", f"gpusharing-dashboard-{file.stem}")
        assert json.loads(found["data"][f"gpu-sharing-{file.name}"]) == json.loads(file.read_text())
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: str(file.stem))
def test_panels_fill_the_screen_without_overlap(file: Path) -> None:
    cells = [
        (x, y)
        for panel in json.loads(file.read_text())["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len(cells) == 24 * (1 + max(y for _, y in cells)), "no gaps"
