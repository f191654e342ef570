"""Which gang does a pod belong to?

It is read from the pod alone, so no kind that defines gangs has to be installed.
"""

from collections.abc import Iterator, Mapping

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text, texts
from gpusharing.planning.snapshot.podviews import Gang

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
