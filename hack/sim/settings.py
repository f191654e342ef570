"""The behavior of the SIMULATED node software: durations of its steps, its versions, and the speed of time."""

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from gpusharing.agent.loop import LoopSettings
from gpusharing.agent.meter import LAG

_SHIPPED = LoopSettings()


@dataclass(frozen=True, slots=True)
class Times:
    """Durations of steps, in seconds before `time_factor`. Only mig-manager was measured, at about 4 s from pending to
    success (docs/design/nvidia.md#run-time). The others are the usual size of such steps on a cluster with warm images,
    and the limits are NVIDIA's own (a.3, c)."""

    watch: float = 0.2
    """From a label change until the program that watches it reacts."""
    parted: float = 1.0
    """One call of nvidia-mig-parted, which opens NVML and reads every GPU."""
    pod_stop: float = 6.0
    """An operand's pod, from the label change until it is gone."""
    pod_start: float = 8.0
    """An operand's pod, from the label change until it is registered at the kubelet."""
    pod_wait: float = 300.0
    """The longest time that mig-manager waits for each operand to be gone (a.3 step 7)."""
    apply: float = 3.0
    """Destroying and creating the instances of all GPUs, resets included."""
    finish: float = 2.0
    """The CDI specification, host services and validator pods (steps 12 and 13)."""
    reload: float = 3.0
    """From config-manager's SIGHUP until the plugin has registered again (b.8)."""
    gfd: float = 5.0
    """From GFD's labels through NodeFeature and NFD's master to the Node (c)."""
    gfd_loop: float = 60.0
    """The interval of GFD's own loop (c)."""
    node_status: float = 4.0
    """From a change of resources until the kubelet writes it into the Node's status."""
    config_map: float = 60.0
    """The longest time until a running pod sees a changed ConfigMap (a.10: up to 1-2 min)."""
    crash_first: float = 10.0
    """The first CrashLoopBackOff; doubled each time."""
    crash_last: float = 300.0
    reboot: float = 120.0


MigManagerVersion = Literal["0.13.1", "0.15.1"]
PluginVersion = Literal["0.19.3", "0.20.0"]


@dataclass(frozen=True, slots=True)
class SimSettings:
    time_factor: float = 1.0
    """Simulated seconds in one real second."""
    seed: int = 1
    times: Times = field(default_factory=Times)
    mig_manager: MigManagerVersion = "0.15.1"
    """If operand pods do not stop in time, 0.15.1 reports `failed` and 0.13.1 writes no state (a.7, 1)."""
    plugin: PluginVersion = "0.20.0"
    """The version of device plugin and GFD. Before 0.20 `+me` instances are counted under the plain profile (b.6).
    With 0.19.3 the GPU Operator's MPS daemon gets no configuration (b.5)."""
    falls_back: bool = False
    """Whether a label that names a missing key makes config-manager take its fallback, as from plugin 0.18.2 on, and
    not keep the last key (b.4). Its CrashLoopBackOff is not simulated then: it sees the next label at once."""
    mps_signals: str = "mps-control-daemon"
    """The process that config-manager looks for in the GPU Operator's MPS DaemonSet. Releases up to v26.7 have
    `/usr/bin/mps-control-daemon`, and their daemon gets no configuration; the default is that of a later one (b.5)."""
    gpu_operator_namespace: str = "gpu-operator"
    agent_namespace: str = "gpusharing-agent"
    agents: bool = True
    """Whether to run the shipped agent loop for every node whose agent pod is Running."""
    node_prefix: str = ""
    """Only nodes whose names begin with this are simulated; empty for all nodes."""
    agent_interval: float = 30.0
    """Real seconds between two readings of an agent that nothing wakes."""
    agent_hung_after: float = _SHIPPED.hung_after
    """Real seconds after which an agent reports that a reading hangs."""
    agent_port: int | None = None
    """The port for the metrics of all agents (agentpages.py), 0 for a free one, or None for no such server."""
    meter_lag: float = LAG
    """Real seconds for which a new counter of an agent's meter is reported as 0."""
    plain_config: str = ""
    """The `config.name` of NVIDIA's device-plugin chart, which then replaces the GPU Operator; else empty."""
    plain_mig: str = ""
    """The ConfigMap of a mig-manager without the GPU Operator, beside that chart or beside the DRA driver. The chart's
    DaemonSets then require nvidia.com/gpu.deploy.client=true. Empty if there is none."""
    dra: bool = False
    """Whether NVIDIA's DRA driver serves the GPUs, whose kubelet plugin runs on every node with GPUs."""
    device_taints: bool = False
    """Whether the scheduler has the feature gate DRADeviceTaintRules; without it, it ignores DeviceTaintRules."""
    play_daemon_sets: bool = False
    """Whether to create the pods of DaemonSets ourselves: FakeCluster has no controllers."""


class Clock:
    """Simulated time: the event loop's time multiplied by a factor."""

    def __init__(self, settings: SimSettings) -> None:
        self._factor = settings.time_factor
        self._random = random.Random(settings.seed)
        self._wall = datetime.now(UTC).timestamp()
        self._origin: float | None = None

    def now(self) -> float:
        """Return simulated seconds since an arbitrary moment."""
        return asyncio.get_running_loop().time() * self._factor

    def timestamp(self) -> int:
        """Return the simulated time in seconds since 1970."""
        if self._origin is None:
            self._origin = self.now()
        return int(self._wall + self.now() - self._origin)

    def rfc3339(self) -> str:
        """Return the simulated time in the format of Kubernetes, such as 2026-11-20T10:00:00Z."""
        return datetime.fromtimestamp(self.timestamp(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def sleep(self, seconds: float) -> None:
        """Sleep for this many simulated seconds, made up to 15 % shorter or longer by the seeded generator."""
        await asyncio.sleep(seconds * self._random.uniform(0.85, 1.15) / self._factor)

    async def wait_for(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for an event for at most this many simulated seconds, without jitter."""
        try:
            # Not asyncio.wait_for, which before Python 3.12 loses a cancellation that arrives together with the event.
            async with asyncio.timeout(seconds / self._factor):
                await event.wait()
        except TimeoutError:
            return False
        return True
