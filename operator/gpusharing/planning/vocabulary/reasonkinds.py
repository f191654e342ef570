"""The columns of the table of reasons in `reasons.py`."""

from enum import IntEnum, StrEnum, auto
from typing import Literal

Group = Literal["Node", "Hardware", "Health", "Proof", "Drain", "Accepted", "Ready", "Stalled"]
"""Where a reason is seen: on a node (its hardware, health, proof or drain), or on which condition of a policy."""

Keeper = Literal[
    "", "policy", "node", "pods", "foreign", "kubelet", "kube-apiserver", "ClusterPolicy", "ConfigMap", "operator",
    "agent", "GPUs", "mig-manager", "device-plugin", "gpu-feature-discovery", "mps-control-daemon",
]  # fmt: skip
"""The kind of object, or the program, that holds a node back; `foreign` stands for whoever else maintains the node."""


class Passes(IntEnum):
    """How the situation that a reason describes comes to an end."""

    BY_A_PERSON = 0
    LATER = 1
    """When others are done or a back-off is over, which takes minutes to hours."""
    SOON = 2
    """Automatically, within seconds or minutes."""
    DONE = 3
    """Never: nothing is awaited."""


class Mark(StrEnum):
    """Properties that some reasons share."""

    PENDING = auto()
    """A node that waits for this reason is Pending rather than Blocked, because the situation ends automatically or the author of the policy wants it."""
    OUTSIDE = auto()
    """A selected node with this reason does not concern its policy, as long as no change has begun there."""
    MOMENTARY = auto()
    """The situation may be over in a moment, so a node in flight keeps its goal: whatever deploys the GPU Operator restores a deleted ClusterPolicy."""
    UNSUPPORTED = auto()
    """A node with this reason cannot serve its policy as it is."""
    STALLS = auto()
    """A person has to resolve the situation on each affected node, whatever the other nodes do."""
    STATUS = auto()
    """The column STATUS of a policy shows this reason in place of the node's phase."""
    EVENT = auto()
    """A Warning Event reports that a node now has this reason."""
    NO_BLOCKER_EVENT = auto()
    """No Event reports a blocker with this reason: no pod is to blame, or the situation is reported otherwise."""
    PAST_RETURN = auto()
    """A node with this reason passed its point of no return earlier, so no Event says that it passes it now."""
    TURNS_BACK = auto()
    """A failed change may be rolled back for this reason. Reasons that leave the state of the node unknown do not have this mark: the change may still be proven then, but a rollback could not be."""
    ENDS_MPS = auto()
    """Correcting the situation restarts the node's MPS control daemon, which ends its clients."""
    RETRIED = auto()
    """A new value of gpusharing.dev/retry on the Node ends the situation at once."""
    NOT_RETRIED = auto()
    """The node is held until a person has examined the fence itself, even if a retry is requested."""
    ANSWER = auto()
    """A response to an eviction or deletion that is worth remembering; after a lost connection, the next LIST shows what happened."""
    FORCIBLE = auto()
    """A response after which a DELETE may follow: a budget refused the eviction, or the server could not decide."""
    DENIED = auto()
    """A response that only a person can change and that no DELETE overrides."""
