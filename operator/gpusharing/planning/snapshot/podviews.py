"""The pods of nodes whose pods were listed, as far as the drain rules need them, and what is known about their
evictions.

Terms: docs/design/glossary.md#gang, docs/design/glossary.md#fence.
"""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timedelta
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
    uid: str = ""
    """Empty in a view that no decision about its existence is made from."""
    exists: bool | None = None
    """None if it was not looked up, because its kind cannot be read or need not be."""


@value
class Gang:
    """Pods that only work together, so that the end of one ends them all (docs/design/drain.md#t13)."""

    kind: str
    """The kind of object by which people know the gang, such as PodGroup, JobSet, LeaderWorkerSet or Workload."""
    namespace: str
    name: str
    labels: str = ""
    """If the selector names only a key, other pods may match it too. Empty if there is none."""
    fields: str = ""
    """Empty if there is none."""

    @property
    def ref(self) -> str:
        """The kind, namespace and name, such as `JobSet namespace/name`."""
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
    """Whether it is a static pod: annotation kubernetes.io/config.mirror or an ownerReference of kind Node."""
    resources: Mapping[str, int] = field(default_factory=dict)
    dra: Literal["none", "gpu", "unresolved"] = "none"
    """What its ResourceClaims hold: `gpu` if gpu.nvidia.com allocated a claim without adminAccess, or `unresolved` if a claim cannot be read, which counts like `gpu`."""
    devices: tuple[str, ...] = ()
    """Left out are devices behind an extended resource, because `resources` counts them, and devices that another kind could replace."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    node_terms: tuple[tuple[Row, ...], ...] = ()
    """Empty if the pod has none, or if it neither holds nor requests a GPU."""
    deleted_at: datetime | None = None
    """metadata.deletionTimestamp, which is when the grace period ends, or None if it is not being deleted."""
    ready: bool = True
    finalizers: tuple[str, ...] = ()
    tolerates_cordon: bool = False
    created: datetime | None = None
    """metadata.creationTimestamp, or None if it cannot be read."""
    started: datetime | None = None
    """status.startTime, or None if the kubelet has not accepted the pod yet or the time cannot be read."""
    marks: tuple[tuple[str, str], ...] = ()
    """Annotations and labels that ask not to disturb the pod (drain/rules.py), as pairs of key and value, sorted."""
    namespace_labels: Mapping[str, str] | None = None
    """None if neither a rule nor the guard needs them, if no pod of that namespace has to leave the node, or if they cannot be read."""
    restarts: bool = True
    """Whether its restartPolicy is Always, so that it never runs to completion."""
    system: bool = False
    local_files: bool = False
    """An emptyDir in memory, as for /dev/shm, does not count."""
    gang: Gang | None = None
    """The gang that it belongs to, or None if it works alone."""
    evades_rules: bool = False
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
    """Empty if it has none yet."""
    pod: PodView
    policy: str = ""
    """Empty if both are the same, or if its node follows no policy."""
    drain: Drain | None = None
    """spec.drain of that policy, or None if `policy` is empty or the policy cannot be read."""
    unruled: Finding | None = None
    """None if it is known."""


@value
class GangView:
    """A gang with all of its pods that have not finished."""

    gang: Gang
    members: tuple[GangMember, ...] = ()
    """The pods of the gang, sorted by node, then by `namespace/name`."""
    partial: bool = False
    error: str = ""
    """Empty if they were listed."""


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


@value
class Scope:
    """What a drain must empty and what it must not touch (`planning/drain/holders.py`, scope_of)."""

    operator_namespace: str
    all_pods: bool = False
    protected: frozenset[str] = frozenset()
    own_pod: str = ""
    """Our own pod, `namespace/name`; empty when we do not run in a pod."""
    cordoned_at: datetime | None = None
    """When we cordoned the node, or None if we did not."""
    settle: timedelta = timedelta(seconds=5)
    now: datetime | None = None
    """If it is None, a mark with a duration counts as if it never expired."""
    forces: bool = False
    node: str = ""
    """Name of the node; empty if unknown."""
    evicts_claims: bool = False
    silent: bool = False
    gpu_groups: frozenset[str] = frozenset()
    """The KAI-Scheduler GPU groups that have a pod on the node besides their reservation pod; `classify` fills this in."""


@value
class EvictionMemory:
    """The last response of the API server to an eviction of one pod, as the executor remembers it."""

    reason: Reason
    message: str
    """Empty if it is not shown."""
    next_try: datetime
    since: datetime
    tries: int = 1
    asked_at: datetime | None = None
    """When the eviction was last requested, or None if the time is unknown but long ago."""


@value
class NodeWork:
    """The pods of one node as just listed, and what earlier LISTs have shown."""

    pods: tuple[PodView, ...]
    pdbs: tuple[PdbView, ...]
    listed_at: datetime
    evictions: Mapping[str, EvictionMemory] = field(default_factory=dict)
    error: str = ""
    """Empty if they were listed."""
    empty_lists: tuple[datetime, ...] = ()
    """Empty if the latest LIST found such a pod."""
    scope: Scope = Scope("")
    """It proves nothing about another scope, such as that of another cordon."""
    stood: str = ""
    """Empty if there was no request."""
    quiet_for: str = ""
    """Empty if there is none."""
    quiet_since: datetime | None = None
    """Since when this process has seen that answer, or None if there is none."""
    gangs: tuple[GangView, ...] = ()
    """The gangs of the pods that may have to leave, sorted by `Gang.ref`. The change may interrupt fewer of them, for example if it turns out to need no reboot (`drain/gangs.py` finds the gangs that it interrupts)."""
