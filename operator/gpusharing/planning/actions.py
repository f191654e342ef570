"""Exactly what the operator can do, one API call each. The executor matches on this union."""

from collections.abc import Mapping
from dataclasses import field

from gpusharing.planning.snapshot.records import Claim, Deferred, Fence, Verified
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.words.values import value


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
    node_uid: str
    request_id: str
    quiet: bool


@value
class SetClaims:
    """Compare-and-swap of all claims on the leader Lease: proves leadership before a node is fenced."""

    claims: Mapping[str, Claim]


@value
class SetFinalizer:
    """Keep a policy while one of its nodes is in flight, or let it go."""

    policy: str
    present: bool
    uid: str = ""
    """UID of the policy that was decided about; another one of its name is left alone. Empty: any."""


@value
class SetPointers:
    """Point ClusterPolicy at our ConfigMaps, once, in one conditional PATCH; no fence waits for it."""

    policy: ClusterPolicyView
    """As it was when this was decided."""
    wanted: Mapping[str, str]
    """By field of its spec: the name of our ConfigMap."""


@value
class FenceNode:
    """Cordon and fence in one conditional Node PATCH; the routing label goes with it."""

    node: NodeView
    fence: Fence
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
    fence: Fence
    labels: Mapping[str, str | None]


@value
class UpdateFence:
    """Record the next attempt before acting on it, or that we yield, in one conditional Node PATCH."""

    node: NodeView
    fence: Fence
    cordon: bool = False
    """Restore the cordon as well: a person lifted it after the point of no return."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to drop."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to drop."""


@value
class Evict:
    """Call the Eviction subresource, with the pod's UID as precondition."""

    node: str
    namespace: str
    name: str
    uid: str


@value
class ForceDelete:
    """DELETE of a pod at the end of its drain, with its UID as precondition (docs/design/drain.md#t4)."""

    node: str
    namespace: str
    name: str
    uid: str
    grace: int | None = None
    """Seconds, never less than the pod's own grace period; None: that period."""


@value
class RestartOperand:
    """Delete the mig-manager pod of a node, so that a new run starts (docs/design/nvidia.md#a6)."""

    node: str
    namespace: str
    name: str
    uid: str


@value
class Release:
    """Give the node back: remove the fence, our marks, our cordon if it is still only ours, and after a proof the
    start-up taint. One conditional PATCH."""

    node: NodeView
    uncordon: bool
    labels: Mapping[str, str | None]
    verified: Verified | None = None
    """What was proven; None leaves the earlier record."""
    annotations: Mapping[str, str | None] = field(default_factory=dict)
    """Neighbour marks to drop."""
    deferred: Deferred | None = None
    """When to try again after an abort; None removes an earlier record."""


@value
class LabelNode:
    """Write only our own labels and the record of what was proven (adoption, change of owner). Not conditional, unless
    a proven node waits behind the start-up taint, which then goes in the same PATCH, or is forgotten."""

    node: NodeView
    labels: Mapping[str, str | None]
    verified: Verified | None = None
    forget: bool = False
    """The records of what was proven and given up are removed too: nothing of ours stays on the node."""


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
