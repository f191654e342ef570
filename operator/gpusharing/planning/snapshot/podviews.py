"""The pods of nodes in work, as the drain rules see them, and what is known about their evictions."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Literal

from gpusharing.api.policy import Drain
from gpusharing.api.selectors import Row
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


@value
class Owner:
    """The controller of a pod."""

    api_version: str
    """API group and version, such as `apps/v1`."""
    kind: str
    """Kind, such as `ReplicaSet`."""
    name: str
    """Name, in the namespace of the pod."""
    exists: bool | None = None
    """False: looked up and gone. None: not looked up (kinds we cannot or need not read)."""


@value
class Gang:
    """Pods that work as one: the end of one ends them all (docs/design/drain.md#t13). Known from the pods alone."""

    kind: str
    """The kind that people know it by: PodGroup, JobSet, LeaderWorkerSet, Workload."""
    namespace: str
    """Namespace of its pods."""
    name: str
    """Name of the gang, as its pods give it."""
    labels: str = ""
    """A label selector that all of its pods match; others too if it names no value. Empty: there is none."""
    fields: str = ""
    """A field selector that matches all of its pods, and others; empty: there is none."""

    @property
    def ref(self) -> str:
        """The kind, namespace and name, such as `JobSet namespace/name`."""
        return f"{self.kind} {self.namespace}/{self.name}"


@value
class PodView:
    """One pod bound to a node in work."""

    namespace: str
    """Namespace of the pod."""
    name: str
    """Name of the pod."""
    uid: str
    """UID of the pod; a successor under its name has another."""
    phase: str
    """status.phase."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All its labels."""
    owner: Owner | None = None
    """Its controller, from the ownerReference that says so; None: it has none."""
    mirror: bool = False
    """Whether it is a static pod: annotation kubernetes.io/config.mirror or an ownerReference of kind Node."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """GPU resources that its containers, init and sidecar containers included, ask for; 0 is left out."""
    dra: Literal["none", "gpu", "unresolved"] = "none"
    """Its ResourceClaims: `gpu` when gpu.nvidia.com allocated one without adminAccess; `unresolved` counts as that."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """spec.nodeSelector."""
    node_terms: tuple[tuple[Row, ...], ...] = ()
    """The terms of its required node affinity, of which a node must match one; matchFields count as labels. Empty: it
    has none, or it asks for no GPU resource."""
    deleted_at: datetime | None = None
    """metadata.deletionTimestamp: when the grace period ends; None: it is not being deleted."""
    ready: bool = True
    """Whether its condition Ready is True: only then is it healthy for a budget."""
    finalizers: tuple[str, ...] = ()
    """Its finalizers, which keep the object after the containers have ended."""
    tolerates_cordon: bool = False
    """Whether it tolerates the taint of a cordoned node, so that the scheduler may start it there."""
    created: datetime | None = None
    """metadata.creationTimestamp; None: not readable."""
    started: datetime | None = None
    """status.startTime; None: the kubelet has not accepted it yet, or it is not readable."""
    marks: tuple[tuple[str, str], ...] = ()
    """Annotations and labels that ask not to disturb it (drain/rules.py), with their values, sorted."""
    namespace_labels: Mapping[str, str] | None = None
    """Labels of its namespace, the same for all pods of a node and members of gangs that are of it; None: no rule needs
    them, no pod of that namespace has to leave the node, or they cannot be read."""
    restarts: bool = True
    """Whether its restartPolicy is Always: it never runs to completion."""
    system: bool = False
    """Whether its priority class is system-cluster-critical or system-node-critical."""
    local_files: bool = False
    """Whether it mounts an emptyDir on the node's disk; one in memory, as for /dev/shm, does not count."""
    gang: Gang | None = None
    """The gang that it belongs to; None: it works alone."""
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
    """Name of its node; empty: it has none yet."""
    pod: PodView
    """The pod."""
    policy: str = ""
    """The policy that its node follows, if that has another spec.drain than the one of the node in work, or one that
    nobody knows; empty: it has the same, or there is none. The planner fills it in."""
    drain: Drain | None = None
    """spec.drain of that policy."""
    unruled: Finding | None = None
    """Why nobody knows what that policy says of pods, so that the member must stay."""


@value
class GangView:
    """A gang with all of its pods that are not finished."""

    gang: Gang
    """Which gang."""
    members: tuple[GangMember, ...] = ()
    """Its pods, sorted by node, then `namespace/name`."""
    partial: bool = False
    """Whether there are more than were read."""
    error: str = ""
    """Why they could not be listed, so that nothing else is known; empty: they were."""


@value
class PdbView:
    """One PodDisruptionBudget, as far as it decides about an eviction."""

    namespace: str
    """Namespace of the budget and its pods."""
    name: str
    """Name of the budget."""
    match_labels: Mapping[str, str]
    """matchLabels of its selector."""
    match_expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """matchExpressions of its selector: key, operator, values."""
    selects_all: bool = False
    """Whether the selector is empty and so selects every pod of the namespace."""
    disruptions_allowed: int = 0
    """Evictions that it lets through now."""
    expected_pods: int = 0
    """Pods that it counts, healthy or not."""
    desired_healthy: int = 0
    """How many of them must stay healthy."""
    current_healthy: int = 0
    """How many of them are healthy now."""
    always_allow_unhealthy: bool = False
    """Whether unhealthyPodEvictionPolicy is AlwaysAllow: a pod that is not ready may always be evicted."""


@value
class EvictionMemory:
    """What the executor remembers of the last answer to an eviction of one pod; lives in memory only."""

    reason: Reason
    """The answer."""
    message: str
    """The server's own words; empty where none are shown."""
    next_try: datetime
    """When the eviction of the pod may be requested again."""
    since: datetime
    """When this answer came for the first time in an unbroken row."""
    tries: int = 1
    """How often it came in that row; decides about the next wait."""
    asked_at: datetime | None = None
    """When the server was last asked; None: unknown, but long ago."""


@value
class NodeWork:
    """Pods of a node in work, as listed now."""

    pods: tuple[PodView, ...]
    """All pods that are bound to it."""
    pdbs: tuple[PdbView, ...]
    """The budgets of their namespaces."""
    listed_at: datetime
    """When the LIST began: it says nothing about later pods."""
    empty_since: datetime | None = None
    """When the first of the consecutive LISTs without a GPU holder was made; None: the latest found one."""
    evictions: Mapping[str, EvictionMemory] = field(default_factory=dict)
    """By pod UID: the last answer to its eviction."""
    error: str = ""
    """Why the pods could not be listed, so that nothing is decided about them; empty: they were."""
    empty_lists: tuple[datetime, ...] = ()
    """When the latest of these consecutive LISTs were made, oldest first."""
    all_pods: bool = False
    """Whether the latest LIST was made for a reboot: these found no pod at all that counts for one, and everything was
    looked up about pods without a GPU as well."""
    cordoned_at: datetime | None = None
    """`since` of the fence that the node had when the latest LIST began; None: it had none. Only compared for equality
    with that of the present fence."""
    stood: str = ""
    """Id of the request to the agent that stood when the first of the consecutive LISTs was made: its answer may be
    from before the last pod left. Empty: none did."""
    quiet_for: str = ""
    """Id of the request for silence that the agent has answered and that is still in force; empty: there is none."""
    quiet_since: datetime | None = None
    """Since when this process has seen that answer; None: there is none."""
    gangs: tuple[GangView, ...] = ()
    """The gangs of its pods that may have to leave, by `Gang.ref`: the change may be one that ends fewer of them, such
    as no reboot after all (`drain/gangs.py` has those that it ends)."""
