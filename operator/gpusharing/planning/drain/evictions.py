"""How does the API server answer evictions, what do PodDisruptionBudgets let it answer, and who uses them up?

The server decides (kubernetes v1.36.3 `pkg/registry/core/pod/storage/eviction.go`). What is worked out here only
predicts its answer. When an eviction is sent again is in docs/design/drain.md, rows E.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.selectors import matches
from gpusharing.planning.snapshot.memory import LONGEST_WAIT, Evicted, backoff
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork, PdbView, PodView
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.reasons import Mark, Reason

FIRST_WAIT = 5.0
"""The wait after the first refusal, in seconds."""
SLOW_WAIT = 300.0
"""The seconds after a refusal that only a person can resolve, and the longest Retry-After that is obeyed."""
ODD_AFTER = 3
"""So many answers in a row may say that a pod is gone although newer LISTs show it. One more is an error."""
MAX_EVICTIONS = 10
"""The most evictions sent on one node within `PACE`, no matter how closely passes follow (E18)."""
PACE = timedelta(seconds=2)
QUIET_WAIT = 60.0
"""The seconds until a budget that its controller has not processed yet is shown as a blocker (E6)."""


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
    """Return the memory of the answer to an eviction or deletion (E1-E15, T4) after the earlier `memory`.

    `retry_after` and `first_wait` are in seconds. PDB with a Retry-After means that the controller of the budget is
    behind (PDBNotObserved, E6). Raises ValueError if `answer` is no answer to an eviction.
    """
    if Mark.ANSWER not in answer.marks:
        raise ValueError(f"{answer} is not an answer to an eviction")
    reason = Reason.PDB_NOT_OBSERVED if answer is Reason.PDB and retry_after is not None else answer
    again = memory if memory is not None and memory.reason is reason else None
    tries = again.tries + 1 if again is not None else 1
    if reason is Reason.PODS_LEAVING:
        wait = 0.0  # the LIST decides, not the clock
    elif retry_after is not None:
        # Only a budget may ask for more than a minute (docs/adr/0060-the-scope-of-a-refusal.md).
        wait = min(max(retry_after, 1.0), LONGEST_WAIT if reason is Reason.THROTTLED else SLOW_WAIT)
    elif Mark.DENIED in reason.marks:
        wait = SLOW_WAIT
    else:
        wait = max(first_wait, backoff(tries, first_wait, jitter))
    since = again.since if again is not None else now
    return EvictionMemory(reason, message, now + timedelta(seconds=wait), since, asked_at=now, tries=tries)


def is_odd(memory: EvictionMemory | None) -> bool:
    """Whether one more answer that the pod is gone (404 or 409, remembered as PODS_LEAVING) counts as an error."""
    if memory is None:
        return False
    gone = memory.reason is Reason.PODS_LEAVING and memory.tries >= ODD_AFTER
    return gone or memory.reason is Reason.EVICTION_ERROR


def is_accepted(memory: EvictionMemory | None) -> bool:
    """Whether the server has accepted the eviction or deletion, so the pod is never evicted again (E1)."""
    return memory is not None and memory.reason in (Reason.EVICTED, Reason.FORCE_DELETE)


def is_seen(memory: EvictionMemory, listed_at: datetime | None) -> bool:
    """Whether a LIST that began at `listed_at` (None: there was none) shows the effect of the answer."""
    return listed_at is not None and listed_at > memory.asked_at


def budgets_of(pod: PodView, pdbs: Iterable[PdbView]) -> tuple[PdbView, ...]:
    """Return the budgets that select the pod, sorted by name."""
    return tuple(sorted((pdb for pdb in pdbs if _selects(pdb, pod)), key=lambda pdb: pdb.ref))


def binding_budgets(pod: PodView, pdbs: Iterable[PdbView]) -> tuple[PdbView, ...]:
    """Return the budgets that the server will check for an eviction of the pod, sorted by name.

    Two or more make every eviction of the pod fail, even if the pod is unready (500, kubernetes#75957).
    """
    if pod.phase in ("Succeeded", "Failed", "Pending") or pod.deleted_at is not None:
        return ()  # canIgnorePDB in eviction.go
    selected = budgets_of(pod, pdbs)
    if len(selected) == 1 and not pod.ready:  # KEP-3017
        (pdb,) = selected
        if pdb.always_allow_unhealthy or pdb.current_healthy >= pdb.desired_healthy > 0:
            return ()
    return selected


def never_allows(pdb: PdbView) -> bool:
    """Whether the budget requires all of its pods to be healthy (docs/design/drain.md#e9)."""
    return pdb.expected_pods > 0 and pdb.desired_healthy >= pdb.expected_pods


def is_in_use(pdb: PdbView) -> bool:
    """Whether the budget will allow a disruption once the pods that we evicted under it are replaced."""
    return bool(pdb.evicted_from) and pdb.current_healthy + len(pdb.evicted_from) > pdb.desired_healthy


def _selects(pdb: PdbView, pod: PodView) -> bool:
    if pdb.namespace != pod.namespace:
        return False
    if pdb.selects_all:
        return True
    if not pdb.match_labels and not pdb.match_expressions:
        return False  # no selector at all: selects nothing
    return matches(pod.labels, pdb.match_labels, pdb.match_expressions)


# --- pods that we evicted and whose replacements use up a budget until they are Ready ----------------------------
# A node that such a budget holds up waits for its turn. Nobody has to repair pods that we evicted ourselves
# (docs/design/drain.md#in-use).

REPLACED_WITHIN = timedelta(minutes=10)
"""How long the replacement of an evicted pod may take to become Ready before it counts as broken."""


def with_evicted(snapshot: ClusterSnapshot, now: datetime) -> ClusterSnapshot:
    """Return the snapshot with `PassMemory.evicted` brought up to date and `PdbView.evicted_from` filled in."""
    evicted = _find_evicted(snapshot.work, snapshot.memory.evicted, now)
    if evicted != snapshot.memory.evicted:
        snapshot = replace(snapshot, memory=replace(snapshot.memory, evicted=evicted))
    if not evicted:
        return snapshot
    nodes: dict[str, list[str]] = {}
    for one in evicted.values():
        nodes.setdefault(one.budget, []).append(one.node)
    marked: dict[int, tuple[PdbView, ...]] = {}
    # Nodes that were listed together share one tuple of all PodDisruptionBudgets of the cluster.
    for pdbs in {id(one.pdbs): one.pdbs for one in snapshot.work.values()}.values():
        found = (nodes.get(pdb.ref) for pdb in pdbs)
        marked[id(pdbs)] = tuple(
            replace(pdb, evicted_from=tuple(sorted(its))) if its else pdb for pdb, its in zip(pdbs, found, strict=True)
        )
    work = {name: replace(one, pdbs=marked[id(one.pdbs)]) for name, one in snapshot.work.items()}
    return replace(snapshot, work=work)


def _find_evicted(work: Mapping[str, NodeWork], before: Mapping[str, Evicted], now: datetime) -> dict[str, Evicted]:
    """Return by UID the evicted pods whose replacements may not be Ready yet.

    They count as Ready once a later LIST shows room in the budget. But as long as a refusal of the budget is remembered,
    these pods are named as its cause.
    """
    found: dict[str, Evicted] = {}
    refusing: set[str] = set()
    for name, one in work.items():
        if not one.evictions:
            continue
        for pod in one.pods:
            if (memory := one.evictions.get(pod.uid)) is None:
                continue
            budgets = budgets_of(pod, one.pdbs)
            if len(budgets) != 1:
                continue
            if is_accepted(memory):
                found[pod.uid] = Evicted(name, budgets[0].ref, memory.asked_at)
            elif memory.reason is Reason.PDB:
                refusing.add(budgets[0].ref)
    room_at: dict[str, datetime] = {}
    if before:
        for one in work.values():
            for pdb in one.pdbs:
                if pdb.disruptions_allowed > 0:
                    room_at[pdb.ref] = max(one.listed_at, room_at.get(pdb.ref, one.listed_at))
    for uid, evicted in before.items():
        if evicted.budget in refusing or room_at.get(evicted.budget, evicted.at) <= evicted.at:
            found.setdefault(uid, evicted)
    return {uid: evicted for uid, evicted in found.items() if now < evicted.at + REPLACED_WITHIN}
