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
    mig_file: str
    """Empty if it is not needed."""


@value
class EnsureGPUNode:
    """Create the GPUNode of a node, or patch its spec, which is the request to the agent."""

    node: str
    node_uid: str
    request_id: str
    quiet: bool


@value
class SetClaims:
    """Replace all claims and recorded failures on the leader's Lease by compare-and-swap."""

    claims: Mapping[str, Claim]
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)


@value
class SetFinalizer:
    """Set or remove our finalizer on a policy."""

    policy: str
    present: bool
    uid: str = ""
    """Empty accepts any."""


@value
class SetPointers:
    """Set the fields of ClusterPolicy that name our ConfigMaps, once, in one conditional PATCH. No fence waits for this."""

    policy: ClusterPolicyView
    wanted: Mapping[str, str]


@value
class RepairMps:
    """Set PROCESS_TO_SIGNAL of config-manager in the GPU Operator's MPS DaemonSet, in one conditional PATCH, and report it by an Event."""

    policy: ClusterPolicyView
    daemon: MpsDaemonView
    repairs: MpsRepairs


@value
class WriteClasses:
    """Create, correct and remove DeviceClasses of ours, one call each."""

    create: tuple[WantedClass, ...] = ()
    correct: tuple[tuple[WantedClass, DeviceClassView], ...] = ()
    remove: tuple[DeviceClassView, ...] = ()


@value
class WriteRules:
    """Create and remove DeviceTaintRules of ours, one call each."""

    create: tuple[str, ...] = ()
    remove: tuple[TaintRuleView, ...] = ()


@value
class FenceNode:
    """Fence a node in one conditional Node PATCH. If the change needs an idle node, the PATCH also removes the routing label, and cordons the node unless its fence is a DeviceTaintRule."""

    node: NodeView
    fence: Fence
    cordon: bool
    labels: Mapping[str, str | None]
    """Labels to set so that other controllers leave the node alone in the meantime, and the routing label with the value None, which removes it."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)


@value
class Actuate:
    """Take a node past its point of no return: write the fence stage and everything that the actuator needs in one conditional Node PATCH."""

    node: NodeView
    fence: Fence
    """The fence to write, in stage `actuating`."""
    labels: Mapping[str, str | None]
    """Labels to set, or None to remove one."""


@value
class UpdateFence:
    """Rewrite the fence of a node in one conditional Node PATCH, for example before the next attempt, when the node is yielded to other maintenance, or when the class of disruption gets worse."""

    node: NodeView
    fence: Fence
    cordon: bool = False
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels to remove that were set for other controllers; each has the value None."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Annotations to remove that were set for other controllers; each has the value None."""


@value
class _PodAction:
    """An action on one pod, with the pod's UID as precondition."""

    node: str
    namespace: str
    name: str
    uid: str


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
    """Delete a pod of one of NVIDIA's programs on a node, so that a new one starts: of mig-manager, of the MPS daemon, or of the DRA driver's kubelet plugin (docs/design/nvidia.md#a6)."""


@value
class Release:
    """Return a node to service in one conditional PATCH. It removes the fence, what was set for other controllers, our cordon if nobody else needs it, and after a proof the start-up taint."""

    node: NodeView
    uncordon: bool
    labels: Mapping[str, str | None]
    """Our own labels and the labels that were set for other controllers: the values to set, or None to remove a label."""
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
    """Write only our own labels and records, when a node is adopted, loses its owner or is forgotten with its policy, or what a person has requested on the GPUNode."""

    node: NodeView
    labels: Mapping[str, str | None]
    """Our labels to set, or None to remove one."""
    verified: Verified | None = None
    """What was proven, or None to leave the earlier record."""
    forget: bool = False
    requests: Mapping[str, str] | None = None
    """The annotations to set because a person has requested them on the GPUNode, or None if this is for another reason (docs/adr/0082-requests-on-the-gpunode.md)."""


@value
class ClearRequests:
    """Remove the requests of a person from a GPUNode, once its Node has them, in one conditional PATCH."""

    node: str
    requests: Mapping[str, str]


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
