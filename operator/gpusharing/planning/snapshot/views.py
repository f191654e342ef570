"""What the planner sees of the world: small frozen projections of API objects, compared by value.

A view leaves out resourceVersion and heartbeats on purpose: a node whose view did not change is the same input, so
verdicts are memoised by identity. The executor takes the resourceVersion from the cache.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime
from functools import cached_property, lru_cache

from gpusharing.api.names import LABEL_DEPLOY_PREFIX, Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.settingtypes import Count, Labels, Namespaces, Period, Seconds, Switch
from gpusharing.api.validation import Problem
from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.gpus.drivers import DriverVersions
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.health import WELL, Vitals, diagnose
from gpusharing.planning.snapshot.agents import AgentTroubles
from gpusharing.planning.snapshot.callfailures import CallFailure
from gpusharing.planning.snapshot.looks import Look, Preview
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import Claim, Deferred, Fence, Verified
from gpusharing.planning.snapshot.stackviews import Operand, StackView
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.values import value

_NOTHING: Mapping[str, str] = {}
"""One object for nearly all nodes."""


@value
class StartGate:
    """The start-up taint on a Node (docs/design/way.md#gate)."""

    others: str
    """The Node's other taints as JSON, in their order: what a release leaves there."""


def is_switched_off(operand: str, value: str) -> bool:
    """Whether somebody keeps an operand off a node with its LABEL_DEPLOY_PREFIX label (docs/design/nvidia.md#d2).

    `operands` has one word for off. The others are node selectors of DaemonSets, which want `true`; an empty one the
    GPU Operator makes `true`, and pauses of mig-manager and of a driver upgrade end.
    """
    if operand == "operands":
        return value == "false"
    return value not in ("", "true") and "paused-for-" not in value


@value
class NodeView:
    """One Node."""

    name: str
    uid: str
    labels: Mapping[str, str]
    resources: Mapping[str, int]
    """Allocatable nvidia.com/* counts; 0 counts as absent and is left out (docs/design/nvidia.md#b7)."""
    ready: bool
    unschedulable: bool
    deleting: bool = False
    barred: bool = False
    """A taint keeps off pods that do not tolerate it; taints that report a condition of the node do not count."""
    fence: Fence | None = None
    fence_error: str = ""
    """Why our fence annotation cannot be read; such a node is left as it is."""
    deferred: Deferred | None = None
    verified: Verified | None = None
    neighbour_marks: frozenset[str] = frozenset()
    """Annotations of NEIGHBOUR_ANNOTATIONS that the node has."""
    hold_cordon: bool = False
    retry: str = ""
    gate: StartGate | None = None
    """The start-up taint is on the node; None: it is not."""
    abort: str = ""
    """The change that a person wants given up, as its fence names it."""
    foreign: str = ""
    """Who else maintains the node, by a marker or a NodeMaintenance (docs/design/drain.md#c5); empty when nobody
    does."""
    foreign_waits: bool = False
    """`foreign` has not begun or has given up, and may stay so for weeks."""
    held_off: Mapping[str, str] = field(init=False, compare=False)
    """Of `labels`, the switches of NVIDIA's operands that are not simply on: false, paused. Nearly always empty, and
    read by many rules."""

    def __post_init__(self) -> None:
        """Look through the labels once."""
        found = {
            label: value
            for label, value in self.labels.items()
            if value != "true" and label.startswith(LABEL_DEPLOY_PREFIX)
        }
        object.__setattr__(self, "held_off", found or _NOTHING)


@value
class GpuView:
    """One GPU as the agent read it."""

    index: int
    product: str
    memory_mib: int | None
    """None: unknown."""
    mig_capable: bool
    mig_enabled: bool
    mig_pending: bool
    """MIG mode after the next reset differs from the mode in force."""
    compute_mode: str
    layout: Layout | None
    """Instances that exist; None while MIG is off."""
    profiles: tuple[Profile, ...] = field(hash=False)  # costs too much
    """Profiles the card offers; from the card facts when the driver lists none."""
    processes: tuple[str, ...] = ()
    """Names of processes that use it; an empty string for a process that the agent cannot name or may not see."""
    doubt: Finding | None = None
    vitals: Vitals = WELL
    instances_withheld: bool = False
    """The agent may not list MIG instances: `layout` may lack some, and no layout can be proven."""


@value(eq=False, slots=False)  # without slots, for what is worked out once
class Hardware:
    """The GPUs of a node, and facts about them that many rules need. Thousands of nodes share one object."""

    gpus: tuple[GpuView, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(gpus: tuple[GpuView, ...]) -> "Hardware":
        """The same object for equal GPUs."""
        return Hardware(gpus)

    @cached_property
    def layouts(self) -> tuple[Layout | None, ...]:
        """The layouts of the GPUs, in their order."""
        return tuple(gpu.layout for gpu in self.gpus)

    @cached_property
    def kinds(self) -> tuple[GpuView, ...]:
        """The first of each group of GPUs that differ only in their index. The first GPU with any given property is
        among them."""
        kinds: dict[GpuView, GpuView] = {}
        for gpu in self.gpus:
            kinds.setdefault(replace(gpu, index=0), gpu)
        return tuple(kinds.values())

    @cached_property
    def models(self) -> tuple[GpuView, ...]:
        """One GPU of each card model."""
        return tuple({gpu.product: gpu for gpu in self.gpus}.values())

    @cached_property
    def health(self) -> Finding:
        """The health of the GPUs."""
        return diagnose([(gpu.index, gpu.vitals) for gpu in self.gpus])

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal if the targets are. Profiles count by identity, so it is valid as long as `gpus` are kept."""
        return tuple((gpu.index, gpu.product, gpu.mig_capable, id(gpu.profiles)) for gpu in self.gpus)


@value
class ObservedView:
    """The last report of a node's agent."""

    request_id: str
    quiet: bool
    error: str
    gpus: tuple[GpuView, ...]
    allocated: Mapping[str, int] | None = field(default_factory=dict)
    """None: unknown."""
    pods: int | None = 0
    """None: unknown."""
    simulated: bool = False
    driver_version: str = ""
    """As NVML reports it; empty when unknown."""
    hardware: Hardware = field(init=False, compare=False)
    """The GPUs once more."""

    def __post_init__(self) -> None:
        """Share the GPUs with other nodes that have the same: they are most of a snapshot's size."""
        hardware = Hardware.of(self.gpus)
        object.__setattr__(self, "hardware", hardware)
        object.__setattr__(self, "gpus", hardware.gpus)


@value
class GPUNodeView:
    """One GPUNode: what we asked and what the agent answered; without `status.transition`, which is for people."""

    name: str
    uid: str
    request_id: str
    quiet: bool
    observed: ObservedView | None


@value
class PolicyView:
    """One GPUSharingPolicy; `spec` is None when `problems` say why it cannot be read."""

    name: str
    uid: str
    generation: int
    created: str
    deleting: bool
    """It is being deleted and gives its nodes up; see `resetting`."""
    finalizer: bool
    force_release: bool
    spec: GPUSharingPolicySpec | None
    problems: tuple[Problem, ...] = ()
    approved: str = ""
    """The hash of the plan that a person approved last."""
    resumed: str = ""
    """The generation whose failures a person has acknowledged."""
    resetting: bool = False
    """It is being deleted, but first brings its nodes to whole GPUs: `spec` says so, and `deleting` is False."""

    @property
    def going(self) -> bool:
        """It is being deleted, whatever happens to its nodes."""
        return self.deleting or self.resetting


@value
class PlanSettings:
    """Operator settings that the planner needs; all times in seconds."""

    namespace: str = "gpusharing"
    gpu_operator_namespace: str = "gpu-operator"
    plugin_config_map: str = "gpusharing-device-plugin"
    mig_config_map: str = "gpusharing-mig-parted"
    configure_gpu_operator: Switch = False
    """Set ClusterPolicy's two pointers to our ConfigMaps, once, if nobody has set anything else."""
    pod_name: str = ""
    """Name of our own pod, which is never drained; empty: we do not run in a pod."""
    protected_namespaces: Namespaces = ("kube-system",)
    """Separated by commas: no pod is evicted there. The chart's admission policy refuses it too."""
    neighbour_labels: Labels = ()
    """Further labels, as key=value and separated by commas, that a Node has while it changes, so that others leave it
    alone; those that everybody needs are known."""
    force_delete: Switch = False
    """Pods may be deleted at the end of a drain whose policy says ForceDelete; the chart's value forceDelete grants the
    right and opens the admission policy."""
    refuse_unsafe_drivers: Switch = True
    """No MIG change on a driver that CVE-2026-24197 affects (`planning/gpus/drivers.py`)."""
    unsafe_drivers: DriverVersions = ()
    """Separated by commas: further driver versions, or branches such as 570, on which MIG is not changed."""
    max_in_flight: Count = 100
    """Operator-wide cap on nodes in flight; at most 500."""
    settle: Seconds = 5.0
    """From the cordon until the pods are first looked at (scheduler race, docs/design/drain.md#t2)."""
    idle: Seconds = 3.0
    """Between the two empty LISTs that prove a node idle."""
    config_propagation: Seconds = 120.0
    """From a ConfigMap write until a label may point at the new entry."""
    eviction_wait: Period = 5.0
    """After the first refusal of an eviction; doubles up to a minute."""
    wedge_pending: Seconds = 1200.0
    """mig.config.state pending for longer is a wedge (docs/design/nvidia.md#a7)."""
    wedge_paused: Seconds = 15.0
    """Operands paused after success or failed for longer is a wedge."""
    abort_backoff: Seconds = 300.0
    """First wait after an abort; doubles each time."""
    poll: Period = 5.0
    """Between two LISTs of the pods of a node in work."""
    restart_grace: Seconds = 30.0
    """From a restarted mig-manager pod being Ready until the state on the node is believed to be its own."""
    drift_grace: Seconds = 60.0
    """A difference must last this long before it counts as drift (plugin restarts and reboots heal themselves)."""
    max_cures: Count = 2
    """Restarts of a node's mig-manager per change before the node is Failed."""


@value
class ClusterSnapshot:
    """Everything a plan depends on, read once. Mappings are keyed by node name unless said otherwise."""

    nodes: Mapping[str, NodeView]
    gpunodes: Mapping[str, GPUNodeView]
    policies: tuple[PolicyView, ...]
    """Sorted by name."""
    stack: StackView
    agents: frozenset[str]
    """Nodes whose agent pod is Ready."""
    mig_managers: Mapping[str, Operand]
    claims: Mapping[str, Claim]
    work: Mapping[str, NodeWork]
    agent_troubles: AgentTroubles = field(default_factory=AgentTroubles)
    """Why no agent is Ready on the other nodes."""
    mps_daemons: Mapping[str, Operand] = field(default_factory=dict)
    mig_failures: Mapping[str, str] = field(default_factory=dict)
    """Why mig-manager failed in a change of ours, from its log."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """GPU resource name to Pending pods that ask for it and have no node yet."""
    drifting_since: Mapping[str, datetime] = field(default_factory=dict)
    """Nodes that differ from what was proven there, and since when this process has seen the difference."""
    at_work_since: Mapping[str, datetime] = field(default_factory=dict)
    """Nodes whose mig.config.state says that mig-manager is working, and since when this process has seen that."""
    call_failures: Mapping[str, CallFailure] = field(default_factory=dict)
    """By node, or subject of a shared write: our last call about it failed; in memory only."""
    policies_error: str = ""
    """Why the policies may have changed meanwhile; no node starts then."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """What the last look at the pods of each blocked node found; see `RolloutPlan.looks`."""
    previews: Mapping[str, Preview] = field(default_factory=dict)
    """What the changes of held pools would disturb; see `RolloutPlan.previews`."""
    settings: PlanSettings = PlanSettings()


def routing_label(mode: Mode, *, time_slicing: bool) -> str:
    """Value of the routing label `gpusharing.dev/mode`."""
    if mode is Mode.MIG and time_slicing:
        return "mig-time-slicing"
    return {Mode.FULL: "full", Mode.MIG: "mig", Mode.MPS: "mps", Mode.TIME_SLICING: "time-slicing"}[mode]
