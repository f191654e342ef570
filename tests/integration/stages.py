"""The installations of NVIDIA's software on which scenarios of the crash and the fault matrix play."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hack.nvidia.installations import PLAIN_NAMESPACE
from tests.integration.draproduct import dra_product
from tests.integration.mpsset import ASKED, repairing_product
from tests.integration.plainproduct import plain_product
from tests.integration.product import Product

Stage = Literal["usual", "plain", "dra", "repairing"]
"""`usual` is the GPU Operator of the fixture `product`. The others are in `OTHERS`."""


@dataclass(frozen=True)
class OwnStage:
    """An installation that needs a control plane of its own."""

    open: Callable[[Path], AbstractContextManager[Product]]
    """Starts everything except the operator; its files are in the folder."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the operator there, by field."""

    @property
    def environment(self) -> dict[str, str]:
        """The settings as the operator's environment variables."""
        return {f"GPUSHARING_{name.upper()}": text for name, text in self.settings.items()}


OTHERS: Mapping[str, OwnStage] = {
    "plain": OwnStage(plain_product, {"gpu_operator_namespace": PLAIN_NAMESPACE}),
    "dra": OwnStage(dra_product),
    "repairing": OwnStage(repairing_product, ASKED),
}
"""NVIDIA's device-plugin chart and mig-manager instead of the GPU Operator; NVIDIA's DRA driver instead of the device plugin; and the GPU Operator whose MPS DaemonSet the operator may repair."""
