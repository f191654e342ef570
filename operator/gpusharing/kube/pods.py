"""Convert raw Pods, ResourceClaims and PodDisruptionBudgets to what the drain rules read.

Fail-safe on purpose (docs/design/drain.md, rows P and G): a phase, a quantity or a ResourceClaim that cannot be read
counts as a pod that holds a GPU. The gang of a pod is read from the pod alone, so no kind that defines gangs has to be
installed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from sys import intern
from typing import Literal

from gpusharing.api.names import is_gpu_resource
from gpusharing.api.selectors import FIELD, Row, parse_int
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON, PODS, KubeClient
from gpusharing.kube.convert import tolerates, tolerations_of
from gpusharing.kube.lists import converted, pages_of
from gpusharing.kube.raw import (
    count,
    entries,
    has_condition,
    interned,
    part,
    section,
    strings,
    text,
    texts,
    whole,
)
from gpusharing.planning.drain.pods import ANNOTATION_MARKS, LABEL_MARKS, gpu_groups
from gpusharing.planning.snapshot.nvidia import DRA_DRIVER
from gpusharing.planning.snapshot.podviews import Gang, Owner, PdbView, PodView

KUEUE_MANAGED = "kueue.x-k8s.io/managed"
KUEUE_PODSET = "kueue.x-k8s.io/podset"
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"


def gang_of(raw: JSON) -> Gang | None:
    """Return the gang of a Pod in the pod's namespace, or None. If no label selects its pods, their scheduler does."""
    found = ((kind, name, labels) for kind, (name, labels) in _declared(raw) if name)
    if (first := next(found, None)) is None:
        return None
    kind, name, labels = first
    scheduler = "" if labels else text(raw, "spec", "schedulerName")
    fields = f"spec.schedulerName={scheduler}" if scheduler else ""
    return Gang(kind, text(raw, "metadata", "namespace"), name, labels, fields)


def _declared(raw: JSON) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the kind, name and label selector of each gang that a pod may declare.

    They go from the widest unit to the narrowest (docs/design/drain.md#t13): a unit that restarts a whole workload when
    one pod ends counts more than pods that were scheduled together. The name is empty if the pod does not declare such
    a gang, and the selector if no label tells its pods.
    """
    metadata = section(raw, "metadata")
    labels, annotations = texts(metadata.get("labels")), texts(metadata.get("annotations"))

    def by(*keys: str) -> tuple[str, str]:
        values = [labels.get(key, "") for key in keys]
        if not all(values):
            return "", ""
        return "/".join(values), ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))

    # kubernetes-sigs/jobset api/jobset/v1alpha2: set on every pod; a failed Job restarts the whole JobSet (#574).
    yield "JobSet", by("jobset.sigs.k8s.io/jobset-name")
    # kubernetes-sigs/lws api/leaderworkerset/v1: when a pod ends, so does its group, but not the other groups. The key
    # is a hash of the group.
    yield "LeaderWorkerSet", by("leaderworkerset.sigs.k8s.io/name", "leaderworkerset.sigs.k8s.io/group-index")
    yield "LeaderWorkerSet", by("leaderworkerset.sigs.k8s.io/name", "leaderworkerset.sigs.k8s.io/group-key")
    # kubernetes v1.36 core/v1 PodSchedulingGroup (GenericWorkload feature gate): the pods of a group are bound together
    # or not at all.
    yield "PodGroup", (text(raw, "spec", "schedulingGroup", "podGroupName"), "")
    # kubernetes v1.35 core/v1 WorkloadReference, which v1.36 replaced: each replica of a pod group is a gang.
    reference = section(raw, "spec", "workloadRef")
    parts = [text(reference, key) for key in ("name", "podGroup", "podGroupReplicaKey")]
    yield "PodGroup", ("/".join(filter(None, parts)) if parts[0] and parts[1] else "", "")
    # kubernetes-sigs/scheduler-plugins apis/scheduling/v1alpha1 PodGroupLabel: coscheduling.
    yield "PodGroup", by("scheduling.x-k8s.io/pod-group")
    # volcano-sh/volcano apis scheduling/v1beta1 KubeGroupNameAnnotationKey: an annotation, which label selectors cannot
    # match.
    yield "PodGroup", (annotations.get("scheduling.k8s.io/group-name", ""), "")
    # Kueue queues the pod itself, and not the workload that created it.
    plain = labels.get(KUEUE_MANAGED) == "true"
    # kubernetes-sigs/kueue v0.18 pkg/controller/jobs/pod SetPodGroupName (WorkloadIdentifierAnnotations feature gate).
    yield ("Workload", (annotations.get("kueue.x-k8s.io/pod-group-name", ""), KUEUE_MANAGED if plain else ""))
    # kubernetes-sigs/kueue pkg/controller/jobs/pod/constants GroupNameLabel: the pods of a group are admitted and
    # evicted together. Without a group, a pod that is queued by itself is a Workload of its own.
    yield "Workload", by("kueue.x-k8s.io/pod-group-name")
    if plain:
        return
    # kubernetes-sigs/kueue v0.14 pkg/controller/jobframework getPodSetsInfoFromStatus (TopologyAwareScheduling feature
    # gate, alpha in v0.9): set on the pods of every job that Kueue starts. All slices of an elastic job share the first
    # annotation.
    workload = annotations.get("kueue.x-k8s.io/workload-slice-name") or annotations.get("kueue.x-k8s.io/workload", "")
    yield "Workload", (workload, KUEUE_PODSET if KUEUE_PODSET in labels else "")
    yield "Workload", _find_kueue_job(raw, labels)


def _find_kueue_job(raw: JSON, labels: Mapping[str, str]) -> tuple[str, str]:
    """Return the gang of the job that controls a pod, if Kueue queues that job.

    The name of its Workload begins with this name. In kubernetes-sigs/kueue without the TopologyAwareScheduling feature
    gate, such pods have the podset label since v0.10; all pods of a job belong to one Workload.
    """
    if not labels.keys() & {KUEUE_PODSET, KUEUE_QUEUE}:
        return "", ""
    owners = entries(raw, "metadata", "ownerReferences")
    job = next((owner for owner in owners if owner.get("controller") is True), {})
    is_job = text(job, "kind") == "Job" and text(job, "apiVersion").startswith("batch/")
    if not job or not (KUEUE_PODSET in labels or is_job):
        return "", ""
    name = text(job, "name")
    keys = ("batch.kubernetes.io/job-name", "job-name") if is_job else ()
    own = next((f"{key}={name}" for key in keys if labels.get(key, "") == name), "")
    shared = KUEUE_PODSET if KUEUE_PODSET in labels else KUEUE_QUEUE
    return f"{text(job, 'kind').lower()}-{name}", own or shared


BY_CLASS = "deviceclass.resource.kubernetes.io/"
"""How the extended resource of a DeviceClass begins, before the name of the class.

Every DeviceClass has one since Kubernetes 1.36, and the scheduler makes a ResourceClaim of it (k8s.io/api v0.36.3,
resource/v1/types.go, ResourceDeviceClassPrefix)."""


def pod_requests(pod: JSON) -> Counter[str]:
    """Return how much of each GPU resource a node must have for the pod.

    Containers, ephemeral containers and sidecars (init containers with the restart policy Always) run together. Each
    init container runs before them, alongside the sidecars listed above it (PodRequests of Kubernetes'
    component-helpers v0.36.3, resource/helpers.go). The pod's overhead is added.
    """
    sidecars: Counter[str] = Counter()
    start: Counter[str] = Counter()
    for container in entries(pod, "spec", "initContainers"):
        alongside = sidecars + container_requests(container)
        start |= alongside
        if text(container, "restartPolicy") == "Always":
            sidecars = alongside
    # The API server rejects ephemeral containers with requests. One that exists anyway counts like any container.
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "ephemeralContainers"))
    together = sum(map(container_requests, containers), sidecars)
    overhead = {"resources": {"limits": section(pod, "spec", "overhead")}}
    return (together | start) + container_requests(overhead)


def largest_requests(pod: JSON) -> Counter[str]:
    largest: Counter[str] = Counter()
    for container in (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers")):
        largest |= container_requests(container)
    return largest


def gpu_fractions(pod: JSON) -> tuple[str, int]:
    """Return the fraction of a GPU that the pod requests from KAI-Scheduler, as written, and of how many GPUs.

    The number is 0 if it requests none. The annotations are those of kai-scheduler/KAI-Scheduler v0.17.0
    (pkg/common/constants/constants.go).
    """
    annotations = texts(part(pod, "metadata", "annotations"))
    # gpu-memory is in MiB; gpu-fraction takes precedence.
    memory, devices = annotations.get("gpu-memory", ""), annotations.get("gpu-fraction-num-devices", "1")
    share = annotations.get("gpu-fraction", f"{memory} MiB" if memory else "")
    if not share or text(pod, "spec", "schedulerName") in DEFAULT_SCHEDULER:
        return "", 0
    return share, max(1, parse_int(devices) or 1)


def container_requests(container: JSON) -> Counter[str]:
    """Return how much of each GPU resource one container requests. A quantity that cannot be read counts as 1."""
    # Requests of an extended resource equal its limits, so one of them is enough (docs/design/drain.md#g1).
    requests = {**section(container, "resources", "requests"), **section(container, "resources", "limits")}
    counts = {intern(key): count(quantity) for key, quantity in requests.items() if is_gpu_resource(key)}
    return Counter({key: 1 if number is None else number for key, number in counts.items() if number != 0})


def requests_by_class(pod: JSON) -> bool:
    """Whether a container requests devices by the resource of a DeviceClass (BY_CLASS).

    Such devices need not be GPUs.
    """
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers"))
    return any(name.startswith(BY_CLASS) for one in containers for name in section(one, "resources", "limits"))


async def count_pending(client: KubeClient) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return how many Pending pods without a node request each GPU resource, and how many devices.

    Pods that are being deleted do not count.
    """
    pods, devices = Counter[str](), Counter[str]()
    async for page in pages_of(client, PODS, field_selector="spec.nodeName=,status.phase=Pending"):
        for raw in page.items:
            deleting = part(raw, "metadata", "deletionTimestamp")
            requests = {} if deleting else converted(PODS, raw, pod_requests)
            pods.update(requests.keys())
            devices.update(requests)
    return dict(pods), dict(devices)


DEFAULT_SCHEDULER = ("", "default-scheduler")
CORDON_TAINT = "node.kubernetes.io/unschedulable"
"""The taint of a cordon (P15), which has the effect NoSchedule and no value."""
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"

ClaimedDevices = tuple[str, ...] | None
"""The names of the devices of NVIDIA's DRA driver that a ResourceClaim holds.

An empty string stands for each device that one of another kind could replace, and None for a claim that cannot be read.
"""

NO_END = 10**9
"""Seconds that stand for a grace period which no drain outlasts."""
NO_NODE: Row = (f"{FIELD}metadata.name", "In", ())
"""A requirement that no node meets."""


def pod_view(raw: JSON, resource_claims: Mapping[str, ClaimedDevices]) -> PodView:
    """Convert a raw Pod.

    A claim that `resource_claims` lacks, by `namespace/name`, counts as one that cannot be read. The API server creates
    every pod as Pending (kubernetes v1.36.3 `pkg/registry/core/pod/strategy.go`), so a pod without a phase has a status
    that something else broke. It counts as Unknown: it has not finished, and unlike a Pending pod it is protected by
    its budgets.
    """
    metadata, resources = section(raw, "metadata"), dict(sorted(pod_requests(raw).items()))
    namespace, labels = intern(text(metadata, "namespace")), interned(metadata.get("labels"))
    own, extended = (
        [resource_claims.get(f"{namespace}/{name}") if name is not None else None for name in claims]
        for claims in (_own_claims(raw), _extended_claims(raw))
    )
    held = [*own, *extended]
    dra: Literal["none", "gpu", "unresolved"] = "gpu" if any(held) else "unresolved" if None in held else "none"
    fractions = gpu_fractions(raw)[1]
    of_gpus = bool(resources or dra != "none" or fractions or gpu_groups(labels))
    tolerations = entries(raw, "spec", "tolerations")
    owners = entries(metadata, "ownerReferences")
    grace = part(raw, "spec", "terminationGracePeriodSeconds")
    if grace is None:
        grace = 30  # the API server's default
    elif not isinstance(grace, int) or isinstance(grace, bool):
        grace = NO_END
    deleted = metadata.get("deletionTimestamp")
    return PodView(
        namespace=namespace,
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        phase=text(raw, "status", "phase") or "Unknown",
        labels=labels,
        owner=_controller(owners),
        # The mirror of a static pod (P7).
        mirror=any(owner.get("kind") == "Node" for owner in owners)
        or MIRROR_ANNOTATION in texts(metadata.get("annotations")),
        resources=resources,
        per_container=dict(largest_requests(raw)) if resources else {},
        fractions=fractions,
        scheduler=intern(text(raw, "spec", "schedulerName")),
        dra=dra,
        devices=tuple(dict.fromkeys(name for names in own for name in names or () if name)),
        node_selector=interned(part(raw, "spec", "nodeSelector")),
        node_terms=node_terms(raw) if of_gpus else (),
        tolerations=tolerations_of(tolerations) if of_gpus else (),
        # A time that cannot be read still means that the pod is leaving: the drain waits for it and does not evict it
        # again.
        deleted_at=None if deleted is None else from_rfc3339(deleted) or datetime.max.replace(tzinfo=UTC),
        ready=has_condition(raw, "Ready"),
        finalizers=strings(metadata.get("finalizers")),
        tolerates_cordon=tolerates(tolerations, CORDON_TAINT, ""),
        created=from_rfc3339(metadata.get("creationTimestamp")),
        started=from_rfc3339(part(raw, "status", "startTime")),
        marks=_marks(metadata),
        restarts=text(raw, "spec", "restartPolicy") not in ("Never", "OnFailure"),
        system=text(raw, "spec", "priorityClassName").startswith("system-"),
        # Files of an emptyDir on the node's disk (P8). One in memory, such as /dev/shm, does not count.
        local_files=any(
            "emptyDir" in row and not text(row, "emptyDir", "medium") for row in entries(raw, "spec", "volumes")
        ),
        gang=gang_of(raw),
        # The scheduler checks taints only when it allocates a claim, which other pods may share if it is named
        # (Kubernetes v1.36.3).
        evades_rules=text(raw, "spec", "schedulerName") not in DEFAULT_SCHEDULER
        or any(text(entry, "resourceClaimName") for entry in entries(raw, "spec", "resourceClaims")),
        grace=min(max(0, grace), NO_END),
    )


def _controller(owners: Iterable[JSON]) -> Owner | None:
    for owner in owners:
        if owner.get("controller") is True:
            api_version, kind = intern(text(owner, "apiVersion")), intern(text(owner, "kind"))
            return Owner(api_version, kind, text(owner, "name"), intern(text(owner, "uid")))
    return None


def resource_claim_names(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of all ResourceClaims of a pod, with None for each one that was not generated yet."""
    return (*_own_claims(raw), *_extended_claims(raw))


def _own_claims(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of the ResourceClaims in a pod's spec (G3, G4).

    Those that its status says it does not need (`resourceClaimName` null) are left out.
    """
    generated = {
        text(status, "name"): part(status, "resourceClaimName")
        for status in entries(raw, "status", "resourceClaimStatuses")
    }
    claims: list[str | None] = []
    for entry in entries(raw, "spec", "resourceClaims"):
        name = text(entry, "name")
        if direct := text(entry, "resourceClaimName"):
            claims.append(direct)
        elif name not in generated:
            claims.append(None)
        elif generated[name] is not None:
            claims.append(str(generated[name]))
    return tuple(claims)


def _extended_claims(raw: JSON) -> tuple[str, ...]:
    return tuple(filter(None, [text(raw, "status", "extendedResourceClaimStatus", "resourceClaimName")]))


def claimed_devices(raw: JSON) -> ClaimedDevices:
    """Return the devices of gpu.nvidia.com that a ResourceClaim holds without adminAccess (G3, G6, G7)."""
    allocation = part(raw, "status", "allocation")
    if allocation is None:
        return ()
    if not isinstance(part(allocation, "devices", "results"), list):
        return None
    return tuple(
        "" if _accepts_others(raw, text(result, "request")) else text(result, "device")
        for result in entries(allocation, "devices", "results")
        if result.get("driver") == DRA_DRIVER and result.get("adminAccess") is not True
    )


def _accepts_others(raw: JSON, request: str) -> bool:
    """Whether another kind of device than the allocated one could meet this request.

    It could if the device is one of several alternatives (firstAvailable), or if the request asks for any MIG device by
    NVIDIA's own class. What other classes select is not known.
    """
    if "/" in request:  # REQUEST/ALTERNATIVE
        return True
    rows = (row for row in entries(raw, "spec", "devices", "requests") if text(row, "name") == request)
    exactly = next((section(row, "exactly") for row in rows), {})
    named = any("profile" in text(row, "cel", "expression") for row in entries(exactly, "selectors"))
    return text(exactly, "deviceClassName") == "mig.nvidia.com" and not named


def pdb_view(raw: JSON) -> PdbView:
    """Convert a raw PodDisruptionBudget.

    Without a selector it matches no pod; with an empty selector it matches all pods of its namespace (policy/v1).
    """
    selector = part(raw, "spec", "selector")
    expressions = rows_of(entries(selector, "matchExpressions"))
    labels = texts(part(selector, "matchLabels"))
    status = section(raw, "status")
    return PdbView(
        namespace=intern(text(raw, "metadata", "namespace")),
        name=text(raw, "metadata", "name"),
        match_labels=labels,
        match_expressions=expressions,
        selects_all=isinstance(selector, dict) and not labels and not expressions,
        disruptions_allowed=whole(status, "disruptionsAllowed"),
        expected_pods=whole(status, "expectedPods"),
        desired_healthy=whole(status, "desiredHealthy"),
        current_healthy=whole(status, "currentHealthy"),
        always_allow_unhealthy=text(raw, "spec", "unhealthyPodEvictionPolicy") == "AlwaysAllow",
    )


def _marks(metadata: JSON) -> tuple[tuple[str, str], ...]:
    marks: dict[str, object] = {}
    for kind, keys in (("annotations", ANNOTATION_MARKS), ("labels", LABEL_MARKS)):
        written = metadata.get(kind)
        if isinstance(written, dict):
            marks |= {key: written[key] for key in keys if key in written}
    return tuple(sorted((key, str(value)) for key, value in marks.items()))


def node_terms(raw: JSON) -> tuple[tuple[Row, ...], ...]:
    """Return the terms of a pod's required node affinity; empty if it has none.

    A term without rows matches no node and is left out. If no term is left, the pod matches no node (NO_NODE).
    """
    required = part(raw, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    rows = (
        (*rows_of(entries(term, "matchExpressions")), *rows_of(entries(term, "matchFields"), prefix=FIELD))
        for term in entries(required, "nodeSelectorTerms")
    )
    return tuple(filter(None, rows)) or (() if required is None else ((NO_NODE,),))


def rows_of(written: Iterable[JSON], *, prefix: str = "") -> tuple[Row, ...]:
    return tuple(
        (intern(prefix + text(row, "key")), intern(text(row, "operator")), strings(row.get("values")))
        for row in written
    )
