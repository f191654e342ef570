"""Two SIMULATED operands that config-manager serves, device plugin and GFD: each is one pod of a DaemonSet.

Both are of one kind (docs/design/nvidia.md#b4): an init container picks the configuration by a Node label at the start
and crash-loops when the key is missing; a sidecar follows the label, sends SIGHUP when the key changes, and crash-loops
alone when the new key is missing, while the main container keeps the old configuration.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from gpusharing.agent.library import LibraryError, Reading
from gpusharing.api.names import (
    LABEL_DEPLOY_PREFIX,
    LABEL_GPU_COUNT,
    LABEL_GPU_PRODUCT,
    LABEL_GPU_REPLICAS,
    LABEL_PLUGIN_CONFIG,
)
from hack.sim import gfd
from hack.sim.gpu import SimulatedGPUs
from hack.sim.nodeobject import NodeObject, SimCluster
from hack.sim.plugin import PluginError, SimPluginConfig, advertised, choose_key, parse_config
from hack.sim.readings import Readings
from hack.sim.settings import Clock, Times


class Configured:
    """What operands with config-manager share: the deploy label, and the configuration by label and ConfigMap."""

    operand = ""

    def __init__(self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs) -> None:
        self.cluster = cluster
        self.node = node
        self.gpus = gpus
        self._pod_started = 0.0

    def deployed(self) -> bool:
        """Whether there is a DaemonSet whose node selector matches; the device-plugin chart's ask no such label."""
        policy = self.cluster.policy
        labelled = self.node.labels.get(f"{LABEL_DEPLOY_PREFIX}{self.operand}") == "true"
        return policy.plain or (labelled and self.operand not in policy.off)

    def key(self, *, new_pod: bool) -> str | None:
        """What config-manager would load now. Without a ConfigMap in ClusterPolicy there is no config-manager."""
        policy = self.cluster.policy
        if new_pod:
            self._pod_started = self.cluster.clock.now()
        if not policy.plugin_config:
            return ""
        label = self.node.labels.get(LABEL_PLUGIN_CONFIG)
        return choose_key(label, tuple(self._files()), policy.plugin_default)

    def config(self, key: str) -> SimPluginConfig:
        """The parsed configuration; raises PluginError."""
        return parse_config(self._files()[key] if key else "", self.cluster.policy.mig_strategy)

    async def read(self) -> Reading:
        """Read the GPUs through NVML, which may hang; raises LibraryError."""
        return await Readings(self.gpus)(self.gpus.read_as_operand, self.operand)

    def _files(self) -> dict[str, str]:
        policy, clock = self.cluster.policy, self.cluster.clock
        seen = self.cluster.config_maps.content(
            policy.plugin_config, node=self.node.name, pod_started=self._pod_started, now=clock.now()
        )
        return dict(seen)


class DevicePlugin(Configured):
    """Turns configuration and GPUs into allocatable."""

    operand = "device-plugin"

    def __init__(
        self,
        cluster: SimCluster,
        node: NodeObject,
        gpus: SimulatedGPUs,
        mps_serves: Callable[[], bool] = lambda: False,
    ) -> None:
        """`mps_serves`: whether the MPS control daemon of the node does."""
        super().__init__(cluster, node, gpus)
        self._mps_serves = mps_serves
        self._waits = False

    async def serve(self, key: str) -> None:
        """Register at the kubelet, which tells in its own time; with MPS only once the daemon serves."""
        config = self.config(key)
        counts = advertised((await self.read()).gpus, config, self.cluster.settings.plugin)
        await self.cluster.clock.sleep(self.cluster.settings.times.node_status)
        self._waits = config.sharing == "mps" and not self._mps_serves()
        await self.node.advertise({} if self._waits else counts, plugin=not self._waits)

    def again(self) -> bool:
        """It waits for the MPS control daemon, which serves now."""
        return self._waits and self._mps_serves()

    async def gone(self, *, crashed: bool) -> None:
        """The kubelet loses the plugin's socket."""
        self._waits = False
        await self.node.advertise({}, plugin=False)


class FeatureDiscovery(Configured):
    """Turns configuration and GPUs into labels."""

    operand = "gpu-feature-discovery"

    def __init__(self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs) -> None:
        super().__init__(cluster, node, gpus)
        self._config: SimPluginConfig | None = None
        self._started = 0
        self._turns = 0

    async def serve(self, key: str) -> None:
        """Restart: the timestamp is that of now."""
        self._config = self.config(key)
        self._started = self.cluster.clock.timestamp()
        await self.label()

    async def label(self) -> None:
        """One turn of its loop; nothing while it does not run."""
        if self._config is None:
            return
        self._turns += 1
        wanted = gfd.labels(await self.read(), self._config, self._started, self._turns)
        await self.cluster.clock.sleep(self.cluster.settings.times.gfd)
        changed = gfd.changes(self.node.labels, wanted)
        if changed:
            shown = [wanted.get(key, "") for key in (LABEL_GPU_PRODUCT, LABEL_GPU_COUNT, LABEL_GPU_REPLICAS)]
            self.cluster.log("{}: GFD: product {}, count {}, replicas {}".format(self.node.name, *shown))
        await self.node.patch(changed)

    def again(self) -> bool:
        """It waits for nothing."""
        return False

    async def gone(self, *, crashed: bool) -> None:
        """A paused GFD leaves its labels; one whose new pod crash-loops loses them (docs/design/nvidia.md#b4), and so
        does one whose DaemonSet is deleted."""
        self._config = None
        if crashed or self.operand in self.cluster.policy.off:
            await self.node.patch(gfd.changes(self.node.labels, {}))


@dataclass(frozen=True, slots=True)
class Pod:
    """Where the operand's pod is."""

    exists: bool = False
    running: bool = False
    """The main container runs with the configuration `loaded`."""
    loaded: str | None = None
    """Key of that configuration; "" is the empty one."""


class OperandStep(Enum):
    """What happens next to an operand's pod."""

    REST = auto()
    STOP = auto()
    START = auto()
    INIT_CRASH = auto()
    RELOAD = auto()
    SIDECAR_CRASH = auto()


def decide(pod: Pod, *, deployed: bool, key: str | None, again: bool = False) -> OperandStep:
    """The next step. `key` is the one that config-manager would load now, None when it does not exist; `again`: the
    main container starts to serve anew with what it has."""
    if not deployed:
        return OperandStep.STOP if pod.exists else OperandStep.REST
    if not pod.running:
        return OperandStep.INIT_CRASH if key is None else OperandStep.START
    if key is None:
        return OperandStep.SIDECAR_CRASH
    return OperandStep.REST if key == pod.loaded and not again else OperandStep.RELOAD


class OperandPort(Protocol):
    """What one operand sees and does."""

    def deployed(self) -> bool:
        """Whether the node selector of its DaemonSet matches."""

    def key(self, *, new_pod: bool) -> str | None:
        """The configuration key for this node; a new pod sees ConfigMaps as they are, an old one with delay."""

    async def serve(self, key: str) -> None:
        """The main container (re)starts with that configuration; PluginError when it exits."""

    def again(self) -> bool:
        """Whether what the running main container waited for has come."""

    async def gone(self, *, crashed: bool) -> None:
        """The main container is not there any more."""


class PlayedOperand:
    """Plays one operand of one node. `run` rests until `wake`."""

    def __init__(
        self, name: str, port: OperandPort, clock: Clock, times: Times, log: Callable[[str], None]
    ) -> None:
        self.name = name
        self._port = port
        self._clock = clock
        self._times = times
        self._log = log
        self._pod = Pod()
        self._wake = asyncio.Event()
        self.is_gone = asyncio.Event()
        """Set while the operand has no pod on the node."""
        self.is_gone.set()

    def wake(self) -> None:
        """Labels, ConfigMaps or ClusterPolicy may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Play for as long as the node is up."""
        crashes = 0
        while True:
            self._wake.clear()
            step = decide(
                self._pod,
                deployed=self._port.deployed(),
                key=self._port.key(new_pod=not self._pod.running),
                again=self._port.again(),
            )
            if step is OperandStep.REST:
                crashes = 0
                await self._wake.wait()
                await self._clock.sleep(self._times.watch)
            elif await self._take(step):
                crashes = 0
            else:
                await self._back_off(crashes)
                crashes += 1

    async def restart(self) -> None:
        """The pod is replaced, as when ClusterPolicy changes; call it only while `run` is not running."""
        if self._pod.exists:
            await self._port.gone(crashed=False)
        self._pod = Pod()
        self.is_gone.set()

    async def _take(self, step: OperandStep) -> bool:
        """Do one step; False when something crash-loops."""
        if step is OperandStep.STOP:
            await self._stop()
            return True
        if step is OperandStep.SIDECAR_CRASH:
            self._log(
                f"{self.name}: config-manager crash-loops on an unknown key, {self._pod.loaded!r} stays in force"
            )
            return False
        self.is_gone.clear()
        self._pod = replace(self._pod, exists=True)
        await self._clock.sleep(self._times.reload if step is OperandStep.RELOAD else self._times.pod_start)
        key = self._port.key(new_pod=not self._pod.running)
        if not self._port.deployed() or (step is OperandStep.RELOAD and key is None):
            return True  # the world changed meanwhile: decide again
        return await self._serve(key)

    async def _serve(self, key: str | None) -> bool:
        error = "unknown configuration key"
        if key is not None:
            try:
                await self._port.serve(key)
            except (PluginError, LibraryError) as failure:
                error = str(failure)
            else:
                self._pod = Pod(exists=True, running=True, loaded=key)
                return True
        self._log(f"{self.name}: crash-loops: {error}")
        self._pod = Pod(exists=True)
        await self._port.gone(crashed=True)
        return False

    async def _stop(self) -> None:
        await self._clock.sleep(self._times.pod_stop)
        self._pod = Pod()
        await self._port.gone(crashed=False)
        self.is_gone.set()

    async def _back_off(self, crashes: int) -> None:
        """CrashLoopBackOff; only a paused deploy label ends it early, because that removes the pod."""
        ends = self._clock.now() + min(self._times.crash_first * 2**crashes, self._times.crash_last)
        while (left := ends - self._clock.now()) > 0 and self._port.deployed():
            await self._clock.wait_for(self._wake, left)
            self._wake.clear()
