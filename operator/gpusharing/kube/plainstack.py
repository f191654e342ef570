"""NVIDIA's device-plugin chart without the GPU Operator: what ClusterPolicy would say, read from its DaemonSets.

Names are those of the chart in k8s-device-plugin, deployments/helm/nvidia-device-plugin (v0.19.3); tests/nvidia holds
what is read here to its rendered templates.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text, texts
from gpusharing.kube.startgate import tolerates, tolerations_text
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, PlainStackView

PLUGIN, DISCOVERY = "nvidia-device-plugin-ctr", "gpu-feature-discovery-ctr"
MPS = "mps-control-daemon-ctr"
"""Containers by which the chart's DaemonSets are known; the GPU Operator's have other names."""
CONFIGS = "available-configs"
"""The volume that config-manager takes configurations from."""


@dataclass(frozen=True, slots=True)
class DaemonSetView:
    """What one DaemonSet in the namespace of NVIDIA's components says."""

    name: str
    release: str
    """The Helm release, from its label."""
    plugin: bool
    discovery: bool
    config_map: str
    """Name of the ConfigMap that it mounts for config-manager; empty: it has none."""
    default: str = ""
    """Configuration for nodes without the label."""
    mig_strategy: str = ""
    version: str = ""
    tolerates_gate: bool = True
    """Its pods may start behind the start-up taint."""
    tolerations: str = "[]"
    """Those of its pods, as JSON."""
    mps_sees_host: bool = False
    """It is the MPS daemon's, and its pods see the processes of their host."""


_OTHER = DaemonSetView("", "", False, False, "")


def daemon_set_view(raw: JSON) -> DaemonSetView:
    """A DaemonSet; the same empty view for all that are not of the chart, and for the GPU Operator's own."""
    owners = entries(raw, "metadata", "ownerReferences")
    template = section(raw, "spec", "template", "spec")
    containers = {text(one, "name"): one for one in entries(template, "containers")}
    if any(owner.get("kind") == "ClusterPolicy" for owner in owners) or not (
        containers.keys() & {PLUGIN, DISCOVERY, MPS}
    ):
        return _OTHER
    if MPS in containers:
        return replace(_OTHER, mps_sees_host=template.get("hostPID") is True)
    main = containers.get(PLUGIN) or containers[DISCOVERY]
    init = entries(template, "initContainers")
    volumes = (one for one in entries(template, "volumes") if one.get("name") == CONFIGS)
    return DaemonSetView(
        name=text(raw, "metadata", "name"),
        release=texts(raw.get("metadata", {}).get("labels")).get("app.kubernetes.io/instance", ""),
        plugin=PLUGIN in containers,
        discovery=DISCOVERY in containers,
        config_map=next((text(one, "configMap", "name") for one in volumes), ""),
        default=next((found for one in init if (found := _variable(one, "DEFAULT_CONFIG"))), ""),
        mig_strategy=_variable(main, "MIG_STRATEGY"),
        version=text(main, "image").rpartition(":")[2],
        tolerates_gate=tolerates(entries(template, "tolerations")),
        tolerations=tolerations_text(entries(template, "tolerations")),
    )


def _variable(container: JSON, name: str) -> str:
    return next((text(one, "value") for one in entries(container, "env") if one.get("name") == name), "")


def plain_stack(sets: Iterable[DaemonSetView]) -> ClusterPolicyView | None:
    """What stands in the place of a ClusterPolicy; None where the chart is not installed either."""
    sets = list(sets)
    found = sorted((one for one in sets if one.plugin or one.discovery), key=lambda one: one.name)
    plugin = next((one for one in found if one.plugin), None)
    if plugin is None:
        return None
    discovers = any(one.discovery and one.config_map == plugin.config_map for one in found)
    narrow = next((one for one in found if not one.tolerates_gate), plugin)
    return ClusterPolicyView(
        plugin_config_name=plugin.config_map,
        mig_strategy=plugin.mig_strategy,
        mig_manager_enabled=False,
        mig_config_name="",
        plugin_default=plugin.default,
        plugin_version=plugin.version,
        tolerates_gate=narrow.tolerates_gate,
        tolerations=narrow.tolerations,
        mps_sees_host=any(one.mps_sees_host for one in sets),
        plain=PlainStackView(plugin.name, plugin.release, discovers),
    )
