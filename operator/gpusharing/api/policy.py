"""GPUSharingPolicy: what a node pool's GPUs are for. These types generate `crds/`: edit, then `make gen`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from gpusharing.api import rules
from gpusharing.api.base import Condition, Duration, Wait, WireModel
from gpusharing.api.names import Mode
from gpusharing.api.records import Counts, Line, Sentence
from gpusharing.api.rollout import Rollout
from gpusharing.api.rules import cel

MIN_REPLICAS, MAX_REPLICAS = 2, 1024
Replicas = Annotated[int, Field(ge=MIN_REPLICAS, le=MAX_REPLICAS, json_schema_extra=cel(rules.REPLICAS))]
ALL_ALONE = {"anyOf": [{"maxItems": 1}, {"items": {"properties": {"devices": {"not": {"enum": ["all"]}}}}}]}
"""Schema of layouts: an entry for `all` GPUs must be the only one."""
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=rules.LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=rules.LABEL_VALUE)]
MAX_GPUS = 16
"""GPUs that one node may have; no system that NVIDIA lists has more, and CEL needs a bound."""
GpuIndex = Annotated[int, Field(ge=0, lt=MAX_GPUS)]
Devices = Annotated[
    Literal["all"] | Annotated[tuple[GpuIndex, ...], Field(min_length=1, max_length=MAX_GPUS)],
    WithJsonSchema(
        {
            "x-kubernetes-preserve-unknown-fields": True,
            "anyOf": [{"enum": ["all"]}, {"not": {"maxItems": 0}, "maxItems": MAX_GPUS}],
        }
    ),
]
"""A word or a list. A structural schema has no such type, so the CRD checks the outer form only (`not:
{maxItems: 0}` is true of non-empty lists alone); the chart's admission policy and validation.py check the rest."""


class LabelSelectorRequirement(WireModel):
    """One row of `matchExpressions`."""

    model_config = ConfigDict(json_schema_extra=cel(rules.EXPRESSION_VALUES))

    key: Annotated[LabelKey, Field(json_schema_extra=cel(rules.REWRITTEN_KEY))]
    """Label key; not one that a mode change rewrites."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the key relates to the values."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = ()
    """Values for In and NotIn; empty for Exists and DoesNotExist."""


class Requirement(WireModel):
    """One row of `matchExpressions`."""

    model_config = ConfigDict(json_schema_extra=cel(rules.EXPRESSION_VALUES))

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the key relates to the values."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=16)] = ()
    """Values for In and NotIn; empty for Exists and DoesNotExist."""


class Selector(WireModel):
    """Which namespaces or pods, by their labels; all parts must match. An empty one matches all."""

    match_labels: Annotated[
        dict[str, LabelValue], Field(max_length=8, json_schema_extra=cel(rules.LABEL_KEYS))
    ] = Field(default_factory=dict)
    """Labels that a namespace or pod must carry, for example {tier: training}."""
    match_expressions: Annotated[tuple[Requirement, ...], Field(max_length=8)] = ()
    """Further requirements, all of which must hold."""


class LabelSelector(WireModel):
    """Which nodes; all parts must match."""

    model_config = ConfigDict(json_schema_extra=cel(rules.EMPTY_SELECTOR))

    match_labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=16, json_schema_extra=cel(rules.LABEL_KEYS, rules.REWRITTEN_LABEL)),
    ] = Field(default_factory=dict)
    """Labels that a node must carry, for example {gpusharing.dev/pool: b}."""
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=16)] = ()
    """Further requirements, all of which must hold."""


class MigLayout(WireModel):
    """The MIG instances of some GPUs of the node."""

    devices: Devices = "all"
    """`all` (then this is the only entry), or the GPU indexes as NVML counts them, for example [0, 1]."""
    profiles: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=7)]],
        Field(max_length=16, json_schema_extra=cel(rules.PROFILE_NAMES)),
    ] = Field(default_factory=dict)
    """How many instances of each MIG profile each of these GPUs gets, for example {3g.40gb: 2}; {} keeps them whole."""


class Mig(WireModel):
    """How GPUs are partitioned with Multi-Instance GPU."""

    model_config = ConfigDict(json_schema_extra=cel(rules.CONFIG_OR_LAYOUTS, rules.SINGLE_PROFILE))

    strategy: Literal["single", "mixed"] = "mixed"
    """`mixed` advertises nvidia.com/mig-<profile>; `single` keeps the resource name nvidia.com/gpu, so that
    manifests need no edit, and needs one and the same profile on all GPUs."""
    config: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=63,
                pattern=rules.LABEL_VALUE,
                json_schema_extra=cel(rules.CONFIG_WITH_MIG),
            ),
        ]
        | None
    ) = None
    """A named mig-parted configuration, for example all-balanced. Give either this or layouts."""
    layouts: (
        Annotated[
            tuple[MigLayout, ...],
            Field(
                max_length=MAX_GPUS,
                json_schema_extra={**cel(rules.SOME_PROFILES), **ALL_ALONE},
            ),
        ]
        | None
    ) = None
    """The geometry itself. Together the entries must name every GPU of the node exactly once."""


class TimeSlicing(WireModel):
    """How many pods take turns on one GPU. There is no memory or fault isolation between them."""

    replicas: Replicas
    """Shares per GPU, at least 2 (one share is mode Full)."""
    rename_by_default: bool = False
    """Advertise nvidia.com/gpu.shared instead of nvidia.com/gpu."""
    fail_requests_greater_than_one: bool = False
    """Reject pods that ask for more than one share; they would get no more time for it."""


class Mps(WireModel):
    """How many pods compute on one GPU at the same time through the Multi-Process Service. Memory and threads are
    divided evenly; a fatal fault of one client is reported to all."""

    replicas: Replicas
    """Clients per GPU, at least 2. The card's limit (48, or 16 below compute capability 7.5) is checked per node."""
    rename_by_default: bool = False
    """Advertise nvidia.com/gpu.shared instead of nvidia.com/gpu."""


class DrainRule(WireModel):
    """How some pods leave; if several rules match a pod, the first one decides."""

    model_config = ConfigDict(json_schema_extra=cel(rules.RULE_TIMEOUT))

    namespace_selector: Selector = Field(default_factory=Selector)
    """Pods of the namespaces with these labels; empty: of every namespace."""
    pod_selector: Selector = Field(default_factory=Selector)
    """Pods with these labels; empty: every pod."""
    behavior: Literal["Evict", "WaitCompleted", "Block"]
    """Evict removes the pod. WaitCompleted cordons the node and waits until the pod has ended. Block leaves the node
    alone while the pod is there."""
    timeout: Wait | None = None
    """With WaitCompleted: how long to wait for the pod after the cordon, or Never to wait indefinitely; without it,
    jobs.timeout applies."""
    order: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Pods of a lower order leave first, and the next ones are asked to leave when all of these are gone; pods that no
    rule matches have 0."""


class Jobs(WireModel):
    """Pods that run to completion: those of a Job or the like, with restartPolicy Never or OnFailure."""

    timeout: Wait = "1h"
    """How long to wait for them after the cordon, for example 1h or 8h; Never: for as long as they run."""
    on_timeout: Literal["Abort", "Evict"] = "Abort"
    """What happens then: Abort gives the change up and restores the node, Evict removes them like other pods. It also
    applies to pods that a rule waits for."""


class Drain(WireModel):
    """How pods that hold a GPU leave before a change that would disturb them."""

    timeout: Duration = "15m"
    """How long a drain may take before it is given up and the node restored, for example 15m or 1h30m.
    Until then the node keeps its place in maxUnavailable, whatever keeps the pods."""
    on_timeout: Literal["Abort", "Hold", "ForceDelete"] = "Abort"
    """What happens then: Abort gives the change up and restores the node; Hold keeps it cordoned and in its place in
    maxUnavailable, and goes on trying until the pods are gone or a person gives the change up. ForceDelete deletes pods
    that a PodDisruptionBudget still keeps, a grace period before the end, and needs the chart's value forceDelete."""
    unmanaged_pods: Literal["Block", "Evict"] = "Block"
    """Pods without a controller do not come back: Block leaves the node alone, Evict removes them."""
    protected_pods: Literal["Wait", "Block", "Ignore"] = "Wait"
    """Pods with a mark that asks not to disturb them (do-not-disrupt, safe-to-evict, cluster.x-k8s.io/drain): Wait
    leaves the node alone until the mark ends or the pod is gone, Block for as long as the mark is there, whatever
    duration it names, Ignore disregards marks."""
    local_storage: Literal["Evict", "Block"] = "Evict"
    """Pods with files in an emptyDir on the node's disk lose them: Evict removes them anyway, Block leaves
    the node alone. An emptyDir in memory, such as /dev/shm, never blocks."""
    rules: Annotated[tuple[DrainRule, ...], Field(max_length=16)] = ()
    """Exceptions for some pods; the first that matches wins. A rule overrides unmanagedPods, localStorage and jobs, but
    neither marks on the pod nor the rule that some pods are never evicted."""
    jobs: Jobs = Field(default_factory=Jobs)
    """How long the drain waits for pods that run to completion."""
    stranded_pods: Literal["Hold", "Allow"] = "Hold"
    """Pods that could not run when all planned changes are done: no node would offer their resource name, too few of it
    would remain, or no node would have the labels that they require. Hold leaves the node alone, Allow evicts."""


class Cost(WireModel):
    """What a GPU of the pool costs, for `kubectl gpusharing cost`. It does not change any node."""

    gpu_hourly_price: Annotated[
        str, Field(max_length=13, pattern=rules.PRICE, json_schema_extra=cel(rules.GPU_HOURLY_PRICE))
    ]
    """One whole GPU for an hour, as text: "3.20". If OpenCost has a price for the node, that one counts."""
    currency: Annotated[
        str, Field(max_length=3, pattern=rules.CURRENCY, json_schema_extra=cel(rules.CURRENCY_CODE))
    ] = "USD"
    """Currency code of three capital letters. Nothing is converted."""


class GPUSharingPolicySpec(WireModel):
    """What the pool is for, and how it may be changed."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            rules.MIG_NEEDS_BLOCK,
            rules.TIME_SLICING_NEEDS_BLOCK,
            rules.BLOCK_NEEDS_MIG,
            rules.BLOCK_NEEDS_TIME_SLICING,
            rules.MPS_NEEDS_BLOCK,
            rules.BLOCK_NEEDS_MPS,
        )
    )

    node_selector: LabelSelector
    """The node pool. An empty selector is refused, and so is one on a label that a mode change rewrites."""
    products: Annotated[tuple[Annotated[LabelValue, Field(min_length=1)], ...], Field(max_length=32)] = ()
    """Optional guard: only nodes with one of these cards change, others are skipped and reported. The name is
    NVML's with dashes, for example NVIDIA-H100-80GB-HBM3."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Of the policies that select a node, the one of the highest priority owns it; one of equal priority never takes a
    node from its owner."""
    mode: Mode
    """What the GPUs are for. Full: one pod has a whole GPU. MIG, MPS and TimeSlicing need the block of that name;
    MIG may have timeSlicing too."""
    mig: Mig | None = None
    """How GPUs are divided into MIG instances, isolated in hardware. With mode MIG only."""
    time_slicing: TimeSlicing | None = None
    """How many pods take turns on one GPU, or with mode MIG on one instance, without isolation between them."""
    mps: Mps | None = None
    """How many pods compute on one GPU at the same time. With mode MPS only."""
    drain: Drain = Field(default_factory=Drain)
    """How pods leave before a change."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How the change moves over the pool."""
    deletion_policy: Literal["Retain", "Reset"] = "Retain"
    """What happens to the nodes when the policy is deleted. Retain leaves them as they are; Reset first changes each to
    whole GPUs, by the usual drain and rollout, proves that and removes our labels; the policy stays until then."""
    cost: Cost | None = None
    """What a GPU of the pool costs. As every edit does, a new value ends a halt by rollout.maxFailures, voids an
    approval, and ends the waits of nodes for another attempt."""


class Summary(WireModel):
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


class Plan(WireModel):
    """What is going to happen, shown beforehand."""

    hash: Line
    """Identifies the plan, for rollout.approval Manual; changes when the plan changes."""
    disruption: Line
    """Highest disruption class of the nodes that change."""
    nodes: Annotated[tuple[Line, ...], Field(max_length=20)]
    """Nodes that change, at most 20."""
    node_count: int
    """How many nodes change."""
    pods: int
    """Pods holding a GPU on these nodes."""
    pod_names: Annotated[tuple[Line, ...], Field(max_length=20)] = ()
    """At most 20 of these pods that would be evicted: those of the first 20 nodes that have yet to begin. For nodes
    that are being changed, see kubectl get gpunodes."""
    budgets: Annotated[tuple[Line, ...], Field(max_length=20)] = ()
    """PodDisruptionBudgets that guard these pods, at most 20."""
    gangs: Annotated[tuple[Sentence, ...], Field(max_length=10)] = ()
    """Gangs that these pods belong to, how many members they have and where; at most 10."""
    blockers: Annotated[tuple[Sentence, ...], Field(max_length=5)] = ()
    """What would keep these pods from leaving, one line for each reason."""
    shortages: Annotated[tuple[Sentence, ...], Field(max_length=20)] = ()
    """Resource names of which pods, running or Pending, ask for more devices than the whole cluster will have, where
    the pool gives up some: nvidia.com/mig-3g.40gb: 24 ask, 16 remain: 8 will wait. At most 20."""
    windows: Annotated[tuple[Line, ...], Field(max_length=3)] = ()
    """The next times at which nodes may start, from and to in UTC; empty: at any time."""
    capacity_before: Counts
    """Allocatable GPU resources of the pool now."""
    capacity_after: Counts
    """Predicted allocatable GPU resources of the pool afterwards."""


class Failure(WireModel):
    """One node that needs a person."""

    node: Line
    """Name of the node."""
    reason: Line
    """Why, in one CamelCase word; docs/reference/reasons.md explains each."""
    message: Sentence
    """What happened and what to do."""


class GPUSharingPolicyStatus(WireModel):
    """Recomputed from scratch on every pass; written only when it changed."""

    observed_generation: int = 0
    """The metadata.generation that this status describes."""
    summary: Summary = Field(default_factory=Summary)
    """Flat values for the columns of `kubectl get`."""
    plan: Plan | None = None
    """What is going to happen; absent when no node is to change."""
    failures: Annotated[tuple[Failure, ...], Field(max_length=20)] = ()
    """Nodes that need a person, at most 20."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """Accepted, Ready, Reconciling and Stalled."""
