"""The gang that a pod belongs to, read from the pod alone: no kind that defines gangs has to be installed.

LADDER is the maintained list of keys (docs/design/drain.md#t13); the first row that matches a pod decides. From the
widest unit to the narrowest: a unit that restarts a whole workload when one pod ends counts more than pods that were
scheduled together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text
from gpusharing.planning.snapshot.podviews import Gang

JOBSET = "jobset.sigs.k8s.io/jobset-name"
LWS_NAME = "leaderworkerset.sigs.k8s.io/name"
LWS_INDEX = "leaderworkerset.sigs.k8s.io/group-index"
LWS_KEY = "leaderworkerset.sigs.k8s.io/group-key"
POD_GROUP = "scheduling.x-k8s.io/pod-group"
VOLCANO = "scheduling.k8s.io/group-name"
KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"
KUEUE_WORKLOAD = "kueue.x-k8s.io/workload"
KUEUE_SLICES = "kueue.x-k8s.io/workload-slice-name"
KUEUE_MANAGED = "kueue.x-k8s.io/managed"
KUEUE_PODSET = "kueue.x-k8s.io/podset"
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
JOB_NAMES = ("batch.kubernetes.io/job-name", "job-name")


@dataclass(frozen=True, slots=True)
class GangKey:
    """One way in which pods say that they belong together."""

    kind: str
    """The name of its kind, for people."""
    find: Callable[[JSON], tuple[str, str] | None]
    """Name of the gang, and a label selector that all of its pods match; empty: there is none. None: the pod does not
    say."""
    source: str
    """The source of the key, and why its pods share one fate."""


def _labels(*keys: str) -> Callable[[JSON], tuple[str, str] | None]:
    """All of these labels, and none of them empty."""

    def find(raw: JSON) -> tuple[str, str] | None:
        labels = section(raw, "metadata", "labels")
        values = [text(labels, key) for key in keys]
        if not all(values):
            return None
        return "/".join(values), ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))

    return find


def _volcano(raw: JSON) -> tuple[str, str] | None:
    name = text(section(raw, "metadata", "annotations"), VOLCANO)
    return (name, "") if name else None


def _scheduling_group(raw: JSON) -> tuple[str, str] | None:
    name = text(raw, "spec", "schedulingGroup", "podGroupName")
    return (name, "") if name else None


def _workload_ref(raw: JSON) -> tuple[str, str] | None:
    parts = [text(raw, "spec", "workloadRef", key) for key in ("name", "podGroup", "podGroupReplicaKey")]
    return ("/".join(filter(None, parts)), "") if parts[0] and parts[1] else None


def _kueue_group(raw: JSON) -> tuple[str, str] | None:
    """Since Kueue 0.18 the name of a group is an annotation."""
    name = text(section(raw, "metadata", "annotations"), KUEUE_GROUP)
    return (name, f"{KUEUE_MANAGED}=true" if _is_plain(raw) else "") if name else None


def _kueue_workload(raw: JSON) -> tuple[str, str] | None:
    """A plain pod without a group is a Workload of its own. The slices of an elastic job are one."""
    annotations = section(raw, "metadata", "annotations")
    name = text(annotations, KUEUE_SLICES) or text(annotations, KUEUE_WORKLOAD)
    if not name or _is_plain(raw):
        return None
    return name, KUEUE_PODSET if KUEUE_PODSET in section(raw, "metadata", "labels") else ""


def _kueue_job(raw: JSON) -> tuple[str, str] | None:
    """Its name begins like that of its Workload, which ends with a hash that no pod has."""
    labels, job = section(raw, "metadata", "labels"), _controller(raw)
    is_job = text(job, "kind") == "Job" and text(job, "apiVersion").startswith("batch/")
    if not job or _is_plain(raw) or not (KUEUE_PODSET in labels or (KUEUE_QUEUE in labels and is_job)):
        return None
    name = f"{text(job, 'kind').lower()}-{text(job, 'name')}"
    own = next((key for key in JOB_NAMES if is_job and text(labels, key) == text(job, "name")), None)
    return (
        name,
        f"{own}={text(job, 'name')}" if own else KUEUE_PODSET if KUEUE_PODSET in labels else KUEUE_QUEUE,
    )


def _is_plain(raw: JSON) -> bool:
    """Kueue queues the pod itself, not what created it."""
    return text(section(raw, "metadata", "labels"), KUEUE_MANAGED) == "true"


def _controller(raw: JSON) -> JSON:
    owners = entries(section(raw, "metadata"), "ownerReferences")
    return next((owner for owner in owners if owner.get("controller") is True), {})


LADDER: tuple[GangKey, ...] = (
    GangKey(
        "JobSet",
        _labels(JOBSET),
        "kubernetes-sigs/jobset api/jobset/v1alpha2: on every pod; a failed Job starts the whole JobSet anew (#574)",
    ),
    GangKey(
        "LeaderWorkerSet",
        _labels(LWS_NAME, LWS_INDEX),
        "kubernetes-sigs/lws api/leaderworkerset/v1: a pod that ends takes its group with it, not the other groups",
    ),
    GangKey("LeaderWorkerSet", _labels(LWS_NAME, LWS_KEY), "the same; the key is a hash of the group"),
    GangKey(
        "PodGroup",
        _scheduling_group,
        "kubernetes v1.36 core/v1 PodSchedulingGroup (gate GenericWorkload): bound together or not at all",
    ),
    GangKey("PodGroup", _workload_ref, "kubernetes v1.35 core/v1 WorkloadReference, which v1.36 replaced"),
    GangKey(
        "PodGroup",
        _labels(POD_GROUP),
        "kubernetes-sigs/scheduler-plugins apis/scheduling/v1alpha1 PodGroupLabel: coscheduling",
    ),
    GangKey(
        "PodGroup",
        _volcano,
        "volcano-sh/volcano apis scheduling/v1beta1 KubeGroupNameAnnotationKey: an annotation, so no label selects it",
    ),
    GangKey(
        "Workload",
        _kueue_group,
        "kubernetes-sigs/kueue v0.18 pkg/controller/jobs/pod SetPodGroupName (gate WorkloadIdentifierAnnotations)",
    ),
    GangKey(
        "Workload",
        _labels(KUEUE_GROUP),
        "kubernetes-sigs/kueue pkg/controller/jobs/pod/constants GroupNameLabel: admitted and evicted together",
    ),
    GangKey(
        "Workload",
        _kueue_workload,
        "kubernetes-sigs/kueue v0.14 pkg/controller/jobframework getPodSetsInfoFromStatus (gate"
        " TopologyAwareScheduling, alpha in v0.9): on the pods of every job that it starts",
    ),
    GangKey(
        "Workload",
        _kueue_job,
        "the same without that gate: v0.10 gives such pods the label podset; a job has one Workload for all its pods",
    ),
)
"""The first match wins; a test pins the order."""


def gang_of(raw: JSON) -> Gang | None:
    """Return the gang of a Pod by the first row of LADDER that matches, or None if it has no gang."""
    for key in LADDER:
        if (found := key.find(raw)) is not None:
            name, labels = found
            scheduler = "" if labels else text(raw, "spec", "schedulerName")
            fields = f"spec.schedulerName={scheduler}" if scheduler else ""
            return Gang(key.kind, text(raw, "metadata", "namespace"), name, labels, fields)
    return None
