"""The four Grafana dashboards of the chart: their panels, the queries to Prometheus, and their JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

MOVING = "Cordoned|Draining|VerifyingIdle|Reconfiguring|Verifying|Uncordoning|Aborting"
Variable = Literal["policy", "namespace", "price"]
RATE, RANGE = "$__rate_interval", "$__range"
"""Grafana's variables for a range that is long enough for a rate, and for the whole range shown."""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    expression: str
    legend: str = ""
    kind: str = "timeseries"
    width: int = 12
    unit: str = "short"
    alarm: bool = False
    stacked: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]


def of(metric: str, *selectors: str, policy: bool = False, namespace: bool = False) -> str:
    """Return the PromQL selector of a metric for the clusters that the user selects."""
    chosen = ['cluster=~"$cluster"']
    chosen += ['policy=~"$policy"'] if policy else []
    chosen += ['namespace=~"$namespace"'] if namespace else []
    return f"{metric}{{{', '.join([*chosen, *selectors])}}}"


def increase(metric: str, over: str) -> str:
    return f"increase({metric}[{over}])"


def _stat(title: str, expression: str, *, unit: str = "short", alarm: bool = False, text: str = "") -> Panel:
    return Panel(title, expression, kind="stat", width=4, unit=unit, alarm=alarm, text=text)


def _nodes(phase: str = "") -> str:
    return of("gpusharing_policy_nodes", *([f'phase=~"{phase}"'] if phase else []), policy=True)


def _meter(part: str) -> str:
    """Return the selector of the counter gpusharing_`part`seconds_total for the chosen clusters and policies."""
    return of(f"gpusharing_{part}seconds_total", policy=True)


_METERS = {"held": "slice_", "idle": "idle_slice_", "stranded": "stranded_slice_", "transition": "transition_slice_"}
"""The parts into which all GPU-seconds are divided, each with the prefix of its meter's name."""


def _by_part(query: str, *parts: str) -> str:
    """Return `query` labeled by part. A sum by `+` would drop a policy without a series for one part."""
    return " or ".join(
        f'label_replace({query.format(_meter(_METERS[part]))}, "part", "{part}", "", "")' for part in parts
    )


_UNPROVEN = of("gpusharing_policy_nodes", 'phase!="Synced"', policy=True)

FLEET = Dashboard(
    "fleet",
    "GPU sharing: fleet",
    ("policy",),
    (
        _stat("Leaders", f"sum({of('gpusharing_leader')})"),
        _stat("Nodes", f"sum({_nodes()})"),
        _stat("GPUs", f"count({of('gpusharing_agent_gpu_info')})"),
        _stat("Slices", f"sum({of('gpusharing_policy_slices', policy=True)})"),
        _stat("Idle slices", f"sum({of('gpusharing_policy_slices_idle', policy=True)})"),
        _stat("Unhealthy GPUs", f"count({of('gpusharing_agent_gpu_healthy')} == 0)", alarm=True),
        Panel(
            "Nodes by cluster and phase",
            f"sum by (cluster, phase) ({_nodes()})",
            "{{cluster}} {{phase}}",
            width=8,
            stacked=True,
        ),
        Panel(
            "Nodes that are not ready, by cluster",
            f"sum by (cluster) ({_UNPROVEN}) or 0 * sum by (cluster) ({_nodes()})",
            "{{cluster}}",
            width=8,
            text="Nodes without a proven layout: they wait, are changing, are blocked or have failed.",
        ),
        Panel(
            "GPUs by cluster and mode",
            f"sum by (cluster, mode) ({of('gpusharing_policy_gpus', policy=True)})",
            "{{cluster}} {{mode}}",
            width=8,
            stacked=True,
        ),
        Panel(
            "Slices by policy",
            f"sum by (policy, resource) ({of('gpusharing_policy_slices', policy=True)})",
            "{{policy}} {{resource}}",
        ),
        Panel(
            "Idle slices by policy",
            f"sum by (policy, resource) ({of('gpusharing_policy_slices_idle', policy=True)})",
            "{{policy}} {{resource}}",
            text="Slices that a pod could get now.",
        ),
        Panel("Waiting pods", f"sum by (resource) ({of('gpusharing_pending_pods')})", "{{resource}}"),
        Panel(
            "How busy slices are",
            f"avg by (profile, source) ({of('gpusharing:slice_utilization:ratio')})",
            "{{profile}} {{source}}",
            unit="percentunit",
            text="Needs dcgm-exporter with MIG on.",
        ),
        Panel(
            "Memory in use",
            f"sum by (cluster, node) ({of('gpusharing_device_memory_used_bytes')})"
            f" / sum by (cluster, node) ({of('gpusharing_device_memory_bytes')})",
            "{{cluster}} {{node}}",
            unit="percentunit",
        ),
        Panel("MIG instances", f"sum by (profile) ({of('gpusharing_agent_gpu_mig_instances')})", "{{profile}}"),
        Panel("GPUs by product", f"sum by (product) ({of('gpusharing_agent_gpu_info')})", "{{product}}"),
        Panel(
            "Unhealthy nodes",
            f"sum by (policy, reason) ({of('gpusharing_policy_unhealthy_nodes', policy=True)})",
            "{{policy}} {{reason}}",
        ),
        Panel(
            "Nodes without an agent",
            f"sum by (policy) ({of('gpusharing_policy_nodes_without_agent', policy=True)})",
            "{{policy}}",
        ),
        Panel(
            "Readings",
            f"sum by (outcome) (rate({of('gpusharing_agent_readings_total')}[{RATE}]))",
            "{{outcome}}",
            unit="reqps",
        ),
    ),
)

ROLLOUT = Dashboard(
    "rollout",
    "GPU sharing: rollout",
    ("policy",),
    (
        _stat("In flight", f"sum({_nodes(MOVING)})"),
        _stat("Blocked", f"sum({_nodes('Blocked')})", alarm=True),
        _stat("Failed", f"sum({_nodes('Failed')})", alarm=True),
        _stat("Drifted", f"sum({of('gpusharing_policy_drifted_nodes', policy=True)})", alarm=True),
        _stat("Halted policies", f"sum({of('gpusharing_policy_halted', policy=True)})", alarm=True),
        _stat("Without a policy", f"sum({of('gpusharing_orphan_nodes')})", alarm=True),
        Panel("Nodes by phase", f"sum by (policy, phase) ({_nodes()})", "{{policy}} {{phase}}", stacked=True),
        Panel(
            "Phases entered",
            f"sum by (phase, reason) (increase({of('gpusharing_transitions_total')}[{RATE}]))",
            "{{phase}} {{reason}}",
        ),
        Panel(
            "Unavailable nodes, and how many are allowed",
            f'label_replace({of("gpusharing_policy_budget_used_nodes", policy=True)}, "is", "unavailable", "", "")'
            f' or label_replace({of("gpusharing_policy_budget_allowed_nodes", policy=True)}, "is", "allowed", "", "")',
            "{{policy}} {{is}}",
        ),
        Panel(
            "Pods that block nodes",
            f"sum by (policy, reason) ({of('gpusharing_drain_blocked_pods', policy=True)})",
            "{{policy}} {{reason}}",
        ),
        Panel(
            "How long phases take, 90th percentile",
            f"histogram_quantile(0.9, sum by (phase, le) (increase({of('gpusharing_phase_seconds_bucket')}[{RANGE}])))",
            "{{phase}}",
            unit="s",
        ),
        Panel(
            "Actions",
            f"sum by (action, result) (increase({of('gpusharing_actions_total')}[{RATE}]))",
            "{{action}} {{result}}",
        ),
        Panel(
            "API calls",
            f"sum by (status) (rate({of('gpusharing_api_requests_total')}[{RATE}]))",
            "{{status}}",
            unit="reqps",
            text="By HTTP status; 0 means no answer.",
        ),
        Panel(
            "Time of a pass, 99th percentile",
            f"histogram_quantile(0.99, sum by (step, le) (rate({of('gpusharing_pass_seconds_bucket')}[{RATE}])))",
            "{{step}}",
            unit="s",
        ),
    ),
)

_OF_TENANT = of("gpusharing:namespace_slice_seconds_total", namespace=True)
_SLICES = of("gpusharing:pod_slices", namespace=True)
_MEMORY = of("gpusharing:pod_memory_used_bytes", namespace=True)

TENANT = Dashboard(
    "tenant",
    "GPU sharing: tenants",
    ("namespace", "price"),
    (
        _stat("GPUs held", f"sum(rate({_OF_TENANT}[{RATE}]))", text="Slices as their shares of GPUs."),
        _stat("Slices held", f"sum({_SLICES})"),
        _stat("Memory in use", f"sum({_MEMORY})", unit="bytes"),
        _stat("Namespaces", f"count(count by (namespace) ({_SLICES}))"),
        _stat("GPU-hours", f"sum({increase(_OF_TENANT, RANGE)}) / 3600"),
        _stat("Cost", f"sum({increase(_OF_TENANT, RANGE)}) / 3600 * $price"),
        Panel("GPUs held", f"sum by (namespace) (rate({_OF_TENANT}[{RATE}]))", "{{namespace}}", stacked=True),
        Panel("Slices held", f"sum by (namespace, resource) ({_SLICES})", "{{namespace}} {{resource}}", stacked=True),
        Panel("Memory by pod", f"sum by (namespace, pod) ({_MEMORY})", "{{namespace}}/{{pod}}", unit="bytes"),
        Panel(
            "How busy the slices are",
            f"avg by (namespace) ({of('gpusharing:slice_utilization:ratio')} * on (node, uuid) group_right ()"
            f" (max by (node, uuid, namespace) ({_SLICES}) > bool 0))",
            "{{namespace}}",
            unit="percentunit",
            text="For a shared device, all its pods together. Needs dcgm-exporter with MIG on.",
        ),
        Panel(
            "Memory demand of pods on shared devices",
            of("gpusharing:shared_memory_demand:ratio"),
            "{{node}} GPU {{gpu}} {{profile}}",
            unit="percentunit",
            text="The sum of each pod's peak in 6 hours, as a share of the memory. Above 100 %, pods run out of"
            " memory if peaks coincide.",
        ),
        Panel(
            "Slices held by idle pods",
            f"sum by (namespace) ({_SLICES} and on (cluster, node, namespace, pod, uuid)"
            f" ({of('gpusharing:pod_processes', namespace=True)} == 0))",
            "{{namespace}}",
            text="Pods without a process on the device.",
        ),
    ),
)

_ALL = _meter("gpu_")

WASTE = Dashboard(
    "waste",
    "GPU sharing: waste and cost",
    ("policy", "price"),
    (
        _stat("GPU-hours", f"sum({increase(_ALL, RANGE)}) / 3600"),
        *(
            _stat(
                title,
                f"sum({increase(_meter(_METERS[part]), RANGE)}) / sum({increase(_ALL, RANGE)})",
                unit="percentunit",
                text=text,
            )
            for title, part, text in (
                ("Held", "held", "Assigned to a pod, whether or not it is used."),
                ("Idle", "idle", "Slices that no pod held."),
                ("Stranded", "stranded", "GPU capacity that no slice of the layout uses."),
                ("In transition", "transition", "Held by no pod on nodes in the middle of a change."),
            )
        ),
        _stat(
            "Metered",
            f"sum(rate({of('gpusharing_gpu_seconds_total')}[{RATE}])) / count({of('gpusharing_agent_gpu_info')})",
            unit="percentunit",
            text="The share of all GPU time that was counted; a restart of an agent leaves a gap.",
        ),
        Panel(
            "How GPUs are used",
            _by_part(f"sum(rate({{}}[{RATE}]))", *_METERS),
            "{{part}}",
            stacked=True,
            text="The unit is whole GPUs.",
        ),
        Panel(
            "What each use costs",
            _by_part(f"sum(increase({{}}[{RANGE}])) / 3600 * $price", *_METERS),
            "{{part}}",
            stacked=True,
            text="GPU-hours of the time shown, by the price above; the currency is that of the price.",
        ),
        Panel(
            "Idle GPUs by policy",
            f"sum by (policy, resource) (rate({_meter('idle_slice_')}[{RATE}]))",
            "{{policy}} {{resource}}",
            stacked=True,
        ),
        Panel(
            "Stranded GPUs by policy",
            f"sum by (policy) (rate({_meter('stranded_slice_')}[{RATE}]))",
            "{{policy}}",
            stacked=True,
        ),
        Panel(
            "Cost by namespace",
            f"sum by (namespace) ({increase(of('gpusharing:namespace_slice_seconds_total', policy=True), RANGE)})"
            " / 3600 * $price",
            "{{namespace}}",
            stacked=True,
        ),
        Panel(
            "Cost of unused GPUs, by policy",
            f"sum by (policy) ({_by_part(increase('{}', RANGE), 'idle', 'stranded', 'transition')}) / 3600 * $price",
            "{{policy}}",
            stacked=True,
            text="GPUs that were idle, stranded or in transition.",
        ),
    ),
)

DASHBOARDS = (FLEET, ROLLOUT, TENANT, WASTE)


def panels() -> Iterator[tuple[str, Panel]]:
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            yield dashboard.name, panel


FOLDER = "deploy/helm/gpu-sharing-operator/files/dashboards"
COLUMNS = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
DATA_SOURCE = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
VALUES: dict[str, str] = {
    "cluster": "label_values(gpusharing_leader, cluster)",
    "policy": "label_values(gpusharing_policy_nodes, policy)",
    "namespace": "label_values(gpusharing:namespace_slice_seconds_total, namespace)",
}
"""The query for each variable's values. If no metric has the label `cluster`, All includes everything."""


def dashboard() -> dict[str, str]:
    return {f"{FOLDER}/{board.name}.json": json.dumps(_model(board), indent=1) + "\n" for board in DASHBOARDS}


def _model(dashboard: Dashboard) -> dict[str, Any]:
    variables = [_chosen("cluster"), *map(_variable, dashboard.variables)]
    return {
        "description": "generated by `make gen` from hack/dashboards.py; do not edit",
        "uid": f"gpusharing-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["gpu", "gpusharing"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["gpusharing"], "title": "GPU sharing", "keepTime": True}],
        "templating": {"list": [DATA_SOURCE, *variables]},
        "annotations": {"list": []},
        "panels": _placed(dashboard.panels),
    }


def _variable(name: Variable) -> dict[str, Any]:
    if name == "price":
        # With a price of 1 the panels show GPU-hours; any other default would be wrong for most users.
        text = {"text": "1", "value": "1"}
        label = "Price of a GPU-hour"
        return {"name": name, "label": label, "type": "textbox", "query": "1", "current": text, "options": [text]}
    return _chosen(name)


def _chosen(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": VALUES[name], "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    x = y = 0
    placed = []
    for number, panel in enumerate(panels, start=1):
        height = HEIGHT // 2 if panel.kind == "stat" else HEIGHT
        placed.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
        x += panel.width
        if x == COLUMNS:
            x, y = 0, y + height
    return placed


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.alarm:
        steps.append({"color": "red", "value": 1})
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.stacked:
        defaults["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    # A count of nothing has no value. With this addition a stat shows 0 instead of "No data".
    expression = f"{panel.expression} or vector(0)" if panel.kind == "stat" else panel.expression
    target = {"refId": "A", "datasource": SOURCE, "expr": expression, "legendFormat": panel.legend or panel.title}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [target],
    }
