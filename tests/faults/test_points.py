"""A sort of write says what is changed, and never whose object it is; points are the first and last write of each."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hack.faultproxy import Write
from tests.faults.cases import KINDS
from tests.faults.points import Point, aim_at, all_cases, find_points, sort_of, tell
from tests.faults.test_cases import begun

from gpusharing.kube.client import JSON

MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases"
OURS = "/apis/gpusharing.dev/v1alpha1"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


def write(method: str, path: str, body: JSON | None = None, *, status: int = 200, number: int = 1) -> Write:
    return Write(number, method, path, status, "operator", body)


def fenced(node: str, stage: str = "fenced", *, since: str = "2026-01-01T00:00:00Z", owed: str = "") -> Write:
    """A fence as the operator writes it, with what differs from node to node and from run to run."""
    fence = json.dumps({"v": 1, "op": f"{node}-x7k2p", "stage": stage, "since": since, "owed": owed})
    metadata = {
        "uid": f"uid-of-{node}",
        "resourceVersion": "71",
        "annotations": {"gpusharing.dev/fence": fence},
    }
    labels = {"gpusharing.dev/mode": None, "nvidia.com/gpu-driver-upgrade.skip": "true"}
    return write(
        "PATCH",
        f"/api/v1/nodes/{node}",
        {"metadata": {**metadata, "labels": labels}, "spec": {"unschedulable": True}},
    )


def claimed(*nodes: str) -> Write:
    claims = {node: {"nodeUid": f"uid-of-{node}", "op": "x"} for node in nodes}
    text = json.dumps({"v": 1, "claims": claims})
    body = {"metadata": {"annotations": {"gpusharing.dev/claims": text}}, "spec": {"renewTime": "now"}}
    return write("PATCH", f"{LEASE}/gpusharing", body)


def shown(node: str, phase: str, reason: str) -> Write:
    transition = {
        "phase": phase,
        "reason": reason,
        "message": f"{node} says so",
        "since": "2026-01-01T00:00:00Z",
    }
    conditions = [{"type": "Healthy", "status": "True", "reason": "Healthy", "message": node}]
    body = {"status": {"transition": transition, "conditions": conditions}}
    return write("PATCH", f"{OURS}/gpunodes/{node}/status", body)


def told(node: str, reason: str) -> Write:
    regarding = {"kind": "GPUSharingPolicy", "name": "pool-b"}
    metadata = {"name": f"pool-b.19c.{node}", "namespace": "default"}
    body = {"kind": "Event", "metadata": metadata, "type": "Normal", "reason": reason, "regarding": regarding}
    return write("POST", EVENTS, body, status=201)


def evicted(pod: str, status: int = 201) -> Write:
    body = {"metadata": {"name": pod}, "deleteOptions": {"preconditions": {"uid": f"uid-of-{pod}"}}}
    return write("POST", f"/api/v1/namespaces/team/pods/{pod}/eviction", body, status=status)


def numbered(writes: Sequence[Write]) -> list[Write]:
    return [
        write(one.method, one.path, one.body, status=one.status, number=number)
        for number, one in enumerate(writes, 1)
    ]


def recorded(*, pool: str, pod: str, since: str) -> list[Write]:
    """One run; what is random in it is given."""
    one, two = f"{pool}-0", f"{pool}-1"
    return numbered(
        [
            claimed(one, two),
            fenced(one, since=since),
            fenced(two, since=since),
            evicted(pod, 429),
            evicted(pod),
            fenced(one, "actuating", since=since),
            fenced(two, "actuating", since=since),
            shown(one, "Synced", "Verified"),
            told(one, "Synced"),
            shown(two, "Synced", "Verified"),
            claimed(),
        ]
    )


def test_two_nodes_that_are_treated_alike_are_one_sort() -> None:
    assert sort_of(fenced("a-0")) == sort_of(fenced("b-1", since="2027-02-03T04:05:06Z"))
    assert sort_of(shown("a-0", "Synced", "Verified")) == sort_of(shown("b-1", "Synced", "Verified"))
    assert sort_of(told("a-0", "Synced")) == sort_of(told("b-1", "Synced"))
    assert sort_of(claimed("a-0", "a-1")) == sort_of(claimed("b-3", "b-4"))
    assert sort_of(evicted("job-x7k2p")) == sort_of(evicted("job-q9w8r"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (fenced("a"), fenced("a", "actuating")),
        (fenced("a"), fenced("a", owed="mig")),
        (claimed("a"), claimed("a", "b")),
        (shown("a", "Draining", "Evicting"), shown("a", "Draining", "PDB")),
        (shown("a", "Draining", "Evicting"), shown("a", "Synced", "Verified")),
        (told("a", "Synced"), told("a", "Failed")),
        (evicted("a"), write("DELETE", "/api/v1/namespaces/team/pods/a")),
    ],
    ids=["stage", "owed run", "claims", "reason", "phase", "event", "verb"],
)
def test_another_change_is_another_sort(one: Write, other: Write) -> None:
    assert sort_of(one) != sort_of(other)


def test_a_write_that_the_server_refused_is_another_sort() -> None:
    assert sort_of(evicted("a")) != sort_of(evicted("a", 429))
    assert sort_of(evicted("a", 429)).refused
    assert str(sort_of(evicted("a", 429))) == "POST pods/eviction (refused)"


def test_setting_and_removing_are_two_sorts() -> None:
    def labelled(value: str | None) -> Write:
        return write("PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"gpusharing.dev/mode": value}}})

    assert sort_of(labelled("mig")) == sort_of(labelled("full")) != sort_of(labelled(None))

    def cordoned(value: bool | None) -> Write:
        return write("PATCH", "/api/v1/nodes/a", {"spec": {"unschedulable": value}})

    assert (str(sort_of(cordoned(True))), str(sort_of(cordoned(None)))) == (
        "PATCH nodes: cordon",
        "PATCH nodes: uncordon",
    )


def test_config_maps_are_told_apart_by_name_whether_patched_or_created() -> None:
    first, second = (write("PATCH", f"{MAPS}/{name}", {"data": {"x": "y"}}) for name in ("plugin", "parted"))
    assert sort_of(first) != sort_of(second)
    made = write("POST", MAPS, {"metadata": {"name": "plugin"}, "data": {}}, status=201)
    assert sort_of(made).change == ("plugin",)


def test_finalizers_requests_and_conditions_are_part_of_a_sort() -> None:
    policy = f"{OURS}/gpusharingpolicies/pool-b"
    kept, free = (
        write("PATCH", policy, {"metadata": {"finalizers": found}}) for found in (["gpusharing.dev/f"], [])
    )
    assert str(sort_of(kept)) == "PATCH gpusharingpolicies: finalizers f"
    assert str(sort_of(free)) == "PATCH gpusharingpolicies: finalizers removed"
    quiet, loud = (
        write("PATCH", f"{OURS}/gpunodes/a", {"spec": {"request": {"id": "x", "quiet": value}}})
        for value in (True, False)
    )
    assert sort_of(quiet) != sort_of(loud)
    rows = [{"type": "Ready", "status": "False", "reason": "Progressing", "message": "2 of 3"}]
    status = write("PATCH", f"{policy}/status", {"status": {"conditions": rows, "summary": {"nodes": "2/3"}}})
    assert str(sort_of(status)) == "PATCH gpusharingpolicies/status: Ready False (Progressing)"


def test_the_points_are_the_first_and_the_last_write_of_each_sort() -> None:
    same = [fenced(f"a-{number}") for number in range(4)]
    points = find_points(numbered([*same, claimed(), *same]))
    assert [(point.number, point.which) for point in points] == [(1, "first"), (5, "only"), (9, "last")]
    assert points[0].sort == points[2].sort
    assert points[1].text == "only PATCH leases: 0 claims, spec.renewTime"


def test_a_sort_with_one_write_has_one_point() -> None:
    assert [point.number for point in find_points(numbered([claimed("a")]))] == [1]


def test_writes_that_do_not_count_are_no_points() -> None:
    renewal = write("PATCH", f"{LEASE}/gpusharing", {"spec": {"renewTime": "now"}}, number=0)
    assert find_points([renewal]) == ()


def test_two_recordings_that_differ_in_names_and_times_have_the_same_points() -> None:
    one = recorded(pool="gsp-aaaa", pod="job-x7k2p", since="2026-01-01T00:00:00Z")
    two = recorded(pool="gsp-zzzz", pod="job-q9w8r", since="2027-02-03T04:05:06Z")
    assert find_points(one) == find_points(two)
    assert find_points(list(reversed(one))) == find_points(one)


def test_each_point_is_found_again_in_a_run_with_another_order() -> None:
    """Before the server answers, nobody knows whether it refuses: the eviction that it accepts is the second one."""
    writes = recorded(pool="a", pod="b", since="2026-01-01T00:00:00Z")
    for point in find_points(writes):
        aims = aim_at(point.sort.asked)
        for order in (writes, sorted(writes, key=lambda one: (one.path, one.number))):
            met = [one for one in order if aims(one.method, one.path, json.dumps(one.body).encode())]
            assert sort_of(met[point.turn - 1]) == point.sort
    turns = {(point.sort.refused, point.turn) for point in find_points(writes) if "eviction" in point.text}
    assert turns == {(True, 1), (False, 2)}


def test_all_cases_are_every_fault_at_every_point() -> None:
    writes = recorded(pool="a", pod="b", since="2026-01-01T00:00:00Z")
    points = find_points(writes)
    cases = list(all_cases("pods", points, len(writes)))
    assert len(cases) == len(set(cases)) == len(points) * len(KINDS)
    wanted = {(point.number, point.sort.asked, point.turn) for point in points}
    assert {(case.number, case.aim, case.turn) for case in cases} == wanted
    assert all(case.write(1) == case.turn for case in cases), "even where a run has fewer writes"
    by_place = {1 + int(case.place * len(writes)) - case.number for case in cases}
    assert by_place == {0}


def test_a_full_run_says_at_its_start_how_many_runs_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point = Point(1, sort_of(claimed("a")), "only", 1)
    other = Point(2, sort_of(claimed()), "only", 1)
    begun(tmp_path / "idle.jsonl", "commit", list(all_cases("idle", [point], 4)))
    begun(tmp_path / "pods.jsonl", "commit", list(all_cases("pods", [point, other], 4)))
    tell(tmp_path)
    assert capsys.readouterr().out == (
        "idle: 23 runs at 1 writes\npods: 46 runs at 2 writes\nfaults: 69 runs in all, in 2 scenarios\n"
    )
