"""The pods of nodes in work, as the drain rules see them, and what is known about their evictions.

Terms: docs/design/glossary.md#gang, docs/design/glossary.md#fence.
"""

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
    """False if it was looked up and is gone, or None if it was not looked up, because we cannot or need not read its
    kind."""


@value
class Gang:
    """Pods that work as one: the end of one ends them all (docs/design/drain.md#t13). It is found from the pods
    alone."""

    kind: str
    """The kind by which people know it: PodGroup, JobSet, LeaderWorkerSet, Workload."""
    namespace: str
    """Namespace of its pods."""
    name: str
    """Name of the gang, as its pods give it."""
    labels: str = ""
    """A label selector that all of its pods match, and other pods too if it names no value. Empty if there is none."""
    fields: str = ""
    """A field selector that matches all of its pods, and other pods too. Empty if there is none."""

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
    """UID of the pod; a successor under the same name has another."""
    phase: str
    """status.phase."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All labels of the pod."""
    owner: Owner | None = None
    """The pod's controller, from the ownerReference that says so, or None if it has none."""
    mirror: bool = False
    """Whether it is a static pod: annotation kubernetes.io/config.mirror or an ownerReference of kind Node."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """GPU resources that its containers, init and sidecar containers included, ask for; 0 is left out."""
    dra: Literal["none", "gpu", "unresolved"] = "none"
    """What its ResourceClaims hold: `gpu` if gpu.nvidia.com allocated one without adminAccess, or `unresolved`, which
    counts like `gpu`, if one cannot be read."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """spec.nodeSelector."""
    node_terms: tuple[tuple[Row, ...], ...] = ()
    """The terms of its required node affinity, of which a node must match one; matchFields count as labels. Empty if
    it has none, or if it asks for no GPU resource."""
    deleted_at: datetime | None = None
    """metadata.deletionTimestamp, which is when the grace period ends, or None if it is not being deleted."""
    ready: bool = True
    """Whether its condition Ready is True: only then is it healthy for a budget."""
    finalizers: tuple[str, ...] = ()
    """The pod's finalizers, which keep the object after the containers have ended."""
    tolerates_cordon: bool = False
    """Whether it tolerates the taint of a cordoned node, so that the scheduler may start it there."""
    created: datetime | None = None
    """metadata.creationTimestamp, or None if it cannot be read."""
    started: datetime | None = None
    """status.startTime, or None if the kubelet has not accepted the pod yet or the time cannot be read."""
    marks: tuple[tuple[str, str], ...] = ()
    """Annotations and labels that ask not to disturb it (drain/rules.py), with their values, sorted."""
    namespace_labels: Mapping[str, str] | None = None
    """Labels of its namespace, the same for all pods of a node and for the members of their gangs. None if no rule
    needs them, if no pod of that namespace has to leave the node, or if they cannot be read."""
    restarts: bool = True
    """Whether its restartPolicy is Always: it never runs to completion."""
    system: bool = False
    """Whether its priority class is system-cluster-critical or system-node-critical."""
    local_files: bool = False
    """Whether it mounts an emptyDir on the node's disk. One in memory, as for /dev/shm, does not count."""
    gang: Gang | None = None
    """The gang that it belongs to, or None if it works alone."""
    grace: int = 30
    """spec.terminationGracePeriodSeconds: how long it may take to end, in seconds."""

    @property
    def ref(self) -> str:
        """The pod as `namespace/name`."""
        return f"{self.namespace}/{self.name}"


@value
class GangMember:
    """A pod of a gang, and the node that it runs on."""

    node: str
    """Name of its node. Empty if it has none yet."""
    pod: PodView
    """The pod."""
    policy: str = ""
    """The policy that its node follows, if that policy has another spec.drain than the policy of the node in work, or
    one that cannot be read. Empty if the spec.drain is the same, or if its node follows no policy. The planner
    fills it in."""
    drain: Drain | None = None
    """spec.drain of that policy, or None if `policy` is empty or cannot be read."""
    unruled: Finding | None = None
    """Why the spec.drain of that policy is unknown, so that the member must stay, or None if it is known."""


@value
class GangView:
    """A gang with all of its pods that are not finished."""

    gang: Gang
    """Which gang."""
    members: tuple[GangMember, ...] = ()
    """The pods of the gang, sorted by node, then by `namespace/name`."""
    partial: bool = False
    """Whether the gang has more pods than were read."""
    error: str = ""
    """Why its pods could not be listed, so that nothing else is known. Empty if they were."""


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
    """How many evictions it allows now."""
    expected_pods: int = 0
    """How many pods it counts, healthy or not."""
    desired_healthy: int = 0
    """How many of them must stay healthy."""
    current_healthy: int = 0
    """How many of them are healthy now."""
    always_allow_unhealthy: bool = False
    """Whether unhealthyPodEvictionPolicy is AlwaysAllow: a pod that is not ready may always be evicted."""


@value
class EvictionMemory:
    """What the executor remembers of the last answer to an eviction of one pod. It is kept in memory only."""

    reason: Reason
    """The server's answer, as a reason."""
    message: str
    """The message of the server. Empty if it is not shown."""
    next_try: datetime
    """When the eviction of the pod may be requested again."""
    since: datetime
    """When this answer came for the first time in an unbroken series."""
    tries: int = 1
    """How often it came in that series, which decides about the next wait."""
    asked_at: datetime | None = None
    """When the eviction was last requested, or None if that is unknown but long ago."""


@value
class NodeWork:
    """The pods of a node in work, as listed now, and what earlier LISTs have shown."""

    pods: tuple[PodView, ...]
    """All pods that are bound to it."""
    pdbs: tuple[PdbView, ...]
    """The budgets of their namespaces."""
    listed_at: datetime
    """When the latest LIST began. It says nothing about pods that came later."""
    empty_since: datetime | None = None
    """When the first of the consecutive LISTs without a GPU holder was made, or None if the latest LIST found one."""
    evictions: Mapping[str, EvictionMemory] = field(default_factory=dict)
    """The last answer to the eviction of each pod, by pod UID."""
    error: str = ""
    """Why the pods could not be listed, so that nothing is decided about them. Empty if they were."""
    empty_lists: tuple[datetime, ...] = ()
    """When the latest of the consecutive LISTs without a GPU holder were made, oldest first."""
    all_pods: bool = False
    """Whether the latest LIST was made for a reboot. The empty LISTs then found no pod at all that has to leave for
    one, and pods without a GPU were looked up completely as well."""
    cordoned_at: datetime | None = None
    """`since` of the fence that the node had when the latest LIST began, or None if it had none. It is only compared
    for equality with that of the present fence."""
    stood: str = ""
    """Id of the request to the agent that was current when the first of the consecutive empty LISTs was made: its
    answer may be from before the last pod left. Empty if there was no request."""
    quiet_for: str = ""
    """Id of the request for silence that the agent has answered and that is still in force. Empty if there is none."""
    quiet_since: datetime | None = None
    """Since when this process has seen that answer, or None if there is none."""
    gangs: tuple[GangView, ...] = ()
    """The gangs of its pods that may have to leave, in the order of `Gang.ref`. The change may end fewer of them, such
    as when it takes no reboot after all (`drain/gangs.py` has those that it ends)."""
