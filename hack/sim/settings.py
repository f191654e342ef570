"""How the SIMULATED node software behaves: how long its steps take, which versions it plays, how fast time runs."""

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
    """How long steps of NVIDIA's software and of the kubelet take, in seconds before `time_factor`.

    mig-manager alone was measured at about 4 s from pending to success (docs/design/nvidia.md#run-time); the others
    are the usual size of such steps on a cluster with warm images, and the limits are NVIDIA's own (a.3, c).
    """

    watch: float = 0.2
    """From a label change until the program that watches it acts."""
    parted: float = 1.0
    """One call of nvidia-mig-parted: it opens NVML and reads every GPU."""
    pod_stop: float = 6.0
    """An operand's pod, from its label to gone."""
    pod_start: float = 8.0
    """An operand's pod, from its label to registered at the kubelet."""
    pod_wait: float = 300.0
    """How long mig-manager waits for each operand to go (a.3 step 7)."""
    apply: float = 3.0
    """Clearing and creating the instances of all GPUs, resets included."""
    finish: float = 2.0
    """CDI specification, host services, validator pods (steps 12 and 13)."""
    reload: float = 3.0
    """config-manager's SIGHUP until the plugin has registered again (b.8)."""
    gfd: float = 5.0
    """GFD's labels on their way through NodeFeature and NFD's master (c)."""
    gfd_loop: float = 60.0
    """GFD's own loop (c)."""
    node_status: float = 4.0
    """Until the kubelet writes changed resources into Node status."""
    config_map: float = 60.0
    """Until a running pod sees a changed ConfigMap (a.10: up to 1-2 min)."""
    crash_first: float = 10.0
    """First CrashLoopBackOff; doubled each time."""
    crash_last: float = 300.0
    """Longest CrashLoopBackOff."""
    reboot: float = 120.0
    """A node's reboot, while it is NotReady."""


MigManagerVersion = Literal["0.13.1", "0.15.0"]
PluginVersion = Literal["0.19.3", "0.20.0"]


@dataclass(frozen=True, slots=True)
class SimSettings:
    """What NodeSoftware plays."""

    time_factor: float = 1.0
    """Simulated seconds in one real second."""
    seed: int = 1
    times: Times = field(default_factory=Times)
    mig_manager: MigManagerVersion = "0.15.0"
    plugin: PluginVersion = "0.20.0"
    """Device plugin and GFD. Before 0.20 `+me` instances are counted under the plain profile (b.6). With
    0.19.3 the GPU Operator is one up to v26.7, whose MPS daemon hears of no configuration; with 0.20.0 it is a later
    one (b.5)."""
    unknown_profile_is_success: bool | None = None
    """mig-parted's trap: a profile that the card lacks is "applied successfully", the GPU left MIG-on and empty.
    None: as the version does. Seen with 0.13.1; nobody looked at later versions, which fail here."""
    gpu_operator_namespace: str = "gpu-operator"
    agent_namespace: str = "gpusharing-agent"
    agents: bool = True
    """Run the shipped agent loop for every node whose agent pod is Running."""
    agent_interval: float = 30.0
    """Seconds (real ones) between two readings of an agent that nothing wakes."""
    agent_hung_after: float = _SHIPPED.hung_after
    """Seconds (real ones) after which an agent reports that a reading hangs."""
    agent_port: int | None = None
    """Serve the metrics of all agents there (agentpages.py), and let them tell which pod holds which device; 0: a free
    port, None: no such server, and they tell how many only."""
    meter_lag: float = LAG
    """Seconds (real ones) for which a new counter of an agent's meter is reported as 0."""
    plain_config: str = ""
    """No GPU Operator, but NVIDIA's device-plugin chart with GFD and this `config.name`; empty: the GPU Operator."""
    play_daemon_sets: bool = False
    """Create the pods of mig-manager and agent ourselves: on FakeCluster, which has no controllers."""

    @property
    def empty_on_unknown_profile(self) -> bool:
        """Whether mig-parted takes a profile that the card does not know for success."""
        if self.unknown_profile_is_success is None:
            return self.mig_manager == "0.13.1"
        return self.unknown_profile_is_success


class Clock:
    """Simulated time: the event loop's, times a factor, each wait jittered by ±15 % from one seed."""

    def __init__(self, settings: SimSettings) -> None:
        self._factor = settings.time_factor
        self._random = random.Random(settings.seed)
        self._wall = datetime.now(UTC).timestamp()
        self._origin: float | None = None

    def now(self) -> float:
        """Simulated seconds since some moment."""
        return asyncio.get_running_loop().time() * self._factor

    def timestamp(self) -> int:
        """Simulated seconds since 1970: real at the start, running as fast as simulated time does."""
        if self._origin is None:
            self._origin = self.now()
        return int(self._wall + self.now() - self._origin)

    def rfc3339(self) -> str:
        """The same moment as Kubernetes writes it."""
        return datetime.fromtimestamp(self.timestamp(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def sleep(self, seconds: float) -> None:
        """Wait about that many simulated seconds."""
        await asyncio.sleep(seconds * self._random.uniform(0.85, 1.15) / self._factor)

    async def wait_for(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for an event for at most that long; False when it did not come."""
        try:
            # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
            async with asyncio.timeout(seconds / self._factor):
                await event.wait()
        except TimeoutError:
            return False
        return True
