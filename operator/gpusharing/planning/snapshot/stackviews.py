"""NVIDIA's software in the cluster, and the configuration that we keep for it.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any

from gpusharing.planning.vocabulary.values import value

MIG_MANAGER_SWITCH = "migManager.enabled"
"""The field of ClusterPolicy, by its path below `spec`, that turns mig-manager off."""


@value
class PlainStackView:
    """NVIDIA's device-plugin chart without the GPU Operator: no ClusterPolicy, no mig-manager."""

    daemon_set: str
    """Name of the device plugin's DaemonSet."""
    release: str
    """Name of its Helm release. Empty if it is unknown."""


@value
class MpsDaemonView:
    """The GPU Operator's DaemonSet of MPS control daemons, as far as it shows whether they learn of a configuration."""

    version: str
    """Version of the device plugin's image, which the daemon runs. Empty if it is unknown."""
    program: str
    """The name under which the daemon runs."""
    signalled: str
    """The name of the process that its config-manager looks for."""
    sees_host: bool
    """Whether its pods see the processes of their host."""
    name: str = "nvidia-device-plugin-mps-control-daemon"
    """Name of the DaemonSet."""
    namespace: str = "gpu-operator"
    """Namespace of the DaemonSet."""


@value
class ClusterPolicyView:
    """NVIDIA's ClusterPolicy, as far as it can override us (docs/design/nvidia.md#d5), or what stands in for it where
    NVIDIA's device-plugin chart runs without the GPU Operator."""

    plugin_config_name: str
    """devicePlugin.config.name. Empty if it is not set."""
    mig_strategy: str
    """mig.strategy. Empty if it is not set."""
    mig_config_name: str
    """migManager.config.name. Empty if it is not set."""
    switches: Mapping[str, bool | str] = field(default_factory=dict)
    """The values of the fields that `stack/requirements.py` reads, by their path below `spec`; fields that are not set
    are left out. Without a ClusterPolicy they are the values that the programs which run would need."""
    plugin_default: str = ""
    """devicePlugin.config.default: the device-plugin configuration for nodes without the label. Empty if it is not
    set."""
    with_reboot: bool = False
    """Whether mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    plugin_version: str = ""
    """Version of the device plugin, such as `v0.19.3`. Empty if ClusterPolicy does not name it."""
    mig_manager_version: str = ""
    """Version of mig-manager, such as `v0.13.1`. Empty if ClusterPolicy does not name it."""
    name: str = "cluster-policy"
    """Name of the object: `cluster-policy` with NVIDIA's chart, `gpu-cluster-policy` on OpenShift."""
    uid: str = ""
    """UID of the object. Empty if there is none."""
    ignored: bool = False
    """Whether the GPU Operator says that it follows another one (docs/design/nvidia.md#d7)."""
    plugin_config_setter: str = ""
    """Field manager that wrote `plugin_config_name` last. Empty if it is unknown."""
    mig_config_setter: str = ""
    """Field manager that wrote `mig_config_name` last. Empty if it is unknown."""
    configured: frozenset[str] = frozenset()
    """Fields that the operator has set once (`planning/stack/pointers.py`)."""
    tolerates_gate: bool = True
    """Whether NVIDIA's pods tolerate the start-up taint."""
    tolerations: str = "[]"
    """The tolerations of NVIDIA's pods as JSON."""
    mps_daemon: MpsDaemonView | None = None
    """The GPU Operator's MPS daemon, or None if there is none or it was not seen."""
    plain: PlainStackView | None = None
    """The DaemonSets of NVIDIA's device-plugin chart, from which this view was made, or None if there is a
    ClusterPolicy."""
    namespace: str = ""
    """Namespace of NVIDIA's pods, as status.namespace says. Empty if it does not."""

    def is_off(self, switch: str) -> bool:
        """Whether the field with this path is false. A field that is not set does not turn its program off."""
        return self.switches.get(switch) is False


@value
class FinderState:
    """A DaemonSet of Node Feature Discovery's worker, without which a node is not known to have a GPU."""

    name: str
    """Name of the DaemonSet."""
    release: str
    """Name of its Helm release. Empty if it is unknown."""
    tolerates_gate: bool
    """Whether its pods may run behind the start-up taint."""
    tolerations: str
    """The tolerations of its pods as JSON."""


@value
class StackView:
    """NVIDIA's software in the cluster and the configuration that we keep for it."""

    cluster_policy: ClusterPolicyView | None
    """What serves the GPUs, or None if nothing was found."""
    gpu_cluster: bool
    """Whether NVIDIA's DRA stack is installed: our labels would have no effect."""
    plugin_configs: Mapping[str, str]
    """Device-plugin configurations by key, as they are in our ConfigMap now."""
    mig_file: str
    """The mig-parted file that we render. Empty before the first write."""
    written: Mapping[str, datetime]
    """When each entry of either ConfigMap was written, by key."""
    admin_mig_file: str = ""
    """mig-parted entries of the admin's own ConfigMap, merged into ours."""
    admin_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    """Device-plugin configurations of the admin's own ConfigMap, by key; merged into ours as they are."""
    missing_entries: tuple[str, ...] = ()
    """Device-plugin configurations that Nodes name and `plugin_configs` lacks, while the pointer is not at ours."""
    missing_maps: tuple[str, ...] = ()
    """ConfigMaps of the admin that a setting names, and that do not exist."""
    generated_mig_files: Mapping[str, str] = field(default_factory=dict)
    """The configuration that mig-manager >= 0.14 generated from the hardware of each node, by node."""
    plugin_map_exists: bool = True
    """Whether our device-plugin ConfigMap exists; NVIDIA's pods cannot start while ClusterPolicy names a missing
    one."""
    serves_our_mig_file: bool = False
    """Whether ClusterPolicy points mig-manager at our ConfigMap."""
    marked: bool = True
    """Whether both of our ConfigMaps have our label; one that does not exist is not counted."""
    write_error: str = ""
    """Why the last write of our ConfigMaps was refused. Empty if it was not refused."""
    rival_policies: tuple[str, ...] = ()
    """ClusterPolicies among which we cannot tell which one the GPU Operator follows; `cluster_policy` is then the
    first of them."""
    pointer_error: str = ""
    """Why ClusterPolicy could not be pointed at our ConfigMaps. Empty if nothing prevented it."""
    foreign_map: str = ""
    """Name of a ConfigMap that somebody else created and filled under the name of one of ours. Empty if there
    is none."""
    finders: tuple[FinderState, ...] = ()
    """The DaemonSets of Node Feature Discovery's worker in the namespace of NVIDIA's components; the operator may read
    no other namespace."""
    intolerant_agents: str = ""
    """Namespace of the agent's pods, if those that exist do not tolerate the start-up taint. Empty if they do, or if
    none was seen."""
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    """Device-plugin entries that this process has read, by key. Entries named by their content can be restored from
    here when they are lost."""
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """mig-parted entries that this process has read, by key, for the same purpose."""

    def generated_mig_file(self, node: str) -> str:
        """Return the file that mig-manager generated on this node. Empty if mig-manager reads our file instead, or
        generated nothing."""
        return "" if self.serves_our_mig_file else self.generated_mig_files.get(node, "")


@value
class Operand:
    """A pod of NVIDIA's software that we may restart: mig-manager, or the MPS control daemon."""

    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod."""
    ready: bool
    """Whether its condition Ready is True."""
    deleting: bool = False
    """Whether it is already being deleted."""
    ready_since: datetime | None = None
    """Since when this process has seen it Ready, on a fenced node; clocks of nodes are never compared with ours."""


def find_active(views: Iterable[ClusterPolicyView]) -> tuple[ClusterPolicyView | None, tuple[str, ...]]:
    """Return the ClusterPolicy that the GPU Operator follows, or None if there is none, and the names of those among
    which that cannot be decided. If there are such names, the policy returned is the first of them; otherwise they
    are empty.

    The GPU Operator marks all but one as `ignored`. Before it has looked, or while it is away, it may have marked
    none. A single ClusterPolicy is the one, whatever its mark.
    """
    policies = sorted(views, key=lambda policy: policy.name)
    heeded = [policy for policy in policies if not policy.ignored] or policies
    rivals = tuple(policy.name for policy in heeded)
    return (heeded[0] if heeded else None), (rivals if len(rivals) > 1 else ())
