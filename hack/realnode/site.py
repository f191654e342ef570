"""A cluster of real nodes with SIMULATED GPUs, in the state in which the GPU Operator leaves it before our operator is
installed."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpusharing.api import names
from hack import launch
from hack.cluster import install
from hack.cluster.api import Api, ApiError
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import open_api
from hack.cluster.process import Component, wait_until
from hack.images.contents import Image
from hack.nvidia.kubelet import LabelFeeder
from hack.nvidia.migmanager import BUS
from hack.realnode import operands
from hack.realnode.network import bridge
from hack.realnode.node import KubeletNode, options
from hack.realnode.nvidiaimage import nvidia_image
from hack.realnode.operands import HOST_ROOT, LABELS

LOOK_SECONDS = 0.5
BUS_SECONDS = 60.0


class HostServices:
    """The services of a node's host for one boot: D-Bus, and SIMULATED Node Feature Discovery."""

    def __init__(self, node: KubeletNode) -> None:
        self._node = node
        self._api = open_api(node.plane.kubeconfig)
        self._bus: Component | None = None
        self._ended = threading.Event()
        self._feeder = threading.Thread(target=self._feed, name=f"nfd-{node.name}")

    def start(self) -> None:
        """Start D-Bus, which mig-manager needs before anything else, and then NFD."""
        socket = Path(HOST_ROOT) / "run" / "dbus" / "system_bus_socket"
        config = self._node.folder / "bus.conf"
        config.write_text(BUS.format(socket=socket))
        self._node.machine.run("mkdir", "-p", str(socket.parent))
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]
        self._bus = self._node.machine.spawn("dbus-daemon", command)
        there = self._node.machine.path(str(socket))
        wait_until(there.exists, BUS_SECONDS, "the D-Bus of the node", self._bus.check)
        self._feeder.start()

    def stop(self) -> None:
        self._ended.set()
        if self._bus is not None:
            self._bus.stop()
        if self._feeder.is_alive():
            self._feeder.join()
        self._api.close()

    def _feed(self) -> None:
        feeder = LabelFeeder(self._api, self._node.name, self._node.machine.path(LABELS))
        while not self._ended.wait(LOOK_SECONDS):
            try:
                feeder.look()
            except (ApiError, OSError) as error:
                # The API server is unreachable, or the file is being replaced.
                with (self._node.folder / "nfd.log").open("a") as log:
                    log.write(f"{error!r}\n")


MODEL = "h100-80gb"
POOL = "real"
OPERANDS = ("device-plugin", "gpu-feature-discovery", "mig-manager")


@dataclass(frozen=True)
class Site:
    """The running control plane and nodes, and the image of the product."""

    plane: ControlPlane
    nodes: dict[str, KubeletNode]
    image: Image
    software: dict[str, HostServices] = field(default_factory=dict)

    @property
    def api(self) -> Api:
        return self.plane.api

    def helm_install(self, *arguments: str) -> str:
        """Install the chart of this checkout with our image, wait, and return helm's notes."""
        repository, _, tag = self.image.reference.rpartition(":")
        image = ("--set", f"image.repository={repository}", "--set", f"image.tag={tag}")
        return launch.install_chart(self.plane.kubeconfig, *image, "--wait", "--timeout", "300s", *arguments)

    def helm(self, *arguments: str) -> str:
        """Run helm in the namespace of our release and return its standard output."""
        done = self._run_helm(arguments)
        if done.returncode:
            raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def try_helm(self, *arguments: str) -> tuple[int, str]:
        """Run helm in the namespace of our release, and return its exit status and all its output."""
        done = self._run_helm(arguments)
        return done.returncode, done.stdout + done.stderr

    def _run_helm(self, arguments: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
        return launch.helm(self.plane.environment(), *arguments, "--namespace", launch.NAMESPACE)

    def install_operands(self, *, plugin: bool = True) -> None:
        """Create or change the DaemonSets of NVIDIA's operands and their ServiceAccount, as the GPU Operator does."""
        install.apply_documents(self.api, operands.manifests(plugin=plugin))

    def start_software(self, name: str) -> None:
        self.software[name] = HostServices(self.nodes[name])
        self.software[name].start()

    def stop_software(self) -> None:
        """Stop the host services of all nodes; the nodes must still run."""
        for software in self.software.values():
            software.stop()
        self.software.clear()

    def reboot(self, name: str) -> None:
        self.stop(name)
        self.restart(name)

    def stop(self, name: str) -> None:
        self.software.pop(name).stop()
        self.nodes[name].power_off()

    def restart(self, name: str) -> None:
        """Boot a node after `stop`, and return when its new kubelet reports that it is Ready."""
        node = self.nodes[name]
        node.boot()
        self.start_software(name)
        node.start_kubelet()
        node.wait_ready()

    def kubectl(self, *arguments: str) -> str:
        try:
            return self.plane.kubectl(*arguments)
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {error.stderr.strip()}") from None


def node_labels() -> dict[str, str]:
    """Return the labels of a new MIG-capable node: those of the GPU Operator, and the label of our pool."""
    deploy = {f"{names.LABEL_DEPLOY_PREFIX}{operand}": "true" for operand in OPERANDS}
    return {
        names.LABEL_GPU_PRESENT: "true",
        names.LABEL_MIG_CONFIG: "all-disabled",
        "gpusharing.dev/pool": POOL,
        **deploy,
    }


@contextlib.contextmanager
def running_site(machines: Sequence[str], image: Image) -> Iterator[Site]:
    """Yield a cluster of real kubelets with two SIMULATED GPUs each, our image and NVIDIA's, without operands."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(bridge())
        plane = stack.enter_context(ControlPlane(options=options(network, machines, audit=True)))
        install.install_gpu_operator(plane.api)
        nvidia, site = nvidia_image(), Site(plane, {}, image)
        for number, name in enumerate(machines):
            node = KubeletNode(plane, network, name, number, labels=node_labels(), models=[MODEL] * 2)
            site.nodes[name] = stack.enter_context(node)
            node.load_archive(image.archive)
            node.load(nvidia)
        stack.callback(site.stop_software)
        for name in machines:
            site.start_software(name)
        yield site
