"""What Prometheus is asked about the use of GPUs, as PromQL. Pure.

Names and labels of dcgm-exporter are those of its 4.5.3-4.8.2 (internal/pkg/transformation/const.go and kubernetes.go):
`UUID`, with --use-old-namespace `uuid`, `pod_name` and `pod_namespace`; a MIG device has the UUID of its GPU, GPU_I_ID
and GPU_I_PROFILE. DCGM_FI_DEV_FB_USED is in MiB. Those of kube-state-metrics are of its v2 (docs/metrics/workload).
"""

from gpusharing.usage.prometheus.matchers import OF_TARGETS, braced, of_others, simulated_query
from gpusharing.usage.prometheus.windows import SHORT

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


def there(selector: str) -> str:
    """A value wherever a series says which pod takes how much memory: as many as there are series."""
    chosen = braced(selector)
    return f"count({USED}{chosen} or {OWN}{chosen})"


def most_series(selector: str, seconds: int) -> str:
    """How many at once, at most."""
    return f"max_over_time(({there(selector)})[{max(seconds, HOUR)}s:{max(HOUR, seconds // LOOKS)}s])"


def hourly(selector: str) -> tuple[str, ...]:
    """Asked for every hour; `usageread` takes the answers apart in this order.

    Grouped by labels that name pods and devices, so that series that two scrape, or that a successor continues, count
    once.
    """
    chosen = braced(selector)
    return (
        f"max by ({_MEASURED}) (max_over_time({USED}{chosen}[1h]))",
        f"max by ({_MEASURED}) ({USED}{chosen})",
        f"max by ({_MEASURED}) (quantile_over_time(0.95, {ACTIVE}{chosen}[1h]))",
        f"max by ({_HELD}) (max_over_time({OWN}{chosen}[1h]))",
        f"max by ({_HELD}) ({SLICES}{chosen})",
        f"max by ({_HELD}) (quantile_over_time(0.95, {SM}{chosen}[1h]))",
    )


def names(selector: str, seconds: int) -> tuple[str, ...]:
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


def at_the_end(selector: str) -> tuple[str, ...]:
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
