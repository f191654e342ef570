"""Real nodes with SIMULATED GPUs, and what the GPU Operator leaves on a cluster before ours comes."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpusharing.api import names
from hack import launch
from hack.cluster import install, toolchain
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.images import local
from hack.realnode import operands
from hack.realnode.hostservices import HostServices
from hack.realnode.network import bridge
from hack.realnode.node import KubeletNode, options
from hack.realnode.nvidiaimage import nvidia_image

MODEL = "h100-80gb"
POOL = "real"
OPERANDS = ("device-plugin", "gpu-feature-discovery", "mig-manager")


@dataclass(frozen=True)
class Site:
    """What is running."""

    plane: ControlPlane
    nodes: dict[str, KubeletNode]
    image: local.Image
    software: dict[str, HostServices] = field(default_factory=dict)
    """Of each node, as it runs now."""

    @property
    def api(self) -> Api:
        """As admin."""
        return self.plane.api

    def helm_install(self, *arguments: str) -> str:
        """`helm upgrade --install --wait` with the chart of this checkout and our image; the notes."""
        repository, _, tag = self.image.reference.rpartition(":")
        image = ("--set", f"image.repository={repository}", "--set", f"image.tag={tag}")
        return launch.install_chart(self.plane.kubeconfig, *image, "--wait", "--timeout", "300s", *arguments)

    def helm(self, *arguments: str) -> str:
        """What helm printed, asked about the namespace of our release; its complaint is in the exception's text."""
        done = self._run_helm(arguments)
        if done.returncode:
            raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def try_helm(self, *arguments: str) -> tuple[int, str]:
        """As `helm`, where it may fail: the exit status, and all that it said."""
        done = self._run_helm(arguments)
        return done.returncode, done.stdout + done.stderr

    def _run_helm(self, arguments: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(toolchain.program("helm")), *arguments, "--namespace", launch.NAMESPACE],
            env=self.plane.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def install_operands(self) -> None:
        """NVIDIA's pods, as the GPU Operator creates them; the ConfigMaps that they mount must have an entry."""
        install.apply_documents(self.api, operands.manifests())

    def start_software(self, name: str) -> None:
        """What runs beside the pods of this node."""
        self.software[name] = HostServices(self.nodes[name])
        self.software[name].start()

    def stop_software(self) -> None:
        """On all nodes, before they end."""
        for software in self.software.values():
            software.stop()
        self.software.clear()

    def reboot(self, name: str) -> None:
        """All processes of the node end at once; return when its new kubelet says that it is Ready."""
        node = self.nodes[name]
        self.software.pop(name).stop()
        node.power_off()
        node.boot()
        self.start_software(name)
        node.start_kubelet()
        node.wait_ready()

    def kubectl(self, *arguments: str) -> str:
        """What kubectl printed; its complaint is in the exception's text."""
        try:
            return self.plane.kubectl(*arguments)
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {error.stderr.strip()}") from None


def node_labels() -> dict[str, str]:
    """Of a fresh MIG-capable node: the GPU Operator's, and our pool's."""
    deploy = {f"{names.LABEL_DEPLOY_PREFIX}{operand}": "true" for operand in OPERANDS}
    return {
        names.LABEL_GPU_PRESENT: "true",
        names.LABEL_MIG_CONFIG: "all-disabled",
        "gpusharing.dev/pool": POOL,
        **deploy,
    }


@contextlib.contextmanager
def running_site(machines: Sequence[str], image: local.Image) -> Iterator[Site]:
    """A control plane and nodes of these names, each with two GPUs, `image` and NVIDIA's programs.

    Raises:
        UnavailableError: something cannot be built.
        ComponentError, NetworkError: this computer cannot run it.
    """
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
