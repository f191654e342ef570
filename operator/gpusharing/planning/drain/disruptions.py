"""Which pods did we evict whose replacements use up a PodDisruptionBudget until they are Ready?

A node that such a budget holds up waits for its turn. Nobody has to repair pods that we evicted ourselves
(docs/design/drain.md#in-use).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.planning.drain.evictions import is_accepted, selecting
from gpusharing.planning.snapshot.memory import Evicted
from gpusharing.planning.snapshot.podviews import NodeWork, PdbView
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.reasons import Reason

REPLACED_WITHIN = timedelta(minutes=10)
"""How long the replacement of an evicted pod may take to become Ready before it counts as broken."""


def with_evicted(snapshot: ClusterSnapshot, now: datetime) -> ClusterSnapshot:
    """Return the snapshot with `PassMemory.evicted` brought up to date and `PdbView.evicted_from` filled in."""
    evicted = _find_evicted(snapshot.work, snapshot.memory.evicted, now)
    snapshot = replace(snapshot, memory=replace(snapshot.memory, evicted=evicted))
    if not evicted:
        return snapshot
    nodes: dict[str, list[str]] = {}
    for one in evicted.values():
        nodes.setdefault(one.budget, []).append(one.node)
    marked: dict[int, tuple[PdbView, ...]] = {}
    for pdbs in _distinct(snapshot.work.values()):
        found = (nodes.get(pdb.ref) for pdb in pdbs)
        marked[id(pdbs)] = tuple(
            replace(pdb, evicted_from=tuple(sorted(its))) if its else pdb for pdb, its in zip(pdbs, found, strict=True)
        )
    work = {name: replace(one, pdbs=marked[id(one.pdbs)]) for name, one in snapshot.work.items()}
    return replace(snapshot, work=work)


def _find_evicted(work: Mapping[str, NodeWork], before: Mapping[str, Evicted], now: datetime) -> dict[str, Evicted]:
    """Return the evicted pods that may not be replaced yet, by UID.

    They are replaced once their budget has room again. While an eviction that it refused waits for its back-off, the
    pods of which the refusal came are still named.
    """
    found: dict[str, Evicted] = {}
    refusing: set[str] = set()
    for name, one in work.items():
        for pod in one.pods if one.evictions else ():
            memory = one.evictions.get(pod.uid)
            budgets = selecting(pod, one.pdbs) if memory is not None else ()
            if memory is None or len(budgets) != 1:
                continue
            if is_accepted(memory):
                found[pod.uid] = Evicted(name, budgets[0].ref, memory.asked_at)
            elif memory.reason is Reason.PDB:
                refusing.add(budgets[0].ref)
    room_at: dict[str, datetime] = {}
    for one in work.values() if before else ():
        for pdb in one.pdbs:
            if pdb.disruptions_allowed > 0:
                room_at[pdb.ref] = max(one.listed_at, room_at.get(pdb.ref, one.listed_at))
    for uid, evicted in before.items():
        if evicted.budget in refusing or room_at.get(evicted.budget, evicted.at) <= evicted.at:
            found.setdefault(uid, evicted)
    return {uid: evicted for uid, evicted in found.items() if now < evicted.at + REPLACED_WITHIN}


def _distinct(work: Iterable[NodeWork]) -> Iterable[tuple[PdbView, ...]]:
    """Nodes that were listed together share one tuple of all PodDisruptionBudgets of the cluster."""
    return {id(one.pdbs): one.pdbs for one in work}.values()
