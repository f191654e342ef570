"""A sort of write says what is changed, and never whose object it is; points are the first and last write of each."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hack.faultproxy import ProxiedWrite
from hack.generate import ROOT
from tests.faults.cases import KINDS, PROCESS, CaseResults, FaultCase, expected_in, share, within
from tests.faults.cases import tell as sum_up
from tests.faults.points import FAULTS, Point, Sort, aim_at, all_cases, find_points, in_both, sort_of, tell
from tests.faults.test_cases import begun, result

from gpusharing.kube.client import JSON

MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases"
OURS = "/apis/gpusharing.dev/v1alpha1"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


def write(method: str, path: str, body: JSON | None = None, *, status: int = 200, number: int = 1) -> ProxiedWrite:
    return ProxiedWrite(number, method, path, status, "operator", body)


def fenced(node: str, stage: str = "fenced", *, since: str = "2026-01-01T00:00:00Z", owed: str = "") -> ProxiedWrite:
    """A fence as the operator writes it, with what differs from node to node and from run to run."""
    fence = json.dumps({"v": 1, "op": f"{node}-x7k2p", "stage": stage, "since": since, "owed": owed})
    metadata = {"uid": f"uid-of-{node}", "resourceVersion": "71", "annotations": {"gpusharing.dev/fence": fence}}
    labels = {"gpusharing.dev/mode": None, "nvidia.com/gpu-driver-upgrade.skip": "true"}
    return write(
        "PATCH", f"/api/v1/nodes/{node}", {"metadata": {**metadata, "labels": labels}, "spec": {"unschedulable": True}}
    )


def claimed(*nodes: str) -> ProxiedWrite:
    claims = {node: {"nodeUid": f"uid-of-{node}", "op": "x"} for node in nodes}
    text = json.dumps({"v": 1, "claims": claims})
    body = {"metadata": {"annotations": {"gpusharing.dev/claims": text}}, "spec": {"renewTime": "now"}}
    return write("PATCH", f"{LEASE}/gpusharing", body)


def shown(node: str, phase: str, reason: str) -> ProxiedWrite:
    transition = {"phase": phase, "reason": reason, "message": f"{node} says so", "since": "2026-01-01T00:00:00Z"}
    conditions = [{"type": "Healthy", "status": "True", "reason": "Healthy", "message": node}]
    body = {"status": {"transition": transition, "conditions": conditions}}
    return write("PATCH", f"{OURS}/gpunodes/{node}/status", body)


def told(node: str, reason: str) -> ProxiedWrite:
    regarding = {"kind": "GPUSharingPolicy", "name": "pool-b"}
    metadata = {"name": f"pool-b.19c.{node}", "namespace": "default"}
    body = {"kind": "Event", "metadata": metadata, "type": "Normal", "reason": reason, "regarding": regarding}
    return write("POST", EVENTS, body, status=201)


def evicted(pod: str, status: int = 201) -> ProxiedWrite:
    body = {"metadata": {"name": pod}, "deleteOptions": {"preconditions": {"uid": f"uid-of-{pod}"}}}
    return write("POST", f"/api/v1/namespaces/team/pods/{pod}/eviction", body, status=status)


def numbered(writes: Sequence[ProxiedWrite]) -> list[ProxiedWrite]:
    return [
        write(one.method, one.path, one.body, status=one.status, number=number) for number, one in enumerate(writes, 1)
    ]


def recorded(*, pool: str, pod: str, since: str) -> list[ProxiedWrite]:
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
def test_another_change_is_another_sort(one: ProxiedWrite, other: ProxiedWrite) -> None:
    assert sort_of(one) != sort_of(other)


def test_a_write_that_the_server_refused_is_another_sort() -> None:
    assert sort_of(evicted("a")) != sort_of(evicted("a", 429))
    assert sort_of(evicted("a", 429)).refused
    assert str(sort_of(evicted("a", 429))) == "POST pods/eviction (refused)"


def test_setting_and_removing_are_two_sorts() -> None:
    def labelled(value: str | None) -> ProxiedWrite:
        return write("PATCH", "/api/v1/nodes/a", {"metadata": {"labels": {"gpusharing.dev/mode": value}}})

    assert sort_of(labelled("mig")) == sort_of(labelled("full")) != sort_of(labelled(None))

    def cordoned(value: bool | None) -> ProxiedWrite:
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
    kept, free = (write("PATCH", policy, {"metadata": {"finalizers": found}}) for found in (["gpusharing.dev/f"], []))
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


def test_what_only_one_of_two_recordings_wrote_is_no_point() -> None:
    more = numbered([claimed(), fenced("a"), claimed(), claimed("a"), fenced("b")])
    less = numbered([fenced("a"), claimed(), claimed("b"), claimed("a", "b")])
    assert [one.number for one in in_both(more, less)] == [1, 2, 4]
    assert in_both(more, more) == tuple(more)
    assert [(one.number, one.turn) for one in find_points(in_both(more, less))] == [(1, 1), (2, 1), (4, 1)]


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
    without = sum(point.sort.verb == "POST" for point in points)
    of_collections = sum(point.sort.verb == "POST" and not point.sort.subresource for point in points)
    assert 0 < of_collections < without, "else the next line says little"
    assert len(cases) == len(set(cases)) == len(points) * len(KINDS) - without - of_collections
    wanted = {(point.number, point.sort.asked, point.turn) for point in points}
    assert {(case.number, case.aim, case.turn) for case in cases} == wanted
    assert all(case.write(1) == case.turn for case in cases), "even where a run has fewer writes"
    by_place = {1 + int(case.place * len(writes)) - case.number for case in cases}
    assert by_place == {0}


def test_a_full_run_says_at_its_start_how_many_runs_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = Point(1, sort_of(claimed("a")), "only", 1)
    other = Point(2, sort_of(claimed()), "only", 1)
    begun(tmp_path / "idle.jsonl", "commit", list(all_cases("idle", [point], 4)))
    begun(tmp_path / "pods.jsonl", "commit", list(all_cases("pods", [point, other], 4)))
    tell(tmp_path, 3)
    assert capsys.readouterr().out == (
        "idle: 23 runs at 1 writes\npods: 46 runs at 2 writes\nfaults: 69 runs in all, in 2 scenarios\n"
    )
    tell(tmp_path, 2)
    assert capsys.readouterr().out == (
        "idle: 13 runs at 1 writes\npods: 26 runs at 2 writes\nfaults: 39 runs in all, in 2 scenarios\n"
    )


# --- FULL=1, FULL=2 and FULL=3 -----------------------------------------------------------------------------------


def cases_of(writes: Sequence[ProxiedWrite], scenario: str = "pods") -> list[FaultCase]:
    return list(all_cases(scenario, find_points(writes), len(writes)))


def many_sorts(count: int = 15) -> list[ProxiedWrite]:
    return numbered([shown(node, "Draining", f"Reason{sort}") for node in "ab" for sort in range(count)])


def sorts_by_number(writes: Sequence[ProxiedWrite]) -> dict[int, Sort]:
    return {one.number: sort_of(one) for one in writes}


def test_full_2_plays_each_fault_once_for_each_sort_of_each_scenario() -> None:
    writes = recorded(pool="a", pod="b", since="2026-01-01T00:00:00Z")
    sorts = sorts_by_number(writes)
    cases = within([case for name in ("pods", "idle") for case in cases_of(writes, name)], 2)
    played = Counter((case.scenario, sorts[case.number], case.kind) for case in cases)
    assert set(played) == {
        (name, sort, fault) for name in ("pods", "idle") for sort in sorts.values() for fault in FAULTS
    }
    assert set(played.values()) == {1}


def test_full_3_plays_every_fault_at_every_point_and_so_all_of_full_2() -> None:
    cases = cases_of(many_sorts())
    assert within(cases, 3) == tuple(cases)
    assert len(cases) == 30 * len(KINDS)
    assert set(within(cases, 2)) < set(cases)


def test_full_2_alternates_between_one_object_at_the_first_write_and_everything_at_the_last() -> None:
    cases = within(cases_of(many_sorts()), 2)
    for fault in FAULTS:
        where = Counter(("first" if case.number <= 15 else "last", case.scope) for case in cases if case.kind == fault)
        last = "one" if fault in PROCESS else "all"
        assert set(where) == {("first", "one"), ("last", last)}
        assert sorted(where.values()) == [7, 8]
    for number in range(1, 16):
        firsts = sum(case.number == number for case in cases)
        assert firsts in (6, 7), "about as many at either write of a sort"


def test_a_sort_with_one_write_has_faults_on_one_object_and_on_everything() -> None:
    (write,) = numbered([claimed("a")])
    cases = within(cases_of([write]), 2)
    assert [case.kind for case in cases] == list(FAULTS)
    scopes = {case.kind: case.scope for case in cases}
    assert {scopes[fault] for fault in PROCESS} == {"one"}
    assert Counter(scopes[fault] for fault in FAULTS if fault not in PROCESS) == {"one": 5, "all": 5}


@pytest.mark.parametrize(
    ("path", "without"),
    [
        ("/api/v1/nodes", {"competitor", "events-swallowed"}),
        ("/api/v1/namespaces/team/pods/a/eviction", {"competitor"}),
    ],
    ids=["a new object", "an eviction"],
)
def test_no_fault_looks_for_the_object_of_a_write_that_has_none(path: str, without: set[str]) -> None:
    cases = cases_of(numbered([replace(claimed("a"), method="POST", path=path)]))
    assert {case.kind for case in cases if case.scope == "one"} == {kind for kind, _ in KINDS} - without
    assert {case.kind for case in cases if case.scope == "all"} == set(FAULTS) - set(PROCESS)
    assert Counter(case.kind for case in within(cases, 2)) == Counter(FAULTS), "each of them at one scope"


def test_what_full_2_plays_does_not_depend_on_the_order_in_which_the_sorts_come() -> None:
    half = [shown("a", "Draining", f"Reason{sort}") for sort in range(15)]
    one, other = numbered(half), numbered(half[::-1])

    def chosen(writes: Sequence[ProxiedWrite]) -> set[tuple[str, str, str]]:
        return {(case.aim, case.kind, case.scope) for case in within(cases_of(writes), 2)}

    assert chosen(one) == chosen(other)


def test_full_3_goes_on_from_what_full_2_has_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = cases_of(numbered([claimed("a"), claimed("b")]))
    path = tmp_path / "pods.jsonl"
    first = CaseResults(path, "commit", 2)
    first.expect(cases)
    assert first.left() == [case for case in cases if case.depth == 2]
    for case in first.left():
        first.add(result(case))
    assert first.left() == []
    sum_up(tmp_path, 2)
    assert "incomplete" not in capsys.readouterr().out

    second = CaseResults(path, "commit", 3)
    assert second.expected == tuple(cases)
    assert second.left() == [case for case in cases if case.depth == 3]
    second.add(result(second.left()[0], "an orphan cordon"))
    sum_up(tmp_path, 3)
    told = capsys.readouterr().out
    assert told.startswith("faults: 14 runs, 1 failures")
    assert "incomplete: 32 of 46 cases" in told

    again = CaseResults(path, "commit", 2)
    assert (len(again.done), again.left()) == (13, []), "what only FULL=3 plays is no matter of FULL=2"
    sum_up(tmp_path, 2)
    assert capsys.readouterr().out.startswith("faults: 13 runs, 0 failures")
    assert len(CaseResults(path, "commit", 3).done) == 14


def test_in_full_1_the_scenarios_take_turns_with_the_faults_of_a_sort_that_several_make(tmp_path: Path) -> None:
    both, own = [claimed("a"), shown("a", "Draining", "Busy")], shown("a", "Failed", "Hung")
    for name, writes in {"idle": both, "pods": [*both, own]}.items():
        CaseResults(tmp_path / f"{name}.jsonl", "commit").expect(cases_of(numbered(writes), name))
    share(tmp_path)
    first = {name: list(cases) for name, cases in expected_in(tmp_path, 1).items()}
    faults = len(FAULTS)
    played = Counter((case.aim, case.kind) for cases in first.values() for case in cases)
    assert len(played) == 3 * faults
    assert set(played.values()) == {1}
    assert len(first["idle"]) in (faults, faults + 1), "about half of two sorts"
    assert sum(map(len, expected_in(tmp_path, 2).values())) == 5 * faults
    share(tmp_path)
    assert {name: list(cases) for name, cases in expected_in(tmp_path, 1).items()} == first


@pytest.mark.parametrize("full", ["1", "2", "3"])
def test_make_hands_on_which_full_matrix_is_asked_for(full: str) -> None:
    told = make(f"FULL={full}").stdout
    assert set(re.findall(r"FAULTS_DEPTH=(\S*)", told)) == {full}
    assert f"tests.faults.points build/faults/full {full}\n" in told
    assert f"tests.faults.cases build/faults/full {full};" in told
    assert told.count("-n $(.venv/bin/python -m tests.faults.cases --full)") == 2, "to record, and to play"


@pytest.mark.parametrize("full", ["0", "4", "full", "1 2"])
def test_any_other_full_matrix_is_an_error_that_names_the_others(full: str) -> None:
    done = make(f"FULL={full}")
    assert done.returncode
    assert f"FULL={full} is neither FULL=1 " in done.stderr
    assert " nor FULL=2 " in done.stderr
    assert " nor FULL=3 " in done.stderr


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What `make test-faults` would run."""
    command = ["make", "--dry-run", "test-faults", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
