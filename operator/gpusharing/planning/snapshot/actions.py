"""The actions that the operator can take; most are a single API call. The executor matches on the union `Action`.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim, docs/design/glossary.md#point-of-no-return,
docs/design/glossary.md#class.
"""

from collections.abc import Mapping
from dataclasses import field

from gpusharing.planning.snapshot.draviews import DeviceClassView, TaintRuleView, WantedClass
from gpusharing.planning.snapshot.records import Claim, Deferred, FailedNode, Fence, Verified
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, MpsDaemonView, MpsRepairs
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.values import value


@value
class WriteConfig:
    """Write the ConfigMaps that node labels will point at, before any label does."""

    plugin_configs: Mapping[str, str]
    """The whole data of the device-plugin ConfigMap; keys that are missing here are removed."""
    mig_file: str
    """The whole mig-parted file. Empty if it is not needed."""


@value
class EnsureGPUNode:
    """Create the GPUNode of a node, or patch its spec, which is the request to the agent."""

    node: str
    """Name of the node, and of its GPUNode."""
    node_uid: str
    """UID of the Node, which owns the GPUNode."""
    request_id: str
    """Id of the request; the agent's answer echoes it."""
    quiet: bool
    """Whether the agent is asked to close NVML after the reading."""


@value
class SetClaims:
    """Replace all claims and recorded failures on the leader's Lease by compare-and-swap. Only the leader can succeed,
    so this comes before every fence."""

    claims: Mapping[str, Claim]
    """All claims, by node name; they replace the claims on the Lease."""
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    """All failures on record, by UID of the Node; they replace the failures on the Lease."""


@value
class SetFinalizer:
    """Set or remove our finalizer on a policy. The finalizer keeps the policy from disappearing while one of its nodes
    is in flight."""

    policy: str
    """Name of the policy."""
    present: bool
    """True to set the finalizer, False to remove it."""
    uid: str = ""
    """UID that the policy must have, so that a new policy of the same name is left alone. Empty accepts any."""


@value
class SetPointers:
    """Set the fields of ClusterPolicy that name our ConfigMaps, once, in one conditional PATCH. No fence waits for
    this."""

    policy: ClusterPolicyView
    """ClusterPolicy as it was when the write was decided."""
    wanted: Mapping[str, str]
    """The name of our ConfigMap for each field, by the field's path below ClusterPolicy's spec."""


@value
class RepairMps:
    """Set PROCESS_TO_SIGNAL of config-manager in the GPU Operator's MPS DaemonSet, in one conditional PATCH, and report
    it by an Event. Our ConfigMap counts the repair as pending before, and as reported after. If the DaemonSet has the
    value already, only the Event and the last record are written. No fence waits for this."""

    policy: ClusterPolicyView
    """The ClusterPolicy that owns the DaemonSet."""
    daemon: MpsDaemonView
    """The DaemonSet as it was when this was decided."""
    repairs: MpsRepairs
    """The count to record before the write, with a pending repair."""


@value
class WriteClasses:
    """Create, correct and remove DeviceClasses of ours, one call each. No fence waits for this, but no change begins to
    a layout whose classes are missing."""

    create: tuple[WantedClass, ...] = ()
    """The classes that are missing, by name."""
    correct: tuple[tuple[WantedClass, DeviceClassView], ...] = ()
    """Classes of ours that somebody has changed, with what they are now."""
    remove: tuple[DeviceClassView, ...] = ()
    """Classes of ours whose profile no node has and no policy wants any more, by name."""


@value
class WriteRules:
    """Create and remove DeviceTaintRules of ours, one call each. No fence waits for this, but a fence that names such a
    rule holds only once the rule is in place."""

    create: tuple[str, ...] = ()
    """The nodes whose rule is missing, by name."""
    remove: tuple[TaintRuleView, ...] = ()
    """The rules that no fence needs, or that somebody has changed, by name."""


@value
class FenceNode:
    """Fence a node in one conditional Node PATCH. If the change needs an idle node, the PATCH also removes the routing
    label, and cordons the node unless its fence is a DeviceTaintRule."""

    node: NodeView
    """The Node as it was when this was decided."""
    fence: Fence
    """The fence to write."""
    cordon: bool
    """Whether to cordon the node. False if the node stays schedulable: for class PluginRestart, and behind a
    DeviceTaintRule."""
    labels: Mapping[str, str | None]
    """Labels to set so that other controllers leave the node alone in the meantime, and the routing label with the
    value None, which removes it."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Annotations to set for the same controllers."""


@value
class Actuate:
    """Take a node past its point of no return: write the fence stage and everything that the actuator needs in one
    conditional Node PATCH."""

    node: NodeView
    """The Node as it was when this was decided."""
    fence: Fence
    """The fence to write, in stage `actuating`."""
    labels: Mapping[str, str | None]
    """Labels to set, or None to remove one."""


@value
class UpdateFence:
    """Rewrite the fence of a node in one conditional Node PATCH, for example before the next attempt, when the node is
    yielded to other maintenance, or when the class of disruption gets worse."""

    node: NodeView
    """The Node as it was when this was decided."""
    fence: Fence
    """The fence to write."""
    cordon: bool = False
    """Whether to set the cordon too, because a person lifted it after the point of no return, or because it takes the
    place of a DeviceTaintRule."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels to remove that were set for other controllers; each has the value None."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Annotations to remove that were set for other controllers; each has the value None."""


@value
class _PodAction:
    """An action on one pod, with the pod's UID as precondition."""

    node: str
    """Name of the pod's node."""
    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod."""


@value
class Evict(_PodAction):
    """Evict a pod through its Eviction subresource, with the pod's UID as precondition."""


@value
class ForceDelete(_PodAction):
    """Delete a pod at the end of its drain, with its UID as precondition (docs/design/drain.md#t4)."""

    grace: int | None = None
    """Grace period in seconds, never shorter than the pod's own, or None for the pod's own."""


@value
class RestartOperand(_PodAction):
    """Delete a pod of one of NVIDIA's programs on a node, so that a new one starts: of mig-manager, of the MPS daemon,
    or of the DRA driver's kubelet plugin (docs/design/nvidia.md#a6)."""


@value
class Release:
    """Return a node to service in one conditional PATCH. It removes the fence, what was set for other controllers, our
    cordon if nobody else needs it, and after a proof the start-up taint. If somebody else still works on a proven node,
    our cordon and the taint stay, together with a fence that remembers them."""

    node: NodeView
    """The Node as it was when this was decided."""
    uncordon: bool
    """Whether to lift the cordon."""
    labels: Mapping[str, str | None]
    """Our own labels and the labels that were set for other controllers: the values to set, or None to remove a label.
    """
    verified: Verified | None = None
    """What was proven, or None to leave the earlier record."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Annotations to remove that were set for other controllers; each has the value None."""
    deferred: Deferred | None = None
    """When to try again after an abort, or None to remove an earlier record."""
    fence: Fence | None = None
    """The fence that remains, in stage `yielded`, or None to remove the fence."""


@value
class LabelNode:
    """Write only our own labels and records, when a node is adopted, loses its owner or is forgotten with its policy,
    or what a person has requested on the GPUNode. The PATCH is conditional only if it also removes the start-up
    taint from a proven node, or if it removes the records or writes requests."""

    node: NodeView
    """The Node as it was when this was decided."""
    labels: Mapping[str, str | None]
    """Our labels to set, or None to remove one."""
    verified: Verified | None = None
    """What was proven, or None to leave the earlier record."""
    forget: bool = False
    """Whether to remove the records too (of what was proven, and of the last change that was given up), so that
    nothing of ours stays on the node."""
    requests: Mapping[str, str] | None = None
    """The annotations to set because a person has requested them on the GPUNode, or None if this is for another reason
    (docs/adr/0082-requests-on-the-gpunode.md)."""


@value
class ClearRequests:
    """Remove the requests of a person from a GPUNode, once its Node has them, in one conditional PATCH."""

    node: str
    """Name of the node, and of its GPUNode."""
    requests: Mapping[str, str]
    """The annotations to remove, with the values that the Node has now."""


Action = (
    WriteConfig
    | EnsureGPUNode
    | SetClaims
    | SetFinalizer
    | SetPointers
    | RepairMps
    | WriteClasses
    | WriteRules
    | FenceNode
    | Actuate
    | UpdateFence
    | Evict
    | ForceDelete
    | RestartOperand
    | Release
    | LabelNode
    | ClearRequests
)
"""Any action that the executor can carry out."""
