"""SIMULATED dcgm-exporter: its names and labels for what a few devices do, in every way that it is set up and scraped.

DCGM needs a driver and hardware, so it cannot run here. Names and labels are those of NVIDIA/dcgm-exporter 4.5.3-4.8.2
and its main branch (internal/pkg/rendermetrics/render_metrics.go, internal/pkg/transformation/kubernetes.go and
const.go, internal/pkg/collector/gpu_collector.go): a MIG device has the UUID of its GPU, GPU_I_PROFILE and GPU_I_ID.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

ACTIVE, USED = "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_FB_USED"
HELP = {ACTIVE: "Ratio of time the graphics engine is active.", USED: "Framebuffer memory used (in MiB)."}
"""As in its etc/default-counters.csv."""


@dataclass(frozen=True, slots=True)
class DCGMValues:
    """What DCGM measures of a whole GPU, or of a MIG device."""

    gpu: int
    gpu_uuid: str
    active: float
    """DCGM_FI_PROF_GR_ENGINE_ACTIVE, of 1."""
    memory_mib: int
    """DCGM_FI_DEV_FB_USED."""
    profile: str = ""
    instance_id: str = ""
    pod: tuple[str, str] | None = None
    """Namespace and name of who holds it, as the kubelet's podresources tell."""


@dataclass(frozen=True, slots=True)
class SetUp:
    """How one dcgm-exporter is set up, and how Prometheus scrapes it."""

    old_namespace: bool = False
    """--use-old-namespace: uuid, pod_name and pod_namespace for UUID, pod and namespace."""
    hostname: str = "Hostname"
    """Since its change 655: hostname."""
    honor_labels: bool = False
    """Without, Prometheus puts the exporter's own pod first and calls the workload's exported_pod."""


def samples(devices: Sequence[DCGMValues], setup: SetUp) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels as Prometheus stores them, and value. The model's name says SIMULATED."""
    for device in devices:
        target = {"namespace": "gpu-operator", "pod": "dcgm-exporter-x"}  # of the scrape
        labels = scraped(_told(device, setup), target, honor=setup.honor_labels)
        yield ACTIVE, labels, device.active
        yield USED, labels, float(device.memory_mib)


def _told(device: DCGMValues, setup: SetUp) -> dict[str, str]:
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
    """What it serves at /metrics."""

    def __init__(self, devices: Sequence[DCGMValues], setup: SetUp) -> None:
        self._devices, self._setup = devices, setup

    def collect(self) -> Iterable[Metric]:
        """Both metrics."""
        for name, text in HELP.items():
            family = Metric(name, f"{text} SIMULATED.", "gauge")
            for device in self._devices:
                value = device.active if name == ACTIVE else float(device.memory_mib)
                family.add_sample(name, _told(device, self._setup), value)
            yield family


def scraped(told: Mapping[str, str], target: Mapping[str, str], *, honor: bool) -> dict[str, str]:
    """Labels of a sample beside those of its target (Prometheus, scrape_config: honor_labels)."""
    if honor:
        return {**target, **told}
    return {**{f"exported_{key}" if key in target else key: value for key, value in told.items()}, **target}
