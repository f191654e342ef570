"""The gang that a pod belongs to, read from the pod alone: no kind that defines gangs has to be installed.

LADDER is the maintained list of keys (docs/design/drain.md#t13); the first row that matches a pod decides. Rows
go from the widest unit to the narrowest: a unit that restarts a whole workload when one pod ends counts more
than pods that were scheduled together.

Terms: docs/design/glossary.md#gang.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text, texts
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


class PodMarks(NamedTuple):
    """The parts of a Pod that declare its gang."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    raw: JSON

    @property
    def plain(self) -> bool:
        """Whether Kueue queues the pod itself, and not the workload that created it: its label KUEUE_MANAGED is `true`."""
        return self.labels.get(KUEUE_MANAGED) == "true"


@dataclass(frozen=True, slots=True)
class GangKey:
    """One way in which pods declare that they belong together."""

    kind: str
    find: Callable[[PodMarks], tuple[str, str] | None]
    """Returns the name of a pod's gang and a label selector that all of its pods match, which is empty if no label does; or None if the pod declares no gang in this way."""
    source: str


def _labels(*keys: str) -> Callable[[PodMarks], tuple[str, str] | None]:
    def find(pod: PodMarks) -> tuple[str, str] | None:
        values = [pod.labels.get(key, "") for key in keys]
        if not all(values):
            return None
        return "/".join(values), ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))

    return find


def _volcano(pod: PodMarks) -> tuple[str, str] | None:
    name = pod.annotations.get(VOLCANO)
    return (name, "") if name else None


def _scheduling_group(pod: PodMarks) -> tuple[str, str] | None:
    name = text(pod.raw, "spec", "schedulingGroup", "podGroupName")
    return (name, "") if name else None


def _workload_ref(pod: PodMarks) -> tuple[str, str] | None:
    reference = section(pod.raw, "spec", "workloadRef")
    parts = [text(reference, key) for key in ("name", "podGroup", "podGroupReplicaKey")]
    return ("/".join(filter(None, parts)), "") if parts[0] and parts[1] else None


def _kueue_group(pod: PodMarks) -> tuple[str, str] | None:
    name = pod.annotations.get(KUEUE_GROUP)
    return (name, KUEUE_MANAGED if pod.plain else "") if name else None


def _kueue_workload(pod: PodMarks) -> tuple[str, str] | None:
    name = pod.annotations.get(KUEUE_SLICES) or pod.annotations.get(KUEUE_WORKLOAD)
    if not name or pod.plain:
        return None
    return name, KUEUE_PODSET if KUEUE_PODSET in pod.labels else ""


def _kueue_job(pod: PodMarks) -> tuple[str, str] | None:
    labels = pod.labels
    if not labels.keys() & {KUEUE_PODSET, KUEUE_QUEUE} or pod.plain:
        return None
    owners = entries(pod.raw, "metadata", "ownerReferences")
    job = next((owner for owner in owners if owner.get("controller") is True), {})
    is_job = text(job, "kind") == "Job" and text(job, "apiVersion").startswith("batch/")
    if not job or not (KUEUE_PODSET in labels or is_job):
        return None
    name = f"{text(job, 'kind').lower()}-{text(job, 'name')}"
    own = next((key for key in JOB_NAMES if is_job and labels.get(key, "") == text(job, "name")), None)
    return (
        name,
        f"{own}={text(job, 'name')}" if own else KUEUE_PODSET if KUEUE_PODSET in labels else KUEUE_QUEUE,
    )


LADDER: tuple[GangKey, ...] = (
    GangKey(
        "JobSet",
        _labels(JOBSET),
        "kubernetes-sigs/jobset api/jobset/v1alpha2: set on every pod; a failed Job restarts the whole JobSet (#574)",
    ),
    GangKey(
        "LeaderWorkerSet",
        _labels(LWS_NAME, LWS_INDEX),
        "kubernetes-sigs/lws api/leaderworkerset/v1: when a pod ends, so does its group, but not the other groups",
    ),
    GangKey(
        "LeaderWorkerSet",
        _labels(LWS_NAME, LWS_KEY),
        "kubernetes-sigs/lws api/leaderworkerset/v1: the key is a hash of the group",
    ),
    GangKey(
        "PodGroup",
        _scheduling_group,
        "kubernetes v1.36 core/v1 PodSchedulingGroup (GenericWorkload feature gate): the pods of a group are bound"
        " together or not at all",
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
        "volcano-sh/volcano apis scheduling/v1beta1 KubeGroupNameAnnotationKey: an annotation, which label selectors"
        " cannot match",
    ),
    GangKey(
        "Workload",
        _kueue_group,
        "kubernetes-sigs/kueue v0.18 pkg/controller/jobs/pod SetPodGroupName (WorkloadIdentifierAnnotations feature"
        " gate)",
    ),
    GangKey(
        "Workload",
        _labels(KUEUE_GROUP),
        "kubernetes-sigs/kueue pkg/controller/jobs/pod/constants GroupNameLabel: the pods of a group are admitted and"
        " evicted together",
    ),
    GangKey(
        "Workload",
        _kueue_workload,
        "kubernetes-sigs/kueue v0.14 pkg/controller/jobframework getPodSetsInfoFromStatus"
        " (TopologyAwareScheduling feature gate, alpha in v0.9): set on the pods of every job that Kueue starts",
    ),
    GangKey(
        "Workload",
        _kueue_job,
        "kubernetes-sigs/kueue without the TopologyAwareScheduling feature gate: since v0.10 such pods have the podset"
        " label; all pods of a job belong to one Workload",
    ),
)
"""The ways to find the gang of a pod."""


def gang_of(raw: JSON) -> Gang | None:
    """Return the gang of a Pod by the first row of LADDER that matches, or None if it has no gang."""
    metadata = section(raw, "metadata")
    pod = PodMarks(texts(metadata.get("labels")), texts(metadata.get("annotations")), raw)
    for key in LADDER:
        if (found := key.find(pod)) is not None:
            name, labels = found
            scheduler = "" if labels else text(raw, "spec", "schedulerName")
            fields = f"spec.schedulerName={scheduler}" if scheduler else ""
            return Gang(key.kind, text(raw, "metadata", "namespace"), name, labels, fields)
    return None
