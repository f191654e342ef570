"""Which gang a pod belongs to, by its labels, annotations and spec alone."""

from typing import Any

import pytest
from tests.kube.objects import pod

from gpusharing.kube.gangkeys import gang_of

JOBSET = {"jobset.sigs.k8s.io/jobset-name": "train"}
INDEX = {"leaderworkerset.sigs.k8s.io/name": "llm", "leaderworkerset.sigs.k8s.io/group-index": "3"}
KEY = {"leaderworkerset.sigs.k8s.io/name": "llm", "leaderworkerset.sigs.k8s.io/group-key": "6f2a"}
COSCHEDULED = {"scheduling.x-k8s.io/pod-group": "ring"}
QUEUED = {"kueue.x-k8s.io/pod-group-name": "batch"}
VOLCANO = {"scheduling.k8s.io/group-name": "podgroup-7"}
NATIVE = {"schedulingGroup": {"podGroupName": "train-workers"}}
OLDER = {"workloadRef": {"name": "train", "podGroup": "workers", "podGroupReplicaKey": "2"}}

QUEUED_SINCE_0_18 = {
    "labels": {"kueue.x-k8s.io/managed": "true"},
    "annotations": {"kueue.x-k8s.io/pod-group-name": "batch", "kueue.x-k8s.io/workload": "batch"},
}
"""A group of plain pods: the webhook of Kueue sets the label on every pod that it queues."""
PODSET = {"kueue.x-k8s.io/podset": "main"}
ADMITTED = {"kueue.x-k8s.io/workload": "job-train-3fa2b"}
JOB = [{"apiVersion": "batch/v1", "kind": "Job", "name": "train", "uid": "u-1", "controller": True}]
VOLCANO_JOB = [{**JOB[0], "apiVersion": "batch.volcano.sh/v1alpha1"}]
RAY = [{"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "tune", "uid": "u-2", "controller": True}]
REPORT = {"apiVersion": "example.com/v1", "kind": "Report", "name": "weekly", "uid": "u-4"}
REPLICAS = [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u-3", "controller": True}]

KEYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a JobSet": ({"labels": JOBSET}, "JobSet team-a/train", "jobset.sigs.k8s.io/jobset-name=train"),
    "a group of a LeaderWorkerSet": (
        {"labels": INDEX},
        "LeaderWorkerSet team-a/llm/3",
        "leaderworkerset.sigs.k8s.io/name=llm,leaderworkerset.sigs.k8s.io/group-index=3",
    ),
    "a group of a LeaderWorkerSet without an index": (
        {"labels": KEY},
        "LeaderWorkerSet team-a/llm/6f2a",
        "leaderworkerset.sigs.k8s.io/name=llm,leaderworkerset.sigs.k8s.io/group-key=6f2a",
    ),
    "a PodGroup of Kubernetes 1.36": ({"spec": NATIVE}, "PodGroup team-a/train-workers", ""),
    "a PodGroup of Kubernetes 1.35": ({"spec": OLDER}, "PodGroup team-a/train/workers/2", ""),
    "a PodGroup of sig-scheduling": (
        {"labels": COSCHEDULED},
        "PodGroup team-a/ring",
        "scheduling.x-k8s.io/pod-group=ring",
    ),
    "a PodGroup of Volcano": ({"annotations": VOLCANO}, "PodGroup team-a/podgroup-7", ""),
    "a Workload of Kueue": ({"labels": QUEUED}, "Workload team-a/batch", "kueue.x-k8s.io/pod-group-name=batch"),
    "a Workload of a group of pods, since Kueue 0.18": (
        QUEUED_SINCE_0_18,
        "Workload team-a/batch",
        "kueue.x-k8s.io/managed",
    ),
    "a Workload of a Job": (
        {"labels": PODSET, "annotations": ADMITTED, "ownerReferences": JOB},
        "Workload team-a/job-train-3fa2b",
        "kueue.x-k8s.io/podset",
    ),
    "a Workload whose pods have no label of Kueue": (
        {"annotations": ADMITTED, "ownerReferences": JOB},
        "Workload team-a/job-train-3fa2b",
        "",
    ),
    "the slices of an elastic Job": (
        {"labels": PODSET, "annotations": {**ADMITTED, "kueue.x-k8s.io/workload-slice-name": "job-train-first"}},
        "Workload team-a/job-train-first",
        "kueue.x-k8s.io/podset",
    ),
    "a Job of Kueue before 0.14": (
        {"labels": {**PODSET, "batch.kubernetes.io/job-name": "train"}, "ownerReferences": JOB},
        "Workload team-a/job-train",
        "batch.kubernetes.io/job-name=train",
    ),
    "a Job of Kueue on Kubernetes before 1.27": (
        {"labels": {**PODSET, "job-name": "train"}, "ownerReferences": JOB},
        "Workload team-a/job-train",
        "job-name=train",
    ),
    "a Job whose pods name a queue": (
        {"labels": {"kueue.x-k8s.io/queue-name": "research"}, "ownerReferences": JOB},
        "Workload team-a/job-train",
        "kueue.x-k8s.io/queue-name",
    ),
    "a Job whose pods have an owner that does not control them": (
        {"labels": {"kueue.x-k8s.io/queue-name": "research"}, "ownerReferences": [REPORT, *JOB]},
        "Workload team-a/job-train",
        "kueue.x-k8s.io/queue-name",
    ),
    "a RayCluster of Kueue before 0.14": (
        {"labels": PODSET, "ownerReferences": RAY},
        "Workload team-a/raycluster-tune",
        "kueue.x-k8s.io/podset",
    ),
    "a JobSet that Kueue has admitted": (
        {"labels": {**PODSET, **JOBSET}, "annotations": ADMITTED},
        "JobSet team-a/train",
        "jobset.sigs.k8s.io/jobset-name=train",
    ),
    "a JobSet that a gang scheduler starts": (
        {"labels": {**QUEUED, **COSCHEDULED, **JOBSET}, "spec": NATIVE},
        "JobSet team-a/train",
        "jobset.sigs.k8s.io/jobset-name=train",
    ),
}


@pytest.mark.parametrize(("parts", "ref", "labels"), KEYS.values(), ids=KEYS.keys())
def test_a_pod_says_which_gang_it_belongs_to(parts: dict[str, Any], ref: str, labels: str) -> None:
    metadata = {key: value for key, value in parts.items() if key != "spec"}
    gang = gang_of(pod(metadata=metadata, spec=parts.get("spec", {})))
    assert gang is not None
    assert (gang.ref, gang.labels) == (ref, labels)


ALONE: dict[str, dict[str, Any]] = {
    "a pod of a ReplicaSet": {},
    "an empty name": {"metadata": {"labels": {"jobset.sigs.k8s.io/jobset-name": ""}}},
    "a LeaderWorkerSet without a group": {"metadata": {"labels": {"leaderworkerset.sigs.k8s.io/name": "llm"}}},
    "a Job without Kueue": {"metadata": {"labels": {"batch.kubernetes.io/job-name": "train"}, "ownerReferences": JOB}},
    "a plain pod that Kueue queues by itself": {
        "metadata": {
            "labels": {**PODSET, "kueue.x-k8s.io/managed": "true", "kueue.x-k8s.io/queue-name": "q"},
            "annotations": {"kueue.x-k8s.io/workload": "pod-web-1"},
            "ownerReferences": REPLICAS,
        }
    },
    "a pod of a Deployment that names a queue": {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}, "ownerReferences": REPLICAS}
    },
    "a pod of nobody with the label of Kueue": {"metadata": {"labels": PODSET, "ownerReferences": []}},
    "a pod of another scheduler's Job that names a queue": {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}, "ownerReferences": VOLCANO_JOB}
    },
    "a workload of Kubernetes 1.35 without a group": {"spec": {"workloadRef": {"name": "train"}}},
    "a scheduling group without a name": {"spec": {"schedulingGroup": {}}},
    "labels that are no object": {"metadata": {"labels": "broken"}},
    "a number for a name": {"spec": {"schedulingGroup": {"podGroupName": 7}}},
}


@pytest.mark.parametrize("changes", ALONE.values(), ids=ALONE.keys())
def test_any_other_pod_works_by_itself(changes: dict[str, Any]) -> None:
    assert gang_of(pod("alone", "gpu-07", **changes)) is None


def test_a_gang_without_a_label_is_looked_for_among_the_pods_of_its_scheduler() -> None:
    gang = gang_of(pod(metadata={"annotations": VOLCANO}, spec={"schedulerName": "volcano"}))
    assert gang is not None
    assert gang.fields == "spec.schedulerName=volcano"


def test_the_widest_unit_is_asked_for_first() -> None:
    declared: list[tuple[str, dict[str, Any], str]] = [
        ("labels", JOBSET, "JobSet team-a/train"),
        ("labels", INDEX, "LeaderWorkerSet team-a/llm/3"),
        ("labels", KEY, "LeaderWorkerSet team-a/llm/6f2a"),
        ("spec", NATIVE, "PodGroup team-a/train-workers"),
        ("spec", OLDER, "PodGroup team-a/train/workers/2"),
        ("labels", COSCHEDULED, "PodGroup team-a/ring"),
        ("annotations", VOLCANO, "PodGroup team-a/podgroup-7"),
        ("annotations", {"kueue.x-k8s.io/pod-group-name": "first"}, "Workload team-a/first"),
        ("labels", QUEUED, "Workload team-a/batch"),
        ("annotations", ADMITTED, "Workload team-a/job-train-3fa2b"),
        ("labels", PODSET, "Workload team-a/job-train"),
    ]
    for index, (_, _, ref) in enumerate(declared):
        parts: dict[str, dict[str, Any]] = {"labels": {}, "annotations": {}, "spec": {}}
        for where, keys, _ in declared[index:]:
            parts[where] |= keys
        spec = parts.pop("spec")
        gang = gang_of(pod(metadata={**parts, "ownerReferences": JOB}, spec=spec))
        assert gang is not None
        assert gang.ref == ref
