"""The device plugin's configuration: what a mode means there, its text, and reading somebody else's.

Format and precedence: nvidia-actuators.md b.1-b.4 (k8s-device-plugin api/config/v1). Keys are content-hashed and
never change their meaning, because config-manager does not notice an edit under the same key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import yaml

from gpusharing.api.names import RESOURCE_GPU

MigStrategy = Literal["none", "single", "mixed"]
STRATEGIES: Mapping[str, MigStrategy] = {"none": "none", "single": "single", "mixed": "mixed"}


@dataclass(frozen=True, slots=True)
class Sharing:
    """Time-slicing of one or more resources. Replicas are shares per device."""

    replicas: tuple[tuple[str, int], ...]
    rename: bool = False
    fail_requests_greater_than_one: bool = False


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """What one device-plugin configuration makes the plugin do."""

    mig_strategy: MigStrategy = "none"
    sharing: Sharing | None = None

    def same_effect(self, other: "PluginConfig", *, with_mig: bool) -> bool:
        """Whether both serve the same; the MIG strategy matters only where MIG instances exist."""
        return self.sharing == other.sharing and (not with_mig or self.mig_strategy == other.mig_strategy)


@lru_cache(maxsize=256)
def render(config: PluginConfig) -> str:
    """The text of a configuration; equal configurations give equal text."""
    document: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": config.mig_strategy}}
    if config.sharing is not None:
        document["sharing"] = {
            "timeSlicing": {
                "renameByDefault": config.sharing.rename,
                "failRequestsGreaterThanOne": config.sharing.fail_requests_greater_than_one,
                "resources": [{"name": name, "replicas": count} for name, count in config.sharing.replicas],
            }
        }
    return yaml.safe_dump(document, sort_keys=False)


def parse(text: str) -> PluginConfig | None:
    """Read a configuration; None when it is none, or does something that no mode of ours does (MPS)."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if not isinstance(document, dict):
        return None
    flags = document.get("flags") or {}
    sharing = document.get("sharing") or {}
    if not isinstance(flags, dict) or not isinstance(sharing, dict) or sharing.get("mps"):
        return None
    strategy = STRATEGIES.get(str(flags.get("migStrategy") or "none"))
    if strategy is None:
        return None
    slicing = sharing.get("timeSlicing")
    return PluginConfig(strategy, _parse_sharing(slicing) if isinstance(slicing, dict) else None)


def _parse_sharing(block: Mapping[str, Any]) -> Sharing | None:
    rows: list[tuple[str, int]] = []
    for row in block.get("resources") or ():
        if isinstance(row, dict) and isinstance(row.get("replicas"), int):
            name = str(row.get("name", ""))
            rows.append((name if "/" in name else f"nvidia.com/{name}", row["replicas"]))
    if not rows:
        return None
    return Sharing(
        tuple(sorted(rows)), bool(block.get("renameByDefault")), bool(block.get("failRequestsGreaterThanOne"))
    )


def key_for(policy: str, content: str) -> str:
    """Name of an entry: the policy, shortened to fit a label value, and a hash of the content."""
    digest = sha256(content.encode()).hexdigest()[:7]
    return f"{policy[:55].rstrip('-.')}-{digest}"


def shared_gpus(replicas: int, *, rename: bool, fail_greater_than_one: bool) -> PluginConfig:
    """Time-slicing of whole GPUs."""
    return PluginConfig("none", Sharing(((RESOURCE_GPU, replicas),), rename, fail_greater_than_one))
