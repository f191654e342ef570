"""Calls of the operator that fail in a World, once or for ever, each about one object; the others go on.
`lost` calls never reach the server; of `unanswered` ones the answer is lost, and what they ask for is done. What the operator makes of it is written after controller/execute.py: the subject waits, longer each time, and with it the fences that need a shared write."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    Evict,
    FenceNode,
    ForceDelete,
    LabelNode,
    Release,
    SetClaims,
    SetFinalizer,
    UpdateFence,
    WriteClasses,
    WriteConfig,
)
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import (
    CLAIMS,
    CONFIG_MAPS,
    DEVICE_CLASS,
    CallFailure,
    PassMemory,
    failed_again,
    policy_subject,
)
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork
from gpusharing.planning.transition.cases import is_moot

How = Literal["lost", "unanswered"]
FOR_EVER = 10**9


@dataclass
class Wires:
    """What fails, and what the operator remembers of it."""

    faults: dict[str, tuple[How, int]] = field(default_factory=dict)
    """By subject of the call: how it fails, and how many times more."""

    def fate(self, action: Action) -> How | None:
        """How this call fails; None: it does not."""
        subject = subject_of(action)
        if subject not in self.faults:
            return None
        how, times = self.faults[subject]
        if times > 1:
            self.faults[subject] = (how, times - 1)
        else:
            del self.faults[subject]
        return how


def subject_of(action: Action) -> str:
    match action:
        case SetClaims():
            return CLAIMS
        case WriteConfig():
            return CONFIG_MAPS
        case SetFinalizer():
            return policy_subject(action.policy)
        case WriteClasses():
            return DEVICE_CLASS
        case FenceNode() | Actuate() | UpdateFence() | Release() | LabelNode():
            return action.node.name
        case _:
            return str(getattr(action, "node", "ClusterPolicy"))


def send(
    plan: RolloutPlan,
    wires: Wires,
    failures: dict[str, CallFailure],
    now: datetime,
    carry_out: Callable[[Action], None],
    limit: int | None,
) -> bool:
    """Send the calls of a plan as the executor does. False: the operator was killed after `limit` calls."""
    wanted = {subject_of(action) for action in plan.shared}
    for subject in failures.keys() - wanted:
        verdict = plan.verdicts.get(subject)
        if verdict is None or is_moot(verdict):
            del failures[subject]
    sender = _Sender(wires, failures, now, carry_out, limit)
    waiting: set[str] = set()
    for action in plan.shared:
        if sender.dead:
            return False
        if not sender.send(action) and not isinstance(action, WriteClasses):
            waiting.add(action.policy if isinstance(action, SetFinalizer) else "*")
    for verdict in plan.verdicts.values():
        if verdict.node in failures and failures[verdict.node].holds(now):
            continue
        for action in verdict.actions:
            if sender.dead:
                return False
            if isinstance(action, FenceNode) and waiting & {"*", action.fence.policy}:
                break
            if not sender.send(action):
                break
    return not sender.dead


@dataclass
class _Sender:
    wires: Wires
    failures: dict[str, CallFailure]
    now: datetime
    carry_out: Callable[[Action], None]
    limit: int | None

    @property
    def dead(self) -> bool:
        return self.limit is not None and self.limit <= 0

    def send(self, action: Action) -> bool:
        """Whether it worked, as far as the operator knows."""
        subject = subject_of(action)
        if subject in self.failures and self.failures[subject].holds(self.now):
            return False
        if self.limit is not None:
            self.limit -= 1
        fate = None if isinstance(action, Evict | ForceDelete) else self.wires.fate(action)
        if fate != "lost":
            self.carry_out(action)
        known, call = self.failures.get(subject), _called(action)
        if fate is None:
            if known is not None and known.call == call:
                del self.failures[subject]
            return True
        message = f"{type(action).__name__} failed: {fate}"
        self.failures[subject] = failed_again(known, message, self.now, 0.0, call)
        return False


def _called(action: Action) -> str:
    of_node = isinstance(action, FenceNode | Actuate | UpdateFence | Release | LabelNode)
    return "Node" if of_node else type(action).__name__


if TYPE_CHECKING:
    from tests.planning.world import World


@dataclass
class Memory:
    """What the operator's process knows and loses when it is killed."""

    memo: Memo = field(default_factory=Memo)
    passed: PassMemory = field(default_factory=PassMemory)
    work: dict[str, NodeWork] = field(default_factory=dict)
    evictions: dict[str, dict[str, EvictionMemory]] = field(default_factory=dict)
    failures: dict[str, CallFailure] = field(default_factory=dict)
    """By node or subject."""
    reading: "World | None" = None
    """What a second operator read in an earlier pass (leaders.py); None: nothing yet."""
