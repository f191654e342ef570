"""Exactly what the operator can do, one API call each. The executor matches on this union."""

from collections.abc import Mapping
from dataclasses import field

from gpusharing.planning.snapshot.records import Claim, Deferred, FailedNode, Fence, Verified
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.values import value


@value
class WriteConfig:
    """Write the ConfigMaps that labels will point at; before any label does."""

    plugin_configs: Mapping[str, str]
    """The whole data of the device-plugin ConfigMap; a missing key is removed."""
    mig_file: str
    """The whole mig-parted file; empty: it is not needed."""


@value
class EnsureGPUNode:
    """Create the GPUNode, or patch its spec: the request to the agent."""

    node: str
    """Name of the node, and of its GPUNode."""
    node_uid: str
    """UID of the Node, which owns the GPUNode."""
    request_id: str
    """Id of the request; the agent's answer echoes it."""
    quiet: bool
    """Whether the agent is to close NVML once it has read."""


@value
class SetClaims:
    """Compare-and-swap of all claims and failures on the leader Lease: proves leadership before a node is fenced."""

    claims: Mapping[str, Claim]
    """All claims, by node name; they replace those on the Lease."""
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    """All failures on record, by UID of the Node; they replace those on the Lease."""


@value
class SetFinalizer:
    """Keep a policy while one of its nodes is in flight, or let it go."""

    policy: str
    """Name of the policy."""
    present: bool
    """Whether it is to have our finalizer."""
    uid: str = ""
    """UID of the policy that was decided about; another one of its name is left alone. Empty: any."""


@value
class SetPointers:
    """Point ClusterPolicy at our ConfigMaps, once, in one conditional PATCH; no fence waits for it."""

    policy: ClusterPolicyView
    """ClusterPolicy as it was when this was decided."""
    wanted: Mapping[str, str]
    """By field of its spec: the name of our ConfigMap."""


@value
class FenceNode:
    """Cordon and fence in one conditional Node PATCH; the routing label goes with it."""

    node: NodeView
    """The Node as it was when this was decided."""
    fence: Fence
    """The fence to write."""
    cordon: bool
    """False for class PluginRestart: the node stays schedulable."""
    labels: Mapping[str, str | None]
    """Neighbour marks to set, routing label to drop (None)."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to set."""


@value
class Actuate:
    """The point of no return: fence stage and every label that changes in one conditional Node PATCH."""

    node: NodeView
    """The Node as it was when this was decided."""
    fence: Fence
    """The fence to write, in stage `actuating`."""
    labels: Mapping[str, str | None]
    """Labels to set, or to remove (None)."""


@value
class UpdateFence:
    """Record the next attempt before acting on it, or that we yield, in one conditional Node PATCH."""

    node: NodeView
    """The Node as it was when this was decided."""
    fence: Fence
    """The fence to write."""
    cordon: bool = False
    """Whether to restore the cordon too: a person lifted it after the point of no return."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to drop."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to drop."""


@value
class Evict:
    """Call the Eviction subresource, with the pod's UID as precondition."""

    node: str
    """Name of the node of the pod."""
    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod."""


@value
class ForceDelete:
    """DELETE of a pod at the end of its drain, with its UID as precondition (docs/design/drain.md#t4)."""

    node: str
    """Name of the node of the pod."""
    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod."""
    grace: int | None = None
    """Grace period in seconds, never shorter than the pod's own; None: the pod's own."""


@value
class RestartOperand:
    """Delete the mig-manager pod of a node, so that a new run starts (docs/design/nvidia.md#a6)."""

    node: str
    """Name of the node of the pod."""
    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod."""


@value
class Release:
    """Give the node back: remove the fence, our marks, our cordon if it is still only ours, and after a proof the
    start-up taint. One conditional PATCH. Where our cordon stays because somebody else works on a proven node, a fence
    remains that remembers it, and so does the taint."""

    node: NodeView
    """The Node as it was when this was decided."""
    uncordon: bool
    """Whether to lift the cordon."""
    labels: Mapping[str, str | None]
    """Our labels and neighbour marks: to set, or to remove (None)."""
    verified: Verified | None = None
    """What was proven; None leaves the earlier record."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to drop."""
    deferred: Deferred | None = None
    """When to try again after an abort; None removes an earlier record."""
    fence: Fence | None = None
    """The fence that remains, in stage `yielded`; None removes the fence."""


@value
class LabelNode:
    """Write only our own labels and the record of what was proven (adoption, change of owner). Not conditional, unless
    a proven node waits behind the start-up taint, which then goes in the same PATCH, or is forgotten."""

    node: NodeView
    """The Node as it was when this was decided."""
    labels: Mapping[str, str | None]
    """Our labels to set, or to remove (None)."""
    verified: Verified | None = None
    """What was proven; None leaves the earlier record."""
    forget: bool = False
    """Whether to remove the records of what was proven and given up too: nothing of ours stays on the node."""


Action = (
    WriteConfig
    | EnsureGPUNode
    | SetClaims
    | SetFinalizer
    | SetPointers
    | FenceNode
    | Actuate
    | UpdateFence
    | Evict
    | ForceDelete
    | RestartOperand
    | Release
    | LabelNode
)
