"""Real nodes with SIMULATED GPUs, and what the GPU Operator leaves on a cluster before ours comes."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpusharing.api import names
from hack import stage
from hack.cluster import install
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.images import local
from hack.realnode import operands
from hack.realnode.network import bridge
from hack.realnode.node import KubeletNode, options
from hack.realnode.nodesoftware import NodeSoftware
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

    @property
    def api(self) -> Api:
        """As admin."""
        return self.plane.api

    def helm_install(self, *arguments: str) -> str:
        """`helm upgrade --install --wait` with the chart of this checkout and our image; the notes."""
        repository, _, tag = self.image.reference.rpartition(":")
        image = ("--set", f"image.repository={repository}", "--set", f"image.tag={tag}")
        return stage.install_chart(self.plane.kubeconfig, *image, "--wait", "--timeout", "120s", *arguments)

    def install_operands(self) -> None:
        """NVIDIA's pods, as the GPU Operator creates them; the ConfigMaps that they mount must have an entry."""
        install.apply_documents(self.api, operands.manifests())

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
def running_site(machines: Sequence[str]) -> Iterator[Site]:
    """A control plane and nodes of these names, each with two GPUs, our image and NVIDIA's programs.

    Raises:
        ToolchainError, BuildError, FetchError, WheelError: something cannot be built.
        ComponentError, NetworkError: this computer cannot run it.
    """
    image = local.build()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(bridge())
        plane = stack.enter_context(ControlPlane(options=options(network, machines, audit=True)))
        install.install_gpu_operator(plane.api)
        nvidia, nodes = nvidia_image(), dict[str, KubeletNode]()
        for number, name in enumerate(machines):
            node = KubeletNode(plane, network, name, number, labels=node_labels(), models=[MODEL] * 2)
            nodes[name] = stack.enter_context(node)
            node.load_archive(image.archive)
            node.load(nvidia)
            software = NodeSoftware(node)
            stack.callback(software.stop)
            software.start()
        yield Site(plane, nodes, image)
