"""Names that cross a process boundary: our group, labels, annotations, modes, conditions and phases; NVIDIA's labels.

Reasons, which people and tools read too, have a module of their own: `planning/vocabulary/reasons.py`. Marks that we
only read are named where they are read: marks on a Node in `kube/maintenance.py`, marks on a pod in
`kube/pods.py`, `kube/gangkeys.py` and `planning/drain`.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#claim, docs/design/glossary.md#slot,
docs/design/glossary.md#drift, docs/design/glossary.md#point-of-no-return.
"""

from enum import StrEnum
from typing import Literal, Self

GROUP = "gpusharing.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
POLICIES = "gpusharingpolicies"
GPUNODES = "gpunodes"

PREFIX = f"{GROUP}/"

# --- Node labels and annotations that we own ---------------------------------------------------------
LABEL_MODE = f"{PREFIX}mode"
"""Routing label: `full`, `mig`, `time-slicing` ... A change that cordons the node removes it together with writing the
fence, and sets it again at the release, so that workloads that select a mode are not scheduled there in between."""
LABEL_ISOLATION = f"{PREFIX}isolation"
"""On a Namespace, `hardware` or `memory`: its GPU pods may run only on nodes whose mode isolates that much. The chart's
value guard.enabled enforces it; we never write it (docs/how-to/isolate-tenants.md)."""
LABEL_POLICY = f"{PREFIX}policy"
"""The policy that owns the node. It makes ownership sticky: a policy of equal priority never takes over the node."""
ANNOTATION_FENCE = f"{PREFIX}fence"
"""JSON record of the change in flight. One PATCH writes it together with the cordon, if the change needs one. The
PATCH of the release removes it, and lifts the cordon if that was only ours."""
ANNOTATION_DEFERRED = f"{PREFIX}deferred"
"""JSON record of the last change that was given up (planning/snapshot/records.py, `Deferred`): how many were given up,
until when the next one waits, and why."""
ANNOTATION_VERIFIED = f"{PREFIX}verified"
"""JSON record of what was last proven on the node (planning/snapshot/records.py, `Verified`): configurations, their
meaning, GPUs, and whether drift was corrected."""
ANNOTATION_HOLD_CORDON = f"{PREFIX}hold-cordon"
"""`true` on a Node: the node stays cordoned when our change ends."""
ANNOTATION_DO_NOT_DISRUPT = f"{PREFIX}do-not-disrupt"
"""`true` on a Pod, or a duration from its start during which it must not be disturbed (docs/design/drain.md#p17)."""
ANNOTATION_GPU_MEMORY = f"{PREFIX}gpu-memory"
"""On a Pod: the memory that it needs on each GPU or instance that it requests, such as 15Gi, for cases where the memory
that it allocates does not show its need. Used only for advice."""
ANNOTATION_RETRY = f"{PREFIX}retry"
"""On a Node or its GPUNode: a new value starts another attempt at once, after a failure, an abort, or drift that came
back."""
ANNOTATION_ABORT = f"{PREFIX}abort"
"""On a Node or its GPUNode, with the `op` of the fence: give up this change, if it is before the point of no return."""
LABEL_SKIP = f"{PREFIX}skip"
"""On a Node, any value but `false` and the empty one (`is_skip`): no change begins there. The node still counts in its
pool. As an annotation of the GPUNode, such a value sets the label of the Node to `true`, and the others remove it."""
REQUESTS = (ANNOTATION_RETRY, ANNOTATION_ABORT, LABEL_SKIP)
"""The annotations of a GPUNode by which a person without rights on Nodes asks for something. The operator moves them to
the Node (docs/adr/0082-requests-on-the-gpunode.md)."""
ANNOTATION_APPROVE = f"{PREFIX}approve"
"""On a policy with rollout.approval Manual: the hash of the plan that may be carried out."""
ANNOTATION_RESUME = f"{PREFIX}resume"
"""On a policy: the hash of the halt (`status.halt`) that a person has ended."""
STOP = "gpusharing-stop"
"""The ConfigMap in the operator's namespace that stops the operator while it exists (docs/adr/0095)."""
ANNOTATION_PAUSED = f"{PREFIX}when-paused-before"
"""On a policy, such as `Finish>Hold`: `whenPaused` before `kubectl gpusharing pause`, and what that has set."""
ANNOTATION_FORCE_RELEASE = f"{PREFIX}force-release"
"""`true` on a policy under deletion: its claims and the finalizer are removed, and every cordon stays."""
ANNOTATION_CLAIMS = f"{PREFIX}claims"
"""On the leader Lease: JSON map of node name to the claim that holds a slot of the disruption budget."""
ANNOTATION_WRITTEN = f"{PREFIX}written"
"""On our ConfigMaps: JSON map of each entry to the time at which it was written."""
ANNOTATION_CONFIGURED = f"{PREFIX}configured"
"""On a ClusterPolicy, comma-separated: the fields that the operator has set once and does not set again."""
ANNOTATION_MPS_REPAIRS = f"{PREFIX}mps-repairs"
"""On our device-plugin ConfigMap: JSON record of how often the operator has repaired the MPS DaemonSet. Without it, the
count starts anew."""
LABEL_MANAGED_BY, MANAGED_BY = "app.kubernetes.io/managed-by", "gpusharing-operator"
"""The label on our ConfigMaps that says who maintains them, and its value."""
TAINT_UNPROVEN = f"{PREFIX}unproven"
"""Start-up taint, with effect NoSchedule, that a kubelet or a node pool gives a Node that joins, so that no workload
is scheduled there before its layout is proven. It is the only taint that we ever remove; we never set one
(docs/design/transition.md#gate)."""
FINALIZER = f"{PREFIX}in-flight"
"""On a policy while one of its nodes is in flight, and with deletionPolicy Reset all the time."""

# --- Labels of NVIDIA's components (docs/design/nvidia.md) ---------------------------------
LABEL_MIG_CONFIG = "nvidia.com/mig.config"
LABEL_MIG_STATE = "nvidia.com/mig.config.state"
LABEL_PLUGIN_CONFIG = "nvidia.com/device-plugin.config"
LABEL_MIG_CAPABLE = "nvidia.com/mig.capable"
LABEL_MIG_STRATEGY = "nvidia.com/mig.strategy"
LABEL_GPU_PRESENT = "nvidia.com/gpu.present"
LABEL_GPU_PRODUCT = "nvidia.com/gpu.product"
LABEL_GPU_COUNT = "nvidia.com/gpu.count"
LABEL_GPU_REPLICAS = "nvidia.com/gpu.replicas"
LABEL_SHARING_STRATEGY = "nvidia.com/gpu.sharing-strategy"
LABEL_MPS_CAPABLE = "nvidia.com/mps.capable"
LABEL_GFD_TIMESTAMP = "nvidia.com/gfd.timestamp"
LABEL_WORKLOAD_CONFIG = "nvidia.com/gpu.workload.config"
LABEL_UPGRADE_STATE = "nvidia.com/gpu-driver-upgrade-state"
UPGRADE_REQUIRED, UPGRADE_FAILED = "upgrade-required", "upgrade-failed"
UPGRADE_LASTING = frozenset({UPGRADE_REQUIRED, UPGRADE_FAILED})
"""Values of LABEL_UPGRADE_STATE that may last for weeks, during which no driver is unloaded (k8s-operator-libs
pkg/upgrade/consts.go at 11e747a; docs/design/nvidia.md#d4)."""
LABEL_UPGRADE_SKIP = "nvidia.com/gpu-driver-upgrade.skip"
ANNOTATION_UPGRADE_CORDONED = "nvidia.com/gpu-driver-upgrade.node-initial-state.unschedulable"
"""NVIDIA's driver upgrade found the node cordoned when it was required, and leaves it so at its end (k8s-operator-libs
pkg/upgrade/common_manager.go at 11e747a, ProcessDoneOrUnknownNodes and updateNodeToUncordonOrDoneState)."""
LABEL_DEPLOY_PREFIX = "nvidia.com/gpu.deploy."
WORKLOAD_CONTAINER = "container"
"""The only value of LABEL_WORKLOAD_CONFIG with which a node has a device plugin (d.2). A node without the label is
treated the same."""
PAUSED_FOR_MIG = "paused-for-mig-change"
DEPLOY_PAUSABLE = ("device-plugin", "gpu-feature-discovery", "dcgm-exporter", "dcgm", "nvsm", "client")
"""Operands that mig-manager pauses (a.1); suffixes of LABEL_DEPLOY_PREFIX."""
LABEL_DEPLOY_CLIENT = LABEL_DEPLOY_PREFIX + "client"
"""The deploy label that DaemonSets which are not the GPU Operator's can require. mig-manager v0.15 or newer pauses it
during a change, but only if the Node has it (a.1)."""

LABEL_HOSTNAME = "kubernetes.io/hostname"
"""The label that Kubernetes sets on every Node."""

NEIGHBOR_ANNOTATIONS = ("karpenter.sh/do-not-disrupt", "cluster-autoscaler.kubernetes.io/scale-down-disabled")
"""Annotations that are set to `true` on a fenced Node, so that autoscalers do not remove it in the middle of a change
(docs/design/drain.md#c6)."""

LABEL_NO_REMEDIATION = "remediation.medik8s.io/exclude-from-remediation"
NEIGHBOR_LABELS = {
    LABEL_UPGRADE_SKIP: "true",
    "nvsentinel.dgxc.nvidia.com/managed": "false",
    "k8saas.nvidia.com/ManagedByNVSentinel": "false",
    LABEL_NO_REMEDIATION: "true",
}
"""Labels that are set on a fenced Node, with their values. They keep NVIDIA's driver upgrade away, and keep the health
agents NVSentinel (the third label is its older name) and medik8s, which see DCGM stop, from repairing the node
(docs/design/drain.md#c6)."""

REWRITTEN_LABELS = (
    LABEL_MODE,
    LABEL_POLICY,
    LABEL_MIG_CONFIG,
    LABEL_MIG_STATE,
    LABEL_PLUGIN_CONFIG,
    LABEL_MIG_STRATEGY,
    LABEL_GPU_PRODUCT,
    LABEL_GPU_COUNT,
    LABEL_GPU_REPLICAS,
    LABEL_SHARING_STRATEGY,
    LABEL_GFD_TIMESTAMP,
    "nvidia.com/gpu.memory",
    "nvidia.com/gpu.multiprocessors",
    LABEL_MPS_CAPABLE,
    *NEIGHBOR_LABELS,
)
"""Labels whose value a mode change rewrites. A node would leave a pool that selects by one of them.

Under strategy single, GFD describes the MIG device instead of the card in `gpu.*` (docs/design/nvidia.md#c-product).
NEIGHBOR_LABELS are set with our fence (docs/design/drain.md#c6).
"""
REWRITTEN_PREFIXES = ("nvidia.com/mig-", LABEL_DEPLOY_PREFIX, "nvidia.com/gpu.slices.", "nvidia.com/gpu.engines.")

RESOURCE_GPU = "nvidia.com/gpu"
RESOURCE_GPU_SHARED = "nvidia.com/gpu.shared"
RESOURCE_MIG_PREFIX = "nvidia.com/mig-"


def is_gpu_resource(name: str) -> bool:
    """Whether an extended resource represents GPUs or parts of them, because its name begins with `nvidia.com/gpu` or
    `nvidia.com/mig-` (docs/design/drain.md#g1).

    Names that NVIDIA's plugin never serves, but that somebody else may serve for a GPU, count too:
    `nvidia.com/gpumem`, `nvidia.com/gpu-h100`. Their pods hold a GPU, and must leave before it changes. Other
    nvidia.com/* resources are network cards and passed-through devices, which no mode change touches.
    """
    return name.startswith((RESOURCE_GPU, RESOURCE_MIG_PREFIX))


def is_skip(value: str | None) -> bool:
    """Whether this value of LABEL_SKIP, or None if the key is missing, keeps changes from beginning on the node."""
    return value not in (None, "", "false")


class Mode(StrEnum):
    """What a node pool's GPUs are for; the value of `spec.mode`."""

    FULL = "Full"
    MIG = "MIG"
    MPS = "MPS"
    TIME_SLICING = "TimeSlicing"


class ConditionType(StrEnum):
    """Conditions of a policy. kstatus reads Ready, Reconciling and Stalled; Argo CD needs a health check
    (deploy/gitops)."""

    ACCEPTED = "Accepted"
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class DisruptionClass(StrEnum):
    """What a change disturbs, shown before anything happens (docs/design/transition.md#classes)."""

    NONE = "None"
    PLUGIN_RESTART = "PluginRestart"
    CHANGED_GPUS = "ChangedGPUs"
    GPU_PODS = "GPUPods"
    RESET = "Reset"
    REBOOT = "Reboot"

    @property
    def severity(self) -> int:
        """Return the position of the class in the order of disruption, from 0."""
        return _CLASSES.index(self)

    @property
    def cordons(self) -> bool:
        """Whether a node must be cordoned for a change of this class, and idle, or with ChangedGPUs those GPUs."""
        return self.severity >= DisruptionClass.CHANGED_GPUS.severity

    @property
    def empties(self) -> int:
        """Return how much of a node must be empty for a change of this class: nothing, some GPUs, all GPUs, all."""
        return _EMPTIES[self]


RETRIES_THAT_EMPTY = {"gpu-pods": DisruptionClass.GPU_PODS, "all-pods": DisruptionClass.REBOOT}
"""What has to leave the node before another try, by the part of ANNOTATION_RETRY's value before the first dot."""
_CLASSES = tuple(DisruptionClass)
_EMPTIES = dict(zip(DisruptionClass, (0, 0, 1, 2, 2, 3), strict=True))


ChangePart = Literal["before", "emptying", "changing", "given up", "after"]
"""The part of a node's change that a phase belongs to. Until the point of no return the node is emptied: its pods can
hold that up, and people can give it up. After it the node is changed."""


class Phase(StrEnum):
    """How far the change of one node has come. Phases are derived from facts on every pass, and no decision depends on
    the phase that was shown before."""

    _value_: str
    part: ChangePart
    lasts: bool
    """Whether a node usually stays in this phase for long."""
    in_flight: bool
    """Whether our change of the node has begun and is not over: the node carries our fence, or is about to get or
    lose it. A node that was left to other maintenance keeps its fence too, but is Blocked."""

    PENDING = ("Pending", "before")
    PREFLIGHT = ("Preflight", "before")
    SKIPPED = ("Skipped", "before", "lasts")
    BLOCKED = ("Blocked", "before", "lasts")
    CORDONED = ("Cordoned", "emptying")
    WAITING_FOR_JOBS = ("WaitingForJobs", "emptying")
    DRAINING = ("Draining", "emptying")
    VERIFYING_IDLE = ("VerifyingIdle", "emptying")
    RECONFIGURING = ("Reconfiguring", "changing")
    VERIFYING = ("Verifying", "changing")
    UNCORDONING = ("Uncordoning", "changing")
    ABORTING = ("Aborting", "given up")
    FAILED = ("Failed", "changing", "lasts")
    SYNCED = ("Synced", "after", "lasts")

    def __new__(cls, word: str, part: ChangePart, lasts: Literal["", "lasts"] = "") -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.part = part
        member.lasts = bool(lasts)
        member.in_flight = part not in ("before", "after")
        return member


class CordonedBy(StrEnum):
    """Who cordoned a node."""

    OPERATOR = "Operator"
    PERSON = "Person"
    OTHERS = "Others"
    """Another controller, such as NVIDIA's driver upgrade."""


class WaitingFor(StrEnum):
    """Who ends the wait of a node."""

    CLOCK = "Clock"
    PERSON = "Person"
    OTHERS = "Others"


WAY = tuple(phase for phase in Phase if phase.part in ("emptying", "changing") and not phase.lasts)
"""The phases of a change that goes well, in their order. Synced comes after them."""
