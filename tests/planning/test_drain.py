"""Named drains; the rows of the conformance table are in tests/conformance/drain_cases.yaml."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.build import DAEMON_SET, JOB, NOW, REPLICA_SET, at, make_memory, make_pdb, make_pod, make_work
from tests.planning.drainpass import OPERATOR, DrainPass, drain_pass, foreseen, planned
from tests.wording import lacks

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.evictions import MAX_EVICTIONS, remember
from gpusharing.planning.snapshot.podviews import EvictionMemory, PodView
from gpusharing.planning.vocabulary.findings import Blocker
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
        (Reason.STRANDED_PODS, ("team-a/old",), ""),
        (Reason.TERMINATING_STUCK, ("team-a/stuck",), ""),
        (Reason.UNMANAGED, ("team-a/bare",), ""),
    ]


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
    assert not set(_uids(plan.evict)) & set(_uids(found.waiting))
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


def _uids(some: tuple[PodView, ...]) -> list[str]:
    return [pod.uid for pod in some]


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
