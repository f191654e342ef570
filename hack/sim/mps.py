"""SIMULATED MPS control daemon of one node, in a pod that nvidia.com/mps.capable creates and removes (docs/design/nvidia.md#b5).

It keeps the number of clients with which its pod started (mpsset.py). It sets every GPU to ExclusiveProcess, and back
to Default when it stops cleanly; if killed, it leaves them exclusive.
"""

import asyncio
from collections.abc import Callable

from gpusharing.agent.library import LibraryError
from gpusharing.planning.gpus.cards import find_card
from hack.sim.gpu import SimulatedGPUs
from hack.sim.mpsset import is_notified, mps_pod_spec
from hack.sim.nodeobject import NodeObject, SimCluster
from hack.sim.operands import Configured
from hack.sim.plugin import PluginError

FIRST_PID = 9000
SERVER = "nvidia-cuda-mps-server"


class MpsDaemon(Configured):
    """Plays nvidia-device-plugin-mps-control-daemon on one node, whose pod may be replaced."""

    operand = "mps-control-daemon"

    def __init__(
        self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs, on_change: Callable[[], None]
    ) -> None:
        super().__init__(cluster, node, gpus)
        self.clients: int | None = None
        """Clients per GPU that it serves, or None while it does not serve."""
        self._on_change = on_change
        self._wanted = self._started = ""
        self._pid: int | None = None
        self._pids = FIRST_PID
        self._wake = asyncio.Event()

    def set_pod(self, uid: str) -> None:
        """Set the UID of the daemon's running pod; empty if there is none or it is terminating."""
        if uid != self._wanted:
            self._wanted = uid
            self._wake.set()

    def kill(self) -> None:
        """Kill the daemon with SIGKILL: the GPUs stay exclusive, and it serves again in a new pod or after a reboot."""
        if self._pid is not None:
            self.gpus.remove_process(self._pid)
        self._pid = None
        self._serve(None)

    def reboot(self) -> None:
        self.kill()
        self._started = ""

    async def run(self) -> None:
        """Start and stop the daemon as its pod comes and goes, until canceled."""
        crashes = 0
        while True:
            self._wake.clear()
            if self._started == self._wanted:
                crashes = 0
                await self._wake.wait()
            elif self._pid is not None:
                await self._stop()
            elif not self._wanted or await self._start():
                self._started = self._wanted
            else:
                times = self.cluster.settings.times
                await self.cluster.clock.wait_for(self._wake, min(times.crash_first * 2**crashes, times.crash_last))
                crashes += 1

    async def _start(self) -> bool:
        key = self.key(new_pod=True)
        try:
            if key is None:
                raise PluginError("unknown configuration key")
            config = self.config(key)
            models = (await self.read()).models
            for card in (find_card(model.product) for model in models):
                most = most_clients(card.compute_capability if card else (0, 0))
                if (config.clients or 0) > most:
                    what = "invalid MPS configuration: maximum allowed replicas exceeded"
                    raise PluginError(f"{what}: {config.clients} > {most}")
        except (PluginError, LibraryError) as error:
            self.cluster.log(f"{self.node.name}: {self.operand}: crash-loops: {error}")
            return False
        if config.clients is None:
            return True  # the daemon logs "No devices are configured for MPS sharing" and waits for ever
        pod = self.cluster.mps_pod or mps_pod_spec(self.cluster.settings)
        if not self.cluster.policy.plain and not is_notified(pod):
            self.cluster.log(f"{self.node.name}: {self.operand}: waits for ever: config-manager never signals it")
            return True
        await self.cluster.clock.sleep(self.cluster.settings.times.reload)
        self._pids += 1
        self._pid = self._pids
        for index in self._whole():
            self.gpus.set_compute_mode(index, "ExclusiveProcess")
            self.gpus.add_process(index, SERVER, self._pid)
        self._serve(config.clients)
        return True

    async def _stop(self) -> None:
        await self.cluster.clock.sleep(self.cluster.settings.times.reload)
        if self._pid is not None:
            self.gpus.remove_process(self._pid)
            for index in self._whole():
                self.gpus.set_compute_mode(index, "Default")
        self._pid = None
        self._serve(None)

    def _whole(self) -> list[int]:
        return [gpu.index for gpu in self.gpus.look() if gpu.mig_mode != "Enabled"]

    def _serve(self, clients: int | None) -> None:
        if clients != self.clients:
            self.clients = clients
            shown = "stopped" if clients is None else f"serves {clients} clients per GPU"
            self.cluster.log(f"{self.node.name}: {self.operand}: {shown}")
            self._on_change()


def most_clients(compute_capability: tuple[int, int]) -> int:
    """Return how many clients per GPU the daemon allows (docs/design/nvidia.md#b5)."""
    return 48 if compute_capability >= (7, 5) else 16
