"""Two operands of a SIMULATED node that config-manager serves: device plugin and GFD."""

from collections.abc import Callable

from gpusharing.agent.library import Reading
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
from hack.sim.plugin import SimPluginConfig, advertised, choose_key, parse_config
from hack.sim.readings import Readings


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
        seen = self.cluster.config_maps.seen(
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
