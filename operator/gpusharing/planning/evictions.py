"""What the API server answered to an eviction, and when to ask again (drain.md 1.3, rows E1-E15).

The memory of an answer lives in the process only: after a restart every pod is simply asked for again, and a
pod that is already leaving is recognised by its deletionTimestamp.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from gpusharing.planning.reasons import Reason
from gpusharing.planning.views import EvictionMemory

FIRST_WAIT = 5.0
"""Seconds after the first refusal; doubles with each further one."""
LONGEST_WAIT = 60.0
"""Seconds."""
SLOW_WAIT = 300.0
"""Seconds; for what only a person can change, and the most that a Retry-After may ask of us."""
QUIET_WAIT = 60.0
"""Seconds for which a budget that its controller has not worked out yet is not shown as a blocker (E6)."""

_SLOW = frozenset({Reason.FORBIDDEN, Reason.INTERNAL_ERROR})
REMEMBERED = _SLOW | {
    Reason.PDB,
    Reason.THROTTLED,
    Reason.EVICTION_ERROR,
    Reason.NAMESPACE_TERMINATING,
    Reason.EVICTED,
}
"""The answers worth remembering. 404, 409 and a lost connection are not: the next LIST tells."""


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
    """What to remember of the answer to one eviction; `memory` is what was remembered of this pod before.

    - `EVICTED` (201, E1): accepted; this pod is never asked for again.
    - `PDB` (429 with cause DisruptionBudget): E5; with `retry_after` (seconds) it is E6, the controller of the
      budget is behind, remembered as `PDBNotObserved`.
    - `THROTTLED` (429 without that cause, E7), `EVICTION_ERROR` (500, E8 and E11: `message` verbatim),
      `NAMESPACE_TERMINATING` (403 with that cause, E12), `FORBIDDEN` (403, E13), `INTERNAL_ERROR` (400, E15).

    `first_wait` is in seconds. `jitter` is in [0, 1) and shortens the wait by up to a quarter, so that pods do not
    come back in step.
    Raises ValueError for a reason that is no such answer.
    """
    if answer not in REMEMBERED:
        raise ValueError(f"{answer} is not an answer to an eviction")
    reason = Reason.PDB_NOT_OBSERVED if answer is Reason.PDB and retry_after is not None else answer
    again = memory is not None and memory.reason == reason
    since = memory.since if memory is not None and again else now
    tries = memory.tries + 1 if memory is not None and again else 1
    wait = timedelta(seconds=_wait(reason, tries, jitter, retry_after, first_wait))
    return EvictionMemory(reason=reason, message=message, next_try=now + wait, since=since, tries=tries)


def throttled_until(memories: Iterable[Mapping[str, EvictionMemory]], now: datetime) -> datetime | None:
    """Until when no eviction may be sent at all, over all nodes in work; None: evictions may be sent (E7)."""
    later = [
        memory.next_try
        for of_node in memories
        for memory in of_node.values()
        if memory.reason == Reason.THROTTLED and memory.next_try > now
    ]
    return max(later, default=None)


def _wait(reason: Reason, tries: int, jitter: float, retry_after: float | None, first_wait: float) -> float:
    if retry_after is not None:
        return min(max(retry_after, 1.0), SLOW_WAIT)
    if reason in _SLOW:
        return SLOW_WAIT
    full = min(LONGEST_WAIT, first_wait * 2.0 ** min(tries - 1, 10))
    return max(first_wait, full * (1 - jitter / 4))
