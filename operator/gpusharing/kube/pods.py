"""Convert raw Pods, ResourceClaims and PodDisruptionBudgets to what the drain rules read.

Fail-safe on purpose (docs/design/drain.md, rows P and G): a phase, a quantity or a ResourceClaim that cannot be read
counts as a pod that holds a GPU.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from sys import intern
from typing import Literal

from gpusharing.api.names import is_gpu_resource
from gpusharing.api.selectors import FIELD, Row, parse_int
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import tolerates, tolerations_of
from gpusharing.kube.gangkeys import gang_of
from gpusharing.kube.raw import count, entries, has_condition, interned, part, section, strings, text, texts, whole
from gpusharing.planning.drain.pods import ANNOTATION_MARKS, LABEL_MARKS, gpu_groups
from gpusharing.planning.snapshot.nvidia import DRA_DRIVER
from gpusharing.planning.snapshot.podviews import Owner, PdbView, PodView

BY_CLASS = "deviceclass.resource.kubernetes.io/"
"""How the extended resource of a DeviceClass begins, before the name of the class. Every DeviceClass has one since
Kubernetes 1.36, and the scheduler makes a ResourceClaim of it (k8s.io/api v0.36.3, resource/v1/types.go,
ResourceDeviceClassPrefix)."""


def pod_requests(pod: JSON) -> Counter[str]:
    """Return how much of each GPU resource a node must have for the pod, overhead included.

    Containers and sidecars run together; each init container runs before them, alongside the sidecars listed above it
    (PodRequests of Kubernetes' component-helpers v0.36.3, resource/helpers.go).
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


def other_devices(pod: JSON) -> tuple[str, ...]:
    """Return the extended resources that a pod requests and that are neither Kubernetes' own nor NVIDIA's, sorted."""
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers"))
    asked = {name for one in containers for key in ("requests", "limits") for name in section(one, "resources", key)}
    own = ("kubernetes.io/", "nvidia.com/")
    return tuple(sorted(intern(name) for name in asked if "/" in name and not any(prefix in name for prefix in own)))


def gpu_fractions(pod: JSON) -> tuple[str, int]:
    """Return the fraction of a GPU that the pod requests from KAI-Scheduler, as written, and of how many GPUs, or 0.

    kai-scheduler/KAI-Scheduler v0.17.0 (pkg/common/constants/constants.go) has the annotations.
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
    """Whether a container requests devices, which need not be GPUs, by the resource of a DeviceClass (BY_CLASS)."""
    containers = (*entries(pod, "spec", "containers"), *entries(pod, "spec", "initContainers"))
    return any(name.startswith(BY_CLASS) for one in containers for name in section(one, "resources", "limits"))


DEFAULT_SCHEDULER = ("", "default-scheduler")
CORDON_TAINT = "node.kubernetes.io/unschedulable"
"""The taint of a cordon (P15), which has the effect NoSchedule and no value."""
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"

ClaimedDevices = tuple[str, ...] | None
"""The names of the devices of NVIDIA's DRA driver that a ResourceClaim holds. An empty string stands for each device
that one of another kind could replace, and None for a claim that cannot be read."""

NO_END = 10**9
"""Seconds that stand for a grace period which no drain outlasts."""
NO_NODE: Row = (f"{FIELD}metadata.name", "In", ())
"""A requirement that no node meets."""


@dataclass(frozen=True, slots=True)
class UnclaimedPod:
    """A pod as its own object shows it, and the names of the ResourceClaims that say which devices it holds."""

    view: PodView
    """As where no claim can be read."""
    own: tuple[str | None, ...]
    """The claims of its spec (G3, G4), with None for each one that was not generated yet."""
    extended: tuple[str, ...]
    """The claim that the scheduler made of extended resources."""

    def with_claims(self, resource_claims: Mapping[str, ClaimedDevices]) -> PodView:
        """Return the pod's view; a claim that `resource_claims` lacks, by `namespace/name`, cannot be read."""
        if not self.own and not self.extended:
            return self.view
        own, extended = (
            [resource_claims.get(f"{self.view.namespace}/{name}") if name is not None else None for name in claims]
            for claims in (self.own, self.extended)
        )
        held = [*own, *extended]
        devices = tuple(dict.fromkeys(name for names in own for name in names or () if name))
        view = replace(self.view, dra=_dra(held), devices=devices)
        return view if _of_gpus(view) else replace(view, node_terms=(), tolerations=())


def _dra(claims: Collection[ClaimedDevices]) -> Literal["none", "gpu", "unresolved"]:
    return "gpu" if any(claims) else "unresolved" if None in claims else "none"


def _of_gpus(pod: PodView) -> bool:
    return bool(pod.resources or pod.dra != "none" or pod.fractions or gpu_groups(pod.labels))


def pod_view(raw: JSON, resource_claims: Mapping[str, ClaimedDevices]) -> PodView:
    """Convert a raw Pod; see `UnclaimedPod.with_claims` for its claims."""
    return unclaimed_pod(raw).with_claims(resource_claims)


def unclaimed_pod(raw: JSON) -> UnclaimedPod:
    """Convert a raw Pod.

    The API server creates every pod as Pending (kubernetes v1.36.3 `pkg/registry/core/pod/strategy.go`), so one without
    a phase has a broken status. It counts as Unknown: not finished, and protected by its budgets.
    """
    metadata, resources = section(raw, "metadata"), dict(sorted(pod_requests(raw).items()))
    namespace, labels = intern(text(metadata, "namespace")), interned(metadata.get("labels"))
    own, extended = _own_claims(raw), _extended_claims(raw)
    dra = _dra([None] * (len(own) + len(extended)))
    fractions = gpu_fractions(raw)[1]
    of_gpus = bool(resources or dra != "none" or fractions or gpu_groups(labels))
    tolerations = entries(raw, "spec", "tolerations")
    owners = entries(metadata, "ownerReferences")
    controllers = (
        Owner(intern(text(row, "apiVersion")), intern(text(row, "kind")), text(row, "name"), intern(text(row, "uid")))
        for row in owners
        if row.get("controller") is True
    )
    grace = part(raw, "spec", "terminationGracePeriodSeconds")
    if grace is None:
        grace = 30  # the API server's default
    elif not isinstance(grace, int) or isinstance(grace, bool):
        grace = NO_END
    deleted = metadata.get("deletionTimestamp")
    view = PodView(
        namespace=namespace,
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        phase=text(raw, "status", "phase") or "Unknown",
        labels=labels,
        owner=next(controllers, None),
        # The mirror of a static pod (P7).
        mirror=any(owner.get("kind") == "Node" for owner in owners)
        or MIRROR_ANNOTATION in texts(metadata.get("annotations")),
        resources=resources,
        per_container=dict(largest_requests(raw)) if resources else {},
        init_gpus=any(map(container_requests, entries(raw, "spec", "initContainers"))),
        other_devices=other_devices(raw),
        fractions=fractions,
        scheduler=intern(text(raw, "spec", "schedulerName")),
        dra=dra,
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
    return UnclaimedPod(view, own, extended)


def resource_claim_names(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of all ResourceClaims of a pod, with None for each one that was not generated yet."""
    return (*_own_claims(raw), *_extended_claims(raw))


def _own_claims(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of the ResourceClaims in a pod's spec (G3, G4) without those that its status leaves out."""
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
    """Whether a request could be met by other devices: as an alternative, or by NVIDIA's class for any MIG device."""
    if "/" in request:  # REQUEST/ALTERNATIVE
        return True
    rows = (row for row in entries(raw, "spec", "devices", "requests") if text(row, "name") == request)
    exactly = next((section(row, "exactly") for row in rows), {})
    named = any("profile" in text(row, "cel", "expression") for row in entries(exactly, "selectors"))
    return text(exactly, "deviceClassName") == "mig.nvidia.com" and not named


def pdb_view(raw: JSON) -> PdbView:
    """Convert a raw PodDisruptionBudget; without a selector it matches no pod, with an empty one all (policy/v1)."""
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
    """Return the terms of a pod's required node affinity; NO_NODE if none has a row, empty if there is no affinity."""
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
