"""What is known of NVIDIA's programs and its DRA stack, as read from the cluster?

The DRA stack is the driver that serves GPUs to ResourceClaims, the devices that it publishes, and our DeviceClasses and
DeviceTaintRules for them. The names of programs, attributes and settings are as in dra-driver-nvidia-gpu v0.5.0.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from typing import Any

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.vocabulary.commands import Change, Effect
from gpusharing.planning.vocabulary.values import value

DRA_DRIVER = "gpu.nvidia.com"
"""The name under which NVIDIA's DRA driver publishes GPUs and MIG devices in ResourceSlices."""


@value
class DaemonSetState:
    """A DaemonSet of NVIDIA's DRA driver or of Node Feature Discovery's worker.

    The driver's pods are the kubelet plugins. The worker's labels alone show that a node has a GPU.
    """

    name: str
    release: str = ""
    """Name of its Helm release. Empty if it is unknown."""
    tolerates_gate: bool = True
    tolerations: str = "[]"
    serves_gpus: bool = True
    """Whether the driver serves GPUs and not only compute domains. The value is resources.gpus.enabled of its chart."""
    gates: frozenset[str] = frozenset()
    """The feature gates that are switched on in the driver's container that serves GPUs."""
    labelled: bool = True
    """Whether its pods carry the label by which the driver's pods are listed (`Program.label`)."""


@value
class NodeDevices:
    """The devices that NVIDIA's DRA driver publishes for one node."""

    layouts: tuple[Layout | None, ...]
    """The layout of each GPU of which it publishes a device, sorted; None for a whole GPU. A GPU with MIG on and
    without instances has no device."""
    others: tuple[str, ...] = ()
    """Names of the devices that cannot be part of a layout. They are neither a whole GPU nor a MIG device with its
    profile and GPU, or several ResourceClaims may hold them at once."""
    missing: int = 0
    """How many ResourceSlices of the node's pool have not been published yet."""
    key: str = ""
    """The result of `key_of` for its whole GPUs and the `key_of` of each GPU's MIG devices. Empty if it is unknown."""
    names: Mapping[str, str] = field(default_factory=dict)
    """For each whole GPU and MIG device, by its name: the extended resource by which pods may request it."""
    resources: Mapping[str, int] = field(init=False, compare=False)
    """The devices as counts of the extended resources that pods may request, such as nvidia.com/gpu."""

    def __post_init__(self) -> None:
        counts: Counter[str] = Counter()
        for layout in self.layouts:
            for name, count in [(RESOURCE_GPU, 1)] if layout is None else layout:
                counts[name if layout is None else resource_name(name)] += count
        object.__setattr__(self, "resources", dict(counts))


@value
class DeviceClassView:
    """A DeviceClass in the cluster, or one of ours as it should be."""

    name: str
    uid: str
    """UID of the object. Empty, as is `version`, for a class as it should be."""
    version: str
    """The resourceVersion at which it was read."""
    ours: bool
    resource: str
    """The extended resource by which pods may request its devices. Empty if it has none."""
    selectors: tuple[str, ...]
    """The CEL expressions that a device must satisfy."""
    plain: bool = True
    """Whether its spec has nothing besides `resource` and `selectors`."""


RULE_PREFIX = "gpusharing-node-"
"""How the names of our DeviceTaintRules for nodes begin. The name of the node follows."""
TAINT_TEST = "gpusharing-taint-test"
"""The name of all objects with which the scheduler is tested for DeviceTaintRules."""


@value
class TaintRuleView:
    """A DeviceTaintRule with our label."""

    name: str
    uid: str
    since: datetime | None
    """When it was created. None if it is being deleted, or does not keep new pods off exactly the devices of the node
    in its name."""

    @property
    def node(self) -> str:
        """Name of the node that the rule is for. Empty if its name is not that of a rule for a node."""
        return self.name.removeprefix(RULE_PREFIX) if self.name.startswith(RULE_PREFIX) else ""


@value
class DraView:
    """NVIDIA's DRA stack.

    The ResourceSlices are read only if there is a GPUCluster or a DRA driver that serves GPUs.
    """

    driver: DaemonSetState | None = None
    """The DRA driver in the namespace of NVIDIA's components. None if there is none."""
    mig_manager: str = ""
    """Name of the DaemonSet of a mig-manager that runs without the GPU Operator, in the same namespace."""
    mig_manager_version: str = ""
    """Version of that mig-manager. Empty if it is unknown."""
    mig_config_map: str = ""
    """Name of the ConfigMap from which that mig-manager reads its configurations. Empty if it mounts none."""
    with_reboot: bool = False
    """Whether that mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    unread: str = ""
    """Why the ResourceSlices cannot be read, as a sentence without its period. Empty if they can be read or need not
    be."""
    doubles: tuple[str, ...] = ()
    """Names of the nodes whose GPUs both the DRA driver and a device plugin serve."""
    classes: tuple[DeviceClassView, ...] | None = None
    """All DeviceClasses by name, or None if they were not read."""
    class_error: str = ""
    taints_work: bool = False
    """Whether nodes may be fenced by DeviceTaintRules. The scheduler was shown to obey them, and no write of one fails
    (docs/adr/0079-a-device-taint-rule-for-a-cordon.md)."""
    taint_error: str = ""
    """Why nodes are cordoned although the setting `device_taints` is on. Empty if the setting is off, if rules work, or
    if the scheduler has not been tested yet."""
    rule_error: str = ""
    """Why our DeviceTaintRules cannot be read or written. Empty if they can, or if none was tried."""


NO_DRA = DraView()


MIG_MANAGER_SWITCH = "migManager.enabled"
"""The field of ClusterPolicy, by its path below `spec`, that turns mig-manager off."""
PLUGIN_SWITCH = "devicePlugin.enabled"


@value
class PlainStackView:
    """NVIDIA's device-plugin chart without the GPU Operator, which means without a ClusterPolicy.

    mig-manager may run beside it as a DaemonSet of its own.
    """

    daemon_set: str
    release: str
    """Name of its Helm release. Empty if it is unknown."""
    mig_manager: str = ""
    """Name of mig-manager's DaemonSet in the namespace of the chart. Empty if there is none."""
    pausable: bool = False
    """Whether mig-manager can keep the chart's pods off the GPUs during a MIG change. All DaemonSets of the chart then
    run only on nodes with nvidia.com/gpu.deploy.client=true."""
    version: str = ""
    """Version of the chart, such as `0.19.3`. Empty if it is unknown."""


@value
class MpsDaemonView:
    """The GPU Operator's DaemonSet of MPS control daemons.

    Its facts decide whether config-manager can notify the daemon of a new configuration.
    """

    version: str
    """Version of the device plugin's image, which the daemon runs. Empty if it is unknown."""
    program: str
    """The process name of the daemon. Empty if the image decides it."""
    signalled: str | None
    """The value of PROCESS_TO_SIGNAL, which names the process that its config-manager signals. None if it is not set,
    or comes from elsewhere (`valueFrom`)."""
    sees_host: bool
    """Whether its pods see the processes of their host."""
    name: str = "nvidia-device-plugin-mps-control-daemon"
    namespace: str = "gpu-operator"
    state: str = ""
    """UID and generation of the DaemonSet, which change whenever its spec does. Empty if they are unknown."""

    @property
    def plugin(self) -> str:
        return f"device plugin {self.version}" if self.version else "a device plugin of an unknown version"


@value
class MpsRepairs:
    """The repairs of the MPS DaemonSet that the operator has counted (`plan_repair`)."""

    count: int = 0
    """How many repairs were begun under this version of the device plugin."""
    plugin: str = ""
    """The version of the device plugin during the last repair. Empty if there was none."""
    state: str = ""
    """The `MpsDaemonView.state` from which the last repair was decided. Empty if there was none."""
    pending: bool = False
    """Whether the last repair may have been made without being reported yet."""


@value
class ClusterPolicyView:
    """The parts of NVIDIA's ClusterPolicy that can override us (docs/design/nvidia.md#d5).

    Without a ClusterPolicy, it is an equivalent view of NVIDIA's device-plugin chart.
    """

    plugin_config_name: str
    """The field devicePlugin.config.name. Empty if it is not set."""
    mig_strategy: str
    """The field mig.strategy. Empty if it is not set."""
    mig_config_name: str
    """The field migManager.config.name. Empty if it is not set."""
    switches: Mapping[str, bool | str] = field(default_factory=dict)
    """The values of the fields that `requirements.READ` lists, by their path below `spec`. Unset ones are left out."""
    plugin_default: str = ""
    """The configuration for nodes without the label (devicePlugin.config.default). Empty if it is not set."""
    with_reboot: bool = False
    """Whether mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    stops_host_clients: bool = False
    """Whether mig-manager stops services of the host that use GPUs, as it does by itself where the driver is the host's."""
    plugin_version: str = ""
    """Version of the device plugin, such as `v0.19.3`. Empty if ClusterPolicy does not name it."""
    mig_manager_version: str = ""
    """Version of mig-manager, such as `v0.13.1`. Empty if ClusterPolicy does not name it."""
    name: str = "cluster-policy"
    """Name of the object: `cluster-policy` with NVIDIA's chart, `gpu-cluster-policy` on OpenShift."""
    uid: str = ""
    """UID of the object. Empty if there is no such object."""
    ignored: bool = False
    """Whether the GPU Operator reports that it follows another ClusterPolicy (docs/design/nvidia.md#d7)."""
    plugin_config_setter: str = ""
    """Field manager that wrote `plugin_config_name` last. Empty if it is unknown."""
    mig_config_setter: str = ""
    """Field manager that wrote `mig_config_name` last. Empty if it is unknown."""
    configured: frozenset[str] = frozenset()
    """Fields that this operator has already set once, by path (`plan_pointers`)."""
    tolerates_gate: bool = True
    tolerations: str = "[]"
    mps_daemon: MpsDaemonView | None = None
    """The GPU Operator's MPS daemon. None if there is none, if it was not seen, or if it runs without
    config-manager."""
    plain: PlainStackView | None = None
    """The DaemonSets of NVIDIA's device-plugin chart from which this view was made. None if there is a
    ClusterPolicy."""
    namespace: str = ""
    """Namespace of NVIDIA's pods, as status.namespace says. Empty if it does not."""

    def is_off(self, switch: str) -> bool:
        """Whether the field with this path below `spec` is False, and not merely unset."""
        return self.switches.get(switch) is False


@value
class StackView:
    """NVIDIA's software in the cluster and the ConfigMaps that we keep for it."""

    cluster_policy: ClusterPolicyView | None
    """The ClusterPolicy or its equivalent, or None if nothing of NVIDIA's was found."""
    gpu_cluster: bool
    """Whether there is a GPUCluster. With it, the GPU Operator installs NVIDIA's DRA driver in place of the device
    plugin."""
    plugin_configs: Mapping[str, str]
    """Device-plugin configurations by key, as they are in our ConfigMap now."""
    mig_file: str
    """The mig-parted file that we render. Empty before the first write."""
    written: Mapping[str, datetime]
    """When each entry of either ConfigMap was written, by key."""
    admin_mig_file: str = ""
    """mig-parted entries from the admin's own ConfigMap, merged into ours."""
    admin_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    """Device-plugin configurations from the admin's own ConfigMap, by key, merged into ours unchanged."""
    effects: Mapping[Change, tuple[Effect, ...]] | None = None
    """What each change that a message may ask for, or that the operator may make, would do. None until it is known."""
    named_keys: frozenset[str] | None = None
    """The entries of the ConfigMap that ClusterPolicy names for the device plugin instead of ours; None if unknown."""
    missing_maps: tuple[str, ...] = ()
    """The admin's ConfigMaps that a setting names but that do not exist."""
    generated_mig_files: Mapping[str, str] = field(default_factory=dict)
    """The mig-parted file that mig-manager >= 0.14 generated from the hardware, by node."""
    plugin_map_exists: bool = True
    """Whether our device-plugin ConfigMap exists. NVIDIA's pods cannot start while ClusterPolicy names a missing
    one."""
    serves_our_mig_file: bool = False
    """Whether mig-manager reads our ConfigMap, because ClusterPolicy or its own DaemonSet says so."""
    marked: bool = True
    """Whether each of our two ConfigMaps that exists has our label."""
    write_error: str = ""
    """Why the last write of our ConfigMaps was refused. Empty if it was not."""
    rival_policies: tuple[str, ...] = ()
    """Names of the ClusterPolicies if it is unclear which of them the GPU Operator follows. `cluster_policy` is then
    the first of them. Empty otherwise."""
    pointer_error: str = ""
    """Why the write that points ClusterPolicy at our ConfigMaps failed. Empty if it did not."""
    foreign_maps: tuple[str, ...] = ()
    """Names of ConfigMaps with entries that have the name of one of ours but were created by somebody else."""
    twins: str = ""
    """A message with the remedy if DaemonSets of the same role run on the same nodes. That means two of NVIDIA's
    namespace with device plugins, or two with mig-manager (`find_rival_symptoms`). Empty if that is not certain of any
    two."""
    finders: tuple[DaemonSetState, ...] = ()
    """The DaemonSets of Node Feature Discovery's worker in the namespace of NVIDIA's components. The operator may read
    no other."""
    intolerant_agents: str = ""
    """Namespace of the agent's pods, if the existing ones do not tolerate the start-up taint, else empty."""
    mps_repairs: MpsRepairs = MpsRepairs()
    mps_nodes: tuple[str, ...] = ()
    """The nodes that serve MPS and so prevent a repair of the MPS DaemonSet, sorted. Empty unless a repair is due."""
    repair_error: str = ""
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    """Device-plugin entries that this process has read so far. A lost one whose name is made from its content can be
    restored from here."""
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """mig-parted entries that this process has read so far, by key, from which lost ones can be restored."""
    dra: DraView = NO_DRA

    @property
    def with_reboot(self) -> bool:
        """Whether mig-manager reboots a node when a GPU cannot be reset.

        Read from `cluster_policy` or, if there is none, from the mig-manager that runs without the GPU Operator
        (`dra`).
        """
        policy = self.cluster_policy
        return self.dra.with_reboot if policy is None else policy.with_reboot

    @property
    def by_dra(self) -> bool:
        policy, driver = self.cluster_policy, self.dra.driver
        if self.gpu_cluster or driver is None:
            return self.gpu_cluster
        # Without a policy, a driver that serves only compute domains is refused with the command that lets it serve.
        return policy is None or (driver.serves_gpus and policy.is_off(PLUGIN_SWITCH))

    def generated_mig_file(self, node: str) -> str:
        """Return the mig-parted file that mig-manager generated on `node` and reads there, or an empty string."""
        return "" if self.serves_our_mig_file else self.generated_mig_files.get(node, "")


class Program(StrEnum):
    """One of NVIDIA's programs whose pods we may restart, by the value of the pods' label `label`."""

    MIG_MANAGER = "nvidia-mig-manager"
    MPS_DAEMON = "nvidia-device-plugin-mps-control-daemon"
    KUBELET_PLUGIN = "kubelet-plugin"

    @property
    def label(self) -> str:
        """The label that its pods carry.

        It is `app`, or the one that the DRA driver's chart gives them (v0.5.0, selectorLabels).
        """
        return "dra-driver-nvidia-gpu-component" if self is Program.KUBELET_PLUGIN else "app"


@value
class Operand:
    """A pod of a `Program`, as seen by this process; node clocks are never compared with ours."""

    namespace: str
    name: str
    uid: str
    ready: bool
    deleting: bool = False
    ready_since: datetime | None = None
    """Since when this process has seen the pod of a fenced node Ready, or an MPS daemon's not `down`."""
    lone_restarts: int = 0
    """How many more restarts config-manager has than the MPS daemon's container in its pod. The number may be
    negative."""
    restart_cause: str = ""
    """Why config-manager last exited, as the kubelet reports it. Empty if it is unknown."""
    settling: bool = False
    """Whether an MPS daemon's config-manager is not running, so `lone_restarts` cannot be compared yet."""
    down: bool = False
    """Whether the daemon in the pod of an MPS daemon is not running."""
    node: str = ""
    """Name of the node; empty until the pod is scheduled."""
    app: str = ""
    """The `Program` that it runs, or another value or an empty string if it is none of them."""


def find_active(views: Iterable[ClusterPolicyView]) -> tuple[ClusterPolicyView | None, tuple[str, ...]]:
    """Return the ClusterPolicy that the GPU Operator follows, and the names of all if that is unclear.

    The first of several possible ones is returned with their names.
    """
    # The GPU Operator marks all but one as ignored, but perhaps none before its first reconciliation.
    policies = sorted(views, key=lambda policy: policy.name)
    heeded = [policy for policy in policies if not policy.ignored] or policies
    rivals = tuple(policy.name for policy in heeded)
    return (heeded[0] if heeded else None), (rivals if len(rivals) > 1 else ())
