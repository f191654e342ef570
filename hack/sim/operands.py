"""Two SIMULATED operands that have a config-manager: the device plugin and GFD (docs/design/nvidia.md#b4).

An init container selects the configuration by a Node label, and a sidecar follows the label. If the key is missing,
the first crash-loops; only the sidecar does if that happens later, and the main container keeps its configuration.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from gpusharing.agent.library import LibraryError, Reading
from gpusharing.api.names import (
    LABEL_DEPLOY_CLIENT,
    LABEL_DEPLOY_PREFIX,
    LABEL_GPU_COUNT,
    LABEL_GPU_PRODUCT,
    LABEL_GPU_REPLICAS,
    LABEL_PLUGIN_CONFIG,
)
from hack.sim import gfd
from hack.sim.gpu import SimulatedGPUs
from hack.sim.nodeobject import NodeObject, SimCluster
from hack.sim.plugin import PluginError, SimPluginConfig, advertised, choose_key, find_refusal, parse_config
from hack.sim.readings import Readings
from hack.sim.settings import Clock, Times


class Configured:
    """What all operands with a config-manager share: the deploy label, and the choice of a configuration."""

    operand = ""

    def __init__(self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs) -> None:
        self.cluster = cluster
        self.node = node
        self.gpus = gpus
        self._pod_started = 0.0

    def deployed(self) -> bool:
        policy = self.cluster.policy
        if self.operand in policy.off:
            return False
        if policy.plain:
            return not policy.mig_config or self.node.labels.get(LABEL_DEPLOY_CLIENT) == "true"
        return self.node.labels.get(f"{LABEL_DEPLOY_PREFIX}{self.operand}") == "true"

    def key(self, *, new_pod: bool) -> str | None:
        """Return the key that config-manager would load: empty for the built-in one, None if it is unknown."""
        policy = self.cluster.policy
        if new_pod:
            self._pod_started = self.cluster.clock.now()
        if not policy.plugin_config:
            return ""
        label = self.node.labels.get(LABEL_PLUGIN_CONFIG)
        keys = tuple(self._files())
        key = choose_key(label, keys, policy.plugin_default)
        falls_back = key is None and self.cluster.settings.falls_back
        return choose_key(None, keys, policy.plugin_default) if falls_back else key

    def config(self, key: str) -> SimPluginConfig:
        """Return the parsed configuration of this key; an empty key stands for the built-in one."""
        return parse_config(self._files()[key] if key else "", self.cluster.policy.mig_strategy)

    async def read(self) -> Reading:
        return await Readings(self.gpus)(self.gpus.read_as_operand, self.operand)

    def _files(self) -> dict[str, str]:
        policy, clock = self.cluster.policy, self.cluster.clock
        content = self.cluster.config_maps.content(
            policy.plugin_config, node=self.node.name, pod_started=self._pod_started, now=clock.now()
        )
        return dict(content)


class DevicePlugin(Configured):
    """The device plugin, which advertises resources according to its configuration and the GPUs."""

    operand = "device-plugin"

    def __init__(
        self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs, mps_serves: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(cluster, node, gpus)
        self._mps_serves = mps_serves
        self._waits = False
        self._config: SimPluginConfig | None = None

    def refuse(self, requests: Mapping[str, int]) -> str:
        """Return why the running plugin refuses the requests of one container; empty if it does not."""
        return find_refusal(self._config, requests, self.cluster.settings.plugin) if self._config is not None else ""

    async def serve(self, key: str) -> None:
        """Advertise the resources of this configuration; with MPS none until the daemon serves."""
        config = self.config(key)
        counts = advertised((await self.read()).gpus, config, self.cluster.settings.plugin)
        await self.cluster.clock.sleep(self.cluster.settings.times.node_status)
        self._waits = config.sharing == "mps" and not self._mps_serves()
        self._config = config
        await self.node.advertise({} if self._waits else counts, plugin=not self._waits)

    def again(self) -> bool:
        """Whether the plugin has been waiting for the MPS control daemon, and the daemon serves now."""
        return self._waits and self._mps_serves()

    async def gone(self, *, crashed: bool) -> None:
        """Set allocatable to 0 as the kubelet does, because the plugin's socket is gone."""
        self._waits, self._config = False, None
        await self.node.advertise({}, plugin=False)


class FeatureDiscovery(Configured):
    operand = "gpu-feature-discovery"

    def __init__(self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs) -> None:
        super().__init__(cluster, node, gpus)
        self._config: SimPluginConfig | None = None
        self._started = 0
        self._turns = 0

    async def serve(self, key: str) -> None:
        """Restart with this configuration and label the node; the timestamp label gets the present time."""
        self._config = self.config(key)
        self._started = self.cluster.clock.timestamp()
        await self.label()

    async def label(self) -> None:
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
        return False

    async def gone(self, *, crashed: bool) -> None:
        """Stop GFD. Its labels go if its new pod crash-loops (docs/design/nvidia.md#b4) or ClusterPolicy turns it off."""
        self._config = None
        if crashed or self.operand in self.cluster.policy.off:
            await self.node.patch(gfd.changes(self.node.labels, {}))


@dataclass(frozen=True, slots=True)
class Pod:
    exists: bool = False
    running: bool = False
    """Whether the main container is running, with the configuration `loaded`."""
    loaded: str | None = None
    """The key of the loaded configuration: an empty string for the built-in one, or None while it does not run."""


class OperandStep(Enum):
    REST = auto()
    STOP = auto()
    START = auto()
    INIT_CRASH = auto()
    RELOAD = auto()
    SIDECAR_CRASH = auto()


def decide(pod: Pod, *, deployed: bool, key: str | None, again: bool = False) -> OperandStep:
    if not deployed:
        return OperandStep.STOP if pod.exists else OperandStep.REST
    if not pod.running:
        return OperandStep.INIT_CRASH if key is None else OperandStep.START
    if key is None:
        return OperandStep.SIDECAR_CRASH
    return OperandStep.REST if key == pod.loaded and not again else OperandStep.RELOAD


class OperandPort(Protocol):
    """The interface of one operand of a node to PlayedOperand."""

    def deployed(self) -> bool:
        """Whether the operand's DaemonSet has a pod on the node, according to labels and ClusterPolicy."""

    def key(self, *, new_pod: bool) -> str | None:
        """Return the configuration key, or None if it does not exist. A running pod sees a change after a delay."""

    async def serve(self, key: str) -> None:
        """Start or restart the main container."""

    def again(self) -> bool:
        """Whether the main container has been waiting for something that has now happened."""

    async def gone(self, *, crashed: bool) -> None:
        """Called when the main container has ended."""


class PlayedOperand:
    def __init__(self, name: str, port: OperandPort, clock: Clock, times: Times, log: Callable[[str], None]) -> None:
        self.name = name
        self._port = port
        self._clock = clock
        self._times = times
        self._log = log
        self._pod = Pod()
        self._wake = asyncio.Event()
        self.is_gone = asyncio.Event()
        self.is_gone.set()

    def wake(self) -> None:
        """Make `run` check labels, ConfigMaps and ClusterPolicy again, because one of them may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Take the steps that `decide` returns, until canceled."""
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
                # A CrashLoopBackOff, unless the operand is no longer deployed, which deletes the pod.
                ends = self._clock.now() + min(self._times.crash_first * 2**crashes, self._times.crash_last)
                while (left := ends - self._clock.now()) > 0 and self._port.deployed():
                    await self._clock.wait_for(self._wake, left)
                    self._wake.clear()
                crashes += 1

    async def restart(self) -> None:
        """Delete the pod, as after a change of ClusterPolicy."""
        if self._pod.exists:
            await self._port.gone(crashed=False)
        self._pod = Pod()
        self.is_gone.set()

    async def _take(self, step: OperandStep) -> bool:
        if step is OperandStep.STOP:
            await self._stop()
            return True
        if step is OperandStep.SIDECAR_CRASH:
            self._log(
                f"{self.name}: config-manager crash-loops on an unknown key; the program keeps {self._pod.loaded!r}"
            )
            return False
        self.is_gone.clear()
        self._pod = replace(self._pod, exists=True)
        await self._clock.sleep(self._times.reload if step is OperandStep.RELOAD else self._times.pod_start)
        key = self._port.key(new_pod=not self._pod.running)
        if not self._port.deployed() or (step is OperandStep.RELOAD and key is None):
            return True  # label or key changed meanwhile, so decide again
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
