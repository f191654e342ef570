"""SIMULATED node software, pure, where NVIDIA's DRA driver serves the GPUs in place of the device plugin."""

from dataclasses import dataclass, replace
from datetime import datetime

from tests.planning.machines import Labels, NodeMachine

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.snapshot.nvidia import NodeDevices, Operand, Program, StackView
from gpusharing.planning.snapshot.views import NodeView


@dataclass
class DraMachine(NodeMachine):
    """A node whose devices the kubelet plugin publishes when it starts, and only then."""

    plugins: int = 0
    published: int = -1
    divided: int = 0
    """How often the GPUs were divided: each time their devices get other UUIDs."""
    pauses: bool = False
    """The kubelet plugin requires gpu.deploy.client, so that mig-manager takes its pod away during a run."""

    @property
    def operands(self) -> dict[Program, Operand]:
        """mig-manager's pod and that of the kubelet plugin, which may be away."""
        if self.pauses and self.running:
            return {Program.MIG_MANAGER: self.operand}
        plugin = Operand("gpu-operator", f"dra-{self.name}", f"uid-dra-{self.name}-{self.plugins}", True)
        return {Program.MIG_MANAGER: self.operand, Program.KUBELET_PLUGIN: plugin}

    @property
    def devices(self) -> tuple[str, ...]:
        return (f"{self.name}-{self.divided}",)

    def mig_manager(self, node: NodeView, stack: StackView) -> Labels:
        """One step; the end of a run makes other devices. After a reboot the kubelet plugin starts in its pod again."""
        running, labels = self.running, super().mig_manager(node, stack)
        ended = bool(running and not self.running)
        self.divided += ended
        self.plugins += ended and self.pauses
        self.published = -1 if self.away else self.published
        return labels

    def reboot(self) -> None:
        """MIG instances are gone, and both programs start again in their pods."""
        self.layouts = [None if layout is None else () for layout in self.layouts]
        self.seen, self.published = None, -1

    def restart_serving(self) -> None:
        """The pod of the kubelet plugin is deleted, and the next one starts."""
        self.plugins += 1

    def plugin(self, node: NodeView, stack: StackView, now: datetime) -> NodeView:
        if self.published == self.plugins or (self.pauses and self.running):
            return node
        self.published = self.plugins
        return replace(node, resources={}, devices=self.due)

    @property
    def due(self) -> NodeDevices:
        shown: list[Layout | None] = [layout for layout in self.layouts if layout is None or layout]
        layouts = tuple(sorted(shown, key=lambda layout: (layout is None, layout or ())))
        return NodeDevices(layouts, key=key_of(self.devices))
