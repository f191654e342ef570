"""What the planner sees of the world: small frozen projections of API objects, compared by value.

A view leaves out resourceVersion and heartbeats on purpose: a node whose view did not change is the same
input, so verdicts are memoised on identity. The executor takes the resourceVersion from the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from gpusharing.api.names import DisruptionClass, Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import Problem
from gpusharing.planning.cards import Profile
from gpusharing.planning.doubts import Doubt
from gpusharing.planning.geometry import Layout
from gpusharing.planning.health import WELL, Vitals

NO_LABELS: Mapping[str, str] = {}
NO_COUNTS: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Fence:
    """Our record on a Node of the change in flight. It is the only memory of that change.

    `stage` is `fenced` before the point of no return (PNR) and `actuating` after it. The target fields name what
    the labels were set to at the PNR; they are empty before it.
    """

    op: str
    policy: str
    generation: int
    node_uid: str
    prior_unschedulable: bool
    added: tuple[str, ...]
    """Labels and annotations for the neighbours (drain.md C6) that we set and take away again."""
    disruption: DisruptionClass
    from_layout: str
    to_layout: str
    stage: Literal["fenced", "actuating"]
    step: int
    steps: int
    attempt: int
    since: datetime
    stage_since: datetime
    deadline: datetime
    drift: bool = False
    """The change puts drift right; allowed once per generation."""
    from_mode: str = ""
    """Routing label before the fence; an abort puts it back."""
    target_mode: str = ""
    target_mig_config: str = ""
    target_plugin_config: str = ""
    gfd_timestamp: str = ""
    """GFD's start time before the PNR; a plugin change is proven only by a later one."""
    daemon_uid: str = ""
    """The MPS daemon's pod that this attempt deletes; while that very pod lives, it is still to be deleted."""
    restart_uid: str = ""
    """The mig-manager pod that this attempt deletes; while that very pod lives, it is still to be deleted."""
    retry: str = ""
    """The value of the retry annotation that this attempt answers."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Left on a Node by an abort: the next try waits until `until` (5 min · 2ⁿ)."""

    count: int
    until: datetime
    reason: str
    generation: int
    retry: str = ""
    """The value of the retry annotation at the time; another one ends the wait."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Left on a Node by every release and adoption: what was proven there last."""

    policy: str
    mig_config: str
    plugin_config: str
    corrected_generation: int = 0
    """The policy generation in which drift was already put right once; 0: never."""
    retry: str = ""
    """The value of the retry annotation at the time; another one allows one more correction."""
    layout: str = ""
    gpus: int = 0
    """What the pair meant, which an admin may change, and on how many GPUs; empty and 0: not recorded."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One Node."""

    name: str
    uid: str
    labels: Mapping[str, str]
    resources: Mapping[str, int]
    """Allocatable nvidia.com/* counts; 0 counts as absent and is left out (nvidia-actuators.md b.7)."""
    ready: bool
    unschedulable: bool
    deleting: bool = False
    fence: Fence | None = None
    fence_error: str = ""
    """Why our fence annotation cannot be read; such a node is left as it is."""
    deferred: Deferred | None = None
    verified: Verified | None = None
    neighbour_marks: frozenset[str] = frozenset()
    """Annotations of NEIGHBOUR_ANNOTATIONS that the node has."""
    hold_cordon: bool = False
    retry: str = ""
    foreign: str = ""
    """Who else maintains the node, by a marker or a NodeMaintenance (drain.md C5); empty when nobody does."""


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU as the agent read it."""

    index: int
    uuid: str
    product: str
    memory_mib: int
    mig_capable: bool
    mig_enabled: bool
    mig_pending: bool
    """MIG mode after the next reset differs from the mode in force."""
    reset_for_mode: bool
    """Switching MIG mode needs a GPU reset."""
    compute_mode: str
    layout: Layout | None
    """Instances that exist; None while MIG is off."""
    profiles: tuple[Profile, ...]
    """Profiles the card offers; from the card facts when the driver lists none."""
    processes: tuple[str, ...] = ()
    """Names of compute processes; empty text for one that the agent cannot name."""
    doubt: Doubt | None = None
    vitals: Vitals = WELL


@dataclass(frozen=True, slots=True)
class ObservedView:
    """What the agent of one node reported last."""

    request_id: str
    quiet: bool
    error: str
    gpus: tuple[GpuView, ...]
    allocated: Mapping[str, int] = field(default_factory=dict)
    pods: int = 0
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class GPUNodeView:
    """One GPUNode: what we asked and what the agent answered. The mirror for people is not part of it."""

    name: str
    uid: str
    request_id: str
    quiet: bool
    observed: ObservedView | None


@dataclass(frozen=True, slots=True)
class PolicyView:
    """One GPUSharingPolicy; `spec` is None when `problems` say why it cannot be read."""

    name: str
    uid: str
    generation: int
    created: str
    deleting: bool
    finalizer: bool
    force_release: bool
    spec: GPUSharingPolicySpec | None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of a pod."""

    api_version: str
    kind: str
    name: str
    exists: bool | None = None
    """False: looked up and gone. None: not looked up (kinds we cannot or need not read)."""


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod bound to a node in work."""

    namespace: str
    name: str
    uid: str
    phase: str
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    """Controller ownerRef only."""
    mirror: bool = False
    """Static pod: annotation kubernetes.io/config.mirror or an ownerRef of kind Node."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """nvidia.com/* that its containers, init and sidecar containers included, ask for; 0 left out."""
    dra: Literal["none", "gpu", "unresolved"] = "none"
    """DRA claims: `gpu` when driver gpu.nvidia.com allocated one without adminAccess; `unresolved` counts as one."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    deleted_at: datetime | None = None
    """metadata.deletionTimestamp: when the grace period ends."""
    ready: bool = True
    finalizers: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PdbView:
    """One PodDisruptionBudget, as far as it decides about an eviction."""

    namespace: str
    name: str
    match_labels: Mapping[str, str]
    match_expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """(key, operator, values)."""
    selects_all: bool = False
    """An empty selector: every pod of the namespace."""
    disruptions_allowed: int = 0
    expected_pods: int = 0
    desired_healthy: int = 0
    current_healthy: int = 0
    always_allow_unhealthy: bool = False


@dataclass(frozen=True, slots=True)
class EvictionMemory:
    """What the executor remembers of a refused eviction; lives in memory only."""

    reason: str
    message: str
    next_try: datetime
    since: datetime
    tries: int = 1


@dataclass(frozen=True, slots=True)
class NodeWork:
    """Pods of a node in work, as listed now."""

    pods: tuple[PodView, ...]
    pdbs: tuple[PdbView, ...]
    listed_at: datetime
    empty_since: datetime | None = None
    """First of the consecutive LISTs that found no GPU holder, as the drain rules see it."""
    evictions: Mapping[str, EvictionMemory] = field(default_factory=dict)
    """By pod UID."""
    error: str = ""
    """Why the pods could not be listed; nothing is decided about them then."""


@dataclass(frozen=True, slots=True)
class ClusterPolicyView:
    """NVIDIA's ClusterPolicy, as far as it can override us (nvidia-actuators.md d.5)."""

    plugin_config_name: str
    mig_strategy: str
    mig_manager_enabled: bool
    mig_config_name: str
    plugin_default: str = ""
    """Device-plugin configuration for nodes without the label."""
    with_reboot: bool = False
    """mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    plugin_version: str = ""
    """Of the device plugin, as `v0.19.3`; empty when ClusterPolicy does not name it."""


@dataclass(frozen=True, slots=True)
class StackView:
    """NVIDIA's software in the cluster and the configuration we keep for it."""

    cluster_policy: ClusterPolicyView | None
    gpu_cluster: bool
    """NVIDIA's DRA stack is installed: our labels would have no effect."""
    plugin_configs: Mapping[str, str]
    """Device-plugin configurations by key, as the ConfigMap holds them now."""
    mig_file: str
    """The mig-parted file we render, empty before the first write."""
    written: Mapping[str, datetime]
    """When an entry of either ConfigMap was written, by key."""
    admin_mig_file: str = ""
    """mig-parted entries of the admin's own ConfigMap, merged into ours."""
    generated_mig_files: Mapping[str, str] = field(default_factory=dict)
    """By node: the configuration that mig-manager >= 0.14 generated from its hardware."""
    plugin_map_exists: bool = True
    """The device-plugin ConfigMap is there; NVIDIA's pods cannot start while ClusterPolicy names one that is not."""
    serves_our_mig_file: bool = False
    """ClusterPolicy points mig-manager at our ConfigMap."""
    marked: bool = True
    """Our label is on our two ConfigMaps, as far as they exist."""
    write_error: str = ""
    """Why the last write of them was refused."""
    foreign_map: str = ""
    """Name of a ConfigMap that somebody else made and filled under the name of ours."""
    seen_plugin_configs: Mapping[str, str] = field(default_factory=dict)
    seen_mig_entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What this process has read of entries named by their content: what is lost can be put back."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A pod of NVIDIA's that we may restart: mig-manager, or the MPS control daemon."""

    namespace: str
    name: str
    uid: str
    ready: bool
    deleting: bool = False
    """Somebody deleted it already; it is on its way out."""
    ready_since: datetime | None = None
    """Since when this process has seen it Ready, on a fenced node; clocks of nodes are never compared with ours."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot of the disruption budget, held on the leader Lease."""

    node_uid: str
    policy: str
    op: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Operator settings that the planner needs; all times in seconds."""

    namespace: str = "gpusharing"
    gpu_operator_namespace: str = "gpu-operator"
    plugin_config_map: str = "gpusharing-device-plugin"
    mig_config_map: str = "gpusharing-mig-parted"
    max_in_flight: int = 100
    """Operator-wide cap on nodes in flight."""
    settle: float = 5.0
    """After the cordon, before the first judgement of the pods (scheduler race, drain.md T2)."""
    idle: float = 3.0
    """Between the two empty LISTs that prove a node idle."""
    config_propagation: float = 120.0
    """From a ConfigMap write until a label may point at the new entry."""
    eviction_wait: float = 5.0
    """After the first refusal of an eviction; doubles up to a minute."""
    wedge_pending: float = 1200.0
    """mig.config.state pending for longer is a wedge (nvidia-actuators.md a.7)."""
    wedge_paused: float = 15.0
    """Operands paused after success or failed for longer is a wedge."""
    abort_backoff: float = 300.0
    """First wait after an abort; doubles each time."""
    poll: float = 5.0
    """Between two LISTs of the pods of a node in work."""
    restart_grace: float = 30.0
    """From a restarted mig-manager pod being Ready until the state on the node is believed to be its own."""
    drift_grace: float = 60.0
    """A difference must last this long before it counts as drift (plugin restarts and reboots heal themselves)."""
    max_cures: int = 2
    """Restarts of a node's mig-manager per change before the node is Failed."""


@dataclass(frozen=True, slots=True)
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
    mps_daemons: Mapping[str, Operand] = field(default_factory=dict)
    mig_failures: Mapping[str, str] = field(default_factory=dict)
    """Why mig-manager failed, from its log, where it did so in a change of ours."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """GPU resource name to Pending pods that ask for it and have no node yet."""
    drifting_since: Mapping[str, datetime] = field(default_factory=dict)
    """Nodes that differ from what was proven there, and since when this process has seen it."""
    settings: Settings = Settings()


def routing_label(mode: Mode, *, time_slicing: bool) -> str:
    """Value of the routing label `gpusharing.dev/mode`."""
    if mode is Mode.MIG and time_slicing:
        return "mig-time-slicing"
    return {Mode.FULL: "full", Mode.MIG: "mig", Mode.MPS: "mps", Mode.TIME_SLICING: "time-slicing"}[mode]
