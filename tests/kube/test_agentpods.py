"""The agent's pods and the Warnings about them, read from what a real kubelet and DaemonSet controller write."""

from datetime import UTC, datetime

import pytest

from gpusharing.kube.agentpods import agent_pod, agent_warning
from gpusharing.kube.client import JSON

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}]}]
        }
    }
}
UNPLACED = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}


def pod(status: JSON, **spec: object) -> JSON:
    """A pod of the DaemonSet on gpu-1 with a sidecar in front of the agent."""
    containers = [{"name": "mesh", "image": "mesh:1"}, {"name": "agent", "image": "gpu-sharing-operator:0.1.0"}]
    return {
        "metadata": {
            "namespace": "gpusharing-agent",
            "name": "gpusharing-agent-x7k2p",
            "creationTimestamp": "2026-01-05T12:00:00Z",
        },
        "spec": {"nodeName": "gpu-1", "containers": containers, **spec},
        "status": status,
    }


def status(**fields: object) -> JSON:
    return {"phase": "Running", "containerStatuses": [{"name": "mesh", "state": {}}, {"name": "agent", **fields}]}


def test_of_a_ready_pod_only_its_place_is_kept() -> None:
    raw = pod({**status(started=True), "conditions": [{"type": "Ready", "status": "True"}]})
    found = agent_pod(raw)
    assert (found.node, found.ready, found.image, found.created) == ("gpu-1", True, "", NOW)


def test_whether_its_pods_tolerate_the_start_up_taint_is_kept() -> None:
    ours = {"key": "gpusharing.dev/unproven", "operator": "Exists", "effect": "NoSchedule"}
    ready = {**status(started=True), "conditions": [{"type": "Ready", "status": "True"}]}
    assert agent_pod(pod(ready, tolerations=[ours])).tolerates_gate
    assert not agent_pod(pod(ready)).tolerates_gate
    assert not agent_pod(pod(status())).tolerates_gate, "nor while it is not Ready"


def test_why_the_agents_container_waits_is_kept_and_not_its_neighbors() -> None:
    found = agent_pod(pod(status(state={"waiting": {"reason": "ErrImagePull", "message": "not found"}})))
    assert (found.waiting, found.message) == ("ErrImagePull", "not found")
    assert found.image == "gpu-sharing-operator:0.1.0"
    leaving = pod(status(state={"waiting": {"reason": "ErrImagePull", "message": "not found"}}))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:00Z"
    assert agent_pod(leaving).waiting == "", "nothing is wrong with one that is being deleted"


@pytest.mark.parametrize("started", [False, None])
def test_how_the_container_ended_counts_until_it_has_come_up(started: bool | None) -> None:
    last = {"terminated": {"reason": "Error", "exitCode": 255, "message": "exec format error"}}
    found = agent_pod(pod(status(state={"running": {}}, lastState=last, started=started)))
    assert (found.ended, found.last_words) == ("Error, exit code 255", "exec format error")
    assert agent_pod(pod(status(state={"running": {}}, lastState=last, started=True))).ended == ""


def test_a_pod_that_is_not_bound_is_known_by_the_node_that_it_is_for() -> None:
    found = agent_pod(pod(UNPLACED, nodeName="", affinity=AFFINITY))
    assert (found.node, found.scheduled) == ("gpu-1", False)


def pinned(values: object) -> JSON:
    row = {"key": "metadata.name", "operator": "In", "values": values}
    terms = [{"matchFields": [row]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


@pytest.mark.parametrize("values", [["gpu-1", "gpu-2"], "gpu-1", None], ids=["two nodes", "a text", "nothing"])
def test_a_pod_that_is_for_no_single_node_is_on_none(values: object) -> None:
    assert agent_pod(pod(UNPLACED, nodeName="", affinity=pinned(values))).node == ""


@pytest.mark.parametrize(
    "scheduled",
    [{"status": "True", "reason": "Unschedulable"}, {"status": "False", "reason": "SchedulingGated"}],
    ids=["it has been placed", "it is held back on purpose"],
)
def test_a_pod_that_no_scheduler_gave_up_counts_as_scheduled(scheduled: JSON) -> None:
    conditions = [{"type": "PodScheduled", **scheduled}]
    assert agent_pod(pod({"phase": "Pending", "conditions": conditions})).scheduled


def test_a_pod_of_any_shape_is_read() -> None:
    assert agent_pod({"metadata": {}, "status": {"containerStatuses": [1]}}).node == ""


def warning(kind: str, name: str, reason: str, **times: object) -> JSON:
    return {
        "metadata": {"namespace": "gpusharing-agent", "creationTimestamp": "2026-01-05T11:00:00Z"},
        "regarding": {"kind": kind, "name": name},
        "reason": reason,
        "note": "words",
        **times,
    }


SEEN: dict[str, JSON] = {
    "an Event of client-go's older recorder": {"deprecatedLastTimestamp": "2026-01-05T12:00:00Z", "eventTime": None},
    "an Event of the newer one": {"eventTime": "2026-01-05T12:00:00.000000Z"},
    "an Event without any time of its own": {
        "metadata": {"namespace": "gpusharing-agent", "creationTimestamp": "2026-01-05T12:00:00Z"}
    },
    "an Event that was repeated": {
        "eventTime": "2026-01-05T11:00:00.000000Z",
        "series": {"lastObservedTime": "2026-01-05T12:00:00.000000Z"},
    },
}


@pytest.mark.parametrize("case", SEEN)
def test_a_refused_creation_is_known_with_the_time_when_it_was_last_seen(case: str) -> None:
    found = agent_warning(warning("DaemonSet", "gpusharing-agent", "FailedCreate", **SEEN[case]))
    assert found is not None
    assert (found.pod, found.message, found.at) == ("", "words", NOW)


def test_a_warning_about_a_pod_is_the_same_however_often_it_is_repeated() -> None:
    first, second = (
        agent_warning(warning("Pod", "gpusharing-agent-x7k2p", "FailedCreatePodSandBox", deprecatedLastTimestamp=time))
        for time in ("2026-01-05T11:00:00Z", "2026-01-05T12:00:00Z")
    )
    assert first is not None
    assert first.pod == "gpusharing-agent-x7k2p"
    assert first == second


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("DaemonSet", "another", "FailedCreate"),
        ("DaemonSet", "gpusharing-agent", "FailedDaemonPod"),
        ("Pod", "gpusharing-operator-1", "FailedMount"),
        ("Pod", "gpusharing-agent-x7k2p", "BackOff"),
    ],
    ids=["of another DaemonSet", "of a pod that ended", "of the operator's pod", "what the pod's status says as well"],
)
def test_other_warnings_are_left_out(kind: str, name: str, reason: str) -> None:
    assert agent_warning(warning(kind, name, reason)) is None
