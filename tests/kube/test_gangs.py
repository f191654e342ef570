"""Which gang a pod belongs to, and where its other pods are: one LIST per gang, and none where there is no gang."""

from dataclasses import replace
from typing import Any

import pytest
from hack.sim.fakecluster import FakeClient, FakeCluster
from tests.build import at, make_fence
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import Gathering, gathering
from tests.kube.objects import adopt, node, pod
from tests.kube.test_gather_holders import REBOOTING
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    DAEMON_SETS,
    JSON,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
    ApiRequest,
)
from gpusharing.kube.errors import Forbidden, KubeError, Unavailable
from gpusharing.kube.fence import record_text
from gpusharing.kube.gangkeys import gang_of
from gpusharing.kube.gangs import Gangs
from gpusharing.kube.pods import pod_view
from gpusharing.planning.drain.standing import describe_gang
from gpusharing.planning.snapshot.podviews import Gang, GangView, Scope

LABEL = "jobset.sigs.k8s.io/jobset-name"
FENCE = {names.ANNOTATION_FENCE: record_text(make_fence())}
QUEUED: JSON = {"annotations": {"kueue.x-k8s.io/workload": "job-train-3fa2b"}}


def rank(number: int, node_name: str, **more: Any) -> JSON:
    return pod(f"rank-{number}", node_name, metadata={"labels": {LABEL: "train"}}, **more)


def plain(name: str, **metadata: Any) -> JSON:
    return pod(name, metadata=metadata, spec={"containers": [{"name": "main"}]})


def volcano(name: str, group: str, node_name: str) -> JSON:
    metadata = {"annotations": {"scheduling.k8s.io/group-name": group}}
    return pod(name, node_name, metadata=metadata, spec={"schedulerName": "volcano"})


async def seen(stage: Gathering, seconds: float = 0.0) -> GangView:
    (view,) = (await stage.work(seconds)).gangs
    return view


@virtually
async def test_the_members_on_all_nodes_are_found_by_one_list_of_their_label() -> None:
    finished = rank(3, "gpu-09", status={"phase": "Succeeded"})
    waiting = rank(4, "", status={"phase": "Pending"})
    other = pod("alone", "gpu-09")
    members = [rank(0, "gpu-07"), rank(1, "gpu-07"), rank(2, "gpu-08"), finished, waiting, other]
    async with gathering(*((PODS, member) for member in members)) as stage:
        view = await seen(stage)
        assert stage.lists("pods") == 2, "of the node and of the gang"
        where = [(member.node, member.pod.name) for member in view.members]
        assert where == [("", "rank-4"), ("gpu-07", "rank-0"), ("gpu-07", "rank-1"), ("gpu-08", "rank-2")]
        said = "JobSet team-a/train, 4 pods (2 on gpu-07, 1 on gpu-08, 1 without a node)"
        assert describe_gang(view) == said


@virtually
async def test_a_gang_that_an_annotation_names_is_picked_out_of_its_schedulers_pods() -> None:
    members = [volcano("a", "one", "gpu-07"), volcano("b", "one", "gpu-08"), volcano("c", "two", "gpu-08")]
    async with gathering(*((PODS, member) for member in members)) as stage:
        asked = stage.cluster.faults.fail(
            "list", PODS, Unavailable("trouble"), namespace="team-a", selector="spec.schedulerName=volcano"
        )
        assert (await seen(stage)).error == "trouble"
        assert asked.hits == 1
        view = await seen(stage, 3.5)
        assert [member.pod.name for member in view.members] == ["a", "b"]


@virtually
async def test_pods_that_belong_to_no_gang_or_hold_no_gpu_cost_no_call() -> None:
    launcher = pod("launcher", metadata={"labels": {LABEL: "train"}}, spec={"containers": []})
    async with gathering((PODS, pod()), (PODS, launcher)) as stage:
        assert (await stage.work()).gangs == ()
        assert stage.lists("pods") == 1


@virtually
async def test_where_a_change_may_reboot_the_node_the_gangs_of_pods_without_a_gpu_are_looked_up_too() -> None:
    launcher = plain("rank-0", labels={LABEL: "train"})
    monitor = plain("monitor", labels={LABEL: "tune"})
    monitor["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "monitor", "uid": "ds", "controller": True}
    ]
    reboots = {"metadata": {"name": "cluster-policy"}, "spec": REBOOTING}
    daemons = (DAEMON_SETS, {"metadata": {"name": "monitor", "namespace": "team-a"}})
    pods = [(PODS, one) for one in (launcher, monitor, rank(1, "gpu-08"))]
    async with gathering((CLUSTER_POLICIES, reboots), daemons, *pods) as stage:
        adopt(stage.cluster, "monitor", "monitor")
        view = await seen(stage)
        assert [(one.node, one.pod.name) for one in view.members] == [
            ("gpu-07", "rank-0"),
            ("gpu-08", "rank-1"),
        ]
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": FENCE}})
        await stage.seen()
        assert (await stage.work(4.0)).gangs == (), "the change that has begun does not reboot"


BESIDE = {
    "nothing else": (),
    "a pod without a GPU that comes first": (plain("api"),),
    "a rank without a GPU": (plain("rank-9", labels={LABEL: "train"}),),
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
@virtually
async def test_all_members_have_the_labels_of_their_namespace_whatever_runs_beside_them(
    beside: tuple[JSON, ...],
) -> None:
    """A member without labels would be one of which nobody can say whether a rule keeps it."""
    rule = {"behavior": "Block", "namespaceSelector": {"matchLabels": {"team": "b"}}}
    spec = {"nodeSelector": {"matchLabels": {"pool": "b"}}, "mode": "Full", "drain": {"rules": [rule]}}
    policy = {"metadata": {"name": "pool-b", "uid": "policy", "generation": 1}, "spec": spec}
    namespace = {"metadata": {"name": "team-a", "labels": {"team": "a"}}}
    pods = [*beside, rank(0, "gpu-07"), rank(1, "gpu-08")]
    async with gathering((POLICIES, policy), (NAMESPACES, namespace), *((PODS, one) for one in pods)) as stage:
        work = await stage.work()
        (view,) = work.gangs
        told = {one.name: one.namespace_labels for one in (*work.pods, *(one.pod for one in view.members))}
        assert all(labels == {"team": "a"} for labels in told.values())
        assert {"rank-0", "rank-1"} <= told.keys()
        assert stage.cluster.calls["operator", "get", "namespaces"] == 1


@virtually
async def test_nodes_that_share_a_gang_share_its_list_and_it_is_made_anew_with_the_next_look() -> None:
    async with gathering((PODS, rank(0, "gpu-07")), (PODS, rank(1, "gpu-08"))) as stage:
        stage.cluster.add(NODES, node("gpu-08", metadata={"name": "gpu-08", "uid": "uid-of-gpu-08"}))
        await stage.seen()
        both = await stage.snapshot(0.0, frozenset({"gpu-07", "gpu-08"}))
        assert both.work["gpu-07"].gangs == both.work["gpu-08"].gangs != ()
        assert stage.lists("pods") == 3, "of two nodes and of one gang"
        await stage.work(3.5)
        assert stage.lists("pods") == 5


@virtually
async def test_a_list_made_for_another_gang_does_not_serve_one_that_came_after_it() -> None:
    """Both have no label, so that one LIST serves both: it would say that the newer one has no pod anywhere."""

    def member(name: str, group: str, node_name: str) -> JSON:
        return pod(name, node_name, metadata={"annotations": {"kueue.x-k8s.io/workload": group}})

    async with gathering((PODS, member("a", "older", "gpu-08"))) as stage:
        stage.cluster.add(NODES, node("gpu-08", metadata={"name": "gpu-08", "uid": "uid-of-gpu-08"}))
        await stage.seen()
        (older,) = (await stage.snapshot(0.0, frozenset({"gpu-08"}))).work["gpu-08"].gangs
        assert [one.pod.name for one in older.members] == ["a"]
        for name, where in (("b", "gpu-07"), ("c", "gpu-08")):
            stage.cluster.add(PODS, member(name, "newer", where))
        view = await seen(stage, 1.0)
        assert [one.pod.name for one in view.members] == ["b", "c"]


@virtually
async def test_an_old_list_does_not_stand_in_for_a_failed_one_for_a_new_gang() -> None:
    """In a drain, where it otherwise remains: it would say that the new gang has no pod anywhere."""

    async with gathering((PODS, volcano("a", "older", "gpu-07"))) as stage:
        await seen(stage)
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": FENCE}})
        for name, where in (("b", "gpu-07"), ("c", "gpu-08")):
            stage.cluster.add(PODS, volcano(name, "newer", where))
        await stage.seen()
        stage.cluster.faults.fail(
            "list", PODS, Unavailable("trouble"), namespace="team-a", selector="spec.schedulerName=volcano"
        )
        work = (await stage.snapshot(4.0, frozenset({"gpu-07"}))).work["gpu-07"]
        assert [(view.gang.name, view.error) for view in work.gangs] == [
            ("newer", "trouble"),
            ("older", "trouble"),
        ]


@virtually
async def test_a_node_that_is_being_drained_seldom_asks_where_its_gangs_are() -> None:
    async with gathering((PODS, rank(0, "gpu-07")), (PODS, rank(1, "gpu-08"))) as stage:
        before = await seen(stage)
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": FENCE}})
        await stage.seen()
        assert await seen(stage, 4.0) == before
        assert stage.lists("pods") == 3, "of the node, of the gang, of the node again"
        ended = {"status": {"phase": "Succeeded"}}
        stage.cluster.patch(PODS, "rank-1", ended, "team-a", subresource="status")
        failed = stage.cluster.faults.fail("list", PODS, Unavailable("trouble"), selector=f"{LABEL}=train")
        assert await seen(stage, 35.0) == before
        assert failed.hits == 1
        after = await seen(stage, 70.0)
        assert [(one.node, one.pod.name) for one in after.members] == [("gpu-07", "rank-0")]


ERRORS: dict[str, KubeError] = {"no right": Forbidden("no right"), "trouble": Unavailable("trouble")}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
@virtually
async def test_members_that_cannot_be_listed_are_told_and_not_taken_for_none(error: KubeError) -> None:
    async with gathering((PODS, rank(0, "gpu-07"))) as stage:
        for seconds, failed in ((0.0, True), (3.5, False), (7.0, True)):
            if failed:
                stage.cluster.faults.fail("list", PODS, error, selector=f"{LABEL}=train")
            view = await seen(stage, seconds)
            assert (view.error, len(view.members)) == ((str(error), 0) if failed else ("", 1))


@virtually
async def test_members_that_could_not_be_listed_are_asked_for_again_soon_in_a_drain_too() -> None:
    async with gathering((PODS, rank(0, "gpu-07"))) as stage:
        stage.cluster.patch(NODES, "gpu-07", {"metadata": {"annotations": FENCE}})
        await stage.seen()
        stage.cluster.faults.fail("list", PODS, Unavailable("trouble"), selector=f"{LABEL}=train")
        assert [(await seen(stage, seconds)).error for seconds in (0.0, 4.0)] == ["trouble", ""]


@virtually
async def test_the_pods_of_a_job_that_kueue_has_admitted_are_one_gang_found_by_one_list() -> None:
    def worker(name: str, job: str, node_name: str) -> JSON:
        workload = {"annotations": {"kueue.x-k8s.io/workload": f"job-{job}-3fa2b"}}
        return pod(name, node_name, metadata={"labels": {"kueue.x-k8s.io/podset": "main"}, **workload})

    workers = [worker("a-0", "a", "gpu-07"), worker("a-1", "a", "gpu-08"), worker("b-0", "b", "gpu-07")]
    async with gathering(*((PODS, one) for one in workers)) as stage:
        first, second = (await stage.work()).gangs
        assert not lacks(describe_gang(first), "Workload team-a/job-a-3fa2b", "2 pods (1 on gpu-07, 1 on gpu-08)")
        assert describe_gang(second) == "Workload team-a/job-b-3fa2b, 1 pod (1 on gpu-07)"
        assert stage.lists("pods") == 2, "of the node, and of all Workloads of the namespace"


@virtually
async def test_all_gangs_of_a_node_are_looked_up_however_many_by_few_lists() -> None:
    count = 17  # one more than are looked up by a list of their own
    many = [
        pod(f"p-{number}-{place}", place, metadata={"labels": {LABEL: f"set-{number:02}"}})
        for number in range(count)
        for place in ("gpu-07", "gpu-08")
    ]
    async with gathering(*((PODS, one) for one in many)) as stage:
        found = (await stage.work()).gangs
        assert [view.gang.name for view in found] == [f"set-{number:02}" for number in range(count)]
        assert {tuple(member.node for member in view.members) for view in found} == {("gpu-07", "gpu-08")}
        assert stage.lists("pods") == 2, "of the node, and of all JobSets of the namespace"


@virtually
async def test_a_gang_among_more_pods_than_are_read_is_not_taken_for_complete() -> None:
    crowd = [
        pod(f"p-{number}", "gpu-08", metadata={"labels": {"kueue.x-k8s.io/podset": "main"}}) for number in range(5)
    ]
    mine = pod("mine", metadata={**QUEUED, "labels": {"kueue.x-k8s.io/podset": "main"}})
    async with gathering(*((PODS, one) for one in [*crowd, mine])) as stage:
        stage.gatherer.pods.gangs.most = 5
        view = await seen(stage)
        assert view.members == ()
        assert not lacks(view.error, "5 or more pods", "namespace team-a")


class Crowded(FakeClient):
    """Its namespaces hold nothing but a number of pods that belong to no gang."""

    count = 0

    async def call(self, request: ApiRequest) -> JSON:
        return {"metadata": {"resourceVersion": "1"}, "items": [pod()] * self.count}


WHOLE = Gang("JobSet", "team-a", "train", f"{LABEL}=train", "")
PICKED = Gang("Workload", "team-a", "train", "kueue.x-k8s.io/podset", "")
KUEUE = {
    "labels": {"kueue.x-k8s.io/managed": "true"},
    "annotations": {"kueue.x-k8s.io/pod-group-name": "train"},
}
GROUPED = gang_of(pod(metadata=KUEUE))
TOO_MANY = "finding the gang would require reading 20,000 or more pods in namespace team-a"


@pytest.mark.parametrize(
    ("gang", "count", "partial", "error"),
    [
        pytest.param(WHOLE, 4_999, False, "", id="4999 of its own"),
        pytest.param(WHOLE, 5_000, True, "", id="5000 of its own"),
        pytest.param(PICKED, 19_999, False, "", id="19999 among others"),
        pytest.param(PICKED, 20_000, True, TOO_MANY, id="20000 among others"),
        pytest.param(GROUPED, 5_000, False, "", id="5000 among Kueue's other groups"),
        pytest.param(GROUPED, 20_000, True, TOO_MANY, id="20000 among Kueue's other groups"),
    ],
)
async def test_of_a_gang_5000_pods_are_read_and_20000_where_others_are_listed_with_it(
    gang: Gang, count: int, partial: bool, error: str
) -> None:
    client = Crowded(FakeCluster(), "operator")
    client.count = count
    holder = replace(pod_view(pod(), {}), gang=gang)
    (view,) = await Gangs(client).find([holder], Scope("gpu-operator"), at(0), anew=True)
    assert (view.partial, view.error.partition(", because")[0]) == (partial and not error, error)


JOBSET = {"jobset.sigs.k8s.io/jobset-name": "train"}
INDEX = {"leaderworkerset.sigs.k8s.io/name": "llm", "leaderworkerset.sigs.k8s.io/group-index": "3"}
KEY = {"leaderworkerset.sigs.k8s.io/name": "llm", "leaderworkerset.sigs.k8s.io/group-key": "6f2a"}
COSCHEDULED = {"scheduling.x-k8s.io/pod-group": "ring"}
GROUP_QUEUED = {"kueue.x-k8s.io/pod-group-name": "batch"}
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
    "a Workload of Kueue": ({"labels": GROUP_QUEUED}, "Workload team-a/batch", "kueue.x-k8s.io/pod-group-name=batch"),
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
        {"labels": {**GROUP_QUEUED, **COSCHEDULED, **JOBSET}, "spec": NATIVE},
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
        ("labels", GROUP_QUEUED, "Workload team-a/batch"),
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
