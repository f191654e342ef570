"""Series about GPUs, whatever exports them and however Prometheus scrapes: of which device, and held by which pod.
Pure.

Where labels of the target are not overridden (honorLabels), Prometheus renames the exporter's labels to
exported_namespace and exported_pod (scrape_config, honor_labels).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gpusharing.usage.prometheus.client import Series

Pod: TypeAlias = tuple[str, str]
"""Namespace and name."""
MIB = 1 << 20
EXPORTER = "dcgm-exporter"
"""In the name of its pods, where no `up` says which they are."""


@dataclass(frozen=True, slots=True)
class Device:
    """A whole GPU, or a MIG device."""

    gpu: str
    """UUID of the GPU."""
    instance: str = ""
    """Id of the GPU instance; empty: the whole GPU."""


@dataclass(frozen=True, slots=True)
class DeviceLabels:
    """What the labels of a series say."""

    device: Device
    """Which device it is about."""
    pod: Pod | None
    """The pod that holds it; None: none, or unknown."""
    profile: str = ""
    """MIG profile; empty: none is given."""
    node: str = ""
    """Name of the node; empty: none is given."""
    model: str = ""
    """Product name of the card; empty: none is given."""
    resource: str = ""
    """Resource name of the device, by our agent; empty: none is given."""


def read_dcgm(one: Series, exporters: frozenset[Pod]) -> DeviceLabels:
    """Read the labels of a series of dcgm-exporter. `exporters`: its own pods, which hold no GPU."""
    labels = one.labels
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
    """The pod that a series is about, whether its labels were renamed or not."""
    if labels.get("exported_pod"):
        return labels.get("exported_namespace", ""), labels["exported_pod"]
    if labels.get("pod"):
        return labels.get("namespace", ""), labels["pod"]
    return None


def exported_label(one: Series, label: str) -> str:
    """A label of a series of kube-state-metrics, renamed or not; empty: it has none."""
    return one.labels.get(f"exported_{label}") or one.labels.get(label, "")


def devices_of(infos: Iterable[Series]) -> dict[str, Device]:
    """Return which device the agent means by each UUID, of a GPU or of a MIG device, from `gpusharing_device_info`."""
    return {
        one.labels.get("uuid", ""): Device(
            one.labels.get("gpu_uuid") or one.labels.get("uuid", ""), one.labels.get("instance_id", "")
        )
        for one in infos
    }


def read_agent(one: Series, devices: Mapping[str, Device]) -> DeviceLabels:
    """Read the labels of a series of the agent. `devices`: which device each of its UUIDs means."""
    labels = one.labels
    uuid = labels.get("uuid", "")
    return DeviceLabels(
        devices.get(uuid, Device(uuid)),
        pod_of(labels),
        labels.get("profile", ""),
        labels.get("node", ""),
        resource=labels.get("resource", ""),
    )


# --- whose pods they are -------------------------------------------------------------------------------------------

RECURS = "cronjob"
"""The kind that has not ended when none of its pods exists."""
UNNAMED = "pods"
"""The kind where only names of pods are known."""
# Letters and digits of generated names (apimachinery v0.36.3 pkg/util/rand/rand.go, alphanums).
_HASH = "[bcdfghjklmnpqrstvwxz2456789]"
_SUFFIX = re.compile(rf"(?:(?:-{_HASH}{{5,10}})?-{_HASH}{{5}}|-[0-9]+)\Z")


@dataclass(frozen=True, slots=True)
class PodOwners:
    """What kube-state-metrics reports about pods."""

    pods: Mapping[Pod, tuple[str, str]]
    """Kind and name of the owner; of a pod without one, both are empty."""
    replicasets: Mapping[Pod, tuple[str, str]]
    """By namespace and name of the ReplicaSet."""
    jobs: Mapping[Pod, tuple[str, str]]
    """By namespace and name of the Job."""

    @classmethod
    def of(cls, pods: Iterable[Series], replicasets: Iterable[Series], jobs: Iterable[Series]) -> "PodOwners":
        """By kube_pod_owner, kube_replicaset_owner and kube_job_owner."""
        return cls(
            {pod: _owner(one) for one in pods if (pod := pod_of(one.labels)) is not None},
            {
                (exported_label(one, "namespace"), one.labels.get("replicaset", "")): _owner(one)
                for one in replicasets
            },
            {
                (exported_label(one, "namespace"), exported_label(one, "job_name")): _owner(one)
                for one in jobs
            },
        )

    def find(self, pod: Pod) -> tuple[str, str]:
        """Kind, in lower case, and name of the workload of a pod; by the pod's name where that is unknown."""
        namespace, name = pod
        if pod not in self.pods:
            return UNNAMED, _SUFFIX.sub("", name, count=1)
        kind, owner = self.pods[pod]
        if not kind:
            return "pod", name
        above = {"ReplicaSet": self.replicasets, "Job": self.jobs}.get(kind, {}).get(
            (namespace, owner), ("", "")
        )
        kind, owner = above if above[0] else (kind, owner)
        return kind.lower(), owner


def _owner(one: Series) -> tuple[str, str]:
    # Without an owner: "", and <none> before kube-state-metrics v2.8.0 (its internal/store/pod.go).
    kind, name = one.labels.get("owner_kind", ""), one.labels.get("owner_name", "")
    return ("", "") if kind in ("", "<none>") else (kind, name)
