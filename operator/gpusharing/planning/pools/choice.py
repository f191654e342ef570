"""Which nodes begin now: every pool chooses in turn, within its own allowance and the slots that the operator-wide cap leaves.

If a pool cannot be judged, none of its nodes begins; the other pools still choose (transition/guard.py).
"""

from collections.abc import Mapping
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.candidates import Queue, Selection
from gpusharing.planning.pools.holds import wait_for
from gpusharing.planning.pools.ledger import PassState
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.room import select
from gpusharing.planning.pools.slots import fences_of
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.guard import not_judged
from gpusharing.planning.transition.requests import with_gpunode
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding

MOST_VAIN = 60
"""How many passes in a row without progress, while nodes wait, are a fault of the planner, because every look at pods should lead to a start or to a blocker."""


def choose(
    snapshot: ClusterSnapshot,
    now: datetime,
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    afterwards: Afterwards,
    *,
    reserved: int,
    memo: Memo,
) -> tuple[Selection, bool]:
    """Let every pool choose its next nodes, in the order of the policies' names; `reserved` slots of the operator-wide cap are kept.

    Also return whether the coming evictions on all nodes in flight are known; while they are not, candidates with a pod that a budget guards wait.
    """
    chosen = Selection()
    waiting = [pool for _, pool in sorted(pools.items()) if pool.candidates]
    if not waiting:
        memo.each(Queue, ())  # so that the memo drops what it has of nodes that waited before
        _find_waits(chosen, memo)
        return chosen, True
    queues = memo.each(Queue, ((pool.policy.name, (pool.policy, tuple(pool.candidates))) for pool in waiting))
    in_flight = {name for name, fence in fences_of(snapshot).items() if fence.stage != "yielded"}
    looked_at = [
        (case, pool.policy)
        for pool in waiting
        for case in pool.candidates
        if case.node.name in snapshot.memory.looks
        and (pool.limit > pool.used or is_newcomer(case.node, case.gpunode))
    ]
    state = PassState.of(snapshot, now, afterwards, looked_at)
    for name in sorted(in_flight):
        if (look := state.add_in_flight(snapshot, verdicts[name])) is not None:
            chosen.looks[name] = look
    for pool in waiting:
        cap = snapshot.settings.max_in_flight - len(in_flight) - reserved - len(chosen.claims)
        try:
            chosen.add(select(pool, queues[pool.policy.name], cap, state))
        except Exception as error:  # noqa: BLE001 - an error in one pool must not stop the others (guard.py)
            for case in pool.candidates:
                chosen.put(case, not_judged(case.node, pool.policy.name, error))
    chosen.verdicts |= _find_waits(chosen, memo)
    for case in (case for pool in waiting for case in pool.candidates):
        # The few candidates whose verdict from before the choice has actions need that write to their GPUNode still.
        if verdicts[case.node.name].actions:
            chosen.verdicts[case.node.name] = with_gpunode(chosen.verdicts[case.node.name], case)
    return chosen, state.crowd_known


def _find_waits(chosen: Selection, memo: Memo) -> dict[str, Verdict]:
    waits: dict[str, tuple[Finding, bool]] = {}
    cases: dict[str, NodeCase] = {}
    for number, (why, for_slot, waiting) in enumerate(chosen.waiting):
        by_name = {case.node.name: case for case in waiting}
        waits |= dict.fromkeys(by_name, memo.same(f"wait {number}", (why, for_slot)))
        cases |= by_name
    failed: dict[str, Exception] = {}
    verdicts = memo.table(
        lambda name: wait_for(cases[name], waits[name][0], for_slot=waits[name][1]),
        cases,
        columns=[waits, cases],
        key=wait_for,
        failed=failed,
    )
    return verdicts | {
        name: not_judged(cases[name].node, cases[name].owner_name, error) for name, error in failed.items()
    }


def count_vain(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    looks: Mapping[str, Look],
    snapshot: ClusterSnapshot,
) -> dict[str, int]:
    """Return how many passes in a row, at most MOST_VAIN, made no progress, by policy; policies that make progress are left out.

    In such a pass, the pods of a candidate are to be listed, those of another are known, and nothing starts or is learned. The count starts anew while the API server delays a LIST.
    """
    counts, before = {}, snapshot.memory
    vain = before.vain_passes if before.wants_pods <= snapshot.work.keys() else {}
    for name, pool in pools.items():
        own = {case.node.name: verdicts[case.node.name] for case in pool.candidates}
        news = any(one.actions for one in own.values()) or own.keys() & looks.keys() - before.looks.keys()
        unknown = [own[case.node.name].phase for case in pool.candidates if case.work is None]
        if len(unknown) < len(own) and not news and Phase.PREFLIGHT in unknown:
            counts[name] = min(vain.get(name, 0) + 1, MOST_VAIN)
    return counts
