"""What is an actuator? The programs that change a node in one kind of installation (docs/adr/0075-actuators.md)."""

from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.nvidia import Operand, Program, StackView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PlanSettings
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import Checked, Comparison, Source


@value
class Trace:
    """What a program left on a node, which is believed only for a while (docs/design/transition.md#traces)."""

    claim: str
    """Who says what by it, as a clause; another one once the program writes anew."""
    limit: float
    """For how many seconds it is believed in one boot of the node."""
    doubt: Finding
    """What is said after that: the claim, and which sign that the program lives is missing."""


@value
class ActuatorCase:
    """The part of a node's case (docs/design/glossary.md#case) that its actuator may know."""

    node: NodeView
    gpunode: GPUNodeView | None
    operands: Mapping[Program, Operand]
    """The pods of NVIDIA's programs on the node that we may restart. A program without a pod there is left out."""
    mig_failure: str
    """The last line of mig-manager's log after it failed; empty if it has not, or the log could not be read."""
    stack: StackView
    settings: PlanSettings
    now: datetime = field(compare=False)
    traces_since: Mapping[tuple[str, str], datetime]
    """Since when this process has seen each trace of the node, by boot ID and claim."""

    @property
    def observed(self) -> ObservedView | None:
        return self.gpunode.observed if self.gpunode else None

    @property
    def found_layouts(self) -> tuple[Layout | None, ...]:
        return self.observed.hardware.layouts if self.observed else ()

    def first_seen(self, claim: str) -> datetime | None:
        return self.traces_since.get((self.node.boot_id, claim))

    def believes_until(self, trace: Trace) -> datetime:
        return (self.first_seen(trace.claim) or self.now) + timedelta(seconds=trace.limit)

    def find_doubt(self, trace: Trace | None) -> Finding | None:
        """Return what is said about the trace, if it is not believed any more."""
        return trace.doubt if trace is not None and self.believes_until(trace) <= self.now else None


Written: TypeAlias = tuple[Fence, Mapping[str, str | None]]
"""The fence, and the labels to set, or None to remove one."""


@value
class Unfinished:
    """What the programs of an actuator show while a run is not done, or after it has failed."""

    mismatch: Finding
    final: bool
    """Whether waiting longer changes nothing."""
    cure: str = ""
    """The first step of another run, as shown to people. Empty if another run would not help."""


class Actuator(Protocol):
    """The programs that change a node in one kind of installation, as answers to five questions.

    1. What does it need?                             needs, objections, obstacles
    2. What is written at the point of no return?     find_labels, needs_run, needs_mig_manager, find_missing, write, find_old
    3. Is it at work, done, stuck or failed?          find_trouble, find_lost, next_look, find_events, find_work,
                                                      find_claim
    4. What proves the result?                        checks, find_down
    5. How does a node go back?                       find_last_proven, tell_left

    It keeps no state: what must survive is in the fence and in the claims.
    """

    needs: frozenset[str]
    """The programs without which it cannot change, serve or prove a node, as labels in `requirements.REQUIREMENTS`."""
    sources: tuple[Source, ...]
    """The sources of proof that `checks` queries."""

    def objections(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        """Yield why it can never reach a target here; asked from the start to the last run, and before a rollback."""

    def obstacles(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        """Yield what else keeps a change of a node from beginning."""

    def find_labels(self, node: NodeView, target: Target) -> Mapping[str, str]:
        """Return the value of each of its labels for the target: empty if absent, the present one if not written."""

    def needs_run(self, case: ActuatorCase, target: Target) -> bool:
        """Whether the target can be reached only by a run on an idle node."""

    def needs_mig_manager(self, case: ActuatorCase, target: Target) -> bool:
        """Whether mig-manager must act on the node to reach the target."""

    def find_missing(self, case: ActuatorCase, goal: Target, again: bool) -> str:
        """Return which of its pods the node lacks for a run to `goal` or, with `again`, for a repetition."""

    def write(self, case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Written:
        """Return what a run to `goal`, or a repetition of it, writes at the point of no return.

        In the fence, each of `restart_uid`, `daemon_uid` and `gfd_timestamp` must be set or emptied. `idle` is the
        reading that proved the node idle, or None for a plugin restart, which needs no idle node.
        """

    def find_old(self, case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
        """Return the pod that must be deleted next for this run to go on, and its name for people."""

    def find_trouble(self, case: ActuatorCase, fence: Fence) -> Unfinished | None:
        """Return None if the run has succeeded, or if it involves no program that could fail."""

    def find_lost(self, case: ActuatorCase, fence: Fence) -> Written | None:
        """Return the labels of a run under way that others changed, to write again at any time; None if there are none."""

    def next_look(self, case: ActuatorCase, fence: Fence) -> datetime | None:
        """Return when the passing of time alone may change the result of `find_trouble`."""

    def find_events(self, case: ActuatorCase) -> tuple[str, ...]:
        """Return strings that change with every event that may change the GPUs; a proof must be more recent."""

    def find_work(self, node: NodeView) -> str:
        """Return what its programs do with the GPUs of a node on which we have started no run, as a clause."""

    def find_claim(self, case: ActuatorCase) -> Trace | None:
        """Return what says that its programs are at work on the node, as in `find_work`."""

    def find_down(self, case: ActuatorCase, target: Target) -> Trace | None:
        """Return what looks like the target and was left by a program that does not run, or has only started."""

    def checks(self, compared: Comparison) -> Checked:
        """Yield what proves the result, and finds drift."""

    def find_last_proven(self, node: NodeView, observed: ObservedView, stack: StackView) -> Target | str:
        """Return the target that the record of the last proof describes, or a clause on why it cannot be used."""

    def tell_left(self, node: NodeView) -> str:
        """Return a clause about what stays on a node whose policy is deleted, and why. Empty if nothing stays."""
