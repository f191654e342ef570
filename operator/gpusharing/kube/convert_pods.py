"""Raw Pods, ResourceClaims and PodDisruptionBudgets as the drain rules see them (docs/design/drain.md, rows P and G).

Fail-safe on purpose: a phase, a quantity or a ResourceClaim that cannot be read counts as a pod that holds a GPU. The
API server creates every pod as Pending (kubernetes v1.36.3 `pkg/registry/core/pod/strategy.go`), so a pod without a
phase has a status that something else broke. It counts as Unknown: it has not finished, and unlike a Pending pod it is
protected by its budgets.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from sys import intern
from typing import Literal

from gpusharing.api.selectors import FIELD, Row
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.gangkeys import gang_of
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.raw import entries, has_condition, interned, part, section, strings, text, texts, whole
from gpusharing.kube.taints import tolerates
from gpusharing.planning.drain.holders import gpu_groups
from gpusharing.planning.drain.rules import ANNOTATION_MARKS, LABEL_MARKS
from gpusharing.planning.snapshot.draviews import DRA_DRIVER
from gpusharing.planning.snapshot.podviews import Owner, PdbView, PodView

CORDON_TAINT = "node.kubernetes.io/unschedulable"
"""The taint of a cordon (P15), which has the effect NoSchedule and no value."""
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"

ClaimedDevices = tuple[str, ...] | None
"""The names of the devices of NVIDIA's DRA driver that a ResourceClaim holds, with an empty string for each one that a
device of another kind could replace (`_accepts_others`). None if the claim cannot be read."""

NO_END = 10**9
"""Seconds that stand for a grace period which no drain outlasts."""
_FAR_FUTURE = datetime.max.replace(tzinfo=UTC)


def pod_view(raw: JSON, resource_claims: Mapping[str, ClaimedDevices]) -> PodView:
    """Convert a raw Pod. Only the GPU resources of its requests are kept (`pod_requests`), sorted by name. A pod
    without a phase has the phase Unknown. `restarts` is False only for the restart policies Never and OnFailure,
    `system` is True if the name of its priority class starts with `system-`, and `local_files` if it has an emptyDir
    that is not in memory. Its node affinity is read only if it holds or requests GPUs or has the labels of KAI's GPU
    groups.

    `resource_claims` maps the `namespace/name` of a ResourceClaim to the devices that it holds; a claim that is missing
    from the mapping counts as one that cannot be read.
    """
    metadata, resources = section(raw, "metadata"), dict(sorted(pod_requests(raw).items()))
    labels = interned(metadata.get("labels"))
    own = _devices(raw, _own_claims(raw), resource_claims)
    dra = _dra_use([*own, *_devices(raw, _extended_claims(raw), resource_claims)])
    return PodView(
        namespace=intern(text(metadata, "namespace")),
        name=text(metadata, "name"),
        uid=text(metadata, "uid"),
        phase=text(raw, "status", "phase") or "Unknown",
        labels=labels,
        owner=_controller(metadata),
        mirror=_is_mirror(metadata),
        resources=resources,
        dra=dra,
        devices=tuple(dict.fromkeys(name for names in own for name in names or () if name)),
        node_selector=interned(part(raw, "spec", "nodeSelector")),
        node_terms=node_terms(raw) if resources or dra != "none" or gpu_groups(labels) else (),
        deleted_at=_deleted_at(metadata),
        ready=has_condition(raw, "Ready"),
        finalizers=strings(metadata.get("finalizers")),
        tolerates_cordon=tolerates(entries(raw, "spec", "tolerations"), CORDON_TAINT, ""),
        created=from_rfc3339(metadata.get("creationTimestamp")),
        started=from_rfc3339(part(raw, "status", "startTime")),
        marks=_marks(metadata),
        restarts=text(raw, "spec", "restartPolicy") not in ("Never", "OnFailure"),
        system=text(raw, "spec", "priorityClassName").startswith("system-"),
        # Files of an emptyDir on the node's disk (P8). One in memory, such as /dev/shm, does not count.
        local_files=any(
            "emptyDir" in row and not text(row, "emptyDir", "medium")
            for row in entries(raw, "spec", "volumes")
        ),
        gang=gang_of(raw),
        evades_rules=_evades_rules(raw),
        grace=_grace(raw),
    )


def _evades_rules(raw: JSON) -> bool:
    """Whether the pod names a scheduler other than default-scheduler, or refers to a ResourceClaim by its name, which
    other pods may share. The scheduler checks taints only when it allocates a claim (Kubernetes v1.36.3)."""
    scheduler = text(raw, "spec", "schedulerName")
    shared = any(text(entry, "resourceClaimName") for entry in entries(raw, "spec", "resourceClaims"))
    return scheduler not in ("", "default-scheduler") or shared


def _grace(raw: JSON) -> int:
    """Return the pod's grace period in seconds, at least 0 and at most NO_END. A pod without one gets the API server's
    default, 30. A value that is not a whole number becomes NO_END, which no drain outlasts (fail-safe)."""
    grace = part(raw, "spec", "terminationGracePeriodSeconds")
    if grace is None:
        return 30
    return min(max(0, grace), NO_END) if isinstance(grace, int) and not isinstance(grace, bool) else NO_END


def resource_claim_names(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of all ResourceClaims of a pod: those of its spec (`_own_claims`), and then the one behind an
    extended resource, if there is one."""
    return (*_own_claims(raw), *_extended_claims(raw))


def _own_claims(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of the ResourceClaims that a pod's spec has (G3, G4), in that order, with None for each one that
    was not generated yet. An entry is left out if the pod's status says that it needs no ResourceClaim
    (`resourceClaimName` null)."""
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
    """Return the name of the ResourceClaim that backs the pod's extended resources (G9, KEP-5004), or nothing if DRA
    backs none of them."""
    return tuple(filter(None, [text(raw, "status", "extendedResourceClaimStatus", "resourceClaimName")]))


def claimed_devices(raw: JSON) -> ClaimedDevices:
    """Return the names of the devices that gpu.nvidia.com allocated for a ResourceClaim without adminAccess (G3, G6,
    G7), with an empty string for a device that has no name or that one of another kind could replace. Empty if there is
    none, also while nothing is allocated yet; None if the allocation cannot be read."""
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
    """Whether this request of a ResourceClaim could also be met by another kind of device than the allocated one: it is
    one of several alternatives (firstAvailable), or it asks for a MIG device by NVIDIA's own class without a selector
    that names a profile. What other classes select is not known; they count as accepting one kind only."""
    if "/" in request:  # REQUEST/ALTERNATIVE
        return True
    rows = (row for row in entries(raw, "spec", "devices", "requests") if text(row, "name") == request)
    exactly = next((section(row, "exactly") for row in rows), {})
    named = any("profile" in text(row, "cel", "expression") for row in entries(exactly, "selectors"))
    return text(exactly, "deviceClassName") == "mig.nvidia.com" and not named


def pdb_view(raw: JSON) -> PdbView:
    """Convert a raw PodDisruptionBudget. Without a selector it matches no pod; with an empty selector it matches all
    pods of its namespace (policy/v1). Numbers that its status lacks count as 0. `always_allow_unhealthy` is True only
    for the eviction policy AlwaysAllow."""
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


def _controller(metadata: JSON) -> Owner | None:
    """Return the first owner reference whose `controller` is true, or None if there is none."""
    for owner in entries(metadata, "ownerReferences"):
        if owner.get("controller") is True:
            api_version, kind = intern(text(owner, "apiVersion")), intern(text(owner, "kind"))
            return Owner(api_version, kind, text(owner, "name"), intern(text(owner, "uid")))
    return None


def _is_mirror(metadata: JSON) -> bool:
    """Whether the pod is the mirror of a static pod (P7): it has an owner of the kind Node or the annotation
    MIRROR_ANNOTATION."""
    owned_by_node = any(owner.get("kind") == "Node" for owner in entries(metadata, "ownerReferences"))
    return owned_by_node or MIRROR_ANNOTATION in texts(metadata.get("annotations"))


def _marks(metadata: JSON) -> tuple[tuple[str, str], ...]:
    """Return the annotations in ANNOTATION_MARKS and the labels in LABEL_MARKS, with which a pod asks us not to disturb
    it (P17), as pairs of key and value, sorted by key. Only their keys are checked; the pairs have any value. A value
    that is not a string is converted to one."""
    marks: dict[str, object] = {}
    for kind, keys in (("annotations", ANNOTATION_MARKS), ("labels", LABEL_MARKS)):
        written = metadata.get(kind)
        if isinstance(written, dict):
            marks |= {key: written[key] for key in keys if key in written}
    return tuple(sorted((key, str(value)) for key, value in marks.items()))


NO_NODE: Row = (f"{FIELD}metadata.name", "In", ())
"""A requirement that no node meets."""


def node_terms(raw: JSON) -> tuple[tuple[Row, ...], ...]:
    """Return the terms of a pod's required node affinity, each with its rows; empty if the pod has no required node
    affinity. A term without rows matches no node and is left out. If no term is left, one that contains NO_NODE is
    returned, so that the pod matches no node."""
    required = part(raw, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    terms = entries(required, "nodeSelectorTerms")
    rows = (
        (*rows_of(entries(term, "matchExpressions")), *rows_of(entries(term, "matchFields"), prefix=FIELD))
        for term in terms
    )
    return tuple(filter(None, rows)) or (() if required is None else ((NO_NODE,),))


def rows_of(written: Iterable[JSON], *, prefix: str = "") -> tuple[Row, ...]:
    """Convert raw matchExpressions, or matchFields with `prefix` put before each key, to rows of key, operator and
    values. A part that is missing or has the wrong type becomes empty."""
    return tuple(
        (intern(prefix + text(row, "key")), intern(text(row, "operator")), strings(row.get("values")))
        for row in written
    )


def _devices(
    raw: JSON, claims: Iterable[str | None], resource_claims: Mapping[str, ClaimedDevices]
) -> list[ClaimedDevices]:
    """Return the devices that each of the pod's `claims` holds, in their order: None for a claim that is not generated
    yet or not in `resource_claims`, whose keys are `namespace/name`."""
    namespace = text(raw, "metadata", "namespace")
    return [resource_claims.get(f"{namespace}/{name}") if name is not None else None for name in claims]


def _dra_use(claims: Collection[ClaimedDevices]) -> Literal["none", "gpu", "unresolved"]:
    """Return `gpu` if any of a pod's claims holds a device, else `unresolved` if any cannot be read, else `none`."""
    if any(claims):
        return "gpu"
    return "unresolved" if None in claims else "none"


def _deleted_at(metadata: JSON) -> datetime | None:
    """Return the time in `metadata.deletionTimestamp`, or None if the pod is not being deleted. A time that cannot be
    read becomes one in the far future."""
    written = metadata.get("deletionTimestamp")
    if written is None:
        return None
    # A time that cannot be read still means that the pod is leaving: the drain waits for it and does not evict it
    # again.
    return from_rfc3339(written) or _FAR_FUTURE
