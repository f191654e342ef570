"""Parse the labels of series: which device a series is about, which pod holds it, and which workload the pod belongs
to. This works for every exporter and scrape configuration. Pure.

If Prometheus does not honor the labels of the exporter (honorLabels), it renames namespace and pod to
exported_namespace and exported_pod (scrape_config, honor_labels).
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
    """UUID of the GPU."""
    instance: str = ""
    """Id of the GPU instance; empty for a whole GPU."""


@dataclass(frozen=True, slots=True)
class DeviceLabels:
    """The parsed labels of a series about a device."""

    device: Device
    """The device that the series is about."""
    pod: Pod | None
    """The pod that holds the device, or None if there is none or it is unknown."""
    profile: str = ""
    """MIG profile; empty if the labels name none."""
    node: str = ""
    """Name of the node; empty if the labels name none."""
    model: str = ""
    """Product name of the card; empty if the labels name none."""
    resource: str = ""
    """Resource name of the device; empty in series of other exporters than our agent."""


def read_dcgm(series: Series, exporters: frozenset[Pod]) -> DeviceLabels:
    """Parse the labels of a series of dcgm-exporter. `exporters` are the exporter's own pods: they hold no GPU, so a
    series that names one has no pod. If `exporters` is empty, every pod with EXPORTER in its name is taken for one. The
    node is that of the label `node`, else `Hostname`, else `hostname`. The labels `pod_name` and `pod_namespace`
    precede those of `pod_of`."""
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
    """Return the namespace and name of the pod that the labels name, or None if they name no pod. Labels that
    Prometheus renamed (`exported_pod` and `exported_namespace`) precede `pod` and `namespace`. The namespace is empty
    if the labels have none."""
    if labels.get("exported_pod"):
        return labels.get("exported_namespace", ""), labels["exported_pod"]
    if labels.get("pod"):
        return labels.get("namespace", ""), labels["pod"]
    return None


def exported_label(series: Series, label: str) -> str:
    """Return the value of a label in a series of kube-state-metrics, whether or not Prometheus renamed it (`exported_`
    precedes the plain name); empty if it is missing."""
    return series.labels.get(f"exported_{label}") or series.labels.get(label, "")


def devices_of(infos: Iterable[Series]) -> dict[str, Device]:
    """Return the devices in the series of `gpusharing_device_info`, by the UUID by which the agent names each. A MIG
    device has the UUID of its GPU and the id of its GPU instance. The last of several series with the same UUID counts.
    The key of a series without a UUID is empty."""
    devices: dict[str, Device] = {}
    for labels in (series.labels for series in infos):
        uuid = labels.get("uuid", "")
        devices[uuid] = Device(labels.get("gpu_uuid") or uuid, labels.get("instance_id", ""))
    return devices


def read_agent(series: Series, devices: Mapping[str, Device]) -> DeviceLabels:
    """Parse the labels of a series of the agent. `devices` maps the agent's UUIDs to devices; a UUID that is not in
    `devices` is taken for that of a whole GPU. The model is always empty, because the agent's labels do not name it."""
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
    """Return the kind and name of the workload of each pod in the series kube_pod_owner. A Deployment or CronJob is
    found through its ReplicaSet or Job, in the series kube_replicaset_owner and kube_job_owner. If that has no known
    owner, it is returned itself. A pod without an owner is its own workload (`pod`). Of several series about one object
    the last counts. Series in `pods` that name no pod are ignored."""
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
    """Return the kind, in lower case, and the name of a pod's workload. If the pod is not in `owners`, because nothing
    is known about it, return UNNAMED and the pod's name without the generated suffix."""
    kind, name = owners.get(pod) or (UNNAMED, _SUFFIX.sub("", pod[1], count=1))
    return kind.lower(), name


def _owner(series: Series) -> tuple[str, str]:
    """Return the kind and name of the owner that a series names; both are empty if the object has no owner."""
    # Without an owner, kube-state-metrics exports "", and before v2.8.0 <none> (its internal/store/pod.go).
    kind, name = series.labels.get("owner_kind", ""), series.labels.get("owner_name", "")
    return ("", "") if kind in ("", "<none>") else (kind, name)
