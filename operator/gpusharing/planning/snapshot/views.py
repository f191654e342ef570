"""What does the planner see of the cluster? Small frozen projections of API objects, compared by value.

A view leaves out resourceVersion and heartbeats on purpose, so a node whose view did not change is the same input, and
its cached verdict is used.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import UTC, datetime, tzinfo
from functools import cached_property, lru_cache
from typing import Literal

from gpusharing.api.gpunode import PartialInstance
from gpusharing.api.names import LABEL_DEPLOY_PREFIX, LABEL_UPGRADE_STATE, UPGRADE_FAILED
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.settingtypes import Count, Guard, Labels, Namespaces, Period, Seconds, Switch
from gpusharing.api.validation import Problem
from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.gpus.drivers import DriverVersions
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.gpus.health import HEALTHY, Vitals, diagnose
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.snapshot.memory import CallFailure, PassMemory
from gpusharing.planning.snapshot.nvidia import NodeDevices, Operand, Program, StackView, TaintRuleView
from gpusharing.planning.snapshot.podviews import Holder, NodeWork, Taint
from gpusharing.planning.snapshot.records import (
    CLOCK_ERROR,
    LEASE_ROOM,
    Claim,
    Consent,
    Deferred,
    FailedNode,
    Fence,
    SpecVersion,
    Verified,
    find_revision,
)
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
    """Whether the node is cordoned, by anybody."""
    deleting: bool = False
    taints: tuple[Taint, ...] = ()
    """The taints that exclude pods until somebody removes them."""
    fence: Fence | None = None
    """Our record of the change in flight. None if there is none, or if it cannot be read (`fence_error`)."""
    fence_error: str = ""
    """Why our fence annotation cannot be read; the node is then left as it is. Empty otherwise."""
    deferred: Deferred | None = None
    verified: Verified | None = None
    neighbor_marks: frozenset[str] = frozenset()
    """The annotations of the Node that are in NEIGHBOR_ANNOTATIONS."""
    hold_cordon: bool = False
    """Whether a person has asked for the cordon to stay when our change ends."""
    retry: str = ""
    gate: str | None = None
    """The other taints as JSON, which a release writes back, if it has the start-up taint; else None."""
    abort: str = ""
    """The `op` of the change that a person has asked to give up. Empty if there is none."""
    foreign: str = ""
    """Name of whoever maintains the node, by a marker or a NodeMaintenance, or empty (docs/design/drain.md#c5)."""
    foreign_waits: bool = False
    """Whether that maintenance has not begun or was given up. It may stay that way for weeks and uses no slot."""
    foreign_queued: bool = False
    """Whether that maintenance has certainly not begun, so that it does not depend on our cordon."""
    other_plugin: str = ""
    """Name of the device plugin that serves the node without following our labels. Empty if there is none."""
    label_owners: Mapping[str, str] = field(default_factory=dict)
    """By label: which other controller claims the label as its own, and what to do about that."""
    label_rewriters: Mapping[str, str] = field(default_factory=dict)
    """By label: the field manager that has replaced the value that we wrote last."""
    devices: NodeDevices | None = None
    """What NVIDIA's DRA driver publishes for the node. None if it has published nothing or nobody reads it."""
    unhealthy: Mapping[str, int] = field(default_factory=dict)
    """By GPU resource, by how many devices capacity exceeds allocatable (docs/design/nvidia.md#b9)."""
    boot_id: str = ""
    """Changes with every boot, as the kubelet reports it; empty if unknown."""
    rule_since: datetime | None = None
    """Since when a DeviceTaintRule of ours keeps new pods off the node's devices, or None if none does."""
    held_off: Mapping[str, str] = field(init=False, compare=False)
    """The labels that switch NVIDIA's operands and are not `true`, with their values, such as `false` or paused."""

    def __post_init__(self) -> None:
        switches = {
            label: value
            for label, value in self.labels.items()
            if value != "true" and label.startswith(LABEL_DEPLOY_PREFIX)
        }
        object.__setattr__(self, "held_off", switches or _NOTHING)

    @property
    def barred(self) -> bool:
        """Whether a taint, other than those for conditions of the node, keeps away pods without a toleration."""
        return self.gate is not None or any(not one.key.startswith("node.kubernetes.io/") for one in self.taints)

    @property
    def closed_since(self) -> datetime | None:
        """When the present fence began to keep GPU pods off; None without one, or without its DeviceTaintRule."""
        if self.fence is None or not self.fence.tainted:
            return self.fence.since if self.fence is not None else None
        # Pods that were created before the server had the rule may be on the node.
        return max(self.fence.since, self.rule_since + CLOCK_ERROR) if self.rule_since is not None else None

    @property
    def foreign_works(self) -> bool:
        """Whether somebody else may work on the node, or may have stopped halfway (docs/design/drain.md#c4)."""
        return bool(self.foreign) and not self.foreign_queued

    @property
    def upgrade_failed(self) -> bool:
        """Whether NVIDIA's driver upgrade waits for a person after a failure, and nobody else works on the node.

        A NodeMaintenance that the upgrade asked for stays meanwhile (docs/design/nvidia.md#d4).
        """
        failed = self.labels.get(LABEL_UPGRADE_STATE) == UPGRADE_FAILED
        return failed and (self.foreign_waits or self.foreign.startswith("NVIDIA NodeMaintenance"))

    def keeps_off(self, operand: str) -> bool:
        """Whether a deploy label keeps this operand of NVIDIA off the node; a pause does not count, because it ends.

        The labels are node selectors of DaemonSets, which require `true`, but that of `operands` is not. The GPU
        Operator sets an empty value to `true` (docs/design/nvidia.md#d2).
        """
        value = self.held_off.get(LABEL_DEPLOY_PREFIX + operand, "")
        return value == "false" if operand == "operands" else bool(value) and "paused-for-" not in value


@value
class CardView:
    """The properties of a GPU that no change of ours affects. A target is computed from these alone."""

    index: int
    product: str
    mig_capable: bool
    profiles: tuple[Profile, ...] = field(hash=False)  # hashing them would cost too much
    """The MIG profiles that the driver lists for the card, or those of our table if it lists none."""


@value
class GpuView(CardView):
    """A GPU in the agent's latest report."""

    mig_enabled: bool
    mig_pending: bool
    """Whether the MIG mode will change with the next GPU reset."""
    compute_mode: str
    """CUDA compute mode, one of the values in `api.gpunode.GPU`."""
    layout: Layout | None
    """The MIG instances that exist, or None while MIG is off. Each of `partial` is in it under its parts' names."""
    processes: tuple[str, ...] = ()
    """Names of the processes that use the GPU; empty for one that the agent cannot name, or may not see."""
    doubt: Finding | None = None
    """How the profiles that the driver reports differ from our table, or None if they do not."""
    vitals: Vitals = HEALTHY
    instances_withheld: bool = False
    """Whether the agent may not list MIG instances, so that `layout` may lack some and none can be proven."""
    partial: tuple[PartialInstance, ...] = ()
    """The instances that are not one full compute instance, by which `layout` is none that a policy can want."""
    reset_in_guest: bool = False
    """Whether a MIG mode change requires a GPU reset that its virtual machine may be unable to perform."""


@value(eq=False, slots=False)  # no slots, because cached_property needs a __dict__
class Hardware:
    """The GPUs of a node and the facts that many rules derive from them. Thousands of nodes may share one object."""

    gpus: tuple[GpuView, ...]

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(gpus: tuple[GpuView, ...]) -> "Hardware":
        return Hardware(gpus)

    @cached_property
    def layouts(self) -> tuple[Layout | None, ...]:
        return tuple(gpu.layout for gpu in self.gpus)

    @cached_property
    def kinds(self) -> tuple[GpuView, ...]:
        """The first GPU of each kind: those that are equal in everything but the index."""
        kinds: dict[GpuView, GpuView] = {}
        for gpu in self.gpus:
            kinds.setdefault(replace(gpu, index=0), gpu)
        return tuple(kinds.values())

    @cached_property
    def models(self) -> tuple[GpuView, ...]:
        return tuple({gpu.product: gpu for gpu in self.gpus}.values())

    @cached_property
    def health(self) -> Finding:
        return diagnose([(gpu.index, gpu.vitals) for gpu in self.gpus])

    @cached_property
    def cards(self) -> tuple[CardView, ...]:
        """The GPUs reduced to CardViews. Nodes of one kind have equal cards, whatever state their GPUs are in."""
        return tuple(CardView(gpu.index, gpu.product, gpu.mig_capable, gpu.profiles) for gpu in self.gpus)


@value
class ObservedView:
    """The latest report of a node's agent."""

    request_id: str
    """Id of the request that this report answers."""
    quiet: bool
    """Whether the agent has closed NVML at our request."""
    error: str
    gpus: tuple[GpuView, ...]
    allocated: Mapping[str, int] | None = field(default_factory=dict)
    """The number of devices that pods hold, by GPU resource name, or None if that is unknown."""
    pods: int | None = 0
    """How many pods hold a GPU device, or None if that is unknown."""
    simulated: bool = False
    driver_version: str = ""
    devices: tuple[str, ...] = ()
    """For each GPU, its UUID or, with MIG on, the result of `key_of` for its MIG devices; empty if it has none."""
    holders: tuple[Holder, ...] | None = None
    """The pods that hold GPUs, or None if the agent was not asked or the kubelet did not answer."""
    hardware: Hardware = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Equal GPUs of many nodes would otherwise take up most of a snapshot's memory.
        hardware = Hardware.of(self.gpus)
        object.__setattr__(self, "hardware", hardware)
        object.__setattr__(self, "gpus", hardware.gpus)

    @property
    def devices_key(self) -> str:
        """The result of `key_of` for `devices`, as in NodeDevices; empty if they are unknown."""
        return key_of(filter(None, self.devices)) if self.devices else ""


@value
class GPUNodeView:
    """A GPUNode: our request to the agent and the agent's answer."""

    name: str
    uid: str
    request_id: str
    """Id of our last request to the agent."""
    quiet: bool
    """Whether that request asks the agent to keep NVML closed."""
    observed: ObservedView | None
    requests: Mapping[str, str] = field(default_factory=dict)
    """What a person has requested in annotations (`names.REQUESTS`). Empty once the Node has it."""
    holders: bool = False
    """Whether that request asks which pods hold which GPUs."""
    quiet_gpus: tuple[int, ...] = ()
    """The only GPUs that the agent leaves alone while `quiet`. Empty if it leaves all alone."""

    @property
    def answer(self) -> ObservedView | None:
        """The agent's report if it answers that request."""
        return self.observed if self.observed is not None and self.observed.request_id == self.request_id else None


@value(slots=False)  # no slots, because each node asks for its cached `version`
class PolicyView:
    name: str
    uid: str
    generation: int
    """The generation of the object, which each edit of the spec and the deletion increase."""
    created: str
    """metadata.creationTimestamp. If several policies of equal priority select a node, the oldest owns it."""
    deleting: bool
    """Whether the policy is being deleted and releases its nodes as they are; see `resetting`."""
    finalizer: bool
    force_release: bool
    """Whether a person has asked to release the policy at once, with every cordon kept."""
    spec: GPUSharingPolicySpec | None
    """The spec of the policy, or None if `problems` say why it cannot be read."""
    problems: tuple[Problem, ...] = ()
    approved: str = ""
    """The hash of the plan that a person last approved. Empty if there is none."""
    resumed: str = ""
    """The hash of the halt after which a person last let nodes start. Empty if there is none."""
    zones: Mapping[str, tzinfo] = field(default_factory=lambda: {"UTC": UTC})
    """The known time zones that its windows and blackouts name, loaded when the policy was converted."""
    resetting: bool = False
    """Whether the policy is being deleted but first changes its nodes to whole GPUs. `spec` is then that of whole GPUs,
    and `deleting` is False."""

    pause: str = ""
    """What pauses the policy beside its own rollout.paused; empty if nothing does."""

    @cached_property
    def version(self) -> SpecVersion:
        """The UID and revision of the policy, as records refer to it. The revision is empty without a spec."""
        return SpecVersion(self.uid, find_revision(self.uid, self.spec, resetting=self.resetting))

    def paused_by(self, word: str, stop: str = "") -> "PolicyView":
        """Return the policy paused as `word` says, a value of PlanSettings.paused, or by what stops the operator."""
        if self.spec is None or (word == "false" and not stop):
            return self
        when = "Abort" if stop else word
        update = {"paused": True} | ({} if when == "true" else {"when_paused": when})
        rollout = self.spec.rollout.model_copy(update=update)
        pause = stop or f"the chart's value paused is {word}"
        return replace(self, spec=self.spec.model_copy(update={"rollout": rollout}), pause=pause)

    @property
    def going(self) -> bool:
        return self.deleting or self.resetting


@value
class PlanSettings:
    """Operator settings that the planner needs; all times in seconds."""

    namespace: str = "gpusharing"
    """Our own namespace, in which the Lease is."""
    gpu_operator_namespace: str = "gpu-operator"
    """Namespace of the NVIDIA GPU Operator, in which our ConfigMaps are."""
    plugin_config_map: str = "gpusharing-device-plugin"
    """Our ConfigMap of device-plugin configurations; ClusterPolicy devicePlugin.config.name must name it."""
    mig_config_map: str = "gpusharing-mig-parted"
    """Our ConfigMap of mig-parted configurations; ClusterPolicy migManager.config.name must name it for layouts."""
    configure_gpu_operator: Switch = False
    """Set ClusterPolicy's two pointers to our ConfigMaps, once, where nobody has set them."""
    repair_mps: Switch = False
    """Let the MPS daemons of the GPU Operator follow labels: set one environment value of their DaemonSet, while no node
    serves MPS.
    """
    pod_name: str = ""
    """Name of our own pod, which is never drained. Empty if we do not run in a pod."""
    protected_namespaces: Namespaces = ("kube-system",)
    """Comma-separated: no pod is evicted in these. The chart's admission policy refuses it too."""
    neighbor_labels: Labels = ()
    """Comma-separated, as key=value: further labels that a Node has while it changes, so that other controllers leave it
    alone; the common ones are built in.
    """
    paused: Literal["false", "true", "Finish", "Hold", "Abort"] = "false"
    """Pause every policy (the chart's value paused). A value of whenPaused also replaces that of every policy."""
    force_delete: Switch = False
    """Allow pods to be deleted at the end of a drain whose policy says ForceDelete; the chart's value forceDelete grants
    the right and opens the admission policy.
    """
    device_taints: Switch = False
    """Fence nodes by DeviceTaintRules in place of cordons where NVIDIA's DRA driver serves the GPUs and the scheduler is
    shown to obey such rules; the chart's value dra.deviceTaints grants the rights.
    """
    guard: Guard = "false"
    """How the chart's guard keeps GPU pods of namespaces with the isolation label on nodes that isolate: by adding the
    requirement to new pods, or by refusing pods without it. The replacement of an evicted pod is a new pod, too.
    """
    refuse_unsafe_drivers: Switch = True
    """Make no MIG change that is known to be unsafe under the node's driver (`planning/gpus/drivers.py`)."""
    unsafe_drivers: DriverVersions = ()
    """Comma-separated: further driver versions, or branches such as 570, on which MIG is not changed."""
    max_in_flight: Count = 100
    """Operator-wide cap on nodes in flight; at most 500."""
    settle: Seconds = 5.0
    """Time from the cordon until the pods are first looked at (scheduler race, docs/design/drain.md#t2)."""
    idle: Seconds = 3.0
    """Time between the two empty LISTs that prove a node idle."""
    config_propagation: Seconds = 120.0
    """Time from a ConfigMap write until a label may point at the new entry."""
    eviction_wait: Period = 5.0
    """Wait after the first refusal of an eviction; doubles up to a minute."""
    wedge_pending: Seconds = 1200.0
    """A mig.config.state that stays pending for longer is a wedge (docs/design/nvidia.md#a7)."""
    wedge_paused: Seconds = 15.0
    """Operands that stay paused for longer after success or failed are a wedge."""
    abort_backoff: Seconds = 300.0
    """First wait after an abort; it doubles each time."""
    poll: Period = 5.0
    """Time between two LISTs of the pods of a node in work."""
    restart_grace: Seconds = 30.0
    """Time after a restarted mig-manager pod becomes Ready until the state on the node counts as its own."""
    drift_grace: Seconds = 60.0
    """A difference must last this long before it counts as drift (plugin restarts and reboots heal themselves)."""
    max_cures: Count = 2
    """Cures per change (restarts of mig-manager, or mig.config set again) before the node is Failed."""

    @property
    def sign_grace(self) -> float:
        """The seconds for which a program may show no sign of life, as while it restarts."""
        return self.drift_grace + self.restart_grace


OLD_VIEW = 150.0
"""The age in seconds from which a view is too old for a point of no return. The API server sends a bookmark every 60 s,
and a watch counts as broken after 75 s of silence."""


@value(slots=False)  # no slots, because it has a cached property
class ClusterSnapshot:
    """All input of a plan, read once. Mappings are keyed by node name unless their description says otherwise."""

    nodes: Mapping[str, NodeView]
    gpunodes: Mapping[str, GPUNodeView]
    policies: tuple[PolicyView, ...]
    stack: StackView
    agents: frozenset[str] = frozenset()
    """Nodes whose agent pod is Ready."""
    operands: Mapping[Program, Mapping[str, Operand]] = field(default_factory=dict)
    """The pods of NVIDIA's programs that we may restart, by program and node."""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    work: Mapping[str, NodeWork] = field(default_factory=dict)
    """The pods of those nodes whose pods were listed."""
    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    """The recorded failures by UID of the Node, whether or not the Node still exists."""
    consents: Mapping[str, Consent] = field(default_factory=dict)
    """By UID of the policy."""
    lease_room: int = LEASE_ROOM
    """How many characters claims, failures and consents may have together on the Lease."""
    agent_troubles: Mapping[str, Finding | None] = field(default_factory=dict)
    """Why no agent is Ready on the nodes that are not in `agents` (`find_troubles`)."""
    mig_failures: Mapping[str, str] = field(default_factory=dict)
    """Why mig-manager failed during a change of ours, according to its log."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """How many Pending pods without a node request each GPU resource, by resource name."""
    pending_devices: Mapping[str, int] = field(default_factory=dict)
    """How many devices of each GPU resource those pods request in total, by resource name."""
    call_failures: Mapping[str, CallFailure] = field(default_factory=dict)
    """By node or other subject."""
    stop: str = ""
    """What stops the operator; empty if nothing does. Each policy is paused by it already (`PolicyView.pause`)."""
    taint_rules: tuple[TaintRuleView, ...] = ()
    """Ours, by name. Empty if they cannot be read."""
    policies_error: str = ""
    """Why `policies` may be outdated; no node then starts. Empty if they are up to date."""
    view_ages: Mapping[str, float] = field(default_factory=dict)
    """The seconds since each cached view, such as that of nodes, was up to date; a missing one is."""
    memory: PassMemory = PassMemory()
    """What the last pass remembered for this one."""
    unserved: str = ""
    """The kind of the GPUNodes while its CRD is not installed, so that no agent can report; else empty."""
    settings: PlanSettings = PlanSettings()

    @cached_property
    def fences(self) -> Mapping[str, Fence]:
        """The fences that can be read, by node, including yielded ones."""
        return {name: node.fence for name, node in self.nodes.items() if node.fence is not None}

    def observed(self, node: str) -> ObservedView | None:
        gpunode = self.gpunodes.get(node)
        return gpunode.observed if gpunode is not None else None

    @property
    def simulated(self) -> tuple[str, ...]:
        reports = sorted(self.gpunodes.items())
        return tuple(name for name, one in reports if one.observed is not None and one.observed.simulated)

    @property
    def old_views(self) -> str:
        return ", ".join(sorted(name for name, age in self.view_ages.items() if age > OLD_VIEW))
