"""GPUSharingPolicy: what one node pool's GPUs are for. These types generate `crds/`; edit here, run `make gen`."""

from typing import Annotated, Literal

from pydantic import Field

from gpusharing.api.base import Condition, WireModel
from gpusharing.api.names import Mode

Replicas = Annotated[int, Field(ge=2, le=1024)]
Duration = Annotated[str, Field(pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", min_length=2, max_length=16)]


class LabelSelectorRequirement(WireModel):
    """One row of `matchExpressions`."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the key relates to the values."""
    values: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=64)] = ()
    """Values for In and NotIn; empty for Exists and DoesNotExist."""


class LabelSelector(WireModel):
    """Which nodes; all parts must match."""

    match_labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Labels that a node must carry, for example {gpusharing.dev/pool: b}."""
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=16)] = ()
    """Further requirements, all of which must hold."""


class MigLayout(WireModel):
    """The MIG instances of some GPUs of the node."""

    devices: (
        Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0, le=63)], ...], Field(max_length=64)]
    ) = "all"
    """`all`, or a list of GPU indexes as NVML counts them."""
    profiles: Annotated[
        dict[
            Annotated[str, Field(max_length=32)],
            Annotated[int, Field(ge=1, le=7)],
        ],
        Field(max_length=16),
    ] = Field(default_factory=dict)
    """MIG profile to number of instances on each of these GPUs, for example {3g.40gb: 2}; {} keeps them whole."""


class Mig(WireModel):
    """How GPUs are partitioned with Multi-Instance GPU."""

    strategy: Literal["single", "mixed"] = "mixed"
    """`mixed` advertises nvidia.com/mig-<profile>; `single` keeps nvidia.com/gpu and needs one profile on all GPUs."""
    config: (
        Annotated[
            str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
        ]
        | None
    ) = None
    """A named mig-parted configuration, for example all-balanced. Give either this or layouts."""
    layouts: Annotated[tuple[MigLayout, ...], Field(max_length=64)] | None = None
    """The geometry itself. Together the entries must name every GPU of the node exactly once."""


class TimeSlicing(WireModel):
    """How many pods take turns on one GPU. There is no memory or fault isolation between them."""

    replicas: Replicas
    """Shares per GPU, at least 2 (one share is mode Full)."""
    rename_by_default: bool = False
    """Advertise nvidia.com/gpu.shared instead of nvidia.com/gpu."""
    fail_requests_greater_than_one: bool = False
    """Reject pods that ask for more than one share; they would get no more time for it."""


class Drain(WireModel):
    """How pods that hold a GPU leave before a change that would disturb them."""

    timeout: Duration = "15m"
    """How long a drain may take before it is given up and the node restored, for example 15m or 1h30m."""
    unmanaged_pods: Literal["Block", "Evict"] = "Block"
    """Pods without a controller do not come back: Block leaves the node alone, Evict removes them."""
    stranded_pods: Literal["Hold", "Allow"] = "Hold"
    """Pods whose resource name no node would offer afterwards: Hold leaves the node alone, Allow evicts them."""


class Timeouts(WireModel):
    """How long the steps after the point of no return may take before a node counts as Failed."""

    actuation: Duration = "30m"
    """From the label change until mig-manager and the device plugin are done."""
    verification: Duration = "10m"
    """From then until NVML, the labels and the allocatable resources agree."""


class Rollout(WireModel):
    """How the change moves over the pool."""

    max_unavailable: int | Annotated[str, Field(max_length=8)] = Field(
        default=1, json_schema_extra={"x-kubernetes-int-or-string": True}
    )
    """Nodes that may be unavailable at once: a number, or a percentage of the pool (rounded down, at least 1). 0 freezes."""
    paused: bool = False
    """Start no further node; nodes in flight finish."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """Limits for the steps that follow the drain."""


class GPUSharingPolicySpec(WireModel):
    """What the pool is for and how a change may reach it."""

    node_selector: LabelSelector
    """The node pool. An empty selector is refused, and so is one on a label that a mode change rewrites."""
    products: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...], Field(max_length=32)
    ] = ()
    """Optional guard: only nodes with one of these cards (NVML's name with dashes), for example NVIDIA-H100-80GB-HBM3."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """When several policies select a node the highest wins; equal priority never takes a node from its owner."""
    mode: Mode
    """Full, MIG or TimeSlicing."""
    mig: Mig | None = None
    """With mode MIG only."""
    time_slicing: TimeSlicing | None = None
    """With mode TimeSlicing only."""
    drain: Drain = Field(default_factory=Drain)
    """How pods leave before a change."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How the change moves over the pool."""


class Summary(WireModel):
    """Flat values for the columns of `kubectl get`."""

    mode: str = ""
    """Mode as shown."""
    layout: str = ""
    """What each GPU is divided into, for example 2x3g.40gb, 4x shared or 1x full."""
    nodes: str = ""
    """Nodes that are verified and schedulable, of all nodes of the pool, for example 2/3."""
    gpus: int = 0
    """GPUs in the pool."""
    used: str = ""
    """Devices held by pods, of all devices served, for example 27/32."""
    pending_pods: int = 0
    """Pending pods that ask for a resource of this pool."""
    strategy: str = ""
    """MIG strategy, empty for other modes."""
    product: str = ""
    """Card models in the pool."""
    status: str = ""
    """One word: Synced, Draining, Blocked, Failed ..."""
    message: str = ""
    """The most urgent sentence about the pool."""


class Plan(WireModel):
    """What is going to happen, shown before it does."""

    hash: str
    """Changes when the plan changes."""
    disruption: str
    """Highest disruption class of the nodes that change."""
    nodes: tuple[str, ...]
    """Nodes that change, at most 20."""
    node_count: int
    """How many nodes change."""
    pods: int
    """Pods holding a GPU on these nodes."""
    capacity_before: dict[str, int]
    """Allocatable GPU resources of the pool now."""
    capacity_after: dict[str, int]
    """Predicted allocatable GPU resources of the pool afterwards."""


class Failure(WireModel):
    """One node that needs a person."""

    node: str
    """Name of the node."""
    reason: str
    """One CamelCase word."""
    message: str
    """What happened and what to do."""


class GPUSharingPolicyStatus(WireModel):
    """Recomputed from scratch on every pass; written only when it changed."""

    observed_generation: int = 0
    """The metadata.generation that this status speaks about."""
    summary: Summary = Field(default_factory=Summary)
    """Flat values for the columns of `kubectl get`."""
    plan: Plan | None = None
    """What is going to happen; absent when nothing is."""
    failures: Annotated[tuple[Failure, ...], Field(max_length=20)] = ()
    """Nodes that need a person, at most 20."""
    conditions: tuple[Condition, ...] = ()
    """Accepted, Ready, Reconciling and Stalled."""
