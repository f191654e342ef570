"""One policy's nodes together: the budget, who starts, in which order, and what blocked candidates do to the others."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NOW,
    ask_anew,
    at,
    make_claim,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_pdb,
    make_pod,
    make_policy,
    make_work,
)
from tests.planning.cases import MIXED, assessed_of, make_case, make_member
from tests.planning.drainpass import roomy
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.maintenance import TAINT_MARKERS
from gpusharing.planning.pools.candidates import PassState, Selection, find_unlisted, stand
from gpusharing.planning.pools.choice import LOOKAHEAD, select
from gpusharing.planning.pools.holds import wait_for
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.memory import FIRST_LOOKS, LOOKS, Look, count_recent, find_due
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import Deferred, SpecVersion, Verified
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.cases import Member, is_unavailable
from gpusharing.planning.transition.fencing import marks_for, unmarked
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

OFFERED = roomy("nvidia.com/gpu", "nvidia.com/mig-3g.40gb")
EMPTY = make_work()


def candidate(name: str, work: NodeWork | None = EMPTY, *, pods: int = 0, claimed: bool = False) -> NodeCase:
    """A node of pool b that waits for a slot; whole, to become 2x3g.40gb."""
    report = make_gpunode(name, gpus=(make_gpu(),), pods=pods)
    case = make_case(MIXED, work=work, claimed=claimed, gpunode=report)
    return replace(case, node=replace(case.node, name=name, uid=f"uid-{name}"))


def chosen(
    *cases: NodeCase,
    limit: object = 1,
    used: int = 0,
    moving: int = 0,
    cap: int = 100,
    policy: PolicyView = MIXED,
    total: int = 10,
    state: PassState | None = None,
    members: list[Member] | None = None,
) -> Selection:
    """What a pool of `total` nodes does with these candidates."""
    assert policy.spec is not None
    rollout = policy.spec.rollout.model_copy(update={"max_unavailable": limit})
    policy = replace(policy, spec=policy.spec.model_copy(update={"rollout": rollout}))
    names = [f"n{n}" for n in range(total)]
    compared = [
        case if case.version == policy.version else replace(case, assessment=replace(assessed_of(case), policy=policy))
        for case in cases
    ]
    pool = Pool(policy, names, used, compared, moving=moving, members=members or [])
    return with_waits(select(pool.with_hours(NOW), unlisted_of(pool), cap, state or PassState(OFFERED, NOW)))


def unlisted_of(pool: Pool) -> tuple[str, ...]:
    return find_unlisted(tuple(pool.candidates))


def with_waits(selection: Selection) -> Selection:
    """The selection with the verdicts of the candidates that wait or are still blocked, as `choose` adds them."""
    waits = {
        case.node.name: wait_for(case, why, for_slot=for_slot)
        for why, for_slot, cases in selection.waiting
        for case in cases
    }
    standing = {name: stand(case, look, again=again) for name, (case, look, again) in selection.standing.items()}
    return replace(selection, verdicts={**waits, **standing, **selection.verdicts})


def fenced(selection: Selection) -> list[str]:
    return sorted(
        name
        for name, verdict in selection.verdicts.items()
        if any(isinstance(action, FenceNode) for action in verdict.actions)
    )


def fence_of(case: NodeCase) -> FenceNode:
    (action,) = chosen(case).verdicts[case.node.name].actions
    assert isinstance(action, FenceNode)
    return action


THREE = [candidate(f"c{n}") for n in range(3)]
BUDGETS: dict[str, tuple[object, int, int, int]] = {
    "one at a time": (1, 0, 100, 1),
    "two at a time": (2, 0, 100, 2),
    "nodes that are away already count": (2, 1, 100, 1),
    "more are away than may be": (2, 3, 100, 0),
    "a percentage rounds down": ("29%", 0, 100, 2),
    "a small percentage is at least one": ("1%", 0, 100, 1),
    "all at once": ("100%", 0, 100, 3),
    "zero freezes": (0, 0, 100, 0),
    "zero percent freezes": ("0%", 0, 100, 0),
    "nonsense freezes": ("1000a%", 0, 100, 0),
    "a negative number freezes": (-1, 0, 100, 0),
    "the operator-wide cap": (3, 0, 2, 2),
    "the operator-wide cap is used up": (3, 0, 0, 0),
}


@pytest.mark.parametrize(("limit", "used", "cap", "started"), BUDGETS.values(), ids=BUDGETS.keys())
def test_how_many_of_three_candidates_start(limit: object, used: int, cap: int, started: int) -> None:
    selection = chosen(*THREE, limit=limit, used=used, cap=cap)
    assert len(fenced(selection)) == started
    assert selection.claims.keys() == set(fenced(selection))
    assert selection.verdicts.keys() == {"c0", "c1", "c2"}


def test_who_waits_is_told_whether_the_budget_is_full_or_frozen() -> None:
    full, frozen = chosen(*THREE, used=1), chosen(*THREE, limit=0)
    assert {(v.phase, v.reason) for v in full.verdicts.values()} == {(Phase.PENDING, Reason.BUDGET_FULL)}
    assert {(v.phase, v.reason) for v in frozen.verdicts.values()} == {(Phase.PENDING, Reason.FROZEN)}


WHO_IS_TO_BLAME = {
    "the budget": (1, 1, 100, "spec.rollout.maxUnavailable allows 1 of 10"),
    "the budget, whatever the cap": (1, 1, 0, "spec.rollout.maxUnavailable allows 1 of 10"),
    "the cap": (3, 1, 0, "operator.maxInFlight"),
    "the cap, from the second node on": (3, 0, 1, "operator.maxInFlight"),
    "the budget, from the second node on": (1, 0, 1, "spec.rollout.maxUnavailable allows 1 of 10"),
}


@pytest.mark.parametrize(("limit", "used", "cap", "said"), WHO_IS_TO_BLAME.values(), ids=WHO_IS_TO_BLAME.keys())
def test_who_waits_is_told_which_limit_is_reached(limit: int, used: int, cap: int, said: str) -> None:
    verdicts = chosen(*THREE, limit=limit, used=used, cap=cap).verdicts.values()
    waiting = [verdict.message for verdict in verdicts if verdict.reason is Reason.BUDGET_FULL]
    assert waiting
    assert all(said in message for message in waiting)


AWAY = {
    "not Ready": make_node(ready=False),
    "cordoned by anybody": make_node(unschedulable=True),
    "being deleted": make_node(deleting=True),
    "fenced, though not cordoned": make_node(fence=make_fence(disruption=DisruptionClass.PLUGIN_RESTART)),
    "fenced by what cannot be read": make_node(fence_error="not JSON"),
    "not Ready and cordoned: once": make_node(ready=False, unschedulable=True),
}


@pytest.mark.parametrize("node", AWAY.values(), ids=AWAY.keys())
def test_a_node_counts_as_away(node: Any) -> None:
    assert is_unavailable(node) is True
    assert is_unavailable(make_node()) is False


def test_the_order_is_claimed_first_then_fewest_pods_then_a_stable_shuffle() -> None:
    busy, free, kept = candidate("busy", pods=3), candidate("free"), candidate("kept", pods=9, claimed=True)
    assert fenced(chosen(busy, free, kept)) == ["kept"]
    assert fenced(chosen(busy, free)) == ["free"]
    assert fenced(chosen(*THREE)) == fenced(chosen(*reversed(THREE)))


def test_nodes_of_a_new_revision_are_shuffled_anew_but_always_alike() -> None:
    many = [candidate(f"c{n}") for n in range(20)]
    first = {fenced(chosen(*many, policy=replace(MIXED, uid=f"uid-{n}")))[0] for n in range(8)}
    assert len(first) > 1
    assert fenced(chosen(*many)) == fenced(chosen(*many))


BLOCKED = make_work(make_pod("db-0", owner=None))


def test_a_blocked_node_is_named_keeps_no_slot_and_does_not_stop_the_others() -> None:
    selection = chosen(candidate("stuck", BLOCKED, claimed=True), candidate("free", pods=5))
    assert fenced(selection) == ["free"]
    verdict = selection.verdicts["stuck"]
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.UNMANAGED, ())
    assert verdict.wake == at(5)
    assert not verdict.wants_pods, "what was just looked at is looked at again at the next poll"
    assert selection.looks["stuck"] == Look(make_policy().version, "", NOW, 1, verdict.blockers)
    behind = chosen(candidate("stuck", BLOCKED), candidate("free", pods=5))
    assert fenced(behind) == ["free"]
    assert behind.verdicts["stuck"].reason is Reason.BUDGET_FULL


def after_looks(selection: Selection, seconds: float, **fields: Any) -> PassState:
    """The next pass, so many seconds later, that remembers the looks of this one."""
    state = PassState(OFFERED, at(seconds), selection.looks, **fields)
    state.due = find_due(selection.looks.items(), at(seconds), 5.0)
    return state


def test_between_two_looks_a_blocked_node_shows_what_blocks_it_and_is_not_listed() -> None:
    first = chosen(candidate("stuck", BLOCKED))
    waiting = chosen(candidate("stuck", None), state=after_looks(first, 4)).verdicts["stuck"]
    assert (waiting.phase, waiting.reason, waiting.wants_pods) == (Phase.BLOCKED, Reason.UNMANAGED, False)
    assert (waiting.message, waiting.blockers) == (
        first.verdicts["stuck"].message,
        first.verdicts["stuck"].blockers,
    )
    assert waiting.wake is None, "so that the verdict stays the same while the clock goes on"
    due = chosen(candidate("stuck", None), state=after_looks(first, 5)).verdicts["stuck"]
    assert (due.phase, due.reason, due.wants_pods) == (Phase.BLOCKED, Reason.UNMANAGED, True)


def test_the_longer_a_node_is_blocked_the_less_often_it_is_looked_at_but_once_a_minute() -> None:
    moments, state, seconds = [], PassState(OFFERED, NOW), 0.0
    for _ in range(8):
        work = replace(BLOCKED, listed_at=at(seconds))
        look = chosen(candidate("stuck", work), state=state).looks["stuck"]
        seconds = (look.due(5.0) - NOW).total_seconds()
        moments.append(seconds)
        state = PassState(OFFERED, at(seconds), {"stuck": look})
    assert moments == [5, 15, 35, 75, 135, 195, 255, 315]


def test_a_look_is_worth_nothing_for_another_revision_or_when_a_person_asks_for_another_try() -> None:
    first = chosen(candidate("stuck", BLOCKED))
    edited = chosen(candidate("stuck", None), state=after_looks(first, 1), policy=ask_anew(MIXED))
    assert edited.verdicts["stuck"].phase is Phase.PREFLIGHT
    again = chosen(candidate("stuck", None), state=after_looks(first, 1), policy=replace(MIXED, uid="another"))
    assert again.verdicts["stuck"].phase is Phase.PREFLIGHT
    case = candidate("stuck", None)
    case = replace(case, node=replace(case.node, retry="now"))
    assert chosen(case, state=after_looks(first, 1)).verdicts["stuck"].phase is Phase.PREFLIGHT


def test_while_many_nodes_were_found_blocked_within_a_poll_no_further_one_is_looked_at() -> None:
    fresh = [candidate(f"c{n}", None) for n in range(3)]
    held = chosen(*fresh, state=PassState(OFFERED, NOW, recent=FIRST_LOOKS))
    assert not any(verdict.wants_pods for verdict in held.verdicts.values())


def test_a_blocked_node_is_remembered_while_no_slot_is_free() -> None:
    first = chosen(candidate("stuck", BLOCKED))
    full = chosen(candidate("stuck", None), used=1, state=after_looks(first, 60))
    assert full.verdicts["stuck"].reason is Reason.BUDGET_FULL
    assert full.looks == first.looks


GUARDED = make_work(make_pod(), pdbs=[make_pdb(allowed=1)])
ROOMY = make_work(make_pod(), pdbs=[make_pdb(allowed=3)])


def test_of_four_nodes_under_one_budget_as_many_start_as_it_allows_pods_to_go() -> None:
    selection = chosen(*(candidate(f"c{n}", GUARDED) for n in range(4)), limit=4)
    (started,) = fenced(selection)
    held = [verdict for name, verdict in selection.verdicts.items() if name != started]
    assert {(v.phase, v.reason, v.wants_pods) for v in held} == {(Phase.PENDING, Reason.PDB_IN_USE, False)}
    (message,) = {verdict.message for verdict in held}
    assert message.startswith("PDBInUse team-a/llm: Pod team-a/llm-0. ")
    assert message.endswith(f" {started}.")
    assert {verdict.wake for verdict in held} == {at(5)}
    assert len(fenced(chosen(*(candidate(f"c{n}", ROOMY) for n in range(4)), limit=4))) == 3


def test_a_node_that_no_budget_guards_starts_beside_one_that_uses_up_a_budget() -> None:
    selection = chosen(candidate("free"), candidate("guarded", GUARDED), candidate("second", GUARDED), limit=3)
    assert len(fenced(selection)) == 2
    assert "free" in fenced(selection)


def test_a_node_in_flight_keeps_its_budgets_neighbors_from_starting_until_its_pods_are_asked_to_go() -> None:
    case = candidate("c", GUARDED)
    crowded = chosen(case, state=PassState(OFFERED, NOW, crowd={"team-a/llm": Counter({"n": 1})}))
    assert fenced(crowded) == []
    assert crowded.looks["c"].tries == 1
    again = chosen(case, state=PassState(OFFERED, NOW, crowded.looks, crowd={"team-a/llm": Counter({"n": 1})}))
    assert again.looks["c"].tries == 1, "others make room within seconds: the waits do not grow"
    assert fenced(chosen(case, state=PassState(OFFERED, NOW, crowd={"team-a/other": Counter({"n": 9})}))) == ["c"]


def test_while_the_pods_of_a_node_in_flight_are_not_known_no_guarded_node_starts() -> None:
    unknown = chosen(candidate("c", GUARDED), state=PassState(OFFERED, NOW, crowd_known=False))
    verdict = unknown.verdicts["c"]
    assert (fenced(unknown), verdict.phase, verdict.wants_pods) == ([], Phase.PREFLIGHT, True)
    assert fenced(chosen(candidate("c"), state=PassState(OFFERED, NOW, crowd_known=False))) == ["c"]


def test_pods_are_listed_for_no_more_than_the_room_and_a_little_ahead() -> None:
    unlisted = [candidate(f"c{n}", None) for n in range(9)]
    selection = chosen(*unlisted, limit=2)
    assert sum(verdict.wants_pods for verdict in selection.verdicts.values()) == 2 + LOOKAHEAD
    assert fenced(selection) == []
    phases = Counter(verdict.phase for verdict in selection.verdicts.values())
    assert phases == {Phase.PREFLIGHT: 2 + LOOKAHEAD, Phase.PENDING: 9 - 2 - LOOKAHEAD}


def test_what_waiting_nodes_say_does_not_change_while_others_come_and_go() -> None:
    many = [candidate(f"c{n}") for n in range(9)]
    said = {
        verdict.message
        for used in (1, 2, 3)
        for verdict in chosen(*many, limit=4, used=used).verdicts.values()
        if verdict.reason is Reason.BUDGET_FULL
    }
    (waiting,) = said
    assert not lacks(waiting, "spec.rollout.maxUnavailable", "4 of 10 nodes", "slot")


def test_pods_that_no_node_could_run_afterwards_hold_the_change_unless_allowed() -> None:
    work = make_work(make_pod(resources={"nvidia.com/gone": 1, "nvidia.com/mig-7g.80gb": 1}))
    held = chosen(candidate("c", work)).verdicts["c"]
    assert held.reason is Reason.STRANDED_PODS
    allowing = make_policy(drain={"strandedPods": "Allow"})
    case = replace(candidate("c", work), assessment=make_case(allowing).assessment)
    assert fenced(chosen(case, policy=allowing)) == ["c"]


def test_the_fence_records_everything_that_an_abort_or_a_restart_needs() -> None:
    selection = chosen(candidate("c"))
    (action,) = selection.verdicts["c"].actions
    assert isinstance(action, FenceNode)
    fence = action.fence
    assert action.cordon
    assert action.labels == {**names.NEIGHBOR_LABELS, names.LABEL_MODE: None}
    assert all(map(is_rewritten, action.labels)), "none of them may select the nodes of a pool"
    marks = (*names.NEIGHBOR_LABELS, *names.NEIGHBOR_ANNOTATIONS)
    assert (fence.added, fence.from_mode, fence.stage) == (marks, "full", "fenced")
    assert (fence.disruption, fence.since, fence.deadline) == (DisruptionClass.RESET, NOW, at(905))
    assert (fence.to_layout, fence.node_uid) == ("2x3g.40gb", "uid-c")
    assert selection.claims == {"c": make_claim("uid-c", op=fence.op)}


@pytest.mark.parametrize("cordoned", [True, False], ids=["was there", "was not there"])
def test_the_fence_records_whether_a_cordon_was_there_before(cordoned: bool) -> None:
    case = candidate("c")
    action = fence_of(replace(case, node=replace(case.node, unschedulable=cordoned)))
    assert action.fence.prior_unschedulable is cordoned


def test_a_neighbor_mark_that_was_there_is_not_ours_to_take_away() -> None:
    case = candidate("c")
    node = replace(case.node, labels={**case.node.labels, **names.NEIGHBOR_LABELS})
    action = fence_of(replace(case, node=node))
    assert action.fence.added == names.NEIGHBOR_ANNOTATIONS
    assert names.LABEL_UPGRADE_SKIP not in action.labels


def test_a_plugin_restart_starts_without_cordon_and_without_looking_at_pods_or_waiting_for_looks() -> None:
    case = candidate("c", None)
    mild = replace(case, assessment=replace(assessed_of(case), disruption=DisruptionClass.PLUGIN_RESTART))
    action = fence_of(mild)
    assert not action.cordon
    assert action.labels == names.NEIGHBOR_LABELS
    assert fenced(chosen(mild, state=PassState(OFFERED, NOW, recent=FIRST_LOOKS))) == ["c"]


# --- halted, and a person wants a node tried again that went back --------------------------------------------------


def went_back(name: str) -> NodeCase:
    """A candidate that went back in this generation and was asked for again, so that its gates let it through."""
    case = candidate(name)
    version = MIXED.version
    record = Verified(
        MIXED.name, "a", "b", layout="1x full", gpus=1, version=version, failed_version=version, rolled_back=True
    )
    return replace(case, node=replace(case.node, verified=record, retry="again"))


def gave_up(name: str) -> NodeCase:
    """A candidate that failed in this generation and was given back to begin anew, when a person wanted that."""
    case = candidate(name)
    given = Deferred(0, NOW, "PodsLeaving", MIXED.version, "again", MIXED.version)
    return replace(case, node=replace(case.node, deferred=given, retry="again"))


def halted(approval: str = "Automatic", *, failed: Any = went_back) -> Selection:
    """What a pool does in which n1 failed, and n2 was not begun with."""
    assert MIXED.spec is not None
    rollout = MIXED.spec.rollout.model_copy(update={"max_unavailable": 2, "approval": approval})
    policy = replace(MIXED, spec=MIXED.spec.model_copy(update={"rollout": rollout}))
    cases = [failed("n1"), candidate("n2")]
    members = [make_member(one.node, one.verdict(Phase.PENDING, Reason.PROGRESSING, "")) for one in cases]
    pool = Pool(policy, ["n1", "n2"], 0, cases, members=members).with_hours(NOW)
    return with_waits(select(pool, unlisted_of(pool), 100, PassState(OFFERED, NOW)))


@pytest.mark.parametrize("failed", [went_back, gave_up])
def test_a_retry_lets_the_node_that_failed_alone_through_a_halted_pool(failed: Any) -> None:
    selection = halted(failed=failed)
    assert fenced(selection) == ["n1"]
    assert selection.verdicts["n2"].reason is Reason.HALTED


def test_what_else_holds_a_retried_node_is_what_it_is_told() -> None:
    """The command in the message of Halted would not help it."""
    selection = halted(approval="Manual")
    assert fenced(selection) == []
    told = {name: verdict.reason for name, verdict in selection.verdicts.items()}
    assert told == {"n1": Reason.APPROVAL_NEEDED, "n2": Reason.HALTED}


# --- marks for neighbors on a fenced Node (docs/design/drain.md#c6) ----------------------------------------------------

KARPENTER, AUTOSCALER = names.NEIGHBOR_ANNOTATIONS


def test_a_fence_keeps_driver_upgrades_autoscalers_and_who_repairs_nodes_away() -> None:
    labels, annotations = marks_for(make_node())

    assert labels == {
        "nvidia.com/gpu-driver-upgrade.skip": "true",
        "nvsentinel.dgxc.nvidia.com/managed": "false",
        "k8saas.nvidia.com/ManagedByNVSentinel": "false",
        "remediation.medik8s.io/exclude-from-remediation": "true",
    }
    assert annotations == {KARPENTER: "true", AUTOSCALER: "true"}


def test_a_cluster_may_have_more_marks_and_may_not_change_ours() -> None:
    more = ("example.com/hands-off=true", "nvidia.com/gpu-driver-upgrade.skip=false")
    labels, _ = marks_for(make_node(labels={"gpusharing.dev/pool": "b"}), more)
    assert labels == {**names.NEIGHBOR_LABELS, "example.com/hands-off": "true"}
    there = make_node(labels={"example.com/hands-off": "for ever"})
    labels, annotations = marks_for(there, more)
    assert "example.com/hands-off" not in labels
    assert "example.com/hands-off" not in unmarked(make_fence(added=(*labels, *annotations)), there)[0]


def test_marks_that_somebody_else_set_are_neither_set_nor_taken_away() -> None:
    theirs = make_node(labels={**names.NEIGHBOR_LABELS, "nvsentinel.dgxc.nvidia.com/managed": "true"})
    theirs = replace(theirs, neighbor_marks=frozenset({KARPENTER}))

    labels, annotations = marks_for(theirs)
    released = unmarked(make_fence(added=(*labels, *annotations)), theirs)

    assert (labels, annotations) == ({}, {AUTOSCALER: "true"})
    assert released == ({}, {AUTOSCALER: None})


def test_a_release_takes_away_exactly_what_the_fence_lists() -> None:
    labels, annotations = unmarked(make_fence(added=(names.LABEL_UPGRADE_SKIP, KARPENTER)), make_node())

    assert labels == {names.LABEL_UPGRADE_SKIP: None}
    assert annotations == {KARPENTER: None}


def test_the_mark_that_medik8s_sets_too_is_left_to_it_while_it_maintains_the_node() -> None:
    fence = make_fence(added=tuple(names.NEIGHBOR_LABELS))
    maintained = make_node(foreign="medik8s NodeMaintenance nm")

    assert names.LABEL_NO_REMEDIATION not in unmarked(fence, maintained)[0]
    assert names.LABEL_NO_REMEDIATION not in unmarked(fence, make_node(foreign=TAINT_MARKERS["medik8s.io/drain"]))[0]
    for other in ("kured reboot", TAINT_MARKERS["remediation.medik8s.io/self-node-remediation"]):
        assert unmarked(fence, make_node(foreign=other))[0].keys() == names.NEIGHBOR_LABELS.keys()


def test_the_marks_of_a_cluster_come_with_the_fence_and_go_with_it() -> None:
    case = candidate("n1")
    case = replace(case, settings=replace(case.settings, neighbor_labels=("example.com/hands-off=true",)))
    action = fence_of(case)
    assert action.labels["example.com/hands-off"] == "true"
    held = replace(case.node, labels={**case.node.labels, "example.com/hands-off": "true"}, fence=action.fence)
    assert unmarked(action.fence, held)[0]["example.com/hands-off"] is None


# --- blocked nodes share a few looks per poll --------------------------------------------------------------------------

POLL = 5.0


def look(seconds: float, tries: int = 1) -> Look:
    return Look(SpecVersion("uid-pool-b", "r1"), "", at(seconds), tries, ())


def test_those_that_wait_longest_come_first_and_no_more_than_a_few_per_poll() -> None:
    looks = {f"n{n:02}": look(-100 + n) for n in range(40)}
    assert find_due(looks.items(), NOW, POLL) == {f"n{n:02}" for n in range(LOOKS)}


def test_looks_of_the_last_poll_count_and_after_many_nobody_is_looked_at_until_the_next() -> None:
    waiting = {f"n{n:02}": look(-100) for n in range(40)}
    looks = waiting | {f"m{n}": look(-n) for n in range(3)}
    assert len(find_due(looks.items(), NOW, POLL)) == LOOKS - 3
    assert count_recent(looks.values(), NOW, POLL) == 3
    assert count_recent(looks.values(), at(5), POLL) == 0
    many = waiting | {f"m{n:02}": look(-1) for n in range(LOOKS + 3)}
    assert find_due(many.items(), NOW, POLL) == frozenset()


def test_nobody_is_looked_at_before_its_time() -> None:
    looks = {"early": look(-4), "due": look(-10, 2), "later": look(-10, 3)}
    assert find_due(looks.items(), NOW, POLL) == {"due"}


def test_forty_blocked_nodes_all_get_their_turn() -> None:
    looks, seen = {f"n{n}": look(-60, 9) for n in range(40)}, []
    for second in range(60):
        for name in find_due(looks.items(), at(second), POLL):
            seen.append(name)
            looks[name] = look(second, 9)
    assert sorted(seen) == sorted(looks)


def test_a_node_that_is_blocked_for_years_is_looked_at_once_a_minute() -> None:
    assert look(0, 10**6).due(POLL) == at(60)
