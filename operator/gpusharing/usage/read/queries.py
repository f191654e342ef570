"""What Prometheus is asked for a bill (`MeterQuery`) and about the use of GPUs, as PromQL. Pure.

Names and labels of dcgm-exporter are those of its 4.5.3-4.8.2 (internal/pkg/transformation/const.go and kubernetes.go):
`UUID`, with --use-old-namespace `uuid`, `pod_name` and `pod_namespace`; a MIG device has the UUID of its GPU, GPU_I_ID
and GPU_I_PROFILE. DCGM_FI_DEV_FB_USED is in MiB. Those of kube-state-metrics are of its v2 (docs/metrics/workload).
"""

from dataclasses import dataclass

from gpusharing.cli.shell.troubles import Trouble
from gpusharing.usage.prometheus.matchers import (
    OF_TARGETS,
    braced,
    labels_of,
    of_others,
    simulated_query,
    state_label,
)
from gpusharing.usage.prometheus.windows import LOOKBACK, SHORT
from gpusharing.usage.read.pricing import OPENCOST_METRIC, POLICY_METRIC, PRODUCT_METRIC

POINTS = "5m"
"""Between the points of a subquery."""
NAMESPACE, POLICY, EXPORTED = "namespace", "policy", "exported_namespace"
GPUS = "gpusharing_gpu_seconds_total"
OF_PARTS = frozenset((NAMESPACE, EXPORTED, "resource", "gpu", "uuid", "profile", "product", "currency"))
"""Labels that some series of a bill have and others lack: of those that match, the parts would not add up. (What holds
no slice has no tenant; `namespace` is the agent's there, or absent.)"""
_PRICES = (
    ("opencost", OPENCOST_METRIC, "node", " != 0"),
    ("policies", POLICY_METRIC, f"{POLICY}, currency", ""),
    ("products", PRODUCT_METRIC, "product, currency", ""),
)
"""Each answer with its metric, the labels of a price, and which values count: OpenCost writes 0 for a price it does not
know."""


@dataclass(frozen=True, slots=True)
class MeterQuery:
    """What is asked for."""

    start: float
    """Seconds since 1970."""
    end: float
    """Seconds since 1970."""
    by: str = NAMESPACE
    """NAMESPACE, POLICY, or a label of namespaces."""
    selector: str = ""
    """Matchers, without braces: those of OF_TARGETS for the agents' series, that of POLICY for series that have it, the
    others for every series."""
    currency: str = "USD"
    """Of OpenCost's prices."""


def label_of(by: str) -> str:
    """How kube-state-metrics calls a label of namespaces; empty: none is asked for."""
    return "" if by in (NAMESPACE, POLICY) else state_label(by)


def refuse_parts(selector: str) -> None:
    """Raises Trouble for matchers that only a part of a bill can have."""
    for label in labels_of(selector):
        if label in OF_PARTS:
            raise Trouble(
                f"--selector {selector}: only some series of a bill have the label {label}, so the parts would not add"
                " up. Select by policy, node, job, or a label that your Prometheus adds, such as"
                ' cluster="east"; every tenant and resource has its own row anyway'
            )


def queries_of(wish: MeterQuery, seconds: int) -> dict[str, str]:
    """What is asked of one stretch, by the name of the answer."""
    span = f"[{seconds}s]"
    chosen = braced(wish.selector)
    of_devices = braced(of_others(wish.selector, frozenset({POLICY})))
    counters = f"{GPUS}{chosen}"

    def grown(name: str, *labels: str) -> str:
        return f"sum by (node, {', '.join(labels)}) (increase({name}{chosen}{span}))"

    queries = {
        "held": grown("gpusharing_slice_seconds_total", POLICY, NAMESPACE, EXPORTED, "resource"),
        "idle": grown("gpusharing_idle_slice_seconds_total", POLICY, "resource"),
        "stranded": grown("gpusharing_stranded_slice_seconds_total", POLICY),
        "transition": grown("gpusharing_transition_slice_seconds_total", POLICY),
        "gpus": grown(GPUS, POLICY),
        "firsts": f"min by (node, {POLICY}) (min_over_time({counters}{span}))",
        "lasts": f"max by (node, {POLICY}) (max_over_time({counters}{span}))",
        "shared": f"max by (node, resource) (max_over_time(gpusharing_device_slices{of_devices}{span}))",
        **_prices(wish, seconds),
        "cards": f"max by (node, product) (max_over_time(gpusharing_agent_gpu_info{of_devices}{span}))",
        "twice": _twice(counters, seconds),
        "simulated": simulated_query(wish.selector, seconds),
    }
    if label := label_of(wish.by):
        matchers = ",".join(filter(None, (_others(wish), f'{label}!=""')))
        # When each label was last seen: a namespace may have gone, or have changed hands.
        last = f"timestamp(kube_namespace_labels{{{matchers}}})[{seconds}s:{POINTS}]"
        queries["labels"] = f"max by ({NAMESPACE}, {EXPORTED}, {label}) (max_over_time({last}))"
        queries["rival labels"] = _rival_labels(f"kube_namespace_labels{{{matchers}}}", label, seconds)
    return queries


def _rival_labels(told: str, label: str, seconds: int) -> str:
    """Namespaces that had several values of the label at a time, as those of one name in several clusters."""
    # Whoever does not honour labels has the name in another one.
    named = f'label_replace({told}, "{NAMESPACE}", "$1", "{EXPORTED}", "(.+)")'
    values = f"count by ({NAMESPACE}) (group by ({NAMESPACE}, {label}) ({named})) > 1"
    return f"count_over_time(({values})[{seconds}s:{POINTS}]) > {_moments(seconds)}"


def _prices(wish: MeterQuery, seconds: int) -> dict[str, str]:
    """The price of each kind, and where there were two of a kind at a time."""
    points = f"[{seconds}s:{POINTS}]"
    of_policies, others = braced(of_others(wish.selector)), braced(_others(wish))
    prices = {
        name: (f"{metric}{of_policies if metric == POLICY_METRIC else others}{known}", labels)
        for name, metric, labels, known in _PRICES
    }
    # First the mean of series and then that over time: who tells a price may restart, and that gives the hours before
    # and after no other weight.
    means = {
        name: f"avg_over_time((avg by ({labels}) ({metric})){points})"
        for name, (metric, labels) in prices.items()
    }
    rivals = (
        f"count_over_time((max by ({labels}) ({metric}) > min by ({labels}) ({metric})){points}) > {_moments(seconds)}"
        for metric, labels in prices.values()
    )
    return {**means, "rivals": " or ".join(rivals)}


def _moments(seconds: int) -> int:
    """For how many points of a subquery two may differ: a successor is there beside its predecessor for a moment, at
    most for the 5 min in which nobody knows better."""
    return min(2, seconds // 600)


def _twice(counters: str, seconds: int) -> str:
    """All series of nodes that were metered twice at a time. An agent that is gone may still be seen for LOOKBACK
    beside its successor, so each further series may be there beside another for as long."""
    # Not all have the usual look-back: of what is older, no series counts as being there.
    fresh = f"count by (node, {POLICY}) (timestamp({counters}) > time() - {LOOKBACK:g}) > 1"
    minutes = f"count_over_time(({fresh})[{seconds}s:1m])"
    series = f"count by (node, {POLICY}) (count_over_time({counters}[{seconds}s]))"
    return (
        f"max_over_time({counters}[{seconds}s]) and on (node, {POLICY})"
        f" ({minutes} > {LOOKBACK / 60:g} * ({series} - 1))"
    )


def _others(wish: MeterQuery) -> str:
    """The matchers that apply to series that name neither who was scraped nor a policy."""
    return of_others(wish.selector, OF_TARGETS | {POLICY})


LOOKS = 100
"""How often in a window the series are counted."""
HOUR = 3600
"""Seconds between two points: of each hour the peak is asked for."""
USED, ACTIVE = "DCGM_FI_DEV_FB_USED", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
"""Memory in use, and the share of time in which the engines were active: reported for MIG devices too, where
DCGM_FI_DEV_GPU_UTIL is not."""
OWN, SM, SLICES = "gpusharing_pod_memory_used_bytes", "gpusharing_pod_sm_ratio", "gpusharing_pod_slices"
"""The agent's: by pod, also on shared GPUs."""
INFO = "gpusharing_device_info"
ANNOTATION = "annotation_gpusharing_dev_gpu_memory"
"""As kube-state-metrics calls names.ANNOTATION_GPU_MEMORY."""
_PODS = "namespace, pod, exported_namespace, exported_pod, cluster"
_DEVICES = "UUID, uuid, GPU_I_ID, GPU_I_PROFILE, modelName, Hostname, hostname, node, pod_name, pod_namespace"
_MEASURED = f"{_PODS}, {_DEVICES}"
_HELD = f"{_PODS}, node, gpu, uuid, profile, resource"
_OF_DEVICES = OF_TARGETS | {
    "UUID", "uuid", "GPU_I_ID", "GPU_I_PROFILE", "modelName", "Hostname", "hostname", "gpu", "device", "pci_bus_id",
}  # fmt: skip


def usage_count(selector: str) -> str:
    """A value wherever a series says which pod takes how much memory: as many as there are series."""
    chosen = braced(selector)
    return f"count({USED}{chosen} or {OWN}{chosen})"


def most_series(selector: str, seconds: int) -> str:
    """How many at once, at most."""
    return f"max_over_time(({usage_count(selector)})[{max(seconds, HOUR)}s:{max(HOUR, seconds // LOOKS)}s])"


def hourly(selector: str) -> dict[str, str]:
    """What is asked for every hour, by the field of HourAnswers that the answer goes into.

    Grouped by labels that name pods and devices, so that series that two scrape, or that a successor continues, count
    once.
    """
    chosen = braced(selector)
    return {
        "used": f"max by ({_MEASURED}) (max_over_time({USED}{chosen}[1h]))",
        "live": f"max by ({_MEASURED}) ({USED}{chosen})",
        "active": f"max by ({_MEASURED}) (quantile_over_time(0.95, {ACTIVE}{chosen}[1h]))",
        "own": f"max by ({_HELD}) (max_over_time({OWN}{chosen}[1h]))",
        "held": f"max by ({_HELD}) ({SLICES}{chosen})",
        "sm": f"max by ({_HELD}) (quantile_over_time(0.95, {SM}{chosen}[1h]))",
    }


def ownership(selector: str, seconds: int) -> tuple[str, ...]:
    """Asked once for a stretch: who owns pods, which pods are dcgm-exporter's own, which device is which,
    which nodes are SIMULATED."""
    span = f"[{max(seconds, round(SHORT))}s]"
    chosen, others = braced(selector), others_of(selector)
    annotated = braced(others, f'{ANNOTATION}!=""')
    return (
        f"max by ({_PODS}, owner_kind, owner_name) (last_over_time(kube_pod_owner{braced(others)}{span}))",
        "max by (namespace, exported_namespace, replicaset, owner_kind, owner_name)"
        f" (last_over_time(kube_replicaset_owner{braced(others)}{span}))",
        "max by (namespace, exported_namespace, job_name, exported_job_name, owner_kind, owner_name)"
        f" (last_over_time(kube_job_owner{braced(others)}{span}))",
        f"max by ({_PODS}, {ANNOTATION}) (last_over_time(kube_pod_annotations{annotated}{span}))",
        # The series of a device that nobody holds names the pod of its scrape target: the exporter's.
        f"group by (namespace, pod) (last_over_time(up{span})"
        f" and on (job, instance) last_over_time({USED}{chosen}{span}))",
        f"max by (node, gpu, uuid, gpu_uuid, instance_id, profile) (last_over_time({INFO}{chosen}{span}))",
        simulated_query(others, max(seconds, round(SHORT))),
    )


def latest(selector: str) -> tuple[str, ...]:
    """Asked once: what Nodes offer, which shows shared GPUs, when agents reported each GPU last, and what they report
    about devices."""
    chosen = braced(selector)
    offered = braced(others_of(selector), 'resource=~"nvidia_com_gpu(_shared)?"')
    return (
        f"max by (node, exported_node, resource) (last_over_time(kube_node_status_allocatable{offered}[1d]))",
        f"max by (node, gpu, uuid, product) (max_over_time(timestamp(gpusharing_agent_gpu_info{chosen})[1d:5m]))",
        f"max by (node, uuid, resource) (last_over_time(gpusharing_device_slices{chosen}[1d]))",
    )


def labels_of_nodes(selector: str, labels: list[str]) -> str:
    """Nodes with those of their labels that kube-state-metrics exports."""
    told = "".join(f", {one}" for one in labels)
    return f"max by (node, exported_node{told}) (last_over_time(kube_node_labels{braced(others_of(selector))}[1d]))"


def others_of(selector: str) -> str:
    """The matchers that apply to series of kube-state-metrics."""
    return of_others(selector, _OF_DEVICES)
