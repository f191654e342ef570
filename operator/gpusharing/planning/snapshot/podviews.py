"""What do the drain rules need to know about the pods of a listed node and their evictions?"""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timedelta
from typing import Literal

from gpusharing.api.names import TAINT_UNPROVEN
from gpusharing.api.policy import Drain
from gpusharing.api.selectors import Row, holds
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

_KEEPS_OUT = ("NoSchedule", "NoExecute")
_OF_CONDITIONS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The only taint with such a prefix that a person sets and removes."""


@value
class Taint:
    key: str
    value: str = ""
    effect: str = "NoSchedule"

    @property
    def text(self) -> str:
        """The taint as `kubectl describe` prints it, such as `key=value:NoSchedule`."""
        return f"{self.key}{f'={self.value}' if self.value else ''}:{self.effect}"

    @property
    def lasting(self) -> bool:
        """Whether it keeps pods out until somebody removes it, and not until a cordon, condition or proof ends."""
        of_condition = self.key.startswith(_OF_CONDITIONS) and self.key != _OUT_OF_SERVICE
        # Nothing removes the start-up taint if somebody sets it with another effect.
        unproven = self.key == TAINT_UNPROVEN and self.effect == "NoSchedule"
        return self.effect in _KEEPS_OUT and not of_condition and not unproven


@value
class Toleration:
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def covers(self, taint: Taint) -> bool:
        if self.effect not in ("", taint.effect) or self.key not in ("", taint.key):
            return False
        if not self.key:  # the API server refuses every other operator without a key
            return self.operator == "Exists"
        if self.operator in ("Gt", "Lt"):
            return holds({"taint": taint.value}, ("taint", self.operator, (self.value,)))
        return self.operator == "Exists" or (self.operator == "Equal" and self.value == taint.value)


@value
class Owner:
    api_version: str
    kind: str
    name: str
    uid: str = ""
    """UID of the controller. Empty in a view that no decision about its existence is made from."""
    exists: bool | None = None
    """Whether it exists; None if it was not looked up, because its kind cannot be read or need not be."""


@value
class Gang:
    """Pods that only work together, so that the end of one ends them all (docs/design/drain.md#t13)."""

    kind: str
    """The kind of object by which people know the gang, such as PodGroup, JobSet or LeaderWorkerSet."""
    namespace: str
    name: str
    labels: str = ""
    """A label selector that all of its pods match; if it names only a key, others may too. Empty if there is none."""
    fields: str = ""
    """A field selector that all of its pods match, and perhaps other pods as well. Empty if there is none."""

    @property
    def ref(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@value
class PodView:
    """One pod that is bound to a node whose pods were listed."""

    namespace: str
    name: str
    uid: str
    phase: str
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    """The pod's controller, from its ownerReference with `controller: true`, or None if it has none."""
    mirror: bool = False
    """Whether it is a static pod, by the annotation kubernetes.io/config.mirror or an owner of kind Node."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """The GPU resources that its containers request, with counts above 0. Init and sidecar containers are included."""
    per_container: Mapping[str, int] = field(default_factory=dict)
    """The most of each GPU resource that one of its containers requests."""
    init_gpus: bool = False
    """Whether one of its init containers, sidecars included, requests a GPU resource. The kubelet's podresources name no
    devices of init containers, or only those of sidecars (v1.36.3 pkg/kubelet/apis/podresources/server_v1.go)."""
    other_devices: tuple[str, ...] = ()
    """The extended resources that its containers request and that are not NVIDIA's, sorted."""
    fractions: int = 0
    """Of how many GPUs it requests a fraction from KAI-Scheduler, by its annotations."""
    scheduler: str = ""
    dra: Literal["none", "gpu", "unresolved"] = "none"
    """What its ResourceClaims hold. `gpu` if gpu.nvidia.com allocated a claim without adminAccess, or `unresolved` if a
    claim cannot be read, which counts like `gpu`."""
    devices: tuple[str, ...] = ()
    """Names of the devices of gpu.nvidia.com that its ResourceClaims hold, each once. Left out are devices behind an
    extended resource, because `resources` counts them, and devices that another kind could replace."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    node_terms: tuple[tuple[Row, ...], ...] = ()
    """The terms of its required node affinity, of which a node must match at least one. With the chart's guard on, each
    has the guard's requirement too. Empty for a pod that neither holds nor requests a GPU."""
    tolerations: tuple[Toleration, ...] = ()
    """Empty if the pod neither holds nor requests a GPU."""
    deleted_at: datetime | None = None
    """metadata.deletionTimestamp, which is when the grace period ends, or None if it is not being deleted."""
    ready: bool = True
    finalizers: tuple[str, ...] = ()
    """The pod's finalizers, which keep the object after the containers have ended."""
    tolerates_cordon: bool = False
    """Whether the scheduler may place it on a cordoned node."""
    created: datetime | None = None
    started: datetime | None = None
    """status.startTime, or None if the kubelet has not accepted the pod yet or the time cannot be read."""
    marks: tuple[tuple[str, str], ...] = ()
    """Annotations and labels that ask not to disturb the pod, as sorted pairs (`find_protection`)."""
    namespace_labels: Mapping[str, str] | None = None
    """Labels of its namespace, or None if they cannot be read or are not needed."""
    restarts: bool = True
    """Whether its restartPolicy is Always, so that it never runs to completion."""
    system: bool = False
    """Whether its priority class is system-cluster-critical or system-node-critical."""
    local_files: bool = False
    """Whether it mounts an emptyDir on the node's disk, and not in memory as for /dev/shm."""
    gang: Gang | None = None
    evades_rules: bool = False
    """Whether its successor may get a device of the node in spite of a DeviceTaintRule. It names a scheduler other than
    the tested one, or a ResourceClaim that stays allocated while another pod uses it."""
    grace: int = 30
    """spec.terminationGracePeriodSeconds: how long it may take to end, in seconds."""

    @property
    def ref(self) -> str:
        return f"{self.namespace}/{self.name}"


@value
class GangMember:
    """A pod of a gang, and the node that it runs on."""

    node: str
    """Empty if it has none yet."""
    pod: PodView
    policy: str = ""
    """The policy that its node follows, if the planner finds that its rules differ or cannot be read; else empty."""
    rules: Drain | Finding | None = None
    """spec.drain of that policy, or why it is unknown, so that the member has to stay. None if `policy` is empty."""


@value
class GangView:
    """A gang with all of its pods that have not finished."""

    gang: Gang
    members: tuple[GangMember, ...] = ()
    """The pods of the gang, sorted by node, then by `namespace/name`."""
    partial: bool = False
    """Whether the gang has more pods than were listed."""
    error: str = ""
    """Why its pods could not be listed; the other fields are then meaningless. Empty if they were listed."""


@value
class PdbView:
    """The parts of a PodDisruptionBudget that decide about an eviction."""

    namespace: str
    name: str
    match_labels: Mapping[str, str]
    match_expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    selects_all: bool = False
    """Whether the selector is empty and so selects every pod of the namespace."""
    disruptions_allowed: int = 0
    expected_pods: int = 0
    desired_healthy: int = 0
    current_healthy: int = 0
    always_allow_unhealthy: bool = False
    evicted_from: tuple[str, ...] = ()
    """The node of each pod under it that we evicted lately and that may not be replaced yet, sorted."""

    @property
    def ref(self) -> str:
        return f"{self.namespace}/{self.name}"


@value
class Holder:
    """A pod that holds GPU devices, as the node's agent reports it."""

    ref: str
    uid: str
    """UID of the pod. Empty if nothing on the node tells it for certain."""
    gpus: tuple[int, ...]
    """Indexes of the GPUs of its devices. Empty if the agent does not know the GPU of one of them."""
    devices: str
    """A digest of the ids of its devices."""


@value
class Part:
    """The GPUs that a change empties while pods on the others stay (docs/design/drain.md#p21)."""

    gpus: frozenset[int]
    holders: tuple[Holder, ...] | None
    """Which pods hold which GPUs. None if no report tells, or only one from before the node was fenced."""

    def takes(self, uid: str) -> bool | None:
        """Whether the pod holds one of these GPUs; None if that is unknown."""
        its = [one for one in self.holders or () if one.uid == uid]
        return not self.gpus.isdisjoint(its[0].gpus) if len(its) == 1 and its[0].gpus else None


@value
class Scope:
    """What a drain must empty and what it must not touch (`scope_of`)."""

    operator_namespace: str
    all_pods: bool = False
    """Whether every pod must leave, with or without a GPU, because the change reboots the node."""
    part: Part | None = None
    """The GPUs whose pods must leave; None if the pods of all GPUs must."""
    protected: frozenset[str] = frozenset()
    """Namespaces in which nothing is evicted."""
    own_pod: str = ""
    """Our own pod, `namespace/name`; empty when we do not run in a pod."""
    cordoned_at: datetime | None = None
    """When we cordoned the node, or None if we did not."""
    settle: timedelta = timedelta(seconds=5)
    """How long after the cordon a pod may still appear because the scheduler was already binding it."""
    now: datetime | None = None
    """The time of the pass. None makes a mark with a duration count as if it never expired."""
    forces: bool = False
    """Whether the operator has the right to delete pods at the end of a drain if the policy asks for that."""
    node: str = ""
    evicts_claims: bool = False
    """Whether pods with a readable claim are evicted, as where NVIDIA's DRA driver serves the GPUs."""
    silent: bool = False
    """Whether the node is not Ready, so that it is unknown whether its pods still run."""


@value
class EvictionMemory:
    """The last response of the API server to an eviction of one pod, kept in memory only.

    A new process evicts every pod again, and knows one that is leaving by its deletionTimestamp.
    """

    reason: Reason
    message: str
    next_try: datetime
    since: datetime
    """When this response first came in the present unbroken series."""
    asked_at: datetime
    tries: int = 1
    """How often it came in that series."""


@value
class NodeWork:
    """The pods of one node as just listed, and what earlier LISTs have shown."""

    pods: tuple[PodView, ...]
    pdbs: tuple[PdbView, ...]
    listed_at: datetime
    """When the latest LIST began. That LIST shows nothing about pods that came later."""
    evictions: Mapping[str, EvictionMemory] = field(default_factory=dict)
    """By the pod's UID."""
    error: str = ""
    """Why the pods could not be listed; nothing is then decided about them. Empty if they were listed."""
    empty_lists: tuple[datetime, ...] = ()
    """When the latest LISTs, an unbroken series in which no pod had to leave, were made, oldest first."""
    scope: Scope = Scope("")
    """What the latest LIST was made for. It proves nothing about another scope, such as that of another cordon."""
    stood: str = ""
    """Id of the agent's request at the first of `empty_lists`, whose answer may be from before the last pod left."""
    quiet_for: str = ""
    """Id of the request to close NVML that the agent has answered and that is still in force, or empty."""
    quiet_since: datetime | None = None
    """Since when this process has seen the agent's answer to `quiet_for`, or None if there is none."""
    gangs: tuple[GangView, ...] = ()
    """The gangs of the pods that may have to leave, sorted by `Gang.ref`; `ending_gangs` finds those that do."""
