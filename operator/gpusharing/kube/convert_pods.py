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
"""The names of the devices of NVIDIA's DRA driver that a ResourceClaim holds, with an empty string for each one that a device of another kind could replace (`_accepts_others`)."""

NO_END = 10**9
"""Seconds that stand for a grace period which no drain outlasts."""
_FAR_FUTURE = datetime.max.replace(tzinfo=UTC)


def pod_view(raw: JSON, resource_claims: Mapping[str, ClaimedDevices]) -> PodView:
    """Convert a raw Pod."""
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
    scheduler = text(raw, "spec", "schedulerName")
    shared = any(text(entry, "resourceClaimName") for entry in entries(raw, "spec", "resourceClaims"))
    return scheduler not in ("", "default-scheduler") or shared


def _grace(raw: JSON) -> int:
    grace = part(raw, "spec", "terminationGracePeriodSeconds")
    if grace is None:
        return 30
    return min(max(0, grace), NO_END) if isinstance(grace, int) and not isinstance(grace, bool) else NO_END


def resource_claim_names(raw: JSON) -> tuple[str | None, ...]:
    """Return the names of all ResourceClaims of a pod: those of its spec (`_own_claims`), and then the one behind an extended resource, if there is one."""
    return (*_own_claims(raw), *_extended_claims(raw))


def _own_claims(raw: JSON) -> tuple[str | None, ...]:
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
    """Return the names of the devices that gpu.nvidia.com allocated for a ResourceClaim without adminAccess (G3, G6, G7), with an empty string for a device that has no name or that one of another kind could replace."""
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
    if "/" in request:  # REQUEST/ALTERNATIVE
        return True
    rows = (row for row in entries(raw, "spec", "devices", "requests") if text(row, "name") == request)
    exactly = next((section(row, "exactly") for row in rows), {})
    named = any("profile" in text(row, "cel", "expression") for row in entries(exactly, "selectors"))
    return text(exactly, "deviceClassName") == "mig.nvidia.com" and not named


def pdb_view(raw: JSON) -> PdbView:
    """Convert a raw PodDisruptionBudget."""
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
    for owner in entries(metadata, "ownerReferences"):
        if owner.get("controller") is True:
            api_version, kind = intern(text(owner, "apiVersion")), intern(text(owner, "kind"))
            return Owner(api_version, kind, text(owner, "name"), intern(text(owner, "uid")))
    return None


def _is_mirror(metadata: JSON) -> bool:
    owned_by_node = any(owner.get("kind") == "Node" for owner in entries(metadata, "ownerReferences"))
    return owned_by_node or MIRROR_ANNOTATION in texts(metadata.get("annotations"))


def _marks(metadata: JSON) -> tuple[tuple[str, str], ...]:
    marks: dict[str, object] = {}
    for kind, keys in (("annotations", ANNOTATION_MARKS), ("labels", LABEL_MARKS)):
        written = metadata.get(kind)
        if isinstance(written, dict):
            marks |= {key: written[key] for key in keys if key in written}
    return tuple(sorted((key, str(value)) for key, value in marks.items()))


NO_NODE: Row = (f"{FIELD}metadata.name", "In", ())
"""A requirement that no node meets."""


def node_terms(raw: JSON) -> tuple[tuple[Row, ...], ...]:
    """Return the terms of a pod's required node affinity, each with its rows; empty if the pod has no required node affinity."""
    required = part(raw, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    terms = entries(required, "nodeSelectorTerms")
    rows = (
        (*rows_of(entries(term, "matchExpressions")), *rows_of(entries(term, "matchFields"), prefix=FIELD))
        for term in terms
    )
    return tuple(filter(None, rows)) or (() if required is None else ((NO_NODE,),))


def rows_of(written: Iterable[JSON], *, prefix: str = "") -> tuple[Row, ...]:
    """Convert raw matchExpressions, or matchFields with `prefix` put before each key, to rows of key, operator and values."""
    return tuple(
        (intern(prefix + text(row, "key")), intern(text(row, "operator")), strings(row.get("values")))
        for row in written
    )


def _devices(
    raw: JSON, claims: Iterable[str | None], resource_claims: Mapping[str, ClaimedDevices]
) -> list[ClaimedDevices]:
    namespace = text(raw, "metadata", "namespace")
    return [resource_claims.get(f"{namespace}/{name}") if name is not None else None for name in claims]


def _dra_use(claims: Collection[ClaimedDevices]) -> Literal["none", "gpu", "unresolved"]:
    if any(claims):
        return "gpu"
    return "unresolved" if None in claims else "none"


def _deleted_at(metadata: JSON) -> datetime | None:
    written = metadata.get("deletionTimestamp")
    if written is None:
        return None
    # A time that cannot be read still means that the pod is leaving: the drain waits for it and does not evict it
    # again.
    return from_rfc3339(written) or _FAR_FUTURE
