"""GPUNode: one per GPU node, with its name. The operator asks in spec, the agent answers in status.observed.

`status.transition` is written by the operator for people; nothing is ever decided from it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gpusharing.api.names import CordonedBy, DisruptionClass, Phase, WaitingFor
from gpusharing.api.records import Counts, Limits, Line, Sentence, Time, WireRecord, one_of

MigMode = Literal["Enabled", "Disabled", "NotSupported"]
ComputeMode = Literal["Default", "ExclusiveProcess", "Prohibited", "NotSupported", "Unknown"]
Access = Literal["Ok", "Lost", "ResetRequired", "Failed"]
RecoveryAction = Literal[
    "Reset", "Reboot", "DrainP2P", "DrainAndReset", "RecoverIMEX", "BusReset", "SystemReboot", "Unknown"
]


MAX_PROGRAMS = 16
MAX_HOLDERS = 64
MAX_PARTIAL = 8
"""More GPU instances, and compute instances of one, than any card has (7)."""
NO_COMPUTE = "0c."
"""How a layout names a GPU instance without compute instance, before its profile. mig-parted does not count it."""


def _list_of(part: str) -> str:
    return f"^(?:{part}(?:; {part})*)?$"


_UNIT = "(?:[12]?[0-9]|3[01])"
PROFILE = (
    r"([^ ;]{1,64})(?: id=([0-9]{1,9}))? max=([12]?[0-9]|3[0-2])"
    rf"(?: placements=\{{({_UNIT}(?:,{_UNIT}){{0,63}})\}}:([1-9]|[12][0-9]|3[0-2]))?"
)
"""A MIG profile in text: its name, its id, how many fit, where it may start and its size (planning/gpus/texts.py).

No card has more than 12 units. The planner tries placements, and a false report must not make that endless."""
PROFILES = _list_of(PROFILE)
MIG = "^(?:NotSupported|Disabled|Enabled|([0-9]+x[^ @]*)@([0-9a-f]{16}))$"
_INDEXES = "[0-9]{1,3}(?:-[0-9]{1,3})?(?:,[0-9]{1,3}(?:-[0-9]{1,3})?)*"
INDEXES = f"^{_INDEXES}$"
"""Indexes of GPUs, with ranges, for example 0-3,5."""
COMPUTE_MODES = _list_of(f"{_INDEXES} (?:ExclusiveProcess|Prohibited|NotSupported|Unknown)")
HOLDER = rf"(\?|{_INDEXES})((?: [^ ;/]+/[^ ;/]+ [^ ;]+ [0-9a-f]{{12}}){{1,64}})"
"""The indexes of GPUs, or ? if unknown, and namespace/name, UID and digest of each pod that holds them."""
HOLDERS = _list_of(HOLDER)
PROGRAM = rf"({_INDEXES})(?: ([^;]+))?"
"""The indexes of GPUs, with ranges, and the name of a program that uses them."""
PROGRAMS = _list_of(PROGRAM)


@dataclass(frozen=True, slots=True)
class Request(WireRecord):
    """The request of the operator to the agent."""

    id: Annotated[str, Limits(max_length=128)] = ""
    """Id of the request, which the agent copies into its report: only a report with this id proves anything."""
    quiet: bool = False
    """Asks the agent to read once more and then to keep NVML closed: a MIG mode change needs every NVML client gone."""
    holders: bool = False
    """Asks the agent to report which pods hold which GPUs, for a policy whose drain.scope is Changed."""
    quiet_gpus: Annotated[tuple[int, ...], Limits(max_length=64)] = ()
    """Indexes of the only GPUs that quiet is about, or empty if it is about all: the agent goes on reading the others for
    its metrics, because a new MIG geometry needs no NVML client gone from another GPU."""


@dataclass(frozen=True, slots=True)
class GPUNodeSpec(WireRecord):
    """The spec of a GPUNode; only the operator writes it."""

    request: Request = field(default_factory=Request)
    """The request that the agent answers in status.observed."""


@dataclass(frozen=True, slots=True)
class ModelStatus(WireRecord):
    """A card model found in this node."""

    product: Line
    """Name as NVML reports it, for example NVIDIA H100 80GB HBM3."""
    gpus: Annotated[str, Limits(max_length=1024, pattern=INDEXES)]
    """Indexes of its GPUs, for example 0-3,5; a GPU of which no model is known is in none."""
    profiles: Annotated[str, Limits(max_length=8192, pattern=PROFILES)]
    """MIG profiles that the driver offers, after each ; another one, with its id, the most instances that fit, and the
    placements as `nvidia-smi mig -lgipp` prints them, for example 3g.40gb id=9 max=2 placements={0,4}:4; empty when the
    card has no MIG, or the driver lists none while MIG is off."""
    reset_in_guest: bool = False
    """Whether switching MIG mode needs a GPU reset (NVML field 184) and the GPU is passed through to a virtual machine,
    which may be unable to reset it."""


@dataclass(frozen=True, slots=True)
class PartialInstance(WireRecord):
    """A MIG GPU instance that does not have exactly one compute instance of its full size."""

    id: int
    """Id of the GPU instance, as `nvidia-smi mig -lgi` shows it."""
    profile: Line
    """Profile of the GPU instance, for example 3g.40gb."""
    compute: Annotated[tuple[Line, ...], Limits(max_length=MAX_PARTIAL)] = ()
    """Its compute instances, named as `nvidia-mig-parted export` does, for example 1c.3g.40gb; empty without any."""

    @property
    def contents(self) -> tuple[str, ...]:
        """What it is in a layout."""
        return self.compute or (NO_COMPUTE + self.profile,)


@dataclass(frozen=True, slots=True)
class GPUStatus(WireRecord):
    """One GPU of the node, as NVML last reported it. A field at its default is absent."""

    uuid: Line = ""
    """UUID of the GPU, which begins with GPU-."""
    mig: Annotated[str, Limits(max_length=1024, pattern=MIG)] = "NotSupported"
    """MIG instances and, after @, a hash of the UUIDs of their devices, for example 2x3g.40gb@0123456789abcdef; Enabled
    without instances; Disabled with MIG off; NotSupported, also if absent; without those in partialInstances."""
    partial_instances: Annotated[tuple[PartialInstance, ...], Limits(max_length=MAX_PARTIAL)] = ()
    """MIG instances that do not have exactly one compute instance of their full size, as `nvidia-smi mig -dci` or a
    creation that failed midway leaves them; with one of these the GPU is not as any policy wants it."""
    mig_pending: bool = False
    """Whether the next reset changes the MIG mode."""
    ecc_errors: bool = False
    """Whether there are uncorrected volatile ECC errors."""
    remap_pending: bool = False
    """Whether a row remapping of the memory waits for a GPU reset."""
    remap_failed: bool = False
    """Whether a row remapping of the memory has failed; the card has to be replaced then."""
    access: Access = "Ok"
    """Whether NVML can reach the GPU; unless Ok, all other fields of this GPU are from an earlier reading."""
    recovery_action: RecoveryAction | None = None
    """Recovery action that the driver requests (NVML field 230); absent if it requests none, and with drivers before
    R565."""
    xid: int | None = None
    """The first critical XID that the agent received since it started, with drivers before R565; it misses those that
    come while it does not read."""
    error: Line = ""
    """Error that NVML returned for this GPU, with access Failed."""
    instances_withheld: bool = False
    """Whether NVML withholds MIG instances from the agent's container, so that there may be more than mig shows."""


@dataclass(frozen=True, slots=True)
class Observed(WireRecord):
    """The report of the agent. Only the agent writes it, by JSON merge patches with every key present."""

    request_id: Annotated[str, Limits(max_length=128)]
    """Id of the request that this report answers: the GPUs were read after that request had arrived."""
    quiet: bool
    """Whether the agent has closed NVML; gpus is then its last reading, taken after the request had arrived."""
    driver_version: Line
    """Version of NVIDIA's driver; empty when unknown."""
    models: Annotated[tuple[ModelStatus, ...], Limits(max_length=16)]
    """Card models in this node."""
    gpus: Annotated[tuple[GPUStatus, ...], Limits(max_length=64)]
    """GPUs of this node, each at the place of its index, as NVML counts from 0."""
    compute_modes: Annotated[str, Limits(max_length=1024, pattern=COMPUTE_MODES)]
    """CUDA compute modes other than Default, each with the indexes of its GPUs, after each ; another one, for example
    0-3 ExclusiveProcess, which MPS sets; Unknown when NVML does not report it."""
    programs: Annotated[str, Limits(max_length=16384, pattern=PROGRAMS)]
    """Programs that compute or draw, each with the indexes of its GPUs and its name, after each ; another one, for
    example 0-3,5 python3; without a name for processes that the agent cannot name or may not see, which count as busy; an
    MPS daemon is named only if its executable and parent are NVIDIA's."""
    error: Sentence = ""
    """Why the agent cannot read NVML; absent when it can."""
    simulated: bool = False
    """Whether the GPUs are SIMULATED."""
    allocated: Counts | None = None
    """Devices that pods hold, by GPU resource name, from the kubelet's podresources, without those of finished pods;
    absent when the kubelet did not answer."""
    pods: int | None = None
    """How many pods hold a GPU device, from the same source; absent when the kubelet did not answer."""
    holders: Annotated[str, Limits(max_length=32768, pattern=HOLDERS)] | None = None
    """Pods that hold GPU devices, by the indexes of their GPUs, after each ; those of others: of each pod namespace and
    name, UID, and a digest of the ids of its devices, for example
    3 team-a/llm-0 5f0c2a4e-0b0c-4b8e-9c1d-2f6d1a7b9e10 0123456789ab, with ? for what the agent cannot tell; absent unless
    the request asks for it and at most 64 pods hold any."""


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
    history: Annotated[tuple[Line, ...], Limits(max_length=12)] = ()
    """The last 12 phases, newest last, each with its begin, RFC 3339 in UTC, and its reason, for example
    2026-11-20T09:00:00Z Draining EvictingPods."""


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
