"""The status of a GPUSharingPolicy: what the operator tells people about a node pool. Nothing is decided from it.

Terms: docs/design/glossary.md#class.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpusharing.api.names import DisruptionClass
from gpusharing.api.records import Counts, Limits, Line, Sentence, Time, WireRecord, one_of


@dataclass(frozen=True, slots=True)
class Condition(WireRecord):
    """One aspect of an object's state, as in Kubernetes' metav1.Condition."""

    type: Annotated[str, Limits(max_length=64)]
    """Type of the condition: Accepted, Ready, Reconciling or Stalled."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition is met."""
    reason: Annotated[str, Limits(max_length=128)]
    """One CamelCase word that tools may match on; docs/reference/reasons.md explains each."""
    message: Sentence
    """A sentence for people: what is the case, and what happens next or what to do."""
    observed_generation: int
    """The metadata.generation that this condition describes."""
    last_transition_time: Time
    """When the status last changed, RFC 3339 in UTC, to the second."""


@dataclass(frozen=True, slots=True)
class Summary(WireRecord):
    """Flat values for the columns of `kubectl get`."""

    mode: Line = ""
    """Mode as the column shows it: Full, MIG, MIG+TS (with time-slicing), MPS or TimeSlicing."""
    layout: Line = ""
    """Layout of each GPU, for example 2x3g.40gb, 4x shared or 1x full."""
    nodes: Line = ""
    """How many nodes are proven and schedulable, and how many the pool has, for example 2/3."""
    gpus: int = 0
    """How many GPUs the pool has."""
    used: Line = ""
    """How many devices pods hold, and how many the pool advertises, for example 27/32."""
    pending_pods: int = 0
    """How many Pending pods request a resource of this pool or, with drain.strandedPods Allow, one that no node
    advertises."""
    product: Line = ""
    """Card models in the pool."""
    next_window: Line = ""
    """When nodes may start next or, if they may start now, until when, in UTC; empty without rollout.windows and
    rollout.blackouts."""
    status: Line = ""
    """State of the pool in one word, for example Synced, Draining, Blocked or Failed."""
    message: Sentence = ""
    """The most urgent fact about the pool, in one sentence."""
    paused_by: Sentence = ""
    """What pauses the policy beside its own rollout.paused: the chart's value paused, or the ConfigMap gpusharing-stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(WireRecord):
    """The planned changes of a pool, shown before they are made."""

    hash: Line
    """Hash of the plan, with which the annotation gpusharing.dev/approve approves it where rollout.approval is Manual;
    it stays until something goes beyond what was approved."""
    disruption: Annotated[str, one_of(DisruptionClass)]
    """Highest disruption class among the nodes to change."""
    nodes: Annotated[tuple[Line, ...], Limits(max_length=20)]
    """Nodes to change, at most 20 of them; those that are blocked count too."""
    node_count: int
    """How many nodes are to change; those that are blocked count too."""
    pods: int | None = None
    """How many pods on these nodes hold a GPU; absent while that is unknown of a node that is yet to be emptied."""
    pod_names: Annotated[tuple[Line, ...], Limits(max_length=20)] = ()
    """Pods that would be evicted from the first 20 of these nodes whose change has not begun; at most 20."""
    budgets: Annotated[tuple[Line, ...], Limits(max_length=20)] = ()
    """PodDisruptionBudgets that protect these pods, at most 20."""
    gangs: Annotated[tuple[Sentence, ...], Limits(max_length=10)] = ()
    """Gangs that these pods belong to, how many members they have and where; at most 10."""
    blockers: Annotated[tuple[Sentence, ...], Limits(max_length=5)] = ()
    """What would keep these pods from leaving, in one line for each reason."""
    shortages: Annotated[tuple[Sentence, ...], Limits(max_length=20)] = ()
    """Resources that the pool will advertise less of, and that running and Pending pods then request more of than the
    whole cluster has, for example nvidia.com/mig-3g.40gb: pods request 24, but only 16 will remain; at most 20."""
    windows: Annotated[tuple[Line, ...], Limits(max_length=3)] = ()
    """The next times at which nodes may start, from and to in UTC; empty if they may start at any time."""
    capacity_before: Counts
    """Allocatable GPU resources of the pool now."""
    capacity_after: Counts
    """Predicted allocatable GPU resources of the pool once the nodes have changed that neither their state nor their
    pods block."""


@dataclass(frozen=True, slots=True)
class Failure(WireRecord):
    """A node that only a person can help."""

    node: Line
    """Name of the node."""
    reason: Line
    """Why it needs a person, in one CamelCase word; docs/reference/reasons.md explains each."""
    message: Sentence
    """What happened to the node, and what to do."""


@dataclass(frozen=True, slots=True)
class GPUSharingPolicyStatus(WireRecord):
    """What the operator tells about the pool, computed anew on every pass and written when it has changed."""

    observed_generation: int = 0
    """The metadata.generation that this status describes."""
    halt: Line = ""
    """Hash of the failures after which no further node starts, empty if nothing is halted; the annotation
    gpusharing.dev/resume with this value ends the halt, and not the next one."""
    revision: Line = ""
    """Hash of what the policy asks for: its UID, nodeSelector, products, priority, mode, mig, timeSlicing, mps, drain
    and rollout.timeouts; a new one ends halts, deferrals and approvals and begins with new canaries, and no other edit
    does."""
    summary: Summary = field(default_factory=Summary)
    """Flat values for the columns of `kubectl get`."""
    plan: Plan | None = None
    """The planned changes; absent while no node is known to need one, for example before its agent has reported."""
    failures: Annotated[tuple[Failure, ...], Limits(max_length=20)] = ()
    """Nodes that need a person's help, at most 20."""
    conditions: Annotated[
        tuple[Condition, ...],
        Limits(max_length=16, schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """The conditions Accepted, Ready, Reconciling and Stalled."""
