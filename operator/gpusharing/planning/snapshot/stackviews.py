"""NVIDIA's software in the cluster, and the configuration that we keep for it.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from typing import Any

from gpusharing.planning.snapshot.draviews import NO_DRA, DraView
from gpusharing.planning.vocabulary.values import value

MIG_MANAGER_SWITCH = "migManager.enabled"
"""The field of ClusterPolicy, by its path below `spec`, that turns mig-manager off."""
PLUGIN_SWITCH = "devicePlugin.enabled"
"""The field that turns the device plugin off."""


@value
class PlainStackView:
    """NVIDIA's device-plugin chart without the GPU Operator, which means without a ClusterPolicy. mig-manager may run beside it as a DaemonSet of its own."""

    daemon_set: str
    release: str
    """Empty if it is unknown."""
    mig_manager: str = ""
    """Empty if there is none."""
    pausable: bool = False
    """Whether all DaemonSets of the chart run only on nodes with nvidia.com/gpu.deploy.client=true."""


@value
class MpsDaemonView:
    """The GPU Operator's DaemonSet of MPS control daemons, with the facts that decide whether its config-manager can notify the daemon of a new configuration."""

    version: str
    """Empty if it is unknown."""
    program: str
    """Empty if the image decides it."""
    signalled: str | None
    """None if the variable is not set, or if its value comes from elsewhere (`valueFrom`)."""
    sees_host: bool
    name: str = "nvidia-device-plugin-mps-control-daemon"
    namespace: str = "gpu-operator"
    state: str = ""
    """Empty if they are unknown."""

    @property
    def plugin(self) -> str:
        """The device plugin with its version, for messages."""
        return f"device plugin {self.version}" if self.version else "a device plugin of an unknown version"


@value
class MpsRepairs:
    """The repairs of the MPS DaemonSet that the operator has counted (`planning/stack/mpsrepair.py`)."""

    count: int = 0
    plugin: str = ""
    """Empty if there was none."""
    state: str = ""
    """The `MpsDaemonView.state` from which the last repair was decided. Empty if there was none."""
    pending: bool = False


@value
class ClusterPolicyView:
    """The parts of NVIDIA's ClusterPolicy that can override us (docs/design/nvidia.md#d5)."""

    plugin_config_name: str
    """Empty if it is not set."""
    mig_strategy: str
    """Empty if it is not set."""
    mig_config_name: str
    """Empty if it is not set."""
    switches: Mapping[str, bool | str] = field(default_factory=dict)
    """The values of the fields that `stack/requirements.py` reads, by their path below `spec`; fields that are not set are left out."""
    plugin_default: str = ""
    """Empty if it is not set."""
    with_reboot: bool = False
    plugin_version: str = ""
    """Version of the device plugin, such as `v0.19.3`. Empty if ClusterPolicy does not name it."""
    mig_manager_version: str = ""
    """Version of mig-manager, such as `v0.13.1`. Empty if ClusterPolicy does not name it."""
    name: str = "cluster-policy"
    """Name of the object: `cluster-policy` with NVIDIA's chart, `gpu-cluster-policy` on OpenShift."""
    uid: str = ""
    """Empty if there is none."""
    ignored: bool = False
    """Whether the GPU Operator reports that it follows another ClusterPolicy (docs/design/nvidia.md#d7)."""
    plugin_config_setter: str = ""
    """Field manager that wrote `plugin_config_name` last. Empty if it is unknown."""
    mig_config_setter: str = ""
    """Field manager that wrote `mig_config_name` last. Empty if it is unknown."""
    configured: frozenset[str] = frozenset()
    """Fields that this operator has already set once, by path (`planning/stack/pointers.py`)."""
    tolerates_gate: bool = True
    tolerations: str = "[]"
    mps_daemon: MpsDaemonView | None = None
    """The GPU Operator's MPS daemon, or None if there is none, if it was not seen, or if it runs without config-manager."""
    plain: PlainStackView | None = None
    """The DaemonSets of NVIDIA's device-plugin chart, from which this view was made, or None if there is a ClusterPolicy."""
    namespace: str = ""
    """Empty if it does not."""

    def is_off(self, switch: str) -> bool:
        """Whether `switches` has False for the field with this path below `spec`."""
        return self.switches.get(switch) is False


@value
class FinderState:
    """A DaemonSet of Node Feature Discovery's worker."""

    name: str
    release: str
    """Empty if it is unknown."""
    tolerates_gate: bool
    tolerations: str


@value
class StartChange:
    """A node whose GPUs mig-manager would change, or may change, at its start (`planning/stack/migstart.py`)."""

    node: str
    why: str
    config: str = ""
    """A value for its label nvidia.com/mig.config with which mig-manager would leave its GPUs as they are. Empty if there is none or if it is unknown."""
    known: bool = True


@value
class StackView:
    """NVIDIA's software in the cluster and the ConfigMaps that we keep for it."""

    cluster_policy: ClusterPolicyView | None
    """The ClusterPolicy or its equivalent, or None if nothing of NVIDIA's was found."""
    gpu_cluster: bool
    plugin_configs: Mapping[str, str]
    mig_file: str
    """Empty before the first write."""
    written: Mapping[str, datetime]
    admin_mig_file: str = ""
    admin_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    missing_entries: tuple[str, ...] = ()
    """Device-plugin configurations that Nodes name but `plugin_configs` lacks, collected while ClusterPolicy does not name our ConfigMap."""
    unresolved_mig: Mapping[str, str] = field(default_factory=dict)
    """The mig-parted configuration that a Node names but `mig_file` does not give it, by the name of the Node (`pointers.find_unresolved`)."""
    start_changes: tuple[StartChange, ...] = ()
    """The nodes whose GPUs mig-manager would or may change at its start (`migstart.find_start_changes`). Collected only while something that we write or print would start or restart mig-manager."""
    strategy_users: Mapping[str, str] = field(default_factory=dict)
    """By node: the MIG devices that it would lose without ClusterPolicy's mig.strategy (`migstrategy.find_strategy_users`)."""
    missing_maps: tuple[str, ...] = ()
    generated_mig_files: Mapping[str, str] = field(default_factory=dict)
    plugin_map_exists: bool = True
    serves_our_mig_file: bool = False
    marked: bool = True
    write_error: str = ""
    """Empty if it was not refused."""
    rival_policies: tuple[str, ...] = ()
    """Names of the ClusterPolicies if it is unclear which of them the GPU Operator follows; `cluster_policy` is then the first of them. Empty otherwise."""
    pointer_error: str = ""
    """Empty if it did not fail."""
    foreign_map: str = ""
    """Empty if there is none."""
    twins: str = ""
    """A message with the remedy if two DaemonSets of NVIDIA's namespace run device plugins, or two run mig-manager, on the same nodes (`planning/stack/rivals.py`). Empty if that is not certain of any two."""
    finders: tuple[FinderState, ...] = ()
    intolerant_agents: str = ""
    """Empty if they do, or if none exists."""
    mps_repairs: MpsRepairs = MpsRepairs()
    mps_nodes: tuple[str, ...] = ()
    """Empty unless a repair is due."""
    repair_error: str = ""
    """Empty if it did not fail."""
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    dra: DraView = NO_DRA

    @property
    def with_reboot(self) -> bool:
        """Whether mig-manager reboots a node when a GPU cannot be reset, according to `cluster_policy` or, if there is none, to the mig-manager that runs without the GPU Operator (`dra`)."""
        policy = self.cluster_policy
        return self.dra.with_reboot if policy is None else policy.with_reboot

    @property
    def by_dra(self) -> bool:
        """Whether NVIDIA's DRA stack serves the GPUs of the cluster (`is_served_by_dra`)."""
        return is_served_by_dra(self.gpu_cluster, self.cluster_policy, self.dra)

    def generated_mig_file(self, node: str) -> str:
        """Return the mig-parted file that mig-manager generated on `node`."""
        return "" if self.serves_our_mig_file else self.generated_mig_files.get(node, "")


def is_served_by_dra(gpu_cluster: bool, policy: ClusterPolicyView | None, dra: DraView) -> bool:
    """Whether NVIDIA's DRA stack serves the GPUs of a cluster."""
    if gpu_cluster or dra.driver is None:
        return gpu_cluster
    return policy is None or (dra.driver.serves_gpus and policy.is_off(PLUGIN_SWITCH))


class Program(StrEnum):
    """One of NVIDIA's programs whose pods we may restart, by the value of the pods' label `label`."""

    MIG_MANAGER = "nvidia-mig-manager"
    MPS_DAEMON = "nvidia-device-plugin-mps-control-daemon"
    KUBELET_PLUGIN = "kubelet-plugin"

    @property
    def label(self) -> str:
        """The label that its pods carry."""
        return "dra-driver-nvidia-gpu-component" if self is Program.KUBELET_PLUGIN else "app"


@value
class Operand:
    """A pod of a `Program`."""

    namespace: str
    name: str
    uid: str
    ready: bool
    deleting: bool = False
    ready_since: datetime | None = None
    """Since when this process has seen it Ready, on a fenced node, or not `down`, on any node, if it is an MPS daemon; node clocks are never compared with ours."""
    lone_restarts: int = 0
    restart_cause: str = ""
    """Empty if it is unknown."""
    settling: bool = False
    """Whether config-manager of an MPS daemon is not running, so that `lone_restarts` cannot be compared yet."""
    down: bool = False
    """Other pods are never down."""


def find_active(views: Iterable[ClusterPolicyView]) -> tuple[ClusterPolicyView | None, tuple[str, ...]]:
    """Return a pair: the ClusterPolicy that the GPU Operator follows, or None if there is none, and a tuple of names."""
    policies = sorted(views, key=lambda policy: policy.name)
    heeded = [policy for policy in policies if not policy.ignored] or policies
    rivals = tuple(policy.name for policy in heeded)
    return (heeded[0] if heeded else None), (rivals if len(rivals) > 1 else ())
