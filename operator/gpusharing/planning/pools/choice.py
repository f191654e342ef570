"""Which nodes begin now: every pool chooses in turn, within its own allowance and the slots that the operator-wide cap
leaves.

If a pool cannot be judged, none of its nodes begins; the other pools still choose (transition/guard.py).

Terms: docs/design/glossary.md#candidate, docs/design/glossary.md#slot, docs/design/glossary.md#fence,
docs/design/glossary.md#newcomer.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.candidates import Queue, Selection
from gpusharing.planning.pools.holds import Wait
from gpusharing.planning.pools.ledger import Ledger
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.room import select
from gpusharing.planning.pools.slots import fences_of
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.guard import not_judged
from gpusharing.planning.transition.requests import with_gpunode
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.verdict import NodeCase, Verdict

MOST_VAIN = 60
"""How many passes in a row without progress, while nodes wait, are a fault of the planner, because every look at pods
should lead to a start or to a blocker. Passes are counted no further."""


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
    """Let every pool choose its next nodes within its allowance and the operator-wide cap, in the order of the names of
    the policies; a pool has only the slots of the cap that the pools before it have left. `reserved` slots of the cap
    are kept for nodes without a fence. `afterwards` is the cluster as it will be when all planned changes are done.
    `memo` caches the verdicts of the nodes that wait, and the candidates.

    Return the selection, and whether the coming evictions on all nodes in flight are known (`Ledger.crowd_known`); True
    if there are no candidates. The selection has a verdict for every candidate, and also the looks that were used for
    nodes in flight. While the evictions are not known, candidates with a pod that a budget guards wait.
    """
    chosen = Selection()
    waiting = [pool for _, pool in sorted(pools.items()) if pool.candidates]
    if not waiting:
        memo.each(Queue, ())  # so that the memo drops what it has of nodes that waited before
        memo.each(Wait.verdict, ())
        return chosen, True
    queues = memo.each(Queue, ((pool.policy.name, (pool.policy, tuple(pool.candidates))) for pool in waiting))
    in_flight = {name for name, fence in fences_of(snapshot).items() if fence.stage != "yielded"}
    ledger = Ledger.of(snapshot, now, afterwards, list(_able_to_begin(waiting, snapshot.memory.looks)))
    for name in sorted(in_flight):
        if (look := ledger.add_in_flight(snapshot, verdicts[name])) is not None:
            chosen.looks[name] = look
    for pool in waiting:
        taken = len(in_flight) + reserved + len(chosen.claims)
        chosen.add(_select(pool, queues[pool.policy.name], snapshot.settings.max_in_flight - taken, ledger))
    chosen.verdicts |= _find_waits(chosen, memo)
    for case in (case for pool in waiting for case in pool.candidates):
        # The few candidates whose verdict from before the choice has actions need that write to their GPUNode still.
        if verdicts[case.node.name].actions:
            chosen.verdicts[case.node.name] = with_gpunode(chosen.verdicts[case.node.name], case)
    return chosen, ledger.crowd_known


def _find_waits(chosen: Selection, memo: Memo) -> dict[str, Verdict]:
    """Return the verdicts of the candidates that wait without a look at their pods, by name. If a verdict cannot be
    computed, that node gets a verdict that says so, and the other nodes are not affected."""
    waits: dict[str, Wait] = {}
    cases: dict[str, NodeCase] = {}
    for number, (wait, waiting) in enumerate(chosen.waiting):
        by_name = {case.node.name: case for case in waiting}
        waits |= dict.fromkeys(by_name, memo.same(f"wait {number}", wait))
        cases |= by_name
    failed: dict[str, Exception] = {}
    verdicts = memo.table(
        lambda name: waits[name].verdict(cases[name]),
        cases,
        columns=[waits, cases],
        key=Wait.verdict,
        failed=failed,
    )
    return verdicts | {
        name: not_judged(cases[name].node, cases[name].owner_name, error) for name, error in failed.items()
    }


def _select(pool: Pool, queue: Queue, cap: int, ledger: Ledger) -> Selection:
    """Let one pool choose. If that raises an exception, none of the pool's candidates starts, and all get a verdict
    that says so, because the error may come from any of the pool's nodes."""
    try:
        return select(pool, queue, cap, ledger)
    except Exception as error:  # noqa: BLE001 - an error in one pool must not stop the others (guard.py)
        stopped = Selection()
        for case in pool.candidates:
            stopped.put(case, not_judged(case.node, pool.policy.name, error))
        return stopped


def _able_to_begin(
    waiting: Iterable[Pool], looks: Mapping[str, Look]
) -> Iterator[tuple[NodeCase, PolicyView]]:
    """Yield the candidates that were looked at before, each with its policy: all of them in pools with free slots, and
    only newcomers in full pools, because newcomers take no slot of the pool."""
    for pool in waiting:
        for case in pool.candidates:
            if case.node.name not in looks:
                continue
            if pool.limit > pool.used or is_newcomer(case.node, case.gpunode):
                yield case, pool.policy


def count_vain(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    looks: Mapping[str, Look],
    snapshot: ClusterSnapshot,
) -> dict[str, int]:
    """Return how many passes in a row, at most MOST_VAIN, made no progress, by policy; policies that make progress are
    left out. A pass makes no progress if three conditions hold. It wants to list the pods of a candidate for the first
    time, although the pods of another candidate are known; no candidate starts or has another action; and no
    candidate got its first look.

    The count starts anew while pods that the last pass asked for are missing, because then the API server delays a
    LIST and the planner can only ask again.
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
