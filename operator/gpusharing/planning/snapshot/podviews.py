"""The pods of nodes in work, as the drain rules see them, and what is known about their evictions."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Literal

from gpusharing.planning.words.values import value


@value
class Owner:
    """The controller of a pod."""

    api_version: str
    kind: str
    name: str
    exists: bool | None = None
    """False: looked up and gone. None: not looked up (kinds we cannot or need not read)."""


@value
class Gang:
    """Pods that work as a unit, so that the end of one ends them all (docs/design/drain.md#t13). Known from pods
    alone."""

    kind: str
    """What people call it: PodGroup, JobSet, LeaderWorkerSet, Workload."""
    namespace: str
    name: str
    labels: str = ""
    """The label selector of its pods; empty: no label tells them apart."""
    fields: str = ""
    """A field selector that matches all of its pods, and others too; empty: there is none."""

    @property
    def ref(self) -> str:
        """`JobSet namespace/name`."""
        return f"{self.kind} {self.namespace}/{self.name}"


@value
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
    """nvidia.com/* resources that its containers ask for, including init and sidecar containers; 0 is left out."""
    dra: Literal["none", "gpu", "unresolved"] = "none"
    """ResourceClaims: `gpu` when gpu.nvidia.com allocated one without adminAccess; `unresolved` counts as one."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    deleted_at: datetime | None = None
    """metadata.deletionTimestamp: when the grace period ends."""
    ready: bool = True
    """Condition Ready: only such pods are healthy for a budget."""
    finalizers: tuple[str, ...] = ()
    """What keeps its object after its containers have ended."""
    tolerates_cordon: bool = False
    """It tolerates the taint of a cordoned node, so the scheduler may start it there."""
    created: datetime | None = None
    """metadata.creationTimestamp; None: not readable."""
    started: datetime | None = None
    """status.startTime; None: the kubelet has not taken it up, or it is not readable."""
    marks: tuple[tuple[str, str], ...] = ()
    """Annotations and labels that ask not to disturb it (drain/protection.py), with their values, sorted."""
    namespace_labels: Mapping[str, str] | None = None
    """The labels of its namespace; None: they are not needed, or cannot be read."""
    restarts: bool = True
    """restartPolicy Always: it never ends by itself."""
    system: bool = False
    """Its priority class is one of the cluster's own, system-cluster-critical or system-node-critical."""
    local_files: bool = False
    """It mounts an emptyDir of the node's disk; one in memory, as for /dev/shm, does not count."""
    gang: Gang | None = None
    """None: it works by itself."""
    grace: int = 30
    """spec.terminationGracePeriodSeconds: how long it may take to end, in seconds."""

    @property
    def ref(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@value
class GangMember:
    """A pod of a gang, and where it is."""

    node: str
    """Empty: it has no node yet."""
    pod: PodView


@value
class GangView:
    """A gang with all of its pods that are not finished."""

    gang: Gang
    members: tuple[GangMember, ...] = ()
    """By node, then `namespace/name`."""
    partial: bool = False
    """There are more members than were read."""
    error: str = ""
    """Why they could not be listed; nothing else is known then."""


@value
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
    """Evictions that it lets through now."""
    expected_pods: int = 0
    """Pods that it counts, healthy or not."""
    desired_healthy: int = 0
    """How many of them must stay healthy."""
    current_healthy: int = 0
    always_allow_unhealthy: bool = False
    """unhealthyPodEvictionPolicy is AlwaysAllow: a pod that is not ready may always go."""


@value
class EvictionMemory:
    """What the executor remembers of the last answer to an eviction of one pod; lives in memory only."""

    reason: str
    """The answer, as the word of its reason."""
    message: str
    """The server's own words; empty where none are shown."""
    next_try: datetime
    """The pod is not evicted again before then."""
    since: datetime
    """When this answer came for the first time in a row."""
    tries: int = 1
    """How often it came in a row; decides the next wait."""
    asked_at: datetime | None = None
    """When the server was last asked; None: unknown, but long ago."""


@value
class NodeWork:
    """Pods of a node in work, as listed now."""

    pods: tuple[PodView, ...]
    """All that are bound to it."""
    pdbs: tuple[PdbView, ...]
    """The budgets of their namespaces."""
    listed_at: datetime
    """When the LIST began: it says nothing about what came later."""
    empty_since: datetime | None = None
    """First of the consecutive LISTs that found no GPU holder, as the drain rules see it."""
    evictions: Mapping[str, EvictionMemory] = field(default_factory=dict)
    """By pod UID."""
    error: str = ""
    """Why the pods could not be listed; nothing is decided about them then."""
    empty_lists: tuple[datetime, ...] = ()
    """When the latest of these consecutive LISTs were made, oldest first."""
    all_pods: bool = False
    """Whether they found no pod at all that counts for a reboot, rather than only no GPU holder."""
    quiet_for: str = ""
    """The current request for silence, if the agent has answered it; empty: there is none."""
    quiet_since: datetime | None = None
    """Since when this process has seen that answer."""
    gangs: tuple[GangView, ...] = ()
    """The gangs of its pods that hold a GPU, by `Gang.ref`."""
