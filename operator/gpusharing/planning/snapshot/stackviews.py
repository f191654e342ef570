"""NVIDIA's software in the cluster, and the configuration that we keep for it."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Any

from gpusharing.planning.words.values import value


@value
class PlainStackView:
    """NVIDIA's device-plugin chart without the GPU Operator: no ClusterPolicy, no mig-manager."""

    daemon_set: str
    """The device plugin's."""
    release: str
    """Of Helm; empty when unknown."""
    discovers: bool
    """GPU Feature Discovery is there and reads the same ConfigMap."""


@value
class MpsDaemonView:
    """The GPU Operator's DaemonSet of MPS control daemons, as far as it shows whether they notice a new
    configuration."""

    version: str
    """Of the device plugin's image, which it runs; empty when unknown."""
    program: str
    """The name under which the daemon runs."""
    signalled: str
    """The name of the process that its config-manager looks for."""
    sees_host: bool
    """Its pods see the processes of their host."""


@value
class ClusterPolicyView:
    """NVIDIA's ClusterPolicy, as far as it can override us (docs/design/nvidia.md#d5), or its substitute."""

    plugin_config_name: str
    mig_strategy: str
    mig_manager_enabled: bool
    mig_config_name: str
    plugin_default: str = ""
    """Device-plugin configuration for nodes without the label."""
    with_reboot: bool = False
    """mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    plugin_version: str = ""
    mig_manager_version: str = ""
    """Of device plugin and mig-manager, as `v0.19.3`; empty when ClusterPolicy does not name it."""
    name: str = "cluster-policy"
    """What the object is called: `cluster-policy` by NVIDIA's chart, `gpu-cluster-policy` on OpenShift."""
    uid: str = ""
    ignored: bool = False
    """The GPU Operator says that it follows another one (docs/design/nvidia.md#d7)."""
    plugin_config_setter: str = ""
    mig_config_setter: str = ""
    """Field managers that last wrote the two names; empty when unknown."""
    configured: frozenset[str] = frozenset()
    """Fields that the operator has set once (`planning/stack/pointers.py`)."""
    tolerates_gate: bool = True
    """NVIDIA's pods may run behind the start-up taint."""
    tolerations: str = "[]"
    """Their tolerations as JSON."""
    mps_daemon: MpsDaemonView | None = None
    """The GPU Operator's; None: not there, or not seen."""
    plain: PlainStackView | None = None
    """There is no ClusterPolicy; the DaemonSets of NVIDIA's device-plugin chart answer the same questions."""


@value
class StackView:
    """NVIDIA's software in the cluster and the configuration we keep for it."""

    cluster_policy: ClusterPolicyView | None
    gpu_cluster: bool
    """NVIDIA's DRA stack is installed: our labels would have no effect."""
    plugin_configs: Mapping[str, str]
    """Device-plugin configurations by key, as the ConfigMap holds them now."""
    mig_file: str
    """The mig-parted file we render, empty before the first write."""
    written: Mapping[str, datetime]
    """When an entry of either ConfigMap was written, by key."""
    admin_mig_file: str = ""
    """mig-parted entries of the admin's own ConfigMap, merged into ours."""
    admin_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    """Device-plugin configurations of the admin's own ConfigMap, by key; merged into ours as they are."""
    missing_entries: tuple[str, ...] = ()
    """Device-plugin configurations that Nodes name and `plugin_configs` lacks, while the pointer is not at ours."""
    missing_maps: tuple[str, ...] = ()
    """The admin's own ConfigMaps that a setting names and that do not exist."""
    generated_mig_files: Mapping[str, str] = field(default_factory=dict)
    """By node: the configuration that mig-manager >= 0.14 generated from its hardware."""
    plugin_map_exists: bool = True
    """The device-plugin ConfigMap exists; NVIDIA's pods cannot start while ClusterPolicy names one that does not."""
    serves_our_mig_file: bool = False
    """ClusterPolicy points mig-manager at our ConfigMap."""
    marked: bool = True
    """Our label is on our two ConfigMaps, as far as they exist."""
    write_error: str = ""
    """Why the last write of them was refused."""
    rival_policies: tuple[str, ...] = ()
    """ClusterPolicies among which we cannot tell which one the GPU Operator follows; `cluster_policy` is then the
    first of them."""
    pointer_error: str = ""
    """Why ClusterPolicy could not be pointed at them."""
    foreign_map: str = ""
    """Name of a ConfigMap that somebody else created and filled under the name of ours."""
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The entries named after their content that this process has read: a lost entry can be restored."""


@value
class Operand:
    """A pod of NVIDIA's that we may restart: mig-manager, or the MPS control daemon."""

    namespace: str
    name: str
    uid: str
    ready: bool
    deleting: bool = False
    """Somebody deleted it already; it is on its way out."""
    ready_since: datetime | None = None
    """Since when this process has seen it Ready, on a fenced node; clocks of nodes are never compared with ours."""
