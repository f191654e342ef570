"""Parse the labels of series: which device a series is about, which pod holds it, and which workload the pod belongs to. This works for every exporter and scrape configuration. Pure.

If Prometheus does not honor the labels of the exporter (honorLabels), it renames namespace and pod to exported_namespace and exported_pod (scrape_config, honor_labels).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from kubectl_gpusharing.usage.prometheus.client import Series

Pod: TypeAlias = tuple[str, str]
"""The namespace and name of a pod, or of another namespaced object."""
MIB = 1 << 20
EXPORTER = "dcgm-exporter"
"""A part of the names of dcgm-exporter's pods, by which they are recognized if no `up` series shows which they are."""


@dataclass(frozen=True, slots=True)
class Device:
    """A whole GPU or a MIG device."""

    gpu: str
    """UUID."""
    instance: str = ""
    """Id of the GPU instance; empty for a whole GPU."""


@dataclass(frozen=True, slots=True)
class DeviceLabels:
    """The parsed labels of a series about a device; empty where the labels name none."""

    device: Device
    pod: Pod | None
    """None if there is none or it is unknown."""
    profile: str = ""
    node: str = ""
    model: str = ""
    """Product name of the card; the agent does not name it."""
    resource: str = ""
    """Only in series of our agent."""


def read_dcgm(series: Series, exporters: frozenset[Pod]) -> DeviceLabels:
    """Parse the labels of a series of dcgm-exporter, whose own pods, the `exporters`, hold no GPU."""
    labels = series.labels
    device = Device(labels.get("UUID") or labels.get("uuid", ""), labels.get("GPU_I_ID", ""))
    node = labels.get("node") or labels.get("Hostname") or labels.get("hostname", "")
    pod = pod_of(labels)
    if "pod_name" in labels:
        pod = (labels.get("pod_namespace", ""), labels["pod_name"])
    if pod is not None and (pod in exporters or (not exporters and EXPORTER in pod[1])):
        pod = None
    profile = labels.get("GPU_I_PROFILE", "").removeprefix("MIG ")
    return DeviceLabels(device, pod, profile, node, labels.get("modelName", ""))


def pod_of(labels: Mapping[str, str]) -> Pod | None:
    """Return the namespace and name of the pod that the labels name, or None."""
    if labels.get("exported_pod"):
        return labels.get("exported_namespace", ""), labels["exported_pod"]
    if labels.get("pod"):
        return labels.get("namespace", ""), labels["pod"]
    return None


def exported_label(series: Series, label: str) -> str:
    """Return the value of a label, whether or not Prometheus renamed it; empty if it is missing."""
    return series.labels.get(f"exported_{label}") or series.labels.get(label, "")


def devices_of(infos: Iterable[Series]) -> dict[str, Device]:
    """Return the devices in the series of `gpusharing_device_info`, by the UUID by which the agent names each."""
    devices: dict[str, Device] = {}
    for labels in (series.labels for series in infos):
        uuid = labels.get("uuid", "")
        devices[uuid] = Device(labels.get("gpu_uuid") or uuid, labels.get("instance_id", ""))
    return devices


def read_agent(series: Series, devices: Mapping[str, Device]) -> DeviceLabels:
    """Parse the labels of a series of the agent. A UUID that is not in `devices` is taken for that of a whole GPU."""
    uuid, profile, resource = (series.labels.get(label, "") for label in ("uuid", "profile", "resource"))
    device = devices.get(uuid, Device(uuid))
    return DeviceLabels(device, pod_of(series.labels), profile, series.node, resource=resource)


# --- the owners of pods --------------------------------------------------------------------------------------------

RECURS = "cronjob"
"""The kind of workloads that may run again although they have no pods now."""
UNNAMED = "pods"
"""The kind of a workload that is known only by the names of its pods."""
# Letters and digits of generated names (apimachinery v0.36.3 pkg/util/rand/rand.go, alphanums).
_HASH = "[bcdfghjklmnpqrstvwxz2456789]"
_SUFFIX = re.compile(rf"(?:(?:-{_HASH}{{5,10}})?-{_HASH}{{5}}|-[0-9]+)\Z")


def read_owners(
    pods: Iterable[Series], replicasets: Iterable[Series], jobs: Iterable[Series]
) -> dict[Pod, tuple[str, str]]:
    """Return the kind and name of the workload of each pod in the series kube_pod_owner; a Deployment or CronJob is found through its ReplicaSet or Job."""
    above = {
        (kind, exported_label(series, "namespace"), exported_label(series, label)): _owner(series)
        for kind, label, answer in (("ReplicaSet", "replicaset", replicasets), ("Job", "job_name", jobs))
        for series in answer
    }
    owners: dict[Pod, tuple[str, str]] = {}
    for series in pods:
        if (pod := pod_of(series.labels)) is not None:
            kind, name = _owner(series)
            direct = (kind, name) if kind else ("pod", pod[1])
            owner = above.get((kind, pod[0], name), direct)
            owners[pod] = owner if owner[0] else direct
    return owners


def owner_of(pod: Pod, owners: Mapping[Pod, tuple[str, str]]) -> tuple[str, str]:
    """Return the kind, in lower case, and the name of a pod's workload."""
    kind, name = owners.get(pod) or (UNNAMED, _SUFFIX.sub("", pod[1], count=1))
    return kind.lower(), name


def _owner(series: Series) -> tuple[str, str]:
    # Without an owner, kube-state-metrics exports "", and before v2.8.0 <none> (its internal/store/pod.go).
    kind, name = series.labels.get("owner_kind", ""), series.labels.get("owner_name", "")
    return ("", "") if kind in ("", "<none>") else (kind, name)
