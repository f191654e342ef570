"""Which actions can the operator take? Most are a single API call; the executor matches on `Action`.

An object in an action is as it was when the action was decided. A PATCH that is called conditional fails if the object
has changed since.
"""

from collections.abc import Mapping
from dataclasses import field

from gpusharing.planning.snapshot.nvidia import (
    ClusterPolicyView,
    DeviceClassView,
    MpsDaemonView,
    MpsRepairs,
    TaintRuleView,
)
from gpusharing.planning.snapshot.records import Claim, Consent, Deferred, FailedNode, Fence, Verified
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
    node_uid: str
    request_id: str
    """The agent's answer echoes it."""
    quiet: bool
    holders: bool = False
    """Whether the agent reports which pods hold which GPUs."""
    quiet_gpus: tuple[int, ...] = ()
    """The only GPUs that the agent leaves alone while `quiet`. Empty if it is to leave all alone."""


@value
class SetClaims:
    """Replace all claims, failures and consents on the leader's Lease by compare-and-swap. Only the leader can."""

    claims: Mapping[str, Claim]
    """By node."""
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    """By UID of the Node."""
    consents: Mapping[str, Consent] = field(default_factory=dict)
    """By UID of the policy."""


@value
class SetFinalizer:
    """Set or remove our finalizer, which keeps a policy while one of its nodes is in flight."""

    policy: str
    present: bool
    uid: str = ""
    """UID that the policy must have, so that a new policy of the same name is left alone. Empty accepts any."""


@value
class SetPointers:
    """Set ClusterPolicy's names of our ConfigMaps, once, in one conditional PATCH. No fence waits for this."""

    policy: ClusterPolicyView
    wanted: Mapping[str, str]
    """The name of our ConfigMap for each field, by the field's path below ClusterPolicy's spec."""


@value
class RepairMps:
    """Set PROCESS_TO_SIGNAL in the GPU Operator's MPS DaemonSet, in one conditional PATCH. No fence waits for this.

    Our ConfigMap counts the repair as pending before, and as reported after the Event.
    """

    policy: ClusterPolicyView
    daemon: MpsDaemonView
    repairs: MpsRepairs
    """The count to record before the write, with a pending repair."""


@value
class WriteClasses:
    """Create, correct and remove DeviceClasses of ours, one call each. A change waits for those of its layout."""

    create: tuple[DeviceClassView, ...] = ()
    correct: tuple[tuple[DeviceClassView, DeviceClassView], ...] = ()
    """Classes of ours that somebody has changed, with what they are now."""
    remove: tuple[DeviceClassView, ...] = ()


@value
class WriteRules:
    """Create and remove DeviceTaintRules of ours, one call each. A fence holds only once its rule is in place."""

    create: tuple[str, ...] = ()
    """The nodes whose rule is missing."""
    remove: tuple[TaintRuleView, ...] = ()


@value
class FenceNode:
    """Fence a node in one conditional PATCH."""

    node: NodeView
    fence: Fence
    cordon: bool
    """False if the node stays schedulable: for class PluginRestart, and behind a DeviceTaintRule."""
    labels: Mapping[str, str | None]
    """Labels that keep other controllers away, and the routing label with the value None, which removes it."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)


@value
class Actuate:
    """Take a node past its point of no return in one conditional PATCH, with all that the actuator needs."""

    node: NodeView
    fence: Fence
    labels: Mapping[str, str | None]


@value
class UpdateFence:
    """Rewrite the fence of a node in one conditional PATCH, for example before the next attempt."""

    node: NodeView
    fence: Fence
    cordon: bool = False
    """Whether to set a cordon too, because a person lifted it or a DeviceTaintRule fails."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels, like `annotations`, that were set for other controllers and are removed (None), or an actuator's label
    that others changed in mid-change."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)


@value
class _PodAction:
    """An action on one pod, with the pod's UID as precondition."""

    node: str
    namespace: str
    name: str
    uid: str


@value
class Evict(_PodAction):
    """Evict a pod through its Eviction subresource."""


@value
class ForceDelete(_PodAction):
    """Delete a pod at the end of its drain (docs/design/drain.md#t4)."""

    grace: int | None = None
    """Grace period in seconds, never shorter than the pod's own, or None for the pod's own."""


@value
class RestartOperand(_PodAction):
    """Delete a pod of one of NVIDIA's programs on a node, so that a new one starts (docs/design/nvidia.md#a6)."""


@value
class Release:
    """Return a node to service in one conditional PATCH.

    If somebody else works on a proven node, our cordon and the start-up taint stay, with a fence that remembers them.
    """

    node: NodeView
    uncordon: bool
    labels: Mapping[str, str | None]
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
    """Write only our own labels and records, or what a person has requested on the GPUNode.

    The PATCH is conditional if it removes the start-up taint or the records, or writes requests.
    """

    node: NodeView
    labels: Mapping[str, str | None]
    verified: Verified | None = None
    """What was proven, or None to leave the earlier record."""
    forget: bool = False
    """Whether to remove the records too, so that nothing of ours stays on the node."""
    requests: Mapping[str, str] | None = None
    """The annotations that a person has set on the GPUNode, if any (docs/adr/0082-requests-on-the-gpunode.md)."""


@value
class ClearRequests:
    """Remove the requests of a person from a GPUNode, once its Node has them, in one conditional PATCH."""

    node: str
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
