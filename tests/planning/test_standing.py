"""How a pod stands in its drain: what the server said of it, which budgets guard it, and whether it may go now."""

from dataclasses import replace
from datetime import datetime

import pytest
from tests.build import NOW, at, make_memory, make_pdb, make_pod, make_work
from tests.planning.drainpass import SCOPE

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.standing import Standing, find_standings
from gpusharing.planning.snapshot.podviews import EvictionMemory, PdbView, PodView
from gpusharing.planning.vocabulary.reasons import Reason

SOON = at(9)
BOTH = [make_pdb("b"), make_pdb("a")]
STANDS: dict[str, tuple[PodView, EvictionMemory | None, list[PdbView], list[str], bool, bool]] = {
    "nobody asked for it, nothing guards it": (make_pod(), None, [], [], False, True),
    "one budget guards it, however little that allows": (make_pod(), None, [make_pdb(allowed=0)], ["llm"], False, True),
    "two budgets conflict": (make_pod(), None, BOTH, ["a", "b"], False, False),
    "it is pending: no budget is asked": (make_pod(phase="Pending"), None, BOTH, [], False, True),
    "it is leaving by itself": (make_pod(deleted_at=at(30)), None, BOTH, [], True, False),
    "its eviction was accepted": (make_pod(), make_memory(Reason.EVICTED, next_try=NOW), [], [], True, False),
    "its back-off lasts": (make_pod(), make_memory(Reason.EVICTION_ERROR, next_try=SOON), [], [], False, False),
    "its back-off is over": (make_pod(), make_memory(Reason.EVICTION_ERROR, next_try=NOW), [], [], False, True),
}  # fmt: skip


def stands(
    pod: PodView,
    memory: EvictionMemory | None,
    pdbs: list[PdbView],
    *,
    listed_at: datetime = NOW,
    cordoned: bool = True,
) -> Standing:
    work = make_work(pod, pdbs=pdbs, evictions={pod.uid: memory} if memory else {}, listed_at=listed_at)
    found = find_standings(work, Drain(), NOW, scope=SCOPE, cordoned=cordoned)
    (one,) = (*found.leaving, *found.remaining)
    assert one.leaves == (one in found.leaving)
    return one


@pytest.mark.parametrize(("pod", "memory", "pdbs", "budgets", "leaves", "due"), STANDS.values(), ids=STANDS.keys())
def test_a_pod_stands(
    pod: PodView, memory: EvictionMemory | None, pdbs: list[PdbView], budgets: list[str], leaves: bool, due: bool
) -> None:
    one = stands(pod, memory, pdbs)
    assert ([budget.name for budget in one.budgets], one.leaves, one.due) == (budgets, leaves, due)
    assert one.conflicts == (len(budgets) > 1)
    assert (one.budget is not None) == (len(budgets) == 1)
    assert one.answer == (None if memory is None else memory.reason)


def test_a_pod_that_was_asked_for_since_the_list_was_begun_is_not_due() -> None:
    lost = replace(make_memory(Reason.EVICTION_ERROR, next_try=NOW), asked_at=at(-1))
    assert not stands(make_pod(), lost, [], listed_at=at(-2)).due
    assert stands(make_pod(), lost, [], listed_at=NOW).due


def test_no_pod_is_due_on_a_node_that_is_not_ready() -> None:
    found = find_standings(make_work(make_pod()), Drain(), NOW, scope=replace(SCOPE, silent=True))
    assert [(one.leaves, one.due) for one in found.remaining] == [(False, False)]


def test_before_the_cordon_an_answer_counts_only_while_its_wait_lasts() -> None:
    over, lasting = make_memory(Reason.PDB, next_try=NOW), make_memory(Reason.PDB, next_try=SOON)
    assert stands(make_pod(), over, [], cordoned=False).answer is None
    assert stands(make_pod(), lasting, [], cordoned=False).answer is Reason.PDB
    assert stands(make_pod(), make_memory(Reason.EVICTED, next_try=NOW), [], cordoned=False).leaves


def test_pods_that_could_not_be_listed_are_unknown_and_not_none() -> None:
    found = find_standings(make_work(error="timed out"), Drain(), NOW, scope=SCOPE)
    assert (found.holders, found.error) == (-1, "timed out")
