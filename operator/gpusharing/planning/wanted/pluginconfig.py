"""The device plugin's configuration: what a mode means there, its text, and how to read that of others.

Format and precedence: docs/design/nvidia.md#b1 to b.4 (k8s-device-plugin v0.19.3 api/config/v1). Keys are
content-hashed and never change their meaning (docs/design/transition.md#plugin-entries), because config-manager does
not notice an edit under the same key.
"""

from collections.abc import Container, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Literal

import yaml

from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.pluginfile import field_of, find_flaws
from gpusharing.planning.wanted.yamltext import parse_yaml

MigStrategy = Literal["none", "single", "mixed"]
STRATEGIES: Mapping[str, MigStrategy] = {"none": "none", "single": "single", "mixed": "mixed"}

NEUTRAL_KEY, NEUTRAL = "default", "version: v1\n"
"""The entry that always exists, and its text: nothing is shared, every flag has the plugin's default.

config-manager 0.19.3 ends with "no configuration files available" when there is no entry at all, and the pods of the
device plugin and GFD do not start. Where no label and no DEFAULT_CONFIG names an entry, its fallback `named` takes the
one of this name; without it, `single` would take the only entry there is, which is some policy's
(cmd/config-manager/main.go, b.4). The GPU Operator's fallback is `empty`, which means the same as this text.
"""


def default_entry(stack: StackView) -> str:
    """The entry that the device plugin of a node without the label uses; empty: none, which shares nothing.

    NVIDIA's own chart takes the one of the neutral name where it is not told another (b.4).
    """
    policy = stack.cluster_policy
    if policy is None or policy.plugin_default:
        return policy.plugin_default if policy is not None else ""
    return NEUTRAL_KEY if policy.plain is not None and NEUTRAL_KEY in stack.plugin_configs else ""


SharingStrategy = Literal["time-slicing", "mps"]
"""As GFD writes it into nvidia.com/gpu.sharing-strategy."""
_BLOCKS: Mapping[SharingStrategy, str] = {"mps": "mps", "time-slicing": "timeSlicing"}
"""Key of the block under `sharing`; with both, the plugin takes mps (b.3)."""


@value
class Sharing:
    """Several pods on one device. Replicas are shares per device, by resource name."""

    replicas: tuple[tuple[str, int], ...]
    """Resource name and how many pods share one device of it."""
    rename: bool = False
    """Whether the shared resource has `.shared` behind its name."""
    fail_requests_greater_than_one: bool = False
    """Whether a container that asks for more than one is refused."""
    strategy: SharingStrategy = "time-slicing"
    """How the pods share it."""


@value
class PluginConfig:
    """What one device-plugin configuration makes the plugin do."""

    mig_strategy: MigStrategy = "none"
    """How MIG instances are offered."""
    sharing: Sharing | None = None
    """None: one pod has a whole device."""

    def on(self, names: Container[str]) -> "PluginConfig":
        """Its effect on a node that has only these resources: rows for others do nothing there."""
        if self.sharing is None:
            return self
        rows = tuple(row for row in self.sharing.replicas if row[0] in names)
        return replace(self, sharing=replace(self.sharing, replicas=rows) if rows else None)

    def same_effect(self, other: "PluginConfig", *, with_mig: bool) -> bool:
        """Whether both serve the same; the MIG strategy only matters if MIG instances exist."""
        return self.sharing == other.sharing and (not with_mig or self.mig_strategy == other.mig_strategy)


@lru_cache(maxsize=256)
def render(config: PluginConfig) -> str:
    """The text of a configuration; equal configurations give equal text."""
    document: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": config.mig_strategy}}
    if config.sharing is not None:
        document["sharing"] = {
            _BLOCKS[config.sharing.strategy]: {
                "renameByDefault": config.sharing.rename,
                "failRequestsGreaterThanOne": config.sharing.fail_requests_greater_than_one,
                "resources": [{"name": name, "replicas": count} for name, count in config.sharing.replicas],
            }
        }
    return yaml.safe_dump(document, sort_keys=False)


@lru_cache(maxsize=1024)
def parse(text: str) -> PluginConfig | None:
    """Read a configuration; None when the device plugin would not start with it."""
    if any(flaw.refused for flaw in find_flaws(text)):
        return None
    document = parse_yaml(text)
    strategy = STRATEGIES[field_of(field_of(document, "flags"), "migStrategy") or "none"]
    for kind, block in _BLOCKS.items():
        if (found := field_of(field_of(document, "sharing"), block)) is not None:
            return PluginConfig(strategy, _parse_sharing(found, kind))
    return PluginConfig(strategy)


def _parse_sharing(block: Mapping[str, Any], strategy: SharingStrategy) -> Sharing:
    rows = [(row["name"], row["replicas"]) for row in block["resources"]]
    fails = block.get("failRequestsGreaterThanOne")
    return Sharing(
        tuple(sorted((name if "/" in name else f"nvidia.com/{name}", count) for name, count in rows)),
        bool(block.get("renameByDefault")),
        strategy == "mps" if fails is None else fails,  # the default of MPS is true (b.3)
        strategy,
    )


@lru_cache(maxsize=1024)
def key_for(policy: str, content: str) -> str:
    """Name of an entry: the policy, shortened to fit a label value, and a hash of the content."""
    return f"{policy[:55].rstrip('-.')}-{_digest(content)}"


def is_named_after(content: str, key: str) -> bool:
    """Whether `key_for` gave the entry its name, which then has only one meaning."""
    return key.endswith(f"-{_digest(content)}")


def _digest(content: str) -> str:
    return sha256(content.encode(errors="surrogatepass")).hexdigest()[:7]
