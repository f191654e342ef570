"""Which queries answer what GPUs cost and how they were used, and which series do they select?

The metrics and labels of dcgm-exporter are those of its versions 4.5.3 to 4.8.2 (internal/pkg/transformation/const.go
and kubernetes.go): `UUID`, with --use-old-namespace `uuid`, `pod_name` and `pod_namespace`. A MIG device has the UUID
of its GPU, GPU_I_ID and GPU_I_PROFILE. DCGM_FI_DEV_FB_USED is in MiB. Those of kube-state-metrics are from its v2
(docs/metrics/workload).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.bills import OPENCOST_METRIC, POLICY_METRIC, PRODUCT_METRIC
from kubectl_gpusharing.usage.windows import LOOKBACK, SHORT, Days

TARGET = ("__name__", "instance", "pod", "container", "endpoint", "uid")
"""Labels by which an agent's series differ from those of its successor on the same node."""
OF_TARGETS = frozenset((*TARGET, "job", "namespace", "node", "service"))
"""Labels that name the scrape target. Prices, owners and labels of namespaces come from other targets."""
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"\s*')
"""One PromQL matcher: label (group 1), operator and quoted value."""


def selector_of(selector: str) -> str:
    """Return the PromQL matchers of `--match`, separated by commas, without enclosing braces. Raises Trouble."""
    matchers = selector.strip().removeprefix("{").removesuffix("}").strip()
    if matchers and not re.fullmatch(f"{MATCHER.pattern}(?:,{MATCHER.pattern})*", matchers):
        raise Trouble(f'--match {selector}: use matchers such as cluster="east",prometheus_replica="a"')
    return matchers


def labels_of(selector: str) -> list[str]:
    return [match[1] for match in MATCHER.finditer(selector)]


def without_labels(selector: str, targets: frozenset[str] = OF_TARGETS) -> str:
    """Return the matchers of `selector` for labels not in `targets`, which other exporters' series have too."""
    return ",".join(match[0].strip() for match in MATCHER.finditer(selector) if match[1] not in targets)


def braced(*matchers: str) -> str:
    """Join the matchers that are not empty in braces, to be appended to a metric's name; empty without any."""
    joined = ",".join(filter(None, matchers))
    return f"{{{joined}}}" if joined else ""


def matcher_of(nodes: Iterable[str]) -> str:
    """Return the matcher of these nodes (a dot matches any character); empty, so all nodes, if too long for a URL."""
    names = "|".join(sorted(nodes))
    return f'node=~"{names}"' if re.fullmatch(r"[a-z0-9.|-]{0,1500}", names) else ""


def state_label(key: str) -> str:
    """Return the label that kube-state-metrics makes of `key` (v2.20.0, internal/store/utils.go, labelName)."""
    plain = re.sub("[^a-zA-Z0-9_]", "_", key)
    snake = re.sub("([a-z0-9])([A-Z])", r"\1_\2", plain)
    return f"label_{snake.lower()}"


POINTS, STEP = "5m", 300
"""Time between the points of a subquery, as text and in seconds."""
POINT = 60.0
"""Seconds between the points at which the presence of a suspect is checked."""
AGENTS = 'job="gpusharing-agent"'
"""The job of the chart's PodMonitor (templates/podmonitor.yaml, jobLabel); the user's matcher replaces it."""
NAMESPACE, POLICY, POD, EXPORTED = "namespace", "policy", "pod", "exported_namespace"
GPUS, INFO_OF_GPUS = "gpusharing_gpu_seconds_total", "gpusharing_agent_gpu_info"
SIMULATED = "gpusharing_agent_simulated"
"""A metric that is 1 on nodes with a SIMULATED driver library (gpusharing/agent/metrics.py)."""
OF_PARTS = frozenset((NAMESPACE, EXPORTED, "resource", "gpu", "uuid", "profile", "product", "currency"))
"""Labels that only some series of a bill have: if a selector used them, the parts would not add up. Time that no pod
held has no tenant, and its label `namespace` is the agent's, or is missing."""
COUNTERS = {
    "held": ("gpusharing_slice_seconds_total", f"{POLICY}, {NAMESPACE}, {EXPORTED}, resource"),
    "idle": ("gpusharing_idle_slice_seconds_total", f"{POLICY}, resource"),
    "stranded": ("gpusharing_stranded_slice_seconds_total", POLICY),
    "transition": ("gpusharing_transition_slice_seconds_total", POLICY),
    "gpus": (GPUS, POLICY),
}
"""The counters of the meter, and the labels besides the node by which they are summed, by the name of the answer."""


@dataclass(frozen=True, slots=True)
class MeterQuery:
    start: float
    """The start of the window, in seconds since 1970."""
    end: float
    by: str = NAMESPACE
    """What the bill is by: NAMESPACE, POLICY, POD, or the key of a namespace label."""
    selector: str = ""
    """PromQL matchers, without braces. Those for labels in OF_TARGETS apply only to the agents' series, and one for
    POLICY only to series that have it."""
    currency: str = "USD"
    """The currency of OpenCost's prices."""


def label_of(by: str) -> str:
    """Return the label of kube-state-metrics for the namespace label `by`; empty if the bill is not by a label."""
    return "" if by in (NAMESPACE, POLICY, POD) else state_label(by)


def queries_of(query: MeterQuery, days: Days) -> dict[str, str]:
    """Return the queries of a bill, except `growth_queries`, by the name of their answer."""
    seconds, others = days.seconds, braced(_of_exporters(query))
    # HAMi's scheduler has reported both metrics since v2.9.0 (Project-HAMi/HAMi v2.10.0, cmd/scheduler/metrics.go).
    sizes = f"max by (device_uuid) (hami_gpu_memory_limit_bytes{others})"
    # The schedulers of two replicas report the same.
    memory = f"max by ({_ON_NODES}, container_index, device_uuid) (hami_vgpu_memory_allocated_bytes{others})"
    parts = f"({memory} / on (device_uuid) group_left () {sizes})[{seconds}s:{POINTS}]"
    fractions = f"{STEP} * sum by ({_ON_NODES}) (sum_over_time({parts} offset 1ms))"
    # Suspects are nodes whose presence has to be checked for each minute.
    counters = f"{GPUS}{braced(query.selector)}"
    points = days.ends[0] // STEP - (days.start - 1) // STEP
    # Prometheus 3 leaves out a point at the very beginning of a range, and older ones do not.
    visible = f"count_over_time({counters}[{seconds}001ms:{POINTS}]) < {points:g}"
    twice = f"count by (node, {POLICY}) ({counters}) > 1"
    suspects = f"group by (node) ({visible} or {twice} or {_down(query)})"
    queries = {"suspects": suspects, "fractions": fractions, **_prices(query, seconds)}
    if query.by == POD:
        slices = f"{SLICES}{_of_devices(query)}[{seconds}s:{POINTS}]"
        queries["slices"] = f"sum by ({_ON_NODES}, resource) (sum_over_time({slices}))"
    if label := label_of(query.by):
        chosen = braced(_of_exporters(query), f'{label}!=""')
        # When each label was last seen: a namespace may have been deleted, or have a new owner.
        last = f"timestamp(kube_namespace_labels{chosen})[{seconds}s:{POINTS}]"
        queries["labels"] = f"max by ({NAMESPACE}, {EXPORTED}, {label}) (max_over_time({last}))"
        # A Prometheus that does not honor labels has the name of the namespace in another label.
        named = f'label_replace(kube_namespace_labels{chosen}, "{NAMESPACE}", "$1", "{EXPORTED}", "(.+)")'
        values = f"count by ({NAMESPACE}) (group by ({NAMESPACE}, {label}) ({named})) > 1"
        queries["rival labels"] = f"count_over_time(({values})[{seconds}s:{POINTS}]) > {_moments(seconds)}"
    return queries


def growth_queries(query: MeterQuery, seconds: int, nodes: str = "") -> dict[str, str]:
    """Return the queries for the growth of the COUNTERS on these nodes, and for those that are SIMULATED."""
    chosen = f"{braced(query.selector, nodes)}[{seconds}s]"
    growth = {
        name: f"sum by (node, {labels}) (increase({counter}{chosen}))" for name, (counter, labels) in COUNTERS.items()
    }
    return {**growth, "simulated": simulated_query(query.selector, seconds)}


def simulated_query(selector: str, seconds: int) -> str:
    """Return the query for nodes with SIMULATED GPUs in the last `seconds`, perhaps more than `selector` chooses."""
    chosen = braced(without_labels(selector, OF_TARGETS | {POLICY, "resource", EXPORTED}))
    return f"max by (node) (max_over_time({SIMULATED}{chosen}[{seconds}s])) > 0"


def mark_query(query: MeterQuery) -> str:
    """Return the query for the COUNTERS and the number of GPUs at one moment; the label `what` tells them apart."""
    # Each metric is named, because some stores refuse a regular expression for the name.
    marks = {
        name: f"sum by (node, {labels}) ({counter}{braced(query.selector)})"
        for name, (counter, labels) in COUNTERS.items()
    }
    marks[INFO_OF_GPUS] = f"sum by (node) ({INFO_OF_GPUS}{_of_devices(query)})"
    return _in_one_query(marks)


def _in_one_query(queries: Mapping[str, str]) -> str:
    marked = (f'label_replace({promql}, "what", "{name}", "", "")' for name, promql in queries.items())
    return " or ".join(marked)


def close_queries(query: MeterQuery, seconds: int, nodes: str) -> dict[str, str]:
    """Return the queries about the presence of some nodes and about nodes metered twice, and `device_queries`."""
    counters = f"{GPUS}{braced(query.selector, nodes)}"
    down = f"timestamp({_down(query, nodes)})[{seconds}s:{POINT:g}s]"
    # A stopped agent stays visible beside its successor for LOOKBACK seconds, so each further series may coexist with
    # another for that long. This Prometheus may have a longer look-back: series with older samples do not count.
    fresh = f"count by (node, {POLICY}) (timestamp({counters}) > time() - {LOOKBACK:g}) > 1"
    minutes = f"count_over_time(({fresh})[{seconds}s:1m])"
    series = f"count by (node, {POLICY}) (count_over_time({counters}[{seconds}s]))"
    twice = f"({minutes} > {LOOKBACK / 60:g} * ({series} - 1))"
    return {
        "twice": f"max_over_time({counters}[{seconds}s]) and on (node, {POLICY}) {twice}",
        "seen first": seen_at(query, "min", seconds, nodes),
        "seen last": seen_at(query, "max", seconds, nodes),
        "seen": seen_at(query, "count", seconds, nodes),
        "down first": f"min_over_time({down})",
        "down last": f"max_over_time({down})",
        **device_queries(query, nodes, f"[{seconds}s]"),
    }


def seen_at(query: MeterQuery, function: str, seconds: int, nodes: str) -> str:
    """Return the query for the first time (min), the last (max), or how often (count) each node was seen.

    A node is looked for every POINT seconds, under any policy.
    """
    counters = f"{GPUS}{_of_devices(query, nodes)}"
    return f"{function}_over_time(timestamp(max by (node) ({counters}))[{seconds}s:{POINT:g}s])"


def anybody_query(query: MeterQuery) -> str:
    return f"count({GPUS}{_of_devices(query)})"


def _down(query: MeterQuery, nodes: str = "") -> str:
    job = "" if "job" in labels_of(query.selector) else AGENTS
    chosen = without_labels(query.selector, frozenset({POLICY}))
    metrics = f"up{braced(chosen, job, nodes)}", f"gpusharing_agent_ready{braced(chosen, nodes)}"
    return " or ".join(f"max by (node) ({metric}) == 0" for metric in metrics)


def device_queries(query: MeterQuery, nodes: str = "", span: str = "") -> dict[str, str]:
    """Return the queries for the most slices of a device and the products of GPUs, now or in a `span`."""
    chosen = f"{_of_devices(query, nodes)}{span}"
    over = "max_over_time" if span else ""
    return {
        "shared": f"max by (node, resource) ({over}(gpusharing_device_slices{chosen}))",
        "cards": f"max by (node, product) ({over}({INFO_OF_GPUS}{chosen}))",
    }


def reservation_queries(query: MeterQuery, seconds: int, nodes: str, namespaces: Iterable[str]) -> dict[str, str]:
    """Return the queries for the time in which pods of these namespaces held GPUs, and for who used those meanwhile.

    `reserved` is by node. `users` are pods that used memory without holding a slice; each has a part of each GPU in
    proportion to its use, and nobody has one of a GPU that nobody uses.
    """
    chosen, names = _of_devices(query, nodes), "|".join(namespaces)
    labels = without_labels(query.selector, frozenset({POLICY}))
    ours = (braced(labels, nodes, f'{label}=~"{names}"') for label in (NAMESPACE, EXPORTED))
    reserved = f"group by (node, uuid) ({' or '.join(SLICES + each for each in ours)})"
    memory = f"({OWN}{chosen} unless on ({_HOLDERS}) {SLICES}{chosen} and on (node, uuid) {reserved})"
    parts = f"{memory} / on (node, uuid) group_left () (sum by (node, uuid) ({memory}) > 0)"
    span = f"[{seconds}s:{POINTS}]"
    return {
        "reserved": f"sum by (node) (sum_over_time({reserved}{span}))",
        "users": f"sum by ({_ON_NODES}) (sum_over_time(({parts}){span}))",
    }


def use_query(query: MeterQuery, nodes: str) -> str:
    """Return the query for what tenants use and hold of memory and SM time, in whole devices, by the label `what`."""
    slices, memory, sm = (f"{metric}{_of_devices(query, nodes)}" for metric in (SLICES, OWN, SM))
    # Where an agent is replaced, the series of both are visible for a moment.
    counts = f"max by (node, uuid, resource) (gpusharing_device_slices{_of_devices(query, nodes)})"
    sizes = f"max by (node, uuid) (gpusharing_device_memory_bytes{_of_devices(query, nodes)})"
    used = f"{slices} * 0 + on ({_HOLDERS}) group_left () max by ({_HOLDERS})"
    held = f"{slices} / on (node, uuid, resource) group_left () {counts} and on ({_HOLDERS})"
    parts = {
        "memory held": f"{held} {memory}",
        "sm held": f"{held} {sm}",
        "memory": f"({used} ({memory})) / on (node, uuid) group_left () {sizes}",
        "sm": f"{used} ({sm})",
    }
    tenant = {POLICY: "node", POD: _PODS}.get(query.by, f"{NAMESPACE}, {EXPORTED}")
    return _in_one_query({what: f"sum by ({tenant}, resource) ({promql})" for what, promql in parts.items()})


def _prices(query: MeterQuery, seconds: int) -> dict[str, str]:
    # A price that changes at midnight is not scraped at once, and counts for the day that begins.
    margin = min(round(SHORT), seconds // 4)
    points = f"[{seconds - 2 * margin}s:{POINTS}] offset {margin}s"
    of_policies, others = braced(without_labels(query.selector)), braced(_of_exporters(query))
    prices = {
        # OpenCost exports 0 for a price that it does not know.
        "opencost": (f"{OPENCOST_METRIC}{others} != 0", "node"),
        "policies": (f"{POLICY_METRIC}{of_policies}", f"{POLICY}, currency"),
        "products": (f"{PRODUCT_METRIC}{others}", "product, currency"),
    }
    # First the mean of all series and then the mean over time, so that a restart of the price's exporter does not
    # change the weight of the hours before and after it.
    means = {
        name: f"avg_over_time((avg by ({labels}) ({metric})){points})" for name, (metric, labels) in prices.items()
    }
    rivals = (
        f"count_over_time((max by ({labels}) ({metric}) > min by ({labels}) ({metric})){points}) > {_moments(seconds)}"
        for metric, labels in prices.values()
    )
    return {**means, "rivals": " or ".join(rivals)}


def _moments(seconds: int) -> int:
    """Return at how many points two series may coexist: both are visible for 5 min when an exporter is replaced."""
    return min(2, seconds // 600)


def _of_devices(query: MeterQuery, nodes: str = "") -> str:
    return braced(without_labels(query.selector, frozenset({POLICY})), nodes)


def _of_exporters(query: MeterQuery) -> str:
    return without_labels(query.selector, OF_TARGETS | {POLICY})


LOOKS = 100
"""At how many times in a window the series are counted, at most."""
HOUR = 3600
"""Seconds between two points of a range query: the peak of each hour is read."""
USED, ACTIVE = "DCGM_FI_DEV_FB_USED", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
"""Used memory, and the share of time with active engines; MIG devices have no DCGM_FI_DEV_GPU_UTIL."""
OWN, SM, SLICES = "gpusharing_pod_memory_used_bytes", "gpusharing_pod_sm_ratio", "gpusharing_pod_slices"
"""Metrics of the agent, which reports each pod even on shared GPUs."""
PEAKS = "gpusharing_gpu_slices_hour_max"
"""The most slices of a GPU that were allocated at one time since the last full hour, by the agent's own readings."""
INFO = "gpusharing_device_info"
ANNOTATION = "annotation_gpusharing_dev_gpu_memory"
"""The label in which kube-state-metrics exports the annotation names.ANNOTATION_GPU_MEMORY."""
_PODS = "namespace, pod, exported_namespace, exported_pod, cluster"
_DEVICES = "UUID, uuid, GPU_I_ID, GPU_I_PROFILE, modelName, Hostname, hostname, node, pod_name, pod_namespace"
_MEASURED = f"{_PODS}, {_DEVICES}"
_HELD = f"{_PODS}, node, gpu, uuid, profile, resource"
_ON_NODES, _HOLDERS = f"{_PODS}, node, exported_node", f"{_PODS}, node, uuid"
_OF_DEVICES = OF_TARGETS | {
    "UUID", "uuid", "GPU_I_ID", "GPU_I_PROFILE", "modelName", "Hostname", "hostname", "gpu", "device", "pci_bus_id",
}  # fmt: skip


def usage_count(selector: str) -> str:
    """Return the query that counts the series of memory use, also of devices that no pod holds."""
    chosen = braced(selector)
    return f"count({USED}{chosen} or {OWN}{chosen})"


def most_series(selector: str, seconds: int) -> str:
    return f"max_over_time(({usage_count(selector)})[{max(seconds, HOUR)}s:{max(HOUR, seconds // LOOKS)}s])"


def hourly(selector: str, step: int) -> dict[str, str]:
    """Return the queries whose value is needed for every hour, by the name of their answer.

    Those of dcgm-exporter are `used` and `live`, in MiB, and `active`; those of our agent `own`, in bytes, `slices` and
    `sm`. `first` and `last` are the times of the first and the last sample of each of both, looked for every `step`
    seconds, and `peaks` the most slices of a GPU that an agent saw allocated. A series scraped twice, or continued by a
    successor, counts once.
    """
    chosen = braced(selector)
    span = f"[1h:{step}s]"
    times = {
        name: f"{name} by ({_MEASURED}) ({name}_over_time(timestamp({USED}{chosen}){span})) or"
        f" {name} by ({_HELD}) ({name}_over_time(timestamp({SLICES}{chosen}){span}))"
        for name in ("min", "max")
    }
    return {
        "used": f"max by ({_MEASURED}) (max_over_time({USED}{chosen}[1h]))",
        "live": f"max by ({_MEASURED}) ({USED}{chosen})",
        "active": f"max by ({_MEASURED}) (quantile_over_time(0.95, {ACTIVE}{chosen}[1h]))",
        "own": f"max by ({_HELD}) (max_over_time({OWN}{chosen}[1h]))",
        "slices": f"max by ({_HELD}) ({SLICES}{chosen})",
        "sm": f"max by ({_HELD}) (quantile_over_time(0.95, {SM}{chosen}[1h]))",
        "first": times["min"],
        "last": times["max"],
        "peaks": f"max by (node, gpu, uuid) (max_over_time({PEAKS}{chosen}[1h]))",
    }


def ownership(selector: str, seconds: int) -> dict[str, str]:
    """Return the queries that are needed once for a stretch, by the name of their answer."""
    span = f"[{max(seconds, round(SHORT))}s]"
    chosen, others = braced(selector), of_state_metrics(selector)
    annotated = braced(others, f'{ANNOTATION}!=""')
    return {
        "pods": f"max by ({_PODS}, owner_kind, owner_name) (last_over_time(kube_pod_owner{braced(others)}{span}))",
        "replicasets": "max by (namespace, exported_namespace, replicaset, owner_kind, owner_name)"
        f" (last_over_time(kube_replicaset_owner{braced(others)}{span}))",
        "jobs": "max by (namespace, exported_namespace, job_name, exported_job_name, owner_kind, owner_name)"
        f" (last_over_time(kube_job_owner{braced(others)}{span}))",
        "annotated": f"max by ({_PODS}, {ANNOTATION}) (last_over_time(kube_pod_annotations{annotated}{span}))",
        # The series of a device that no pod holds names the pod of its scrape target, which is the exporter's.
        "exporters": f"group by (namespace, pod) (last_over_time(up{span})"
        f" and on (job, instance) last_over_time({USED}{chosen}{span}))",
        "devices": f"max by (node, gpu, uuid, gpu_uuid, instance_id, profile) (last_over_time({INFO}{chosen}{span}))",
        "simulated": simulated_query(others, max(seconds, round(SHORT))),
    }


def latest(selector: str) -> tuple[str, ...]:
    """Return the queries for the GPUs that Nodes advertise, the agents' last reports, and the most slices."""
    chosen = braced(selector)
    allocatable = braced(of_state_metrics(selector), 'resource=~"nvidia_com_gpu(_shared)?"')
    return (
        _lately("max by (node, exported_node)", f"kube_node_status_allocatable{allocatable}"),
        f"max by (node, gpu, uuid, product) (max_over_time(timestamp(gpusharing_agent_gpu_info{chosen})[1d:5m]))",
        _lately("max by (node, resource)", f"gpusharing_device_slices{chosen}"),
    )


def _lately(maximum: str, metric: str, join: str = "or") -> str:
    """Return the query for a metric now or, for labels that it lacks now, in the last day."""
    return f"{maximum} ({metric}) {join} {maximum} (last_over_time({metric}[1d]))"


def labels_of_nodes(selector: str, labels: list[str]) -> str:
    """Return the query for all nodes that kube-state-metrics reported in the last day, with these labels."""
    maximum = f"max by ({', '.join(('node', 'exported_node', *labels))})"
    return _lately(maximum, f"kube_node_labels{braced(of_state_metrics(selector))}", "or on (node, exported_node)")


def of_state_metrics(selector: str) -> str:
    """Return those matchers of `selector` that also apply to kube-state-metrics: no target's or device's labels."""
    return without_labels(selector, _OF_DEVICES)
