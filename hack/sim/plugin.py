"""SIMULATED config-manager and device plugin: which configuration counts, and what a node then advertises.

Pure: docs/design/nvidia.md, b.1 to b.7, and docs/design/nvidia.md#served as functions. `operands.py` and `node.py`
give them time.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gpusharing.agent.library import GPU
from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.geometry import resource_name
from hack.sim.pluginfile import FileRefused, read
from hack.sim.settings import PluginVersion

MigStrategy = Literal["none", "single", "mixed"]
STRATEGIES: tuple[MigStrategy, ...] = ("none", "single", "mixed")


class PluginError(Exception):
    """The plugin exits with an error: bad configuration, or a layout that its strategy cannot serve."""


@dataclass(frozen=True, slots=True)
class SimPluginConfig:
    """A device plugin configuration (version v1), as far as it decides about names and counts."""

    mig_strategy: MigStrategy = "none"
    sharing: Literal["none", "time-slicing", "mps"] = "none"
    replicas: Mapping[str, int] | None = None
    """Resource name to replicas."""
    rename: bool = False
    """renameByDefault: a shared resource ends in `.shared`."""

    @property
    def clients(self) -> int | None:
        """Clients of MPS per GPU; None without MPS."""
        return (self.replicas or {}).get(RESOURCE_GPU) if self.sharing == "mps" else None


@lru_cache(maxsize=256)
def parse_config(text: str, strategy: str = "") -> SimPluginConfig:
    """Parse a configuration; unknown keys are ignored, as the plugin does. `strategy` is ClusterPolicy's
    mig.strategy, which beats the file (b.2). Raises PluginError."""
    try:
        file = read(text)
    except FileRefused as error:
        raise PluginError(str(error)) from None
    wanted = strategy or file.strategy or "none"
    found = next((known for known in STRATEGIES if known == wanted), None)
    if found is None:
        raise PluginError(f"invalid migStrategy {wanted!r}")
    if file.shared is None:
        return SimPluginConfig(found)
    return SimPluginConfig(found, file.shared.kind, file.shared.replicas, file.shared.rename)


def choose_key(label: str | None, keys: Sequence[str], default: str) -> str | None:
    """The key that config-manager loads: the label's, else the default's, else the empty configuration ("").

    None: the key does not exist, or none does at all, and config-manager exits 1 (b.4; 0.19.3 "no configuration files
    available").
    """
    if not keys:
        return None
    wanted = label or default
    return wanted if not wanted or wanted in keys else None


def advertised(
    gpus: Sequence[GPU], config: SimPluginConfig, version: PluginVersion = "0.20.0"
) -> dict[str, int]:
    """Resource name to count, as the plugin registers it; raises PluginError when it exits instead (b.6)."""
    if config.sharing == "mps":
        _refuse_mig(gpus, config)
    counts = Counter(_devices(gpus, config.mig_strategy, version))
    replicas = config.replicas or {}
    found: dict[str, int] = {}
    for name, count in sorted(counts.items()):
        shared = name in replicas
        found[f"{name}.shared" if shared and config.rename else name] = count * replicas.get(name, 1)
    return found


def single_profile(gpus: Sequence[GPU]) -> str:
    """The one profile that strategy single advertises, empty when MIG is off everywhere; raises PluginError."""
    if not any(map(_mig, gpus)):
        return ""
    if not all(map(_mig, gpus)):
        raise PluginError("all devices on the node must be configured with the same migEnabled value")
    if (empty := next((gpu for gpu in gpus if not gpu.instances), None)) is not None:
        raise PluginError(f"device {empty.index} has no MIG devices configured")
    profiles = sorted({instance.profile for gpu in gpus for instance in gpu.instances})
    if len(profiles) > 1:
        raise PluginError("more than one MIG device type present on node")
    return profiles[0]


def _refuse_mig(gpus: Sequence[GPU], config: SimPluginConfig) -> None:
    """MPS and MIG exclude each other (docs/design/hardware.md#mig-mps); the plugin does not ask for the card's limit,
    the daemon does."""
    if config.mig_strategy == "mixed":
        raise PluginError("using --mig-strategy=mixed is not supported with MPS")
    if any(map(_mig, gpus)):
        raise PluginError("sharing using MPS is not supported for MIG devices")


def _devices(gpus: Sequence[GPU], strategy: MigStrategy, version: PluginVersion) -> list[str]:
    """One resource name per device."""
    if strategy == "none":  # wrong, but so it is (docs/design/hardware.md#mig-none)
        return [RESOURCE_GPU for _ in gpus]
    if strategy == "single":
        if not single_profile(gpus):
            return [RESOURCE_GPU for _ in gpus]
        return [RESOURCE_GPU for gpu in gpus for _ in gpu.instances]
    return [name for gpu in gpus for name in _mixed_devices(gpu, version)]


def _mixed_devices(gpu: GPU, version: PluginVersion) -> list[str]:
    """The resource names of one GPU with strategy mixed: its own, or with MIG on one per instance."""
    if not _mig(gpu):
        return [RESOURCE_GPU]
    return [_mig_resource(instance.profile, version) for instance in gpu.instances]


def _mig_resource(profile: str, version: PluginVersion) -> str:
    if version == "0.19.3":  # its patterns are not anchored: attributes cannot be told apart (DP PR#1807)
        return resource_name(re.sub(r"[+-].*", "", profile))
    return resource_name(profile)


def _mig(gpu: GPU) -> bool:
    return gpu.mig_mode == "Enabled"
