"""The columns of the table of reasons in `reasons.py`."""

from enum import IntEnum, StrEnum, auto
from typing import Literal, Self

from gpusharing.api.names import Phase

Group = Literal["Node", "Hardware", "Health", "Proof", "Drain", "Accepted", "Ready", "Stalled"]
"""Where a reason is seen: on a node, its hardware and its health, its proof or its drain, or on a policy condition."""

Keeper = Literal[
    "", "policy", "node", "pods", "foreign", "kubelet", "kube-apiserver", "ClusterPolicy", "ConfigMap", "operator",
    "agent", "GPUs", "mig-manager", "device-plugin", "gpu-feature-discovery", "mps-control-daemon",
]  # fmt: skip
"""The object or program that keeps a node waiting; foreign: whoever else maintains the node; empty: nobody does."""


class Passes(IntEnum):
    """When the situation that a reason names comes to an end."""

    BY_A_PERSON = 0
    """Not before somebody acts."""
    LATER = 1
    """When others are done or a back-off is over: minutes to hours."""
    SOON = 2
    """Automatically, within seconds or minutes."""
    DONE = 3
    """Already: it is an end state, and nothing is waited for."""


class Mark(StrEnum):
    """What only some reasons have in common."""

    PENDING = auto()
    """A node that waits for it is Pending and not Blocked: it ends automatically, or the author of the policy wants
    it."""
    OUTSIDE = auto()
    """A selected node with it does not concern its policy, as long as no change has begun there."""
    MOMENTARY = auto()
    """It may be over in a moment and does not change the goal of a node in flight, which waits until its deadline: a
    deleted ClusterPolicy comes back with the next reconciliation of whatever deploys the GPU Operator, which soon says
    which of two it ignores."""
    UNSUPPORTED = auto()
    """A node with it cannot serve its policy as it is."""
    STALLS = auto()
    """A person has to end it on the one node that has it, whatever the other nodes do: the policy is Stalled."""
    STATUS = auto()
    """The column STATUS of a policy shows it in place of the node's phase."""
    EVENT = auto()
    """A Warning Event reports that a node got it, unless an Event reports the phase that the node entered with it."""
    NO_BLOCKER_EVENT = auto()
    """No Event reports it as a blocker: no pod is to blame, or it is reported as a wait or as an action of ours."""
    PAST_RETURN = auto()
    """A node with it passed its point of no return earlier, so no Event says that it does now."""
    TURNS_BACK = auto()
    """It comes from a reading of the node, or speaks against its target (`gates.py:AIM`), so a failed change may turn
    back. While the state of the node is unknown (node or agent away, a GPU that does not answer, a mig-manager that
    still works), the change may yet be proven, and going back could not be proven."""
    ENDS_MPS = auto()
    """Its correction restarts the MPS control daemon, if the node has one, which ends the daemon's clients."""
    RETRIED = auto()
    """A new value of gpusharing.dev/retry on the Node ends it at once (transition/attempts.py, transition/gates.py)."""
    NOT_RETRIED = auto()
    """The node is held until a person has looked at the fence itself, whatever else is requested (transition/after.py,
    transition/judge.py)."""
    ANSWER = auto()
    """An answer to an eviction or deletion that is worth remembering. A lost connection is none: the next LIST shows
    what happened."""
    FORCIBLE = auto()
    """An answer after which a DELETE may follow: a budget refused, or the server could not decide."""
    DENIED = auto()
    """An answer that only a person can change and no DELETE overrides: a right is missing, or an admission refuses."""


class Worded(StrEnum):
    """One CamelCase word with the columns of its row, when it is used and what to do."""

    _value_: str
    group: Group
    passes: Passes
    keeper: Keeper
    marks: frozenset[Mark]
    urgency: tuple[Passes, int]
    """Sorts what needs a person first, then what lasts longest; among equals the order of definition decides."""
    when: str
    """The situation in which it is used."""
    remedy: str
    """What a person does next; empty when there is nothing to do."""

    def __new__(
        cls, columns: tuple[str, Group, Passes, Keeper, *tuple[Mark, ...]], when: str, remedy: str = ""
    ) -> Self:
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
        """The phase of a node that waits for it before its change: Pending or Blocked."""
        return Phase.PENDING if Mark.PENDING in self.marks else Phase.BLOCKED
