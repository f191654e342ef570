"""What an actuator is: NVIDIA's programs that change a node in one kind of installation, as answers to five questions.

    1. What does it need?                             needs, objections, obstacles
    2. What is written at the point of no return?     find_labels, needs_run, find_missing, write, find_old
    3. Is it at work, done, stuck or failed?          find_trouble, next_look, find_events, find_work
    4. What proves the result?                        checks
    5. How does a node go back?                       find_last_proven, tell_left

Each other module of this folder is one actuator, and `find_actuator` chooses the one of a cluster
(docs/adr/0075-actuators.md).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from datetime import datetime
from typing import TypeAlias

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.stackviews import Operand, Program, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PlanSettings
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Checks


@value
class ActuatorCase:
    """The part of a node's case (docs/design/glossary.md#case) that its actuator may know."""

    node: NodeView
    gpunode: GPUNodeView | None
    """None if the node has no GPUNode yet."""
    operands: Mapping[Program, Operand]
    """The pods of NVIDIA's programs on the node that we may restart. A program without a pod there is left out."""
    mig_failure: str
    """The last line of mig-manager's log after it failed. Empty if it has not failed, or if the log could not be read."""
    stack: StackView
    settings: PlanSettings
    now: datetime = field(compare=False)

    @property
    def found_layouts(self) -> tuple[Layout | None, ...]:
        """The layout of every GPU in the agent's last reading, by index. Empty if the agent has not reported any GPU yet."""
        observed = self.gpunode.observed if self.gpunode else None
        return observed.hardware.layouts if observed else ()


Conditions: TypeAlias = Callable[[ActuatorCase, Target], Iterator[tuple[Reason, str | Finding]]]
"""Yields what keeps an actuator from changing a node to a target, in order. An empty message means that a condition is met; a Finding has a reason of its own."""


def find_obstacle(conditions: Conditions, case: ActuatorCase, target: Target) -> Finding | None:
    """Return the first condition that prevents a change to the target, or None if all are met."""
    return next((Finding.of(found, reason) for reason, found in conditions(case, target) if found), None)


@value
class Writing:
    """What a run writes to the Node at the point of no return, besides the parts of the fence that do not depend on the actuator."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels to set, or None to remove one."""
    restart_uid: str = ""
    """Becomes the field of this name in the Fence, as do the next two."""
    daemon_uid: str = ""
    gfd_timestamp: str = ""


@value
class Unfinished:
    """What the programs of an actuator show while a run is not done, or after it has failed."""

    mismatch: Finding
    final: bool
    """Whether waiting longer changes nothing."""
    cure: str = ""
    """The first step of another run, as shown to people. Empty if another run would not help."""


@value(eq=False)
class Actuator:
    """The programs that change a node, as answers to the five questions. It keeps no state: what must survive is in the fence and in the claims."""

    needs: frozenset[str]
    """The programs without which it cannot change, serve or prove a node, as labels of rows in the table of `stack/requirements.py`."""
    objections: Conditions
    """Why it can never reach a target in this installation. They are checked before a change, during the drain, before every run, and before a rollback."""
    obstacles: Conditions
    """What else keeps a change of a node from beginning."""
    find_labels: Callable[[NodeView, Target], Mapping[str, str]]
    """Returns the value that each of its labels must have on a node for the target; empty for a label that must be absent. Labels that it does not write for this target have their present value."""
    needs_run: Callable[[ActuatorCase, Target], bool]
    """Returns whether the target can be reached only by a run on an idle node."""
    find_missing: Callable[[ActuatorCase, Target, bool], str]
    """Returns which of its pods is missing on the node for a run to this target. The last argument says whether the last run is repeated."""
    write: Callable[[ActuatorCase, Fence, Target, ObservedView | None, bool], Writing]
    """Returns what a run to the target writes at the point of no return. The reading is the one that proved the node idle, or None for a plugin restart, which needs no idle node. The last argument says whether the last run is repeated."""
    find_old: Callable[[ActuatorCase, Fence], tuple[Operand, str] | None]
    """Returns the pod that must be deleted next for this run to go on, and its name for people."""
    find_trouble: Callable[[ActuatorCase, Fence], Unfinished | None]
    """Returns None if the run has succeeded, or if it involves no program that could fail."""
    next_look: Callable[[ActuatorCase, Fence], datetime | None]
    """Returns when the passing of time alone may change the result of `find_trouble`, or None if it will not."""
    find_events: Callable[[ActuatorCase], tuple[str, ...]]
    """Returns strings that change with every event that may change the GPUs. A proof must be more recent than their latest change."""
    find_work: Callable[[NodeView], str]
    """Returns what its programs do with the GPUs of a node on which we have started no run, as a clause."""
    checks: Checks
    """What proves the result, and finds drift."""
    find_last_proven: Callable[[NodeView, ObservedView, StackView], Target | str]
    """Returns the target that the record of the last proof describes, or a clause for people that says why it cannot be used."""
    tell_left: Callable[[NodeView], str]
    """Returns a clause about what stays on a node whose policy is deleted, and why. Empty if nothing stays."""
