"""What runs beside the pods of a node: a D-Bus for mig-manager, and SIMULATED Node Feature Discovery."""

import threading
from pathlib import Path

from hack.cluster.api import ApiError
from hack.cluster.kubeconfig import open_api
from hack.cluster.process import Component, wait_until
from hack.nvidia.kubelet import LabelFeeder
from hack.nvidia.migmanager import BUS
from hack.realnode.node import KubeletNode
from hack.realnode.operands import HOST_ROOT, LABELS

LOOK_SECONDS = 0.5
BUS_SECONDS = 60.0


class HostServices:
    """Of one boot of a node; `stop` before it ends."""

    def __init__(self, node: KubeletNode) -> None:
        """Nothing runs yet."""
        self._node = node
        self._api = open_api(node.plane.kubeconfig)
        self._bus: Component | None = None
        self._ended = threading.Event()
        self._feeder = threading.Thread(target=self._feed, name=f"nfd-{node.name}")

    def start(self) -> None:
        """Return when the bus is there; mig-manager asks systemd over it before anything else."""
        socket = Path(HOST_ROOT) / "run" / "dbus" / "system_bus_socket"
        config = self._node.folder / "bus.conf"
        config.write_text(BUS.format(socket=socket))
        self._node.machine.run("mkdir", "-p", str(socket.parent))
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]
        self._bus = self._node.machine.spawn("dbus-daemon", command)
        wait_until(self._inside(socket).exists, BUS_SECONDS, "the D-Bus of the node", self._bus.check)
        self._feeder.start()

    def stop(self) -> None:
        """End both."""
        self._ended.set()
        if self._bus is not None:
            self._bus.stop()
        if self._feeder.is_alive():
            self._feeder.join()
        self._api.close()

    def _inside(self, path: Path) -> Path:
        """A path of the machine, as seen from here."""
        return Path(f"/proc/{self._node.machine.pid}/root") / path.relative_to("/")

    def _feed(self) -> None:
        """SIMULATED NFD: the labels that GFD has written go to the Node."""
        feeder = LabelFeeder(self._api, self._node.name, self._inside(Path(LABELS)))
        while not self._ended.wait(LOOK_SECONDS):
            try:
                feeder.look()
            except (ApiError, OSError) as error:  # the API server is away, or the file is being replaced
                with (self._node.folder / "nfd.log").open("a") as log:
                    log.write(f"{error!r}\n")
