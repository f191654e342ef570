"""The API server's answers to evictions, and when to send an eviction again (docs/design/drain.md, rows E).

Answers are kept in memory only: after a restart the operator simply evicts every pod again, and recognizes a pod that
is already leaving by its deletionTimestamp.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from gpusharing.planning.snapshot.podviews import EvictionMemory
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason

FIRST_WAIT = 5.0
"""The wait after the first refusal, in seconds. It doubles with each further refusal."""
LONGEST_WAIT = 60.0
"""The longest wait that the doubling leads to, in seconds. It is also the longest Retry-After that is honored if no
budget refused the eviction (docs/adr/0060-the-scope-of-a-refusal.md)."""
SLOW_WAIT = 300.0
"""The wait after a refusal that only a person can resolve, in seconds. It is also the longest Retry-After that is
honored if a budget refused the eviction."""
ODD_AFTER = 3
"""After this many answers in a row that a pod is gone although newer LISTs still show it, one more such answer is an
error."""
MAX_EVICTIONS = 10
"""The most evictions sent on one node within `PACE`, no matter how closely passes follow each other (E18)."""
EVICTIONS_PER_SECOND = 5
"""The mean rate of evictions per node (E18)."""
PACE = timedelta(seconds=MAX_EVICTIONS / EVICTIONS_PER_SECOND)
"""The period in which at most MAX_EVICTIONS are sent on one node."""
QUIET_WAIT = 60.0
"""How many seconds pass before a budget that its controller has not processed yet is shown as a blocker (E6)."""


def remember(
    answer: Reason,
    message: str,
    memory: EvictionMemory | None,
    now: datetime,
    jitter: float,
    *,
    retry_after: float | None = None,
    first_wait: float = FIRST_WAIT,
) -> EvictionMemory:
    """Return the memory of the answer to one eviction or deletion. `memory` is the pod's earlier memory, or None. If
    the reason is the same as last time, `since` is kept and `tries` goes up by one; otherwise `since` is `now` and
    `tries` is 1. `next_try` is `now` plus the wait of `_wait`.

    - `EVICTED` (201, E1): accepted; this pod is never evicted again.
    - `PDB` (429 with cause DisruptionBudget): E5. With `retry_after` (seconds) it is E6: the controller of the budget
      is behind, and the answer is remembered as `PDBNotObserved`.
    - `THROTTLED` (429 without that cause, E7), `EVICTION_ERROR` (500, E8 and E11, or no answer: `message` verbatim),
      `NAMESPACE_TERMINATING` (403 with that cause, E12), `FORBIDDEN` (403, E13), `INTERNAL_ERROR` (400, E15).
    - `PODS_LEAVING` (404 and 409, E2 and E3): that pod is gone or replaced; it is not evicted again before a newer
      LIST shows it.
    - `FORCE_DELETE` (200 to a DELETE, T4): the deletion was accepted; `FORCE_DELETE_FAILED`: the deletion failed.

    `first_wait` is in seconds. `jitter` is in [0, 1) and shortens the wait by up to a quarter, so that evictions are
    not all sent again at the same moment. Raises ValueError if `answer` is not one of these reasons.
    """
    if Mark.ANSWER not in answer.marks:
        raise ValueError(f"{answer} is not an answer to an eviction")
    reason = Reason.PDB_NOT_OBSERVED if answer is Reason.PDB and retry_after is not None else answer
    again = memory is not None and memory.reason is reason
    since = memory.since if memory is not None and again else now
    tries = memory.tries + 1 if memory is not None and again else 1
    wait = timedelta(seconds=_wait(reason, tries, jitter, retry_after, first_wait))
    return EvictionMemory(reason, message, next_try=now + wait, since=since, tries=tries, asked_at=now)


def is_odd(memory: EvictionMemory | None) -> bool:
    """Whether one more answer that the pod is gone (404 or 409, remembered as PODS_LEAVING) counts as an error. True if
    the server has already given that answer at least `ODD_AFTER` times in a row, or if the last answer was
    EVICTION_ERROR. False if no answer is remembered."""
    if memory is None:
        return False
    return memory.reason is Reason.EVICTION_ERROR or (
        memory.reason is Reason.PODS_LEAVING and memory.tries >= ODD_AFTER
    )


def is_accepted(memory: EvictionMemory | None) -> bool:
    """Whether the server has accepted the eviction or deletion of the pod (the last answer is EVICTED or FORCE_DELETE),
    so that it is leaving and is never evicted again (E1)."""
    return memory is not None and memory.reason in (Reason.EVICTED, Reason.FORCE_DELETE)


def is_seen(memory: EvictionMemory, listed_at: datetime | None) -> bool:
    """Whether a LIST that began at `listed_at` shows the effect of the answer, because it began after the answer.
    Always true if the time of the answer is unknown. Otherwise false if there was no LIST."""
    if memory.asked_at is None:
        return True  # not known, and long ago
    return listed_at is not None and listed_at > memory.asked_at


def forget_old(memories: Mapping[str, EvictionMemory], now: datetime) -> Mapping[str, EvictionMemory]:
    """Return a copy of `memories` (answers by pod UID) without the outdated answers. An answer is outdated if its wait
    is over and it accepted neither an eviction nor a deletion."""
    return {uid: memory for uid, memory in memories.items() if memory.next_try > now or is_accepted(memory)}


def sent_lately(memories: Mapping[str, EvictionMemory], now: datetime) -> tuple[datetime, ...]:
    """Return when evictions and deletions were sent within the last `PACE`: one time for each pod, whatever the answer
    was. These requests count against the limit of this pass, because passes can follow each other immediately."""
    times = (memory.asked_at for memory in memories.values())
    return tuple(moment for moment in times if moment is not None and now - PACE < moment)


def _wait(reason: Reason, tries: int, jitter: float, retry_after: float | None, first_wait: float) -> float:
    """Return the seconds until the next try. They are 0 for a pod that is gone (PODS_LEAVING). Otherwise the server's
    Retry-After counts if there is one, but at least 1 and at most SLOW_WAIT, or LONGEST_WAIT if no budget refused. Without one, the wait is SLOW_WAIT for a
    refusal that only a person can resolve; for any other answer it is `first_wait`, doubled with each try up to
    LONGEST_WAIT and shortened by `jitter` times a quarter of it, but never shorter than `first_wait`."""
    if reason is Reason.PODS_LEAVING:
        return 0.0  # the LIST decides, not the clock
    if retry_after is not None:
        return min(max(retry_after, 1.0), LONGEST_WAIT if reason is Reason.THROTTLED else SLOW_WAIT)
    if Mark.DENIED in reason.marks:
        return SLOW_WAIT
    full = min(LONGEST_WAIT, first_wait * 2.0 ** min(tries - 1, 10))
    return max(first_wait, full * (1 - jitter / 4))
