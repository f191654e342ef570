"""What an actuator is: NVIDIA's programs that change a node in one kind of installation, as answers to five questions.

    1. What does it need?                             needs, objections, obstacles
    2. What is written at the point of no return?     find_labels, needs_run, find_missing, write, find_old
    3. Is it at work, done, stuck or failed?          find_trouble, next_look, find_events, find_work
    4. What proves the result?                        checks
    5. How does a node go back?                       find_last_proven, tell_left

Each other module of this folder is one actuator, and `find_actuator` chooses the one of a cluster
(docs/adr/0075-actuators.md).

Terms: docs/design/glossary.md#actuator, docs/design/glossary.md#fence,
docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.stackviews import Operand, Program, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PlanSettings
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Check


@value
class ActuatorCase:
    """The part of a node's case (docs/design/glossary.md#case) that its actuator may know."""

    node: NodeView
    """The Node."""
    gpunode: GPUNodeView | None
    """What we asked the agent and what it reports, or None if the node has no GPUNode yet."""
    operands: Mapping[Program, Operand]
    """The pods of NVIDIA's programs on the node that we may restart. A program without a pod there is left out."""
    mig_failure: str
    """The last line of mig-manager's log after it failed. Empty if it has not failed, or if the log could not be
    read."""
    stack: StackView
    """NVIDIA's components and our ConfigMaps."""
    settings: PlanSettings
    """The operator's settings."""
    now: datetime = field(compare=False)
    """The time of the pass that made this case."""

    @property
    def observed(self) -> ObservedView | None:
        """The agent's last report."""
        return self.gpunode.observed if self.gpunode else None

    @property
    def found_layouts(self) -> tuple[Layout | None, ...]:
        """The layout of every GPU in the agent's last report, by index, with None for a GPU with MIG off."""
        return self.observed.hardware.layouts if self.observed else ()


@value
class Obstacle:
    """What keeps an actuator from changing a node to a target."""

    find: Callable[[ActuatorCase, Target], str | Finding]
    """Returns the message, or an empty string if this obstacle is not in the way. A Finding is returned instead if the
    cause has a reason of its own."""
    reason: Reason
    """The reason why the change does not begin, unless the Finding has one of its own."""


def find_obstacle(obstacles: Sequence[Obstacle], case: ActuatorCase, target: Target) -> Finding | None:
    """Return a Finding about the first of these obstacles that prevents a change to the target, or None if there is
    none."""
    for obstacle in obstacles:
        if found := obstacle.find(case, target):
            return Finding.of(found, obstacle.reason)
    return None


@value
class Writing:
    """What a run writes to the Node at the point of no return, except for the parts of the fence that do not depend on
    the actuator."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Labels to set, or None to remove one."""
    restart_uid: str = ""
    """Becomes the field of this name in the Fence."""
    daemon_uid: str = ""
    """Becomes the field of this name in the Fence."""
    gfd_timestamp: str = ""
    """Becomes the field of this name in the Fence."""


@value
class Trouble:
    """What the programs of an actuator show while they are not done, or after they have failed."""

    mismatch: Finding
    """The reason and the message."""
    final: bool
    """Whether waiting longer changes nothing."""
    cure: str
    """The first step of another run, as shown to people. Empty if another run would not help."""


@value
class Sign:
    """One way in which the programs of an actuator show that they are not done."""

    find: Callable[[ActuatorCase, Fence], str]
    """Returns the message, or an empty string if they do not show this."""
    reason: Reason
    """The reason of the trouble."""
    final: bool
    """Whether waiting longer changes nothing."""
    cure: str
    """The first step of another run, as in Trouble."""


def find_sign(signs: Sequence[Sign], case: ActuatorCase, fence: Fence) -> Trouble | None:
    """Return the trouble that the first matching sign shows, or None if no sign matches."""
    for sign in signs:
        if message := sign.find(case, fence):
            return Trouble(Finding(sign.reason, message), sign.final, sign.cure)
    return None


@value(eq=False)
class Actuator:
    """The programs that change a node, as answers to the five questions. It keeps no state: what must survive is in the
    fence and in the claims."""

    needs: frozenset[str]
    """The programs without which it cannot change, serve or prove a node, as labels of rows in the table of
    `stack/requirements.py`."""
    objections: tuple[Obstacle, ...]
    """Why it can never reach a target in this installation. They are checked before a change, during the drain, before
    every run, and before a rollback."""
    obstacles: tuple[Obstacle, ...]
    """What else keeps a change of a node from beginning."""
    find_labels: Callable[[NodeView, Target], Mapping[str, str]]
    """Returns the value that each of its labels must have on a node for the target; empty for a label that must be
    absent. Labels that it does not write for this target have their present value."""
    needs_run: Callable[[ActuatorCase, Target], bool]
    """Returns whether the target can be reached only by a run on an idle node."""
    find_missing: Callable[[ActuatorCase, Target, bool], str]
    """Returns which of its pods is missing on the node for a run to this target, or an empty string if none is. The
    last argument says whether the last run is repeated."""
    write: Callable[[ActuatorCase, Fence, Target, ObservedView | None, bool], Writing]
    """Returns what a run to the target writes at the point of no return. The reading is the one that proved the node
    idle, or None for a plugin restart, which needs no idle node. The last argument says whether the last run is
    repeated."""
    find_old: Callable[[ActuatorCase, Fence], tuple[Operand, str] | None]
    """Returns the pod that must be deleted next for this run to go on, and its name for people. None if no pod must
    be deleted."""
    find_trouble: Callable[[ActuatorCase, Fence], Trouble | None]
    """Returns what shows that the run is not done, or has failed. None if it has succeeded, or if it involves no
    program that could fail."""
    next_look: Callable[[ActuatorCase, Fence], datetime | None]
    """Returns when the passing of time alone may change the result of `find_trouble`, or None if it will not."""
    find_events: Callable[[ActuatorCase], tuple[str, ...]]
    """Returns strings that change with every event that may change the GPUs. A proof must be more recent than their
    latest change."""
    find_work: Callable[[NodeView], str]
    """Returns what its programs do with the GPUs of a node on which we have started no run, as a clause. Empty if they
    do nothing."""
    checks: tuple[Check, ...]
    """What proves the result, and finds drift: the first disagreement counts."""
    find_last_proven: Callable[[NodeView, ObservedView, StackView], Target | str]
    """Returns the target that the record of the last proof describes, or a clause for people that says why it cannot be
    used."""
    tell_left: Callable[[NodeView], str]
    """Returns a clause about what stays on a node whose policy is deleted, and why. Empty if nothing stays."""
