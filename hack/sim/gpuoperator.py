"""The fields of ClusterPolicy that the SIMULATED software follows, and the GPU Operator's own labels."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpusharing.api.names import LABEL_DEPLOY_PREFIX, LABEL_GPU_PRESENT, LABEL_MIG_CONFIG, LABEL_WORKLOAD_CONFIG
from gpusharing.kube.client import JSON
from hack.sim.settings import SimSettings

OPERANDS = ("device-plugin", "gpu-feature-discovery", "dcgm-exporter", "dcgm", "operator-validator")
LABEL_DEPLOY_MIG_MANAGER = f"{LABEL_DEPLOY_PREFIX}mig-manager"
LABEL_DEPLOY_OPERANDS = f"{LABEL_DEPLOY_PREFIX}operands"
CONTAINER = "container"
ALL_DISABLED = "all-disabled"
"""The only default that the GPU Operator writes (GO controllers/state_manager.go labelGPUNodes)."""
_SWITCHED = {
    "devicePlugin": ("device-plugin", "mps-control-daemon"),
    "gfd": ("gpu-feature-discovery",),
    "migManager": ("mig-manager",),
}
"""The operands that `enabled: false` in a block of ClusterPolicy turns off (GO controllers/state_manager.go
isStateEnabled at v26.7.0)."""


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """The fields that affect a node (docs/design/nvidia.md#d1), with the chart's defaults, except for the strategy."""

    plugin_config: str = ""
    """ConfigMap of the device plugin's configurations; empty if none is named."""
    plugin_default: str = ""
    """The key in that ConfigMap for nodes without the label; empty for the built-in configuration."""
    mig_strategy: str = ""
    """MIG strategy of device plugin and GFD; empty leaves it to their configuration."""
    mig_config: str = ""
    """ConfigMap of mig-parted configurations; empty for the file that mig-manager generates."""
    mig_default: str = ALL_DISABLED
    """The configuration that the GPU Operator writes into the label of a new node."""
    with_reboot: bool = False
    """Whether mig-manager reboots the node when a MIG mode cannot be set."""
    versions: tuple[str, str] = ("", "")
    """The versions of the device plugin and of mig-manager that replace the GPU Operator's own."""
    tolerations: str = "[]"
    off: frozenset[str] = frozenset()
    """Operands that are turned off, by the suffixes of their deploy labels."""
    workload: str = CONTAINER
    """The kind of workload for nodes without LABEL_WORKLOAD_CONFIG."""
    sandboxes: bool = False
    """Whether LABEL_WORKLOAD_CONFIG has any effect (sandboxWorkloads.enabled)."""
    plain: bool = False
    """Whether no GPU Operator writes labels: NVIDIA's device-plugin chart runs with its `config.name` set, or its DRA
    driver with a mig-manager of its own. The chart's DaemonSets require nvidia.com/gpu.deploy.client=true if
    mig-manager runs beside it, and otherwise no deploy label."""


def default_policy(settings: SimSettings) -> ClusterPolicy:
    """Return the settings before any ClusterPolicy is seen; without a GPU Operator, those of NVIDIA's charts."""
    config, mig_config = settings.plain_config, settings.plain_mig
    if not config and not (settings.dra and mig_config):
        return ClusterPolicy()
    off = frozenset(operand for operands in _SWITCHED.values() for operand in operands) - {"mig-manager"}
    return ClusterPolicy(
        plugin_config=config, mig_config=mig_config, mig_default="", plain=True, off=frozenset() if config else off
    )


def cluster_policy(objects: Iterable[JSON]) -> ClusterPolicy:
    """Return the settings of the oldest ClusterPolicy, as the GPU Operator ignores the others."""
    policies = sorted(objects, key=lambda o: (o["metadata"].get("creationTimestamp", ""), o["metadata"]["name"]))
    if not policies:
        return ClusterPolicy()
    spec = policies[0].get("spec") or {}
    plugin, mig = _at(spec, "devicePlugin", "config"), _at(spec, "migManager")
    sandbox = _at(spec, "sandboxWorkloads")
    env = {entry.get("name"): entry.get("value") for entry in mig.get("env") or []}
    return ClusterPolicy(
        plugin_config=plugin.get("name") or "",
        plugin_default=plugin.get("default") or "",
        mig_strategy=_at(spec, "mig").get("strategy") or "",
        mig_config=_at(mig, "config").get("name") or "",
        mig_default=_at(mig, "config").get("default", ALL_DISABLED),
        with_reboot=env.get("WITH_REBOOT") in ("1", "t", "T", "true", "TRUE", "True"),  # Go's strconv.ParseBool
        versions=(_at(spec, "devicePlugin").get("version") or "", mig.get("version") or ""),
        tolerations=json.dumps(_at(spec, "daemonsets").get("tolerations") or []),
        off=frozenset(
            operand
            for block, operands in _SWITCHED.items()
            if _at(spec, block).get("enabled") is False
            for operand in operands
        ),
        workload=sandbox.get("defaultWorkload") or CONTAINER if sandbox.get("enabled") else CONTAINER,
        sandboxes=bool(sandbox.get("enabled")),
    )


def operator_labels(labels: Mapping[str, str], policy: ClusterPolicy, *, mig_capable: bool) -> dict[str, str | None]:
    """Return the GPU Operator's changes to a node: it sets each of its labels that is missing or empty (d.1, d.2)."""
    if policy.plain:
        return {}
    wanted = {LABEL_GPU_PRESENT: "true"}
    if mig_capable and "mig-manager" not in policy.off and policy.mig_default == ALL_DISABLED:
        wanted[LABEL_MIG_CONFIG] = ALL_DISABLED
    off = labels.get(LABEL_DEPLOY_OPERANDS) == "false"
    if off or (policy.sandboxes and (labels.get(LABEL_WORKLOAD_CONFIG) or policy.workload) != CONTAINER):
        ours = (LABEL_DEPLOY_MIG_MANAGER, *(f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in OPERANDS))
        missing: dict[str, str | None] = {key: value for key, value in wanted.items() if not labels.get(key)}
        return missing | {key: None for key in ours if key in labels}
    wanted |= {f"{LABEL_DEPLOY_PREFIX}{operand}": "true" for operand in OPERANDS}
    if mig_capable:
        wanted[LABEL_DEPLOY_MIG_MANAGER] = "true"
    return {key: value for key, value in wanted.items() if not labels.get(key)}


def _at(tree: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for key in path:
        tree = tree.get(key) or {}
    return tree
