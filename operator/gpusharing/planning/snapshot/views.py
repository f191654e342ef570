"""The planner's view of the cluster: small frozen projections of API objects, compared by value.

A view leaves out resourceVersion and heartbeats on purpose, so a node whose view did not change is the same input, and
its cached verdict is used. The executor takes the resourceVersion from the watch cache.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#proof, docs/design/glossary.md#slot,
docs/design/glossary.md#drift, docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import UTC, datetime, tzinfo
from functools import cached_property, lru_cache
from typing import Literal

from gpusharing.api.names import LABEL_DEPLOY_PREFIX, Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.settingtypes import Count, Guard, Labels, Namespaces, Period, Seconds, Switch
from gpusharing.api.validation import Problem
from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.gpus.drivers import DriverVersions
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.health import HEALTHY, Vitals, diagnose
from gpusharing.planning.snapshot.agents import AgentTroubles
from gpusharing.planning.snapshot.callfailures import CallFailure
from gpusharing.planning.snapshot.draviews import NodeDevices, TaintRuleView
from gpusharing.planning.snapshot.looks import PassMemory
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import (
    CLOCK_ERROR,
    Claim,
    Deferred,
    FailedNode,
    Fence,
    SpecVersion,
    Verified,
)
from gpusharing.planning.snapshot.revision import find_revision
from gpusharing.planning.snapshot.stackviews import Operand, Program, StackView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.values import value

_NOTHING: Mapping[str, str] = {}
"""An empty mapping, which nearly all nodes share as their `held_off`."""


@value
class NodeView:
    """The parts of a Node on which decisions depend."""

    name: str
    uid: str
    labels: Mapping[str, str]
    resources: Mapping[str, int]
    """Allocatable GPU resources; 0 counts as absent and is left out (docs/design/nvidia.md#b7)."""
    ready: bool
    unschedulable: bool
    deleting: bool = False
    barred: bool = False
    fence: Fence | None = None
    """None if there is none, or if it cannot be read (`fence_error`)."""
    fence_error: str = ""
    """Empty if it can be read, or if there is none."""
    deferred: Deferred | None = None
    """Our record of the last change that was given up, or None if there is none."""
    verified: Verified | None = None
    """Our record of what was proven last, or None if there is none."""
    neighbour_marks: frozenset[str] = frozenset()
    hold_cordon: bool = False
    retry: str = ""
    """Empty if there is none."""
    gate: str | None = None
    """The other taints of the node as JSON, in their order, if it has the start-up taint (docs/design/transition.md#gate). None if the node does not have the start-up taint."""
    abort: str = ""
    """The `op` of the change that a person has asked to give up. Empty if there is none."""
    foreign: str = ""
    """Name of the person or program that maintains the node, according to a marker or a NodeMaintenance (docs/design/drain.md#c5). Empty if there is none."""
    foreign_waits: bool = False
    foreign_queued: bool = False
    other_plugin: str = ""
    """Name of the device plugin that serves the node without following our labels (stack/otherplugins.py). Empty if there is none."""
    label_owners: Mapping[str, str] = field(default_factory=dict)
    """Nearly always empty, like `label_rewriters`."""
    label_rewriters: Mapping[str, str] = field(default_factory=dict)
    devices: NodeDevices | None = None
    """What NVIDIA's DRA driver publishes for the node, or None if it has published nothing or nobody reads it."""
    rule_since: datetime | None = None
    """Since when a DeviceTaintRule of ours keeps new pods off the node's devices, or None if none does."""
    held_off: Mapping[str, str] = field(init=False, compare=False)
    """The labels that switch NVIDIA's operands on and off and whose value is not `true`, for example `false` or paused, with their values."""

    def __post_init__(self) -> None:
        switches = {
            label: value
            for label, value in self.labels.items()
            if value != "true" and label.startswith(LABEL_DEPLOY_PREFIX)
        }
        object.__setattr__(self, "held_off", switches or _NOTHING)

    @property
    def closed_since(self) -> datetime | None:
        """When the present fence began to keep GPU pods off the node."""
        if self.fence is None or not self.fence.tainted:
            return self.fence.since if self.fence is not None else None
        return max(self.fence.since, self.rule_since + CLOCK_ERROR) if self.rule_since is not None else None

    @property
    def foreign_works(self) -> bool:
        """Whether somebody else maintains the node and may be working on it, or may have stopped halfway."""
        return bool(self.foreign) and not self.foreign_queued


@value
class CardView:
    """The properties of a GPU that no change of ours affects."""

    index: int
    product: str
    mig_capable: bool
    profiles: tuple[Profile, ...] = field(hash=False)  # hashing them would cost too much


@value
class GpuView(CardView):
    """A GPU in the agent's latest report."""

    mig_enabled: bool
    mig_pending: bool
    compute_mode: str
    """CUDA compute mode, one of the values in `api.gpunode.GPU`."""
    layout: Layout | None
    """The MIG instances that exist, or None while MIG is off."""
    processes: tuple[str, ...] = ()
    """A process that the agent cannot name, or may not see, has an empty name."""
    doubt: Finding | None = None
    """How the profiles that the driver reports differ from our table, or None if they do not."""
    vitals: Vitals = HEALTHY
    instances_withheld: bool = False
    """`layout` may then lack some of them, and no layout can be proven."""
    reset_in_guest: bool = False


@value(eq=False, slots=False)  # no slots, because cached_property needs a __dict__
class Hardware:
    """The GPUs of a node and the facts that many rules derive from them."""

    gpus: tuple[GpuView, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(gpus: tuple[GpuView, ...]) -> "Hardware":
        """Return the Hardware for these GPUs."""
        return Hardware(gpus)

    @cached_property
    def layouts(self) -> tuple[Layout | None, ...]:
        """The layout of each GPU, in the order of `gpus`; None where MIG is off."""
        return tuple(gpu.layout for gpu in self.gpus)

    @cached_property
    def kinds(self) -> tuple[GpuView, ...]:
        """The first GPU of each kind, in the order of `gpus`."""
        kinds: dict[GpuView, GpuView] = {}
        for gpu in self.gpus:
            kinds.setdefault(replace(gpu, index=0), gpu)
        return tuple(kinds.values())

    @cached_property
    def models(self) -> tuple[GpuView, ...]:
        """The last GPU of each product, in the order in which the products first appear in `gpus`."""
        return tuple({gpu.product: gpu for gpu in self.gpus}.values())

    @cached_property
    def health(self) -> Finding:
        """The gravest problem that NVML reports for any GPU, with the number of other unhealthy GPUs."""
        return diagnose([(gpu.index, gpu.vitals) for gpu in self.gpus])

    @cached_property
    def cards(self) -> tuple[CardView, ...]:
        """The GPUs reduced to CardViews, in the order of `gpus`."""
        return tuple(CardView(gpu.index, gpu.product, gpu.mig_capable, gpu.profiles) for gpu in self.gpus)


@value
class ObservedView:
    """The latest report of a node's agent."""

    request_id: str
    quiet: bool
    error: str
    """Empty if it can."""
    gpus: tuple[GpuView, ...]
    allocated: Mapping[str, int] | None = field(default_factory=dict)
    """The number of devices that pods hold, by GPU resource name, or None if that is unknown."""
    pods: int | None = 0
    """How many pods hold a GPU device, or None if that is unknown."""
    simulated: bool = False
    driver_version: str = ""
    """Empty if it is unknown."""
    devices_key: str = ""
    """The result of `draviews.key_of` for the MIG devices and the GPUs with MIG off. Empty if it is unknown."""
    hardware: Hardware = field(init=False, compare=False)

    def __post_init__(self) -> None:
        hardware = Hardware.of(self.gpus)
        object.__setattr__(self, "hardware", hardware)
        object.__setattr__(self, "gpus", hardware.gpus)


@value
class GPUNodeView:
    """A GPUNode: our request to the agent and the agent's answer."""

    name: str
    uid: str
    request_id: str
    quiet: bool
    observed: ObservedView | None
    """What the agent reported last, or None if it has not reported yet."""
    requests: Mapping[str, str] = field(default_factory=dict)
    """Empty once the Node has it."""


@value
class PolicyView:
    """A GPUSharingPolicy."""

    name: str
    uid: str
    generation: int
    created: str
    deleting: bool
    """Whether the policy is being deleted and releases its nodes as they are; see `resetting`."""
    finalizer: bool
    force_release: bool
    spec: GPUSharingPolicySpec | None
    """The spec of the policy, or None if `problems` say why it cannot be read."""
    problems: tuple[Problem, ...] = ()
    """Empty if it is not refused."""
    approved: str = ""
    """Empty if there is none."""
    resumed: str = ""
    """It names the revision and a count (`pools/holds.py`). Empty if nobody did."""
    zones: Mapping[str, tzinfo] = field(default_factory=lambda: {"UTC": UTC})
    resetting: bool = False
    """`spec` is then a spec for whole GPUs, and `deleting` is False."""

    _version: list[SpecVersion] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def version(self) -> SpecVersion:
        """The UID and revision of the policy, as records refer to it."""
        if not self._version:
            revision = find_revision(self.uid, self.spec, resetting=self.resetting)
            self._version.append(SpecVersion(self.uid, revision))
        return self._version[0]

    def paused_by(self, word: str) -> "PolicyView":
        """Return the policy paused as `word` says, a value of PlanSettings.paused."""
        if self.spec is None or word == "false":
            return self
        update = {"paused": True} | ({} if word == "true" else {"when_paused": word})
        rollout = self.spec.rollout.model_copy(update=update)
        return replace(self, spec=self.spec.model_copy(update={"rollout": rollout}))

    @property
    def going(self) -> bool:
        """Whether the policy is being deleted, whether or not it resets its nodes first."""
        return self.deleting or self.resetting


@value
class PlanSettings:
    """Operator settings that the planner needs; all times in seconds."""

    namespace: str = "gpusharing"
    gpu_operator_namespace: str = "gpu-operator"
    plugin_config_map: str = "gpusharing-device-plugin"
    mig_config_map: str = "gpusharing-mig-parted"
    configure_gpu_operator: Switch = False
    repair_mps: Switch = False
    pod_name: str = ""
    """Name of our own pod, which is never drained. Empty if we do not run in a pod."""
    protected_namespaces: Namespaces = ("kube-system",)
    neighbour_labels: Labels = ()
    paused: Literal["false", "true", "Finish", "Hold", "Abort"] = "false"
    force_delete: Switch = False
    device_taints: Switch = False
    guard: Guard = "false"
    refuse_unsafe_drivers: Switch = True
    """Make no MIG change that is known to be unsafe under the node's driver (`planning/gpus/drivers.py`)."""
    unsafe_drivers: DriverVersions = ()
    """Comma-separated: further driver versions, or branches such as 570, on which MIG is not changed."""
    max_in_flight: Count = 100
    settle: Seconds = 5.0
    """Time from the cordon until the pods are first looked at (scheduler race, docs/design/drain.md#t2)."""
    idle: Seconds = 3.0
    """Time between the two empty LISTs that prove a node idle."""
    config_propagation: Seconds = 120.0
    eviction_wait: Period = 5.0
    """Wait after the first refusal of an eviction; doubles up to a minute."""
    wedge_pending: Seconds = 1200.0
    """A mig.config.state that stays pending for longer is a wedge (docs/design/nvidia.md#a7)."""
    wedge_paused: Seconds = 15.0
    abort_backoff: Seconds = 300.0
    poll: Period = 5.0
    restart_grace: Seconds = 30.0
    drift_grace: Seconds = 60.0
    max_cures: Count = 2


OLD_VIEW = 150.0
"""The age in seconds from which a view is too old for a point of no return."""


@value
class ClusterSnapshot:
    """All input of a plan, read once."""

    nodes: Mapping[str, NodeView]
    gpunodes: Mapping[str, GPUNodeView]
    policies: tuple[PolicyView, ...]
    stack: StackView
    agents: frozenset[str]
    operands: Mapping[Program, Mapping[str, Operand]]
    claims: Mapping[str, Claim]
    work: Mapping[str, NodeWork]
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    agent_troubles: AgentTroubles = field(default_factory=AgentTroubles)
    """Why no agent is Ready on the nodes that are not in `agents`."""
    mig_failures: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    pending_devices: Mapping[str, int] = field(default_factory=dict)
    at_work_since: Mapping[str, datetime] = field(default_factory=dict)
    call_failures: Mapping[str, CallFailure] = field(default_factory=dict)
    """Kept in memory only."""
    taint_rules: tuple[TaintRuleView, ...] = ()
    """Empty if they cannot be read."""
    policies_error: str = ""
    """Why `policies` may be outdated; no node then starts. Empty if they are up to date."""
    view_ages: Mapping[str, float] = field(default_factory=dict)
    """For each of our cached views, such as that of nodes: the seconds since it was last known to be up to date."""
    memory: PassMemory = PassMemory()
    settings: PlanSettings = PlanSettings()

    @property
    def old_views(self) -> str:
        """The names of the views that are older than OLD_VIEW, sorted and separated by commas."""
        return ", ".join(sorted(name for name, age in self.view_ages.items() if age > OLD_VIEW))


def routing_label(mode: Mode, *, time_slicing: bool) -> str:
    """Return the value of the routing label `gpusharing.dev/mode` under a policy with this mode, such as `mig` or `time-slicing`."""
    if mode is Mode.MIG and time_slicing:
        return "mig-time-slicing"
    return {Mode.FULL: "full", Mode.MIG: "mig", Mode.MPS: "mps", Mode.TIME_SLICING: "time-slicing"}[mode]
