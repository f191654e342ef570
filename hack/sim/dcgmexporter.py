"""SIMULATED dcgm-exporter, which needs hardware: its metrics for a few devices, for each way to set it up and scrape it.

Names and labels are those of NVIDIA/dcgm-exporter 4.5.3-4.8.2 and its main branch (internal/pkg: rendermetrics,
transformation, collector): a MIG device has the UUID of its GPU, GPU_I_PROFILE and GPU_I_ID.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

ACTIVE, USED = "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_FB_USED"
HELP = {ACTIVE: "Ratio of time the graphics engine is active.", USED: "Framebuffer memory used (in MiB)."}
"""The help text of each metric, as in dcgm-exporter's etc/default-counters.csv."""


@dataclass(frozen=True, slots=True)
class DCGMValues:
    gpu: int
    gpu_uuid: str
    active: float
    """DCGM_FI_PROF_GR_ENGINE_ACTIVE, from 0 to 1."""
    memory_mib: int
    """DCGM_FI_DEV_FB_USED, in MiB."""
    profile: str = ""
    """Profile of the MIG device; empty for a whole GPU."""
    instance_id: str = ""
    """Id of the GPU instance; empty for a whole GPU."""
    pod: tuple[str, str] | None = None
    """Namespace and name of the pod that holds the device, as the kubelet's podresources report it."""


@dataclass(frozen=True, slots=True)
class SetUp:
    old_namespace: bool = False
    """Whether --use-old-namespace names the labels uuid, pod_name and pod_namespace."""
    hostname: str = "Hostname"
    """The name of the label with the host's name. Since dcgm-exporter's change 655 it is hostname."""
    honor_labels: bool = False
    """Whether Prometheus keeps exported labels that collide with the target's. If not, the labels namespace and pod
    name the exporter's own pod, and the workload's become exported_namespace and exported_pod."""


def samples(devices: Sequence[DCGMValues], setup: SetUp) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield metric, labels as Prometheus stores them, and value for each device."""
    for device in devices:
        target = {"namespace": "gpu-operator", "pod": "dcgm-exporter-x"}  # labels of the scrape target
        labels = stored_labels(_exported_labels(device, setup), target, honor=setup.honor_labels)
        yield ACTIVE, labels, device.active
        yield USED, labels, float(device.memory_mib)


def _exported_labels(device: DCGMValues, setup: SetUp) -> dict[str, str]:
    labels = {
        "gpu": str(device.gpu),
        "uuid" if setup.old_namespace else "UUID": device.gpu_uuid,
        "pci_bus_id": f"00000000:{device.gpu + 1:02X}:00.0",
        "device": f"nvidia{device.gpu}",
        "modelName": "SIMULATED",
        setup.hostname: "gpu-01",
    }
    if device.profile:
        labels |= {"GPU_I_PROFILE": device.profile, "GPU_I_ID": device.instance_id}
    if device.pod is not None:
        names = ("pod_namespace", "pod_name") if setup.old_namespace else ("namespace", "pod")
        labels |= dict(zip(names, device.pod, strict=True))
    return labels


class MetricsPage(Collector):
    """A collector that yields what a dcgm-exporter serves at /metrics, before Prometheus changes any label."""

    def __init__(self, devices: Sequence[DCGMValues], setup: SetUp) -> None:
        self._devices, self._setup = devices, setup

    def collect(self) -> Iterable[Metric]:
        for name, text in HELP.items():
            family = Metric(name, f"{text} SIMULATED.", "gauge")
            for device in self._devices:
                value = device.active if name == ACTIVE else float(device.memory_mib)
                family.add_sample(name, _exported_labels(device, self._setup), value)
            yield family


def stored_labels(exported: Mapping[str, str], target: Mapping[str, str], *, honor: bool) -> dict[str, str]:
    """Return the labels that Prometheus stores for a sample (scrape_config: honor_labels)."""
    if honor:
        return {**target, **exported}
    renamed = {f"exported_{key}" if key in target else key: value for key, value in exported.items()}
    return {**renamed, **target}
