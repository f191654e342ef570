"""GPUNode: one per GPU node, with its name. The operator asks in spec, the agent answers in status.observed.

`status.transition` is written by the operator for people; nothing is ever decided from it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpusharing.api.records import Counts, Limits, Line, SchemaKeys, Sentence, Time, WireRecord

MigMode = Literal["Enabled", "Disabled", "NotSupported"]
ComputeMode = Literal["Default", "ExclusiveProcess", "Prohibited", "NotSupported", "Unknown"]
Virtualization = Literal["None", "PassThrough", "VGPU", "HostVGPU", "HostVSGA", "Unknown"]
Access = Literal["Ok", "Lost", "ResetRequired", "Failed"]
RecoveryAction = Literal[
    "None",
    "Reset",
    "Reboot",
    "DrainP2P",
    "DrainAndReset",
    "RecoverIMEX",
    "BusReset",
    "SystemReboot",
    "Unknown",
]


MAX_SLICES, MAX_UNITS = 8, 32
"""More than any card has (7 compute slices, 12 memory units; planning/gpus/cards.py). The planner finds layouts by
trying placements, and a false report must not make that endless."""


@dataclass(frozen=True, slots=True)
class Request(WireRecord):
    """What the operator asks of the agent."""

    id: Annotated[str, Limits(max_length=128)] = ""
    """Echoed by the agent: an observation proves something only when it carries the id that asked for it."""
    quiet: bool = False
    """Read once more, then close NVML and keep it closed: a MIG mode change needs every NVML client gone."""


@dataclass(frozen=True, slots=True)
class GPUNodeSpec(WireRecord):
    """Written by the operator only."""

    request: Request = field(default_factory=Request)
    """What the operator asks of the agent."""


@dataclass(frozen=True, slots=True)
class DriverProfile(WireRecord):
    """A MIG profile that the driver offers on this card (nvmlDeviceGetGpuInstanceProfileInfo)."""

    name: Line
    """For example 1g.10gb+me."""
    id: int
    """GPU instance profile id as `nvidia-smi mig -lgip` prints it."""
    slices: Annotated[int, Limits(ge=1, le=MAX_SLICES)]
    """Compute slices, the number before the g."""
    memory_gb: Annotated[int, Limits(ge=0, le=100_000)]
    """Nominal memory in the name, GB."""
    max_count: Annotated[int, Limits(ge=0, le=MAX_UNITS)]
    """How many instances of only this profile fit."""
    starts: Annotated[tuple[Annotated[int, Limits(ge=0, le=MAX_UNITS - 1)], ...], Limits(max_length=64)]
    """Possible placement starts, in NVML placement units; empty when the driver does not report them."""
    size: Annotated[int, Limits(ge=0, le=MAX_UNITS)]
    """Placement size in the same units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(WireRecord):
    """A card model found in this node; GPUs refer to it by name."""

    product: Line
    """Name as NVML reports it, for example NVIDIA H100 80GB HBM3."""
    memory_mib: int | None = None
    """Total memory, MiB; null when the driver does not report it, as to a container without rights when MIG is on."""
    compute_capability: Line
    """For example 9.0; empty when the driver does not report it."""
    mig_capable: bool
    """Whether the card has MIG."""
    mig_mode_change: Literal["Live", "Reset", "Unknown"]
    """Whether switching MIG mode needs a GPU reset (NVML field 184)."""
    profiles: Annotated[tuple[DriverProfile, ...], Limits(max_length=64)]
    """MIG profiles offered; empty when the card has no MIG or the driver lists none while MIG is off."""
    virtualization: Virtualization = "Unknown"
    """How the card is virtualized (nvmlDeviceGetVirtualizationMode); PassThrough in most virtual machines of clouds.
    Unknown when the driver does not report it, and in reports of older agents."""


@dataclass(frozen=True, slots=True)
class Instance(WireRecord):
    """A MIG GPU instance that exists now."""

    profile: Line
    """For example 3g.40gb."""
    start: int
    """Placement start; -1 when the agent may not read placements."""
    size: int
    """Placement size."""
    id: int
    """GPU instance id."""
    uuid: Line
    """UUID of its MIG device, empty while it has no compute instance."""


@dataclass(frozen=True, slots=True)
class Process(WireRecord):
    """A process that uses a GPU: for computing, as a client of MPS, or for graphics."""

    pid: int
    """Process id on the host; 0 represents all processes that the agent may not see, which count as busy."""
    name: Line
    """Name of the program; empty when the agent cannot tell, which counts as busy. The names of NVIDIA's MPS daemons
    are given only when the executable and its parent are the real ones."""
    device: Line = ""
    """UUID of the MIG device it runs on; empty for the whole GPU."""


@dataclass(frozen=True, slots=True)
class RemappedRows(WireRecord):
    """Row remapping of the GPU's memory (nvmlDeviceGetRemappedRows)."""

    correctable: int
    """Rows remapped after correctable errors."""
    uncorrectable: int
    """Rows remapped after uncorrectable errors."""
    pending: bool
    """A remapping waits for a GPU reset."""
    failed: bool
    """A remapping failed: replace the card."""


@dataclass(frozen=True, slots=True)
class GPU(WireRecord):
    """One GPU."""

    index: int
    """Index, as NVML counts."""
    uuid: Line
    """UUID, GPU-..."""
    product: Line
    """Product name of its model, as in models."""
    mig_mode: MigMode
    """MIG mode in force."""
    mig_mode_pending: MigMode
    """MIG mode after the next reset."""
    compute_mode: ComputeMode
    """CUDA compute mode; ExclusiveProcess belongs to MPS. Unknown when NVML refuses to report it."""
    instances: Annotated[tuple[Instance, ...], Limits(max_length=64)]
    """MIG instances that exist; see instancesWithheld."""
    processes: Annotated[tuple[Process, ...], Limits(max_length=1024)]
    """Processes that use it."""
    ecc_uncorrected: int | None = None
    """Uncorrected volatile ECC errors; null when not supported. Once above 0, an increase alone is not written."""
    remapped_rows: RemappedRows | None = None
    """Row remapping; null when not supported. Its counts are written as eccUncorrected is."""
    access: Access = "Ok"
    """Whether NVML can talk to the GPU; unless Ok, everything else here is from an earlier reading."""
    recovery_action: RecoveryAction | None = None
    """What the driver asks for (NVML field 230); null before R565."""
    xid: int | None = None
    """The first critical XID that the agent heard since it started; it hears only while it reads."""
    error: Line = ""
    """What NVML answered about this GPU, with access Failed; empty otherwise."""
    instances_withheld: bool = False
    """NVML does not list all MIG instances to the agent's container: there may be more than instances lists."""


@dataclass(frozen=True, slots=True)
class Observed(WireRecord):
    """What the agent read. The agent is its only writer, by JSON merge patches with every key present."""

    request_id: Annotated[str, Limits(max_length=128)]
    """The request that this observation answers: it was read after that request arrived."""
    quiet: bool
    """NVML is closed; gpus is the last reading, taken after the request arrived."""
    simulated: bool
    """The GPUs are SIMULATED."""
    error: Sentence
    """What keeps the agent from reading NVML, empty when nothing does."""
    driver_version: Line
    """NVIDIA driver version, empty when unknown."""
    models: Annotated[tuple[Model, ...], Limits(max_length=16)]
    """Card models in this node."""
    gpus: Annotated[tuple[GPU, ...], Limits(max_length=64)]
    """GPUs by index."""
    allocated: Counts | None = None
    """Devices held by pods, by GPU resource name, from the kubelet's podresources; absent when it did not answer.
    Finished pods hold none, whatever the version of the kubelet."""
    pods: int | None = None
    """Pods that hold a GPU device, by the same source as allocated."""


@dataclass(frozen=True, slots=True)
class HistoryEntry(WireRecord):
    """One past transition."""

    phase: Line
    """The phase that the node entered."""
    reason: Line
    """Why, in one CamelCase word."""
    at: Time
    """When, RFC 3339."""


@dataclass(frozen=True, slots=True)
class Transition(WireRecord):
    """How far the node's change has come. For people: nothing is decided from it."""

    policy: Line = ""
    """The policy that owns the node."""
    wanted: Line = ""
    """What each GPU is to be divided into."""
    phase: Line = ""
    """Phase of the node, for example Draining or Synced."""
    reason: Line = ""
    """Why it is in this phase, in one CamelCase word; docs/reference/reasons.md explains each."""
    message: Sentence = ""
    """A sentence with names and the next step."""
    since: Time | None = None
    """When the phase began, RFC 3339."""
    deadline: Line = ""
    """When the clock ends the present wait or the operator gives up: a time of day in UTC, with the date where it is
    more than a day after since. person or others where no clock ends it; empty: nothing is waited for."""
    attempt: int = 0
    """Number of the attempt at what the change now leads to; 1, and one more after each cure of mig-manager. 0 when
    nothing is in flight."""
    step: Line = ""
    """The step and how many there are, for example 1/1; empty when nothing is in flight."""
    observed: Line = ""
    """What each GPU is divided into now."""
    disruption: Line = ""
    """Disruption class of the change that is planned or under way; None when nothing is to change."""
    culprit: Line = ""
    """What keeps the node: the first pod and how many more (ns/pod +2), or something else, such as gsp/pool-b,
    node/gpu-07 or mig-manager; empty: nothing is waited for."""
    cordon: Line = ""
    """Whose cordon the node carries: ours, human, foreign or empty."""
    blockers: Annotated[tuple[Sentence, ...], Limits(max_length=5)] = ()
    """One line per blocking reason with pod and PodDisruptionBudget names."""
    history: Annotated[tuple[HistoryEntry, ...], Limits(max_length=20)] = ()
    """The last 20 transitions, newest last."""


@dataclass(frozen=True, slots=True)
class NodeCondition(WireRecord):
    """One aspect of the node's state. Without observedGeneration: it does not depend on the spec."""

    type: Literal["Healthy"]
    """Healthy: no GPU of the node needs a reset, a reboot or a person."""
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
    """Has two writers: the agent writes `observed`, the operator everything else."""

    observed: Observed | None = None
    """Written by the agent of this node only."""
    transition: Transition | None = None
    """Written by the operator only."""
    conditions: Annotated[
        tuple[NodeCondition, ...],
        Limits(max_length=8),
        SchemaKeys({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """One condition, Healthy. Written by the operator only; nothing is decided from it."""
