"""GPUSharingPolicy: what a node pool's GPUs are for. `crds/` is generated from these types: edit them, then run `make
gen`.

Terms: docs/design/glossary.md#point-of-no-return.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from gpusharing.api import rules
from gpusharing.api.names import Mode
from gpusharing.api.rules import MAX_GPUS, cel

Duration = Annotated[
    str,
    Field(
        pattern=rules.DURATION,
        min_length=2,
        max_length=16,
        json_schema_extra=cel(rules.POSITIVE_DURATION),
    ),
]
"""Hours, minutes and seconds, for example 1h30m."""
Wait = Annotated[
    str,
    Field(pattern=rules.WAIT, min_length=2, max_length=16, json_schema_extra=cel(rules.POSITIVE_WAIT)),
]
"""A Duration, or Never."""
MIN_REPLICAS, MAX_REPLICAS = 2, 1024
Replicas = Annotated[int, Field(ge=MIN_REPLICAS, le=MAX_REPLICAS, json_schema_extra=cel(rules.REPLICAS))]
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=rules.LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=rules.LABEL_VALUE)]
GpuIndex = Annotated[int, Field(ge=0, le=MAX_GPUS - 1)]


class WireModel(BaseModel):
    """Base of every type that is read from or written to the API server.

    Unknown fields are ignored: an older operator must be able to read a newer object. A policy's spec is the exception
    (`validation.py`): the operator must not act on a spec that it does not fully understand.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


class Requirement(WireModel):
    """One row of `matchExpressions`."""

    model_config = ConfigDict(json_schema_extra=cel(rules.EXPRESSION_VALUES))

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """Relation between the label and the values."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=16)] = ()
    """Values for In and NotIn; empty for Exists and DoesNotExist."""


class LabelSelectorRequirement(Requirement):
    """One row of `matchExpressions`, for node labels."""

    key: Annotated[LabelKey, Field(json_schema_extra=cel(rules.REWRITTEN_KEY))]
    """Key of the label, which must not be one that a mode change rewrites."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = ()
    """Values for In and NotIn; empty for Exists and DoesNotExist."""


class Selector(WireModel):
    """Selects namespaces or pods by their labels; all parts must match, and an empty selector matches all of them."""

    match_labels: Annotated[dict[str, LabelValue], Field(max_length=8, json_schema_extra=cel(rules.LABEL_KEYS))] = (
        Field(default_factory=dict)
    )
    """Labels that a namespace or pod must have, for example {tier: training}."""
    match_expressions: Annotated[tuple[Requirement, ...], Field(max_length=8)] = ()
    """Further requirements, all of which must hold."""


class LabelSelector(WireModel):
    """Selects nodes by their labels; all parts must match."""

    model_config = ConfigDict(json_schema_extra=cel(rules.EMPTY_SELECTOR))

    match_labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=16, json_schema_extra=cel(rules.LABEL_KEYS, rules.REWRITTEN_LABEL)),
    ] = Field(default_factory=dict)
    """Labels that a node must have, for example {gpusharing.dev/pool: b}."""
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=16)] = ()
    """Further requirements, all of which must hold."""


class MigLayout(WireModel):
    """The MIG instances of some of the node's GPUs."""

    devices: (
        Annotated[
            tuple[GpuIndex, ...],
            Field(min_length=1, max_length=MAX_GPUS, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Indexes of the GPUs of the entry, as NVML counts them, for example [0, 1]; an entry without it means all GPUs and
    must be the only one."""
    profiles: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=7)]],
        Field(max_length=16, json_schema_extra=cel(rules.PROFILE_NAMES)),
    ] = Field(default_factory=dict)
    """How many instances of each MIG profile each of these GPUs gets, for example {3g.40gb: 2}; with {} they stay
    whole."""


class Mig(WireModel):
    """How GPUs are partitioned with Multi-Instance GPU."""

    model_config = ConfigDict(json_schema_extra=cel(rules.CONFIG_OR_LAYOUTS, rules.SINGLE_PROFILE))

    strategy: Literal["single", "mixed"] = "mixed"
    """`mixed` advertises nvidia.com/mig-<profile>; `single` keeps the resource name nvidia.com/gpu, so that manifests
    need no edit, and requires the same profile on all GPUs."""
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
    """Name of a mig-parted configuration, for example all-balanced; set either this or layouts."""
    layouts: (
        Annotated[
            tuple[MigLayout, ...],
            Field(
                max_length=MAX_GPUS,
                json_schema_extra=cel(rules.SOME_PROFILES, rules.ALL_ALONE, rules.EACH_GPU_ONCE),
            ),
        ]
        | None
    ) = None
    """MIG instances of the GPUs, entry by entry; together the entries must list every GPU on the node exactly once."""


class TimeSlicing(WireModel):
    """How many pods take turns on one GPU. There is no memory or fault isolation between them."""

    replicas: Replicas
    """How many shares each GPU has, at least 2 (one share is mode Full)."""
    rename_by_default: bool = False
    """Advertise nvidia.com/gpu.shared instead of nvidia.com/gpu."""
    fail_requests_greater_than_one: bool = False
    """Reject pods that request more than one share, because several shares give them no more time than one."""


class Mps(WireModel):
    """How many pods compute on one GPU at the same time through the Multi-Process Service. Memory and threads are
    divided evenly; a fatal fault of one client is reported to all."""

    replicas: Replicas
    """How many clients each GPU has, at least 2; each node checks the limit of its card (48, or 16 below compute
    capability 7.5)."""
    rename_by_default: bool = False
    """Advertise nvidia.com/gpu.shared instead of nvidia.com/gpu."""


class DrainRule(WireModel):
    """How some pods leave; if several rules match a pod, the first one decides."""

    model_config = ConfigDict(json_schema_extra=cel(rules.RULE_TIMEOUT))

    namespace_selector: Selector = Field(default_factory=Selector)
    """Selects the namespaces of the pods by their labels; an empty selector matches every namespace."""
    pod_selector: Selector = Field(default_factory=Selector)
    """Selects the pods by their labels; an empty selector matches every pod."""
    behavior: Literal["Evict", "WaitCompleted", "Block"]
    """How the pod leaves: Evict removes it; WaitCompleted cordons the node and waits until the pod has ended; Block
    leaves the node alone while the pod is there."""
    timeout: Wait | None = None
    """With WaitCompleted: how long to wait for the pod after the cordon, or Never to wait indefinitely; without it,
    jobs.timeout applies."""
    order: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Pods with a lower order leave first, and the next ones are evicted when all of these are gone; pods that no
    rule matches have 0."""


class Jobs(WireModel):
    """Pods that run to completion: those of a Job or the like, with restartPolicy Never or OnFailure."""

    timeout: Wait = "1h"
    """How long to wait for them after the cordon, for example 1h or 8h; with Never, for as long as they run."""
    on_timeout: Literal["Abort", "Evict"] = "Abort"
    """What to do with a job that still runs when jobs.timeout, or the timeout of its rule, is over: Abort the change
    and restore the node, or Evict the job like other pods."""


class Drain(WireModel):
    """How pods that hold a GPU leave before a change that would disturb them."""

    scope: Literal["Changed", "Node"] = "Changed"
    """Which GPUs are emptied when only the MIG layout of some GPUs changes: Changed empties these and lets pods on the
    others run, wherever it can be proven that the change does not touch them, as long as no GPU loses its MIG mode after
    that proof; Node always empties all GPUs."""
    timeout: Duration = "15m"
    """How long a drain may take before it is abandoned and the node is restored, for example 15m or 1h30m; until then
    the node counts against maxUnavailable, whatever blocks the pods."""
    on_timeout: Literal["Abort", "Hold", "ForceDelete"] = "Abort"
    """What to do with a drain when drain.timeout is over: Abort restores the node; Hold keeps it cordoned, so that it
    counts against maxUnavailable, until the pods are gone or a person abandons the change; ForceDelete deletes pods
    that a PodDisruptionBudget still protects, a grace period before the end, and needs the chart's value
    forceDelete."""
    unmanaged_pods: Literal["Block", "Evict"] = "Block"
    """What happens to pods without a controller, which nothing creates again: Block leaves the node alone, Evict
    removes them."""
    protected_pods: Literal["Wait", "Block", "Ignore"] = "Wait"
    """What happens to pods with an annotation or label that asks not to disturb them (do-not-disrupt, safe-to-evict,
    cluster.x-k8s.io/drain): Wait leaves the node alone until that protection expires or the pod is gone; Block leaves
    it alone as long as the annotation or label is there, whatever duration it names; Ignore disregards both."""
    local_storage: Literal["Evict", "Block"] = "Evict"
    """What happens to pods with an emptyDir on the node's disk, whose files are lost with the pod: Evict removes them
    anyway, Block leaves the node alone; an emptyDir in memory, such as /dev/shm, never blocks."""
    rules: Annotated[tuple[DrainRule, ...], Field(max_length=16)] = ()
    """Exceptions for some pods, of which the first that matches a pod decides; a rule overrides unmanagedPods,
    localStorage and jobs, but neither the annotations and labels that protect a pod nor the protection of pods that are
    never evicted."""
    jobs: Jobs = Field(default_factory=Jobs)
    """How long the drain waits for pods that run to completion."""
    stranded_pods: Literal["Hold", "Allow"] = "Hold"
    """What happens to pods that could not run after all planned changes, because no node would advertise their resource
    name, too little of it would remain, no node would have the labels that they require, or NVIDIA's device plugin or
    KAI-Scheduler would refuse them: Hold leaves the node alone, Allow evicts them."""


class Cost(WireModel):
    """What a GPU of the pool costs, for `kubectl gpusharing cost`. It does not change any node."""

    gpu_hourly_price: Annotated[
        str, Field(max_length=13, pattern=rules.PRICE, json_schema_extra=cel(rules.GPU_HOURLY_PRICE))
    ]
    """Price of one whole GPU for an hour, as text, for example "3.20"; if OpenCost has a price for the node, that one
    counts."""
    currency: Annotated[
        str, Field(max_length=3, pattern=rules.CURRENCY, json_schema_extra=cel(rules.CURRENCY_CODE))
    ] = "USD"
    """Currency of the price as a code of three capital letters, for example EUR; nothing is converted."""


MAX_WINDOWS = 16
"""The most windows, and the most blackouts, that a policy may have: CEL needs a bound."""


class Window(WireModel):
    """A recurring time window."""

    schedule: Annotated[str, Field(min_length=9, max_length=128, json_schema_extra=cel(rules.SCHEDULE))]
    """When the window begins, in cron syntax: minute, hour, day of month, month, day of week; for example "0 22 * *
    1-5"."""
    duration: Duration
    """How long the window lasts, in elapsed time, for example 6h."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64, json_schema_extra=cel(rules.TIME_ZONE))] = "UTC"
    """Time zone of the schedule, as a name from the IANA time zone database, for example Europe/Berlin."""


Windows = Annotated[tuple[Window, ...], Field(max_length=MAX_WINDOWS)]


class Canary(WireModel):
    """The first nodes of a change, for which the others wait."""

    nodes: Annotated[int, Field(ge=1, le=5000)] = 1
    """How many nodes are canaries; if the pool has exactly as many, no node waits, and if it has fewer, no node in
    service starts."""
    soak: Duration = "10m"
    """How long the canaries must have served since their proof before the next node starts."""


class Timeouts(WireModel):
    """How long a node may take after the point of no return before it counts as Failed: both times together."""

    actuation: Duration = "30m"
    """Time for mig-manager and the device plugin to act on the changed labels; only the sum with verification is a
    limit, so what is left of this time is verification's."""
    verification: Duration = "10m"
    """Time for NVML, the labels and the allocatable resources to agree once these have acted; for one node only the sum
    with actuation is a limit, and a proven node waits this long for the others of a gang."""


class Rollout(WireModel):
    """How the change moves over the pool."""

    max_unavailable: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=rules.PERCENT, max_length=8)] = Field(
        default=1,
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 8,
            **cel(rules.MAX_UNAVAILABLE),
        },
    )
    """How many nodes may be unavailable at once: a number, or a percentage of the pool such as "25%", which is rounded
    down but is at least 1; nodes without a GPU and nodes that products leaves out do not count, and 0 freezes the
    pool."""
    paused: bool = False
    """If true, no further node starts its change."""
    when_paused: Literal["Finish", "Hold", "Abort"] = "Finish"
    """What happens on a pause to nodes in flight that are not past the point of no return: Finish lets them go on; Hold
    evicts no further pod, and leaves the nodes cordoned until drain.timeout restores them, or longer with
    drain.onTimeout: Hold; Abort restores them at once."""
    windows: Windows = ()
    """When nodes may start, at any time without windows; a node starts only while enough of the window is left for
    drain.timeout and for the slowest of the last 20 changes of the pool (15m before the first), and nodes in flight
    finish, even after the window."""
    blackouts: Windows = ()
    """When no node may start, whatever the windows say."""
    canary: Canary | None = None
    """Nodes to change first; the others wait until these are proven and have served for a while."""
    approval: Literal["Automatic", "Manual"] = "Automatic"
    """Whether a person has to approve each plan: with Manual, no node starts before the annotation
    gpusharing.dev/approve of the policy has the hash of the plan (status.plan.hash), and a new revision, another node,
    a graver disruption or another layout than was approved needs a new approval; corrections of drift do not."""
    max_failures: Annotated[int, Field(ge=1, le=5000)] = 1
    """How many nodes may fail after the point of no return in one revision of the policy (status.revision) before no
    further node starts; a higher value counts at once, and the annotation gpusharing.dev/resume with the hash of the
    halt (status.halt) lets the rollout go on until as many more have failed."""
    on_failure: Literal["Hold", "Rollback"] = "Hold"
    """What happens to a node that failed after the point of no return: Hold keeps it cordoned until a person retries it
    or changes what the policy asks for; Rollback returns it to its last proven layout and to service, once per revision
    or retry, and holds it if nothing was proven on it or if the rollback fails too."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    """How long a node may take after the drain until its new layout is proven, as the sum of two times."""


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
    """Selects the nodes of the pool by labels that no mode change rewrites; an empty selector is rejected."""
    products: Annotated[tuple[Annotated[LabelValue, Field(min_length=1)], ...], Field(max_length=32)] = ()
    """Cards of nodes that may be changed, as NVML names them, with dashes, for example NVIDIA-H100-80GB-HBM3; nodes
    with others are skipped and reported, and without products none is."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Decides which policy owns a node that several select: the one with the highest priority; one of equal priority
    never takes a node from its owner."""
    mode: Mode
    """What the GPUs are for: with Full, a pod has whole GPUs; MIG, MPS and TimeSlicing need the block of that name, and
    MIG may have timeSlicing too."""
    mig: Mig | None = None
    """How GPUs are divided into MIG instances, which hardware isolates; only with mode MIG."""
    time_slicing: TimeSlicing | None = None
    """How many pods take turns on one GPU, or with mode MIG on one instance, without isolation between them; only with
    modes TimeSlicing and MIG."""
    mps: Mps | None = None
    """How many pods compute on one GPU at the same time; only with mode MPS."""
    drain: Drain = Field(default_factory=Drain)
    """How pods that hold a GPU leave before a change."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How the change moves over the pool."""
    deletion_policy: Literal["Retain", "Reset"] = "Retain"
    """What happens to the nodes when the policy is deleted: Retain leaves them as they are; Reset changes each node to
    whole GPUs, by the usual drain and rollout, proves that, and removes the operator's labels, before the policy
    goes."""
    cost: Cost | None = None
    """What a GPU of the pool costs, for `kubectl gpusharing cost`; it changes no node."""
