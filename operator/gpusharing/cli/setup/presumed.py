"""What the agent of a node would most likely read, inferred from the node's labels and what it offers. Pure.

Before the operator is installed nobody reads NVML for it. GPU Feature Discovery names the card, `nvidia.com/mig.config`
the layout, and the device plugin offers what follows from both: where one number of GPUs explains all of it, that
number is presumed. It proves nothing, and everything that shows it says so.
"""

from collections.abc import Sequence
from dataclasses import replace

from gpusharing.api import names
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, ObservedView
from gpusharing.planning.wanted.migfile import Unresolved, resolve_name
from gpusharing.planning.wanted.target import predict_resources
from gpusharing.planning.wanted.verify import EXCLUSIVE, effective_plugin_config, is_told_mps, served

INSTANCE = "-MIG-"
"""In GPU Feature Discovery's label of the product where MIG instances are served as GPUs, before their profile."""
MOST = 16
"""GPUs of one node: an HGX board has 8, and NVIDIA's largest of one system 16."""


def presume(node: NodeView, stack: StackView) -> GPUNodeView | None:
    """The reading that explains what the node shows; None: there is none, or its card is not in the table."""
    label = node.labels.get(names.LABEL_GPU_PRODUCT, "")
    config = effective_plugin_config(node, stack)
    if not label or config is None:
        return None
    card = find_card(label)
    mps = is_told_mps(node, stack)
    for count in range(1, MOST + 1):
        gpus = [
            GpuView(
                index=index,
                product=bare_product(label),
                mig_capable=bool(card and card.profiles),
                mig_enabled=False,
                mig_pending=False,
                compute_mode=EXCLUSIVE if mps else "Default",
                layout=None,
                profiles=card.profiles if card else (),
            )
            for index in range(count)
        ]
        layouts = _layouts(node, gpus, stack)
        if layouts is not None and predict_resources(layouts, config) == served(node):
            return _reading(node, gpus, layouts)
    return None


def _layouts(node: NodeView, gpus: Sequence[GpuView], stack: StackView) -> tuple[Layout | None, ...] | None:
    """What the label tells mig-manager to apply; None: that means nothing on these GPUs."""
    config = node.labels.get(names.LABEL_MIG_CONFIG, "")
    if not config or not gpus[0].mig_capable:
        # Under strategy single instances are called nvidia.com/gpu, as whole GPUs are; the product tells them apart.
        divided = INSTANCE in node.labels.get(names.LABEL_GPU_PRODUCT, "")
        return None if divided else (None,) * len(gpus)
    found = resolve_name(config, node.name, gpus, stack)
    return None if isinstance(found, Unresolved) else found


def _reading(node: NodeView, gpus: Sequence[GpuView], layouts: Sequence[Layout | None]) -> GPUNodeView:
    divided = tuple(
        replace(gpu, mig_enabled=layout is not None, layout=layout)
        for gpu, layout in zip(gpus, layouts, strict=True)
    )
    return GPUNodeView(node.name, node.uid, "", False, ObservedView("", False, "", divided))
