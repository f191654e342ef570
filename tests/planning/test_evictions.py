import pytest
from tests.build import NOW, at, make_memory

from gpusharing.planning.drain.evictions import is_odd, remember
from gpusharing.planning.snapshot.podviews import EvictionMemory
from gpusharing.planning.vocabulary.reasons import Reason


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
