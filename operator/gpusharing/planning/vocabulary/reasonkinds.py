"""The columns of the table of reasons in `reasons.py`.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from enum import IntEnum, StrEnum, auto
from typing import Literal, Self

from gpusharing.api.names import Phase

Group = Literal["Node", "Hardware", "Health", "Proof", "Drain", "Accepted", "Ready", "Stalled"]
"""The group under which a reason is listed: where it is seen on a node (its hardware, health, proof or drain), or on
which condition of a policy."""

Keeper = Literal[
    "", "policy", "node", "pods", "foreign", "kubelet", "kube-apiserver", "ClusterPolicy", "ConfigMap", "operator",
    "agent", "GPUs", "mig-manager", "device-plugin", "gpu-feature-discovery", "mps-control-daemon",
]  # fmt: skip
"""The kind of object, or the program, that holds a node back. `foreign` stands for whoever else maintains the node.
Empty means that nothing holds it back."""


class Passes(IntEnum):
    """How the situation that a reason describes comes to an end."""

    BY_A_PERSON = 0
    """Only when a person acts."""
    LATER = 1
    """When others are done or a back-off is over, which takes minutes to hours."""
    SOON = 2
    """Automatically, within seconds or minutes."""
    DONE = 3
    """Never: the state is final, and nothing is awaited."""


class Mark(StrEnum):
    """Properties that some reasons share."""

    PENDING = auto()
    """A node that waits for this reason is Pending rather than Blocked, because the situation ends automatically or
    the author of the policy wants it."""
    OUTSIDE = auto()
    """A selected node with this reason does not concern its policy, as long as no change has begun there."""
    MOMENTARY = auto()
    """The situation may be over in a moment, so a node in flight keeps its goal and waits until its deadline. For
    example, a deleted ClusterPolicy comes back with the next reconciliation of whatever deploys the GPU Operator, and
    the GPU Operator soon says which of two ClusterPolicies it ignores."""
    UNSUPPORTED = auto()
    """A node with this reason cannot serve its policy as it is."""
    STALLS = auto()
    """A person has to resolve the situation on each affected node, whatever the other nodes do, so the policy is
    Stalled."""
    STATUS = auto()
    """The column STATUS of a policy shows this reason in place of the node's phase."""
    EVENT = auto()
    """A Warning Event reports that a node now has this reason, unless there is an Event about the phase that the node
    entered at the same time."""
    NO_BLOCKER_EVENT = auto()
    """No Event reports a blocker with this reason, because no pod is to blame, or because the situation is reported as
    a wait or as an action of ours."""
    PAST_RETURN = auto()
    """A node with this reason passed its point of no return earlier, so no Event says that the node passes it now."""
    TURNS_BACK = auto()
    """A failed change may be rolled back for this reason, because the reason comes from a reading of the node or
    speaks against its target (`gates.py:AIM`). Reasons that leave the state of the node unknown do not have this mark:
    the node or its agent is away, a GPU does not answer, or mig-manager is still working. The change may still be
    proven then, but a rollback could not be."""
    ENDS_MPS = auto()
    """Correcting the situation restarts the node's MPS control daemon, if it has one, which ends the daemon's
    clients."""
    RETRIED = auto()
    """A new value of gpusharing.dev/retry on the Node ends the situation at once (transition/attempts.py,
    transition/gates.py)."""
    NOT_RETRIED = auto()
    """The node is held until a person has examined the fence itself, even if a retry is requested
    (transition/after.py, transition/judge.py)."""
    ANSWER = auto()
    """A response to an eviction or deletion that is worth remembering. A lost connection is not worth it, because the
    next LIST shows what happened."""
    FORCIBLE = auto()
    """A response after which a DELETE may follow: a budget refused the eviction, or the server could not decide."""
    DENIED = auto()
    """A response that only a person can change and that no DELETE overrides: a right is missing, or an admission
    controller refuses."""


class Worded(StrEnum):
    """A reason as an enum member. The value is one CamelCase word, and the attributes are the other columns of the
    reason's row in the table."""

    _value_: str
    group: Group
    """The group in which the reason is listed."""
    passes: Passes
    """When the situation ends."""
    keeper: Keeper
    """The object or program that keeps a node with this reason waiting."""
    marks: frozenset[Mark]
    """The properties that it shares with some other reasons."""
    urgency: tuple[Passes, int]
    """Sort key that puts reasons that need a person first, then the reasons that last longest. Reasons with the same
    `passes` keep the order of their definition."""
    when: str
    """The situation in which the reason is used."""
    remedy: str
    """What a person should do next. Empty if there is nothing to do."""

    def __new__(
        cls, columns: tuple[str, Group, Passes, Keeper, *tuple[Mark, ...]], when: str, remedy: str = ""
    ) -> Self:
        """Create a reason. `columns` are its word, group, passes, keeper and any number of marks. Among reasons with
        equal `passes`, those created later are less urgent."""
        member = str.__new__(cls, columns[0])
        member._value_ = columns[0]
        member.group = columns[1]
        member.passes = columns[2]
        member.keeper = columns[3]
        member.marks = frozenset(columns[4:])
        member.urgency = columns[2], len(cls.__members__)
        member.when = when
        member.remedy = remedy
        return member

    @property
    def waiting_phase(self) -> Phase:
        """The phase of a node that waits for this reason before its change begins: Pending or Blocked."""
        return Phase.PENDING if Mark.PENDING in self.marks else Phase.BLOCKED
