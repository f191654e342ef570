"""The status of a GPUSharingPolicy: what the operator tells people about a node pool. Nothing is decided from it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpusharing.api.records import Counts, Limits, Line, SchemaKeys, Sentence, Time, WireRecord


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
    """Mode as shown: Full, MIG, MIG+TS (with time-slicing), MPS or TimeSlicing."""
    layout: Line = ""
    """What each GPU is divided into, for example 2x3g.40gb, 4x shared or 1x full."""
    nodes: Line = ""
    """Nodes that are verified and schedulable, of all nodes of the pool, for example 2/3."""
    gpus: int = 0
    """GPUs in the pool."""
    used: Line = ""
    """Devices held by pods, of all devices served, for example 27/32."""
    pending_pods: int = 0
    """Pending pods that ask for a resource of this pool or, with drain.strandedPods Allow, for one that no node
    offers."""
    strategy: Line = ""
    """MIG strategy, empty for other modes."""
    product: Line = ""
    """Card models in the pool."""
    next_window: Line = ""
    """With rollout.windows or rollout.blackouts: when nodes may start next or, if they may now, until when; UTC."""
    status: Line = ""
    """One word: Synced, Draining, Blocked, Failed ..."""
    message: Sentence = ""
    """The most urgent sentence about the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(WireRecord):
    """What is going to happen, shown beforehand."""

    hash: Line
    """Identifies the plan, for rollout.approval Manual; changes when the plan changes."""
    disruption: Line
    """Highest disruption class of the nodes that change."""
    nodes: Annotated[tuple[Line, ...], Limits(max_length=20)]
    """Nodes that change, at most 20."""
    node_count: int
    """How many nodes change."""
    pods: int
    """Pods holding a GPU on these nodes."""
    pod_names: Annotated[tuple[Line, ...], Limits(max_length=20)] = ()
    """At most 20 of these pods that would be evicted: those of the first 20 nodes that have yet to begin. For nodes
    that are being changed, see kubectl get gpunodes."""
    budgets: Annotated[tuple[Line, ...], Limits(max_length=20)] = ()
    """PodDisruptionBudgets that guard these pods, at most 20."""
    gangs: Annotated[tuple[Sentence, ...], Limits(max_length=10)] = ()
    """Gangs that these pods belong to, how many members they have and where; at most 10."""
    blockers: Annotated[tuple[Sentence, ...], Limits(max_length=5)] = ()
    """What would keep these pods from leaving, one line for each reason."""
    shortages: Annotated[tuple[Sentence, ...], Limits(max_length=20)] = ()
    """Resource names of which pods, running or Pending, ask for more devices than the whole cluster will have, where
    the pool gives up some: nvidia.com/mig-3g.40gb: 24 ask, 16 remain: 8 will wait. At most 20."""
    windows: Annotated[tuple[Line, ...], Limits(max_length=3)] = ()
    """The next times at which nodes may start, from and to in UTC; empty: at any time."""
    capacity_before: Counts
    """Allocatable GPU resources of the pool now."""
    capacity_after: Counts
    """Predicted allocatable GPU resources of the pool afterwards."""


@dataclass(frozen=True, slots=True)
class Failure(WireRecord):
    """One node that needs a person."""

    node: Line
    """Name of the node."""
    reason: Line
    """Why, in one CamelCase word; docs/reference/reasons.md explains each."""
    message: Sentence
    """What happened and what to do."""


@dataclass(frozen=True, slots=True)
class GPUSharingPolicyStatus(WireRecord):
    """Recomputed from scratch on every pass; written only when it changed."""

    observed_generation: int = 0
    """The metadata.generation that this status describes."""
    summary: Summary = field(default_factory=Summary)
    """Flat values for the columns of `kubectl get`."""
    plan: Plan | None = None
    """What is going to happen; absent when no node is to change."""
    failures: Annotated[tuple[Failure, ...], Limits(max_length=20)] = ()
    """Nodes that need a person, at most 20."""
    conditions: Annotated[
        tuple[Condition, ...],
        Limits(max_length=16),
        SchemaKeys({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """Accepted, Ready, Reconciling and Stalled."""
