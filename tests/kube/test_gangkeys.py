"""Which gang a pod belongs to, by its labels, annotations and spec alone."""

from typing import Any

import pytest
from tests.kube.objects import pod

from gpusharing.kube.gangkeys import LADDER, gang_of

JOBSET = {"jobset.sigs.k8s.io/jobset-name": "train"}
INDEX = {"leaderworkerset.sigs.k8s.io/name": "llm", "leaderworkerset.sigs.k8s.io/group-index": "3"}
KEY = {"leaderworkerset.sigs.k8s.io/name": "llm", "leaderworkerset.sigs.k8s.io/group-key": "6f2a"}
COSCHEDULED = {"scheduling.x-k8s.io/pod-group": "ring"}
QUEUED = {"kueue.x-k8s.io/pod-group-name": "batch"}
VOLCANO = {"scheduling.k8s.io/group-name": "podgroup-7"}
NATIVE = {"schedulingGroup": {"podGroupName": "train-workers"}}
OLDER = {"workloadRef": {"name": "train", "podGroup": "workers", "podGroupReplicaKey": "2"}}

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
    "a Workload of Kueue": (
        {"labels": QUEUED},
        "Workload team-a/batch",
        "kueue.x-k8s.io/pod-group-name=batch",
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
    "a LeaderWorkerSet without a group": {
        "metadata": {"labels": {"leaderworkerset.sigs.k8s.io/name": "llm"}}
    },
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
    kinds = [key.kind for key in LADDER]
    assert kinds == ["JobSet", *["LeaderWorkerSet"] * 2, *["PodGroup"] * 4, "Workload"]
    assert all(key.source for key in LADDER)
