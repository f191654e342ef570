"""GPUNode: one per GPU node, with its name. The operator asks in spec, the agent answers in status.observed.

`status.transition` is written by the operator for people; nothing is ever decided from it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpusharing.api.names import CordonedBy, DisruptionClass, Phase, WaitingFor
from gpusharing.api.records import Counts, Limits, Line, Sentence, Time, WireRecord, one_of

MigMode = Literal["Enabled", "Disabled", "NotSupported"]
ComputeMode = Literal["Default", "ExclusiveProcess", "Prohibited", "NotSupported", "Unknown"]
Virtualization = Literal["None", "PassThrough", "VGPU", "HostVGPU", "HostVSGA", "Unknown"]
Access = Literal["Ok", "Lost", "ResetRequired", "Failed"]
RecoveryAction = Literal[
    "None", "Reset", "Reboot", "DrainP2P", "DrainAndReset", "RecoverIMEX", "BusReset", "SystemReboot", "Unknown"
]


MAX_SLICES, MAX_UNITS = 8, 32
"""More than any card has (7 compute slices, 12 memory units; planning/gpus/cards.py). The planner finds layouts by
trying placements, and a false report must not make that endless."""


@dataclass(frozen=True, slots=True)
class Request(WireRecord):
    """The request of the operator to the agent."""

    id: Annotated[str, Limits(max_length=128)] = ""
    """Id of the request, which the agent copies into its report: only a report with this id proves anything."""
    quiet: bool = False
    """Asks the agent to read once more and then to keep NVML closed: a MIG mode change needs every NVML client gone."""


@dataclass(frozen=True, slots=True)
class GPUNodeSpec(WireRecord):
    """The spec of a GPUNode; only the operator writes it."""

    request: Request = field(default_factory=Request)
    """The request that the agent answers in status.observed."""


@dataclass(frozen=True, slots=True)
class DriverProfile(WireRecord):
    """A MIG profile that the driver offers on this card (nvmlDeviceGetGpuInstanceProfileInfo)."""

    name: Line
    """For example 1g.10gb+me."""
    id: int
    """Id of the GPU instance profile, as `nvidia-smi mig -lgip` prints it."""
    slices: Annotated[int, Limits(ge=1, le=MAX_SLICES)]
    """Compute slices: the number before the g in the name."""
    memory_gb: Annotated[int, Limits(ge=0, le=100_000)]
    """Nominal memory as in the name, in GB."""
    max_count: Annotated[int, Limits(ge=0, le=MAX_UNITS)]
    """How many instances fit on the card if all of them have this profile."""
    starts: Annotated[tuple[Annotated[int, Limits(ge=0, le=MAX_UNITS - 1)], ...], Limits(max_length=64)]
    """Where an instance may start, in NVML placement units; empty when the driver does not report it."""
    size: Annotated[int, Limits(ge=0, le=MAX_UNITS)]
    """Size of an instance, in the same units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(WireRecord):
    """A card model found in this node; GPUs refer to it by name."""

    product: Line
    """Name as NVML reports it, for example NVIDIA H100 80GB HBM3."""
    memory_mib: int | None = None
    """Total memory in MiB; null when the driver does not report it, for example when MIG is on and the
    container is unprivileged."""
    compute_capability: Line
    """CUDA compute capability, for example 9.0; empty when the driver does not report it."""
    mig_capable: bool
    """Whether the card can be divided by MIG."""
    mig_mode_change: Literal["Live", "Reset", "Unknown"]
    """Whether switching MIG mode needs a GPU reset (NVML field 184)."""
    profiles: Annotated[tuple[DriverProfile, ...], Limits(max_length=64)]
    """MIG profiles that the driver offers; empty when the card has no MIG, or the driver lists none while MIG is
    off."""
    virtualization: Virtualization = "Unknown"
    """How the card is virtualized (nvmlDeviceGetVirtualizationMode), PassThrough in most virtual machines of clouds;
    Unknown when the driver does not report it, and in reports of older agents."""


@dataclass(frozen=True, slots=True)
class Instance(WireRecord):
    """A MIG GPU instance that exists now."""

    profile: Line
    """Profile of the instance, for example 3g.40gb."""
    start: int
    """Where the instance starts, in NVML placement units; -1 when the agent may not read placements."""
    size: int
    """Size of the instance, in the same units."""
    id: int
    """Id of the GPU instance."""
    uuid: Line
    """UUID of its MIG device; empty while it has no compute instance."""


@dataclass(frozen=True, slots=True)
class Process(WireRecord):
    """A process that uses a GPU: for computing, as a client of MPS, or for graphics."""

    pid: int
    """Process id on the host; 0 represents all processes that the agent may not see, which count as busy."""
    name: Line
    """Name of the program, empty when the agent cannot tell, which counts as busy; NVIDIA's MPS daemons are named only
    when the executable and its parent are the real ones."""
    device: Line = ""
    """UUID of the MIG device that the process uses; empty for the whole GPU."""


@dataclass(frozen=True, slots=True)
class RemappedRows(WireRecord):
    """Row remapping of the GPU's memory (nvmlDeviceGetRemappedRows)."""

    pending: bool
    """Whether a remapping waits for a GPU reset."""
    failed: bool
    """Whether a remapping has failed; the card has to be replaced then."""


@dataclass(frozen=True, slots=True)
class GPU(WireRecord):
    """One GPU of the node, as NVML last reported it."""

    index: int
    """Index of the GPU, as NVML counts."""
    uuid: Line
    """UUID of the GPU, which begins with GPU-."""
    product: Line
    """Product name of its model, as in models."""
    mig_mode: MigMode
    """MIG mode that is in force."""
    mig_mode_pending: MigMode
    """MIG mode that the next reset brings into force."""
    compute_mode: ComputeMode
    """CUDA compute mode, which MPS sets to ExclusiveProcess; Unknown when NVML does not report it."""
    instances: Annotated[tuple[Instance, ...], Limits(max_length=64)]
    """MIG instances that exist; there may be more if instancesWithheld is true."""
    processes: Annotated[tuple[Process, ...], Limits(max_length=1024)]
    """Processes that use the GPU."""
    ecc_uncorrected: int | None = None
    """Uncorrected volatile ECC errors, null when not supported; once the number is above 0, a further increase alone
    does not cause a write."""
    remapped_rows: RemappedRows | None = None
    """Row remapping; null when not supported."""
    access: Access = "Ok"
    """Whether NVML can reach the GPU; unless Ok, all other fields of this GPU are from an earlier reading."""
    recovery_action: RecoveryAction | None = None
    """Recovery action that the driver requests (NVML field 230); null with drivers before R565."""
    xid: int | None = None
    """The first critical XID that the agent received since it started; it misses those that come while it does not
    read."""
    error: Line = ""
    """Error that NVML returned for this GPU, with access Failed; empty otherwise."""
    instances_withheld: bool = False
    """Whether NVML withholds MIG instances from the agent's container, so that there may be more than instances
    lists."""


@dataclass(frozen=True, slots=True)
class Observed(WireRecord):
    """The report of the agent. Only the agent writes it, by JSON merge patches with every key present."""

    request_id: Annotated[str, Limits(max_length=128)]
    """Id of the request that this report answers: the GPUs were read after that request had arrived."""
    quiet: bool
    """Whether the agent has closed NVML; gpus is then its last reading, taken after the request had arrived."""
    simulated: bool
    """Whether the GPUs are SIMULATED."""
    error: Sentence
    """Why the agent cannot read NVML; empty when it can."""
    driver_version: Line
    """Version of NVIDIA's driver; empty when unknown."""
    models: Annotated[tuple[Model, ...], Limits(max_length=16)]
    """Card models in this node."""
    gpus: Annotated[tuple[GPU, ...], Limits(max_length=64)]
    """GPUs on this node, ordered by index."""
    allocated: Counts | None = None
    """Devices that pods hold, by GPU resource name, from the kubelet's podresources, without those of finished pods;
    absent when the kubelet did not answer."""
    pods: int | None = None
    """How many pods hold a GPU device, from the same source; absent when the kubelet did not answer."""


@dataclass(frozen=True, slots=True)
class HistoryEntry(WireRecord):
    """One phase that the node has been in."""

    phase: Annotated[str, one_of(Phase)]
    """The phase that the node entered."""
    reason: Line
    """Reason why it entered the phase, in one CamelCase word."""
    at: Time
    """When it entered the phase, RFC 3339 in UTC."""


@dataclass(frozen=True, slots=True)
class Transition(WireRecord):
    """How far the node's change has come. It is written for people: nothing is decided from it."""

    policy: Line = ""
    """The policy that owns the node."""
    wanted: Line = ""
    """Layout that the policy wants on the node's GPUs, for example 2x3g.40gb."""
    phase: Annotated[str, one_of(Phase)] = ""
    """How far the node's change has come."""
    reason: Line = ""
    """Why it is in this phase, in one CamelCase word; docs/reference/reasons.md explains each."""
    message: Sentence = ""
    """A sentence for people that names the objects concerned and the next step."""
    since: Time | None = None
    """When the phase began, RFC 3339 in UTC."""
    waiting_for: Annotated[str, one_of(WaitingFor)] | None = None
    """Who ends the present wait: the Clock at the deadline, a Person, or Others, such as pods, another node or NVIDIA's
    programs; absent when nothing is waited for."""
    deadline: Time | None = None
    """When the present wait ends by itself, or the operator gives up, RFC 3339 in UTC; absent unless waitingFor is
    Clock."""
    attempt: int = 0
    """Number of the attempt: 1 for a new target and after each retry that a person requests, and one more for each time
    that the operator has tried to cure mig-manager; 0 when no change is in flight."""
    step: Line = ""
    """The present step and how many there are, for example 1/1; empty when no change is in flight."""
    observed: Line = ""
    """Layout that the node's GPUs have now."""
    disruption: Annotated[str, one_of(DisruptionClass)] = ""
    """Disruption class of the change that is planned or under way; None when nothing is to change."""
    culprit: Line = ""
    """What blocks the node: the first pod and how many more there are, for example team-a/notebook-0 +2, or something
    else, such as gsp/pool-b or mig-manager; empty when nothing is waited for."""
    cordoned_by: Annotated[str, one_of(CordonedBy)] | None = None
    """Who cordoned the node: this Operator, a Person, or Others, which are controllers such as NVIDIA's driver upgrade;
    absent when the node is not cordoned."""
    blockers: Annotated[tuple[Sentence, ...], Limits(max_length=5)] = ()
    """What blocks the node: one line for each reason, with the names of pods and PodDisruptionBudgets."""
    history: Annotated[tuple[HistoryEntry, ...], Limits(max_length=20)] = ()
    """The last 20 transitions, newest last."""


@dataclass(frozen=True, slots=True)
class NodeCondition(WireRecord):
    """One aspect of the node's state, without an observedGeneration, because it does not depend on the spec."""

    type: Annotated[str, Limits(max_length=64)]
    """Healthy, which is True if no GPU on the node needs a reset, a reboot or a person."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition is met."""
    reason: Annotated[str, Limits(max_length=128)]
    """One CamelCase word; docs/reference/reasons.md explains each."""
    message: Sentence
    """The most serious fact and what to do about it."""
    last_transition_time: Time
    """When the status last changed, RFC 3339 in UTC, to the second."""


@dataclass(frozen=True, slots=True)
class GPUNodeStatus(WireRecord):
    """What is known about the node: the agent writes observed, the operator everything else."""

    observed: Observed | None = None
    """The report of this node's agent, which alone writes it."""
    transition: Transition | None = None
    """How far the node's change has come, for people to read; only the operator writes it."""
    conditions: Annotated[
        tuple[NodeCondition, ...],
        Limits(max_length=8, schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """The condition Healthy, which only the operator writes, and from which nothing is decided."""
