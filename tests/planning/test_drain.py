"""Named drains, answers to evictions, and how blockers are told; the rows of the conformance table are in tests/conformance/drain_cases.yaml."""

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.build import DAEMON_SET, JOB, NOW, REPLICA_SET, at, make_memory, make_pdb, make_pod, make_work
from tests.planning.drainpass import OPERATOR, DrainPass, drain_pass, foreseen, planned
from tests.wording import lacks

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.evictions import MAX_EVICTIONS, is_odd, remember
from gpusharing.planning.snapshot.podviews import EvictionMemory, PodView
from gpusharing.planning.vocabulary.findings import (
    MAX_LINES,
    Blocker,
    culprit,
    explain_blockers,
    main_reason,
    merge,
)
from gpusharing.planning.vocabulary.reasons import Reason


def test_500_pods_leave_ten_at_a_time_and_the_next_pass_follows_in_two_seconds() -> None:
    pods = [make_pod(f"p-{n:03}") for n in range(500)]
    found = drain_pass(make_work(*pods))
    plan = found.plan
    assert [pod.name for pod in plan.evict] == [f"p-{n:03}" for n in range(MAX_EVICTIONS)]
    assert len(found.later) == 490
    assert plan.holders == 500
    assert plan.next_wake == at(2)
    assert plan.blockers == ()


def test_passes_that_follow_one_another_at_once_evict_no_more_than_five_pods_a_second() -> None:
    pods = [make_pod(f"p-{n:03}") for n in range(200)]
    memories: dict[str, EvictionMemory] = {}
    asked: list[float] = []
    for tick in range(400):  # a pass every 25 ms, all of them from one LIST
        now = at(tick / 40)
        plan = planned(make_work(*pods, evictions=memories), now=now)
        for pod in plan.evict:
            memories[pod.uid] = remember(Reason.EVICTED, "", memories.get(pod.uid), now, 0.0)
            asked.append(tick / 40)
        if not plan.evict:
            assert plan.next_wake is not None
            assert now < plan.next_wake <= at(asked[-1] + 2)
    assert len(asked) == 5 * MAX_EVICTIONS
    assert asked == sorted([0.0, 2.0, 4.0, 6.0, 8.0] * MAX_EVICTIONS)


def test_what_the_server_refuses_counts_in_the_pace_too() -> None:
    pods = [make_pod(f"p-{n:02}") for n in range(20)]
    memories = {pod.uid: remember(Reason.EVICTION_ERROR, "no", None, NOW, 0.0) for pod in pods[:8]}
    plan = planned(make_work(*pods, evictions=memories), now=at(1))
    assert [pod.name for pod in plan.evict] == ["p-08", "p-09"]
    assert plan.next_wake == at(2)


def test_while_the_server_is_busy_only_the_pod_that_it_refused_waits() -> None:
    busy, other = make_pod("busy"), make_pod("other")
    memories = {busy.uid: make_memory(Reason.THROTTLED, next_try=at(7))}
    plan = planned(make_work(busy, other, evictions=memories), now=at(1))
    assert (plan.evict, plan.next_wake) == ((other,), at(7))
    assert [(one.reason, one.pods) for one in plan.blockers] == [(Reason.THROTTLED, (busy.ref,))]
    later = make_work(busy, other, evictions=memories, listed_at=at(7))
    assert planned(later, now=at(7)).evict == (other, busy)


def test_a_pod_that_the_server_does_not_know_is_asked_for_again_only_when_a_newer_list_shows_it() -> None:
    pod = make_pod("gone")
    memories = {pod.uid: remember(Reason.PODS_LEAVING, "", None, at(1), 0.0)}
    old = drain_pass(make_work(pod, evictions=memories), now=at(60))
    assert (old.plan.evict, old.waiting, old.plan.holders, old.plan.blockers) == ((), (pod,), 1, ())
    newer = make_work(pod, evictions=memories, listed_at=at(4))
    assert planned(newer, now=at(60)).evict == (pod,)
    assert planned(newer, now=at(60)).blockers == ()


def test_a_list_from_before_an_answer_was_lost_says_nothing_about_that_pod() -> None:
    """The eviction may have been accepted: a slow server's LIST of before shows the pod as if nothing had happened."""
    pod = make_pod("asked")
    memories = {pod.uid: remember(Reason.EVICTION_ERROR, "timed out", None, at(1), 0.0)}
    old = planned(make_work(pod, evictions=memories), now=at(60))
    assert (old.evict, old.holders) == ((), 1)
    newer = make_work(pod, evictions=memories, listed_at=at(2))
    assert planned(newer, now=at(60)).evict == (pod,)


def test_an_accepted_eviction_is_never_repeated_whatever_a_newer_list_shows() -> None:
    pod = make_pod("slow")
    memories = {pod.uid: remember(Reason.EVICTED, "", None, at(1), 0.0)}
    for listed in (0, 1, 4, 3600):
        found = drain_pass(make_work(pod, evictions=memories, listed_at=at(listed)), now=at(9999))
        assert (found.plan.evict, found.waiting) == ((), (pod,))


def test_refused_pods_do_not_crowd_out_those_not_tried_yet() -> None:
    pods = [make_pod(f"p-{n:02}") for n in range(12)]
    refused = {pod.uid: make_memory(Reason.EVICTION_ERROR, next_try=NOW) for pod in pods[:10]}
    plan = planned(make_work(*pods, evictions=refused))
    assert [pod.name for pod in plan.evict][:2] == ["p-10", "p-11"]
    assert len(plan.evict) == MAX_EVICTIONS


def test_one_full_budget_does_not_hold_up_another() -> None:
    pods = [make_pod("a"), make_pod("b"), make_pod("c", labels={"app": "web"}), make_pod("d", labels={"app": "web"})]
    pdbs = [make_pdb(allowed=0, current=2), make_pdb("web", match_labels={"app": "web"}, allowed=5)]
    plan = planned(make_work(*pods, pdbs=pdbs))
    assert [pod.name for pod in plan.evict] == ["a", "c", "d"]
    assert [(b.reason, b.pods, b.pdb) for b in plan.blockers] == [(Reason.PDB, ("team-a/a", "team-a/b"), "team-a/llm")]


def test_a_blocker_stays_while_its_pod_is_tried_again_and_its_text_does_not_flap() -> None:
    pods = [make_pod("a"), make_pod("b")]
    pdbs = [make_pdb(allowed=0, current=2)]
    refused = {pod.uid: make_memory(Reason.PDB, "needs 2 and has 2", next_try=at(5)) for pod in pods[:1]}
    work = make_work(*pods, pdbs=pdbs, evictions=refused)
    waiting = planned(work, now=at(1))
    retrying = planned(work, now=at(5))
    assert [pod.name for pod in waiting.evict] == ["b"]
    assert retrying.evict != ()
    assert waiting.blockers == retrying.blockers
    (blocker,) = waiting.blockers
    assert (blocker.reason, blocker.pods, blocker.pdb) == (Reason.PDB, ("team-a/a", "team-a/b"), "team-a/llm")
    assert not lacks(blocker.message, "0 disruptions", "2 of 3", "2 must be", '"needs 2 and has 2"')


def test_a_node_whose_pods_could_not_be_listed_is_not_idle() -> None:
    plan = planned(make_work(error="timed out"))
    assert not plan.idle
    assert plan.evict == ()
    assert plan.blockers == (Blocker(Reason.LIST_FAILED, message="timed out"),)


def test_a_blocked_pod_keeps_the_node_from_being_idle() -> None:
    plan = planned(make_work(make_pod(owner=None)))
    assert (plan.holders, plan.idle) == (1, False)


def test_preflight_names_everything_at_once() -> None:
    pods = [
        make_pod("bare", owner=None),
        make_pod("old", resources={"nvidia.com/mig-1g.10gb": 1}, labels={}),
        make_pod("two", labels={"app": "x", "tier": "y"}),
        make_pod("single", labels={"app": "single"}),
        make_pod("stuck", deleted_at=at(-61)),
    ]
    pdbs = [
        make_pdb("x", match_labels={"app": "x"}),
        make_pdb("y", match_labels={"tier": "y"}),
        make_pdb("single", match_labels={"app": "single"}, allowed=0, expected=1, desired=1, current=1),
    ]
    found = foreseen(make_work(*pods, pdbs=pdbs))
    assert [(b.reason, b.pods, b.pdb) for b in found] == [
        (Reason.PDB_CONFLICT, ("team-a/two",), "team-a/x, team-a/y"),
        (Reason.PDB_NEVER_ALLOWS, ("team-a/single",), "team-a/single"),
        (Reason.UNMANAGED, ("team-a/bare",), ""),
        (Reason.STRANDED_PODS, ("team-a/old",), ""),
        (Reason.TERMINATING_STUCK, ("team-a/stuck",), ""),
    ]
    assert main_reason(found) is found[0].reason
    assert explain_blockers(found)[0].startswith("PDBConflict team-a/x, team-a/y: Pod team-a/two.")


def test_a_clean_node_passes_preflight() -> None:
    work = make_work(make_pod(), make_pod("going", deleted_at=at(30)), pdbs=[make_pdb()])
    assert foreseen(work) == ()


# --- properties ---------------------------------------------------------------------------------------------

seconds = st.integers(-120, 120).map(at)
answers = [
    Reason.PDB,
    Reason.PDB_NOT_OBSERVED,
    Reason.THROTTLED,
    Reason.EVICTION_ERROR,
    Reason.FORBIDDEN,
    Reason.EVICTED,
    Reason.NAMESPACE_TERMINATING,
]


@st.composite
def memories(draw: st.DrawFn) -> EvictionMemory:
    since, tries = draw(seconds), draw(st.integers(1, 9))
    reason = draw(st.sampled_from(answers))
    return make_memory(reason, "text", since=since, next_try=since + timedelta(seconds=tries * 9), tries=tries)


pods = st.builds(
    make_pod,
    name=st.sampled_from("abcdefghijklmnop"),
    namespace=st.sampled_from(["team-a", "team-b", OPERATOR]),
    phase=st.sampled_from(["Running", "Running", "Running", "Pending", "Succeeded", "Failed"]),
    labels=st.sampled_from([{}, {"app": "llm"}, {"app": "web"}]),
    owner=st.sampled_from([REPLICA_SET, REPLICA_SET, JOB, DAEMON_SET, None]),
    mirror=st.sampled_from([False, False, False, True]),
    resources=st.sampled_from([{}, {"nvidia.com/gpu": 1}, {"nvidia.com/mig-1g.10gb": 1}]),
    dra=st.sampled_from(["none", "none", "gpu", "unresolved"]),
    deleted_at=st.none() | seconds,
    ready=st.booleans(),
)
budgets = st.builds(
    make_pdb,
    name=st.sampled_from(["p", "q"]),
    namespace=st.sampled_from(["team-a", "team-b"]),
    match_labels=st.sampled_from([{"app": "llm"}, {"app": "web"}]),
    allowed=st.integers(0, 3),
    current=st.integers(0, 3),
)


@st.composite
def drains(draw: st.DrawFn) -> tuple[list[PodView], DrainPass, DrainPass]:
    """A node's pods, a pass over them, and one over the same input in another order."""
    some = draw(st.lists(pods, max_size=14, unique_by=lambda pod: pod.ref))
    some_pdbs = draw(st.lists(budgets, max_size=3, unique_by=lambda pdb: (pdb.namespace, pdb.name)))
    remembered = {pod.uid: m for pod in some if (m := draw(st.none() | memories())) is not None}
    options = Drain(
        unmanaged_pods=draw(st.sampled_from(["Block", "Evict"])), stranded_pods=draw(st.sampled_from(["Hold", "Allow"]))
    )
    passes = [
        drain_pass(make_work(*order, pdbs=pdbs, evictions=remembered), options)
        for order, pdbs in ((some, some_pdbs), (draw(st.permutations(some)), some_pdbs[::-1]))
    ]
    return some, passes[0], passes[1]


@given(drains())
@settings(max_examples=150, deadline=None)
def test_what_holds_in_every_drain(drain: tuple[list[PodView], DrainPass, DrainPass]) -> None:
    some, found, reordered = drain
    assert found == reordered
    plan = found.plan
    for pod in plan.evict:
        assert pod.phase in ("Running", "Pending")
        assert not pod.mirror
        assert pod.deleted_at is None
        assert pod.owner is not DAEMON_SET
        assert pod.dra == "none"
    assert len(plan.evict) <= MAX_EVICTIONS
    assert not {pod.uid for pod in plan.evict} & {pod.uid for pod in found.waiting}
    named = {ref for blocker in plan.blockers for ref in blocker.pods}
    answered = {pod.ref for pod in (*plan.evict, *found.waiting, *found.later)} | named
    holders = {pod.ref for pod in some if _must_leave(pod)}
    assert answered == holders
    assert plan.holders == len(holders)
    assert plan.next_wake is None or plan.next_wake > NOW


@given(st.lists(pods, min_size=1, max_size=14, unique_by=lambda pod: pod.ref), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_a_drain_that_the_server_lets_through_evicts_each_pod_once_and_ends(some: list[PodView], grace: int) -> None:
    evicted: list[str] = []
    evictions: dict[str, EvictionMemory] = {}
    alive, now = list(some), NOW
    for _ in range(40):
        found = drain_pass(make_work(*alive, evictions=evictions), now=now)
        plan = found.plan
        for pod in plan.evict:
            evicted.append(pod.uid)
            evictions[pod.uid] = remember(Reason.EVICTED, "", None, now, 0.0)
        leaving = {uid for uid, memory in evictions.items() if now >= memory.since + timedelta(seconds=grace)}
        alive = [pod for pod in alive if pod.uid not in leaving]
        now += timedelta(seconds=1)
    assert len(evicted) == len(set(evicted))
    assert plan.evict == found.later == ()


def _must_leave(pod: PodView) -> bool:
    """Said in other words than the filters do: it lives, asks for a GPU, and is not NVIDIA's own."""
    operand = pod.owner is DAEMON_SET and pod.namespace == OPERATOR and not pod.mirror
    return pod.phase not in ("Succeeded", "Failed") and bool(pod.resources or pod.dra != "none") and not operand


def test_a_refusal_of_an_earlier_drain_does_not_keep_the_next_one_from_beginning() -> None:
    pod = make_pod()
    for reason in (Reason.PDB, Reason.EVICTION_ERROR, Reason.FORBIDDEN):
        work = make_work(pod, evictions={pod.uid: make_memory(reason, next_try=at(5))})
        assert [blocker.reason for blocker in foreseen(work, at(4))] == [reason]
        assert foreseen(work, at(5)) == ()


# --- what is remembered of an answer to an eviction -----------------------------------------------------------------


def _waits(answer: Reason, times: int, jitter: float = 0.0) -> list[float]:
    memory: EvictionMemory | None = None
    now, waits = NOW, []
    for _ in range(times):
        memory = remember(answer, "no", memory, now, jitter)
        waits.append((memory.next_try - now).total_seconds())
        now = memory.next_try
    return waits


def test_the_wait_doubles_from_5_to_60_seconds() -> None:
    assert _waits(Reason.PDB, 6) == [5, 10, 20, 40, 60, 60]


def test_jitter_shortens_a_wait_by_a_quarter_at_most_and_never_below_5_seconds() -> None:
    waits = _waits(Reason.PDB, 6, jitter=0.999)
    assert waits[0] == 5
    assert 45 <= waits[-1] < 45.1


def test_retry_after_is_honoured_within_reason() -> None:
    assert remember(Reason.PDB, "", None, NOW, 0.5, retry_after=10).next_try == at(10)
    assert remember(Reason.THROTTLED, "", None, NOW, 0.5, retry_after=0).next_try == at(1)
    assert remember(Reason.PDB, "", None, NOW, 0.5, retry_after=86400).next_try == at(300)
    assert remember(Reason.THROTTLED, "", None, NOW, 0.5, retry_after=86400).next_try == at(60)


def test_a_budget_that_is_not_worked_out_yet_is_told_apart_by_its_retry_after() -> None:
    assert remember(Reason.PDB, "", None, NOW, 0, retry_after=10).reason == Reason.PDB_NOT_OBSERVED
    assert remember(Reason.PDB, "", None, NOW, 0).reason == Reason.PDB


def test_since_and_tries_go_on_only_while_the_answer_stays_the_same() -> None:
    first = remember(Reason.PDB, "needs 2", None, NOW, 0)
    same = remember(Reason.PDB, "needs 3", first, at(5), 0)
    assert (same.since, same.tries, same.message) == (NOW, 2, "needs 3")
    other = remember(Reason.EVICTION_ERROR, "two budgets", same, at(15), 0)
    assert (other.since, other.tries) == (at(15), 1)


def test_what_only_a_person_can_change_is_asked_slowly() -> None:
    assert _waits(Reason.FORBIDDEN, 2) == [300, 300]
    assert _waits(Reason.INTERNAL_ERROR, 1) == [300]


def test_a_reason_that_is_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="not an answer"):
        remember(Reason.BUDGET_FULL, "", None, NOW, 0)


def test_a_pod_that_is_said_to_be_gone_while_lists_show_it_becomes_an_error() -> None:
    memory = None
    for tries in range(1, 4):
        assert not is_odd(memory)
        memory = remember(Reason.PODS_LEAVING, "", memory, NOW, 0)
        assert memory.tries == tries
    assert is_odd(memory)
    assert is_odd(make_memory(Reason.EVICTION_ERROR)), "and stays one"


# --- how blockers are told -----------------------------------------------------------------------------------------


def test_a_line_names_budget_pods_server_text_and_remedy() -> None:
    blocker = Blocker(
        Reason.PDB_NEVER_ALLOWS,
        ("team-a/llm-0", "team-a/llm-1"),
        "team-a/llm-serving",
        "The budget allows 0 disruptions: 2 of 2 pods are healthy, and 2 must be."
        ' Server: "needs 2 healthy pods and has 2"',
    )
    (line,) = explain_blockers([blocker])
    assert line.startswith("PDBNeverAllows team-a/llm-serving: ")
    assert not lacks(
        line,
        "team-a/llm-0, team-a/llm-1",
        "0 disruptions",
        "2 of 2",
        "2 must be",
        'Server: "needs 2 healthy pods and has 2"',
        Reason.PDB_NEVER_ALLOWS.remedy,
    )


def test_a_blocker_without_pods_has_its_message_after_the_reason() -> None:
    (line,) = explain_blockers([Blocker(Reason.LIST_FAILED, message="pods is forbidden")])
    assert line.startswith("ListFailed: pods is forbidden. Remedy: ")


def test_three_pods_are_named_and_the_others_counted() -> None:
    blockers = [Blocker(Reason.UNMANAGED, (f"a/{n}",)) for n in (5, 3, 1, 4, 2)]
    (line,) = explain_blockers(blockers)
    assert line.startswith("Unmanaged: Pods a/1, a/2, a/3, ... (2 more). Remedy: "), line


def test_five_lines_at_most_the_most_urgent_first_in_any_order_of_input() -> None:
    blockers = [
        Blocker(Reason.UNMANAGED, ("a/x",)),
        *(Blocker(Reason.PDB, (f"a/{n}",), f"a/pdb-{n}") for n in range(5)),
        Blocker(Reason.DRA_CLAIM, ("z/y",)),
    ]
    lines = explain_blockers(blockers)
    assert len(lines) == MAX_LINES
    assert [line.split(":")[0] for line in lines[:-1]] == ["Unmanaged", "DRAClaim", "PDB a/pdb-0", "PDB a/pdb-1"]
    assert lines[-1] == "... (3 more)"
    assert explain_blockers(reversed(blockers)) == lines
    assert len(explain_blockers(blockers[:5])) == 5


def test_a_long_or_broken_server_text_stays_on_one_bounded_line() -> None:
    (line,) = explain_blockers([Blocker(Reason.EVICTION_ERROR, ("a/b",), message="x\ny " * 1000)])
    assert "\n" not in line
    assert len(line) < 700


def test_blockers_that_differ_in_their_pods_only_become_one() -> None:
    one, two = Blocker(Reason.PDB, ("a/2", "a/1"), "a/p"), Blocker(Reason.PDB, ("a/3", "a/1"), "a/p")
    assert merge([two, one]) == (Blocker(Reason.PDB, ("a/1", "a/2", "a/3"), "a/p"),)


def test_the_culprit_is_the_first_pod_of_what_needs_a_person() -> None:
    waits = Blocker(Reason.PDB, ("a/1", "a/2"), "a/p")
    person = Blocker(Reason.UNMANAGED, ("b/1",))
    assert culprit([waits]) == "a/1 +1"
    assert culprit([waits, person]) == "b/1 +2"
    assert main_reason([waits, person]) is Reason.UNMANAGED
    assert culprit([Blocker(Reason.LIST_FAILED)]) == ""
    assert culprit([person]) == "b/1"
    assert main_reason([]) is None
