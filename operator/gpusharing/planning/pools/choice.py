"""Who begins now: every pool chooses in turn, within its own allowance and what the operator-wide cap leaves.

A pool that cannot be judged begins nothing; the others do (transition/guard.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.ledger import Ledger
from gpusharing.planning.pools.pool import Pool, Selection, select
from gpusharing.planning.pools.slots import fences_of
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.records import Claim
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.requests import with_gpunode
from gpusharing.planning.transition.startgate import is_newcomer
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.values import value


@value
class Choice:
    """The nodes that begin now."""

    verdicts: Mapping[str, Verdict]
    """Of all candidates."""
    claims: Mapping[str, Claim]
    """Of those that begin."""
    looks: Mapping[str, Look]
    """What was found at nodes whose pods block."""
    crowd_known: bool = True
    """Whether the pods of every node in flight were listed; candidates that share a budget with them wait for that."""


def choose(
    snapshot: ClusterSnapshot,
    now: datetime,
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    afterwards: Afterwards,
    *,
    held: int,
) -> Choice:
    """Let every pool choose its next nodes within its allowance and the operator-wide cap, of which `held` slots are
    kept for nodes without a fence. `afterwards`: the cluster when all planned changes are done.
    """
    chosen: dict[str, Verdict] = {}
    claims: dict[str, Claim] = {}
    looks: dict[str, Look] = {}
    waiting = [pool for _, pool in sorted(pools.items()) if pool.candidates]
    if not waiting:
        return Choice(chosen, claims, looks)
    in_flight = {name for name, fence in fences_of(snapshot).items() if fence.stage != "yielded"}
    ledger = Ledger.of(snapshot, now, afterwards, list(_able_to_begin(waiting)))
    for name in sorted(in_flight):
        if (look := ledger.add_in_flight(snapshot, verdicts[name])) is not None:
            looks[name] = look
    for pool in waiting:
        taken = len(in_flight) + held + len(claims)
        try:
            selection = select(pool, snapshot.settings.max_in_flight - taken, ledger)
        except Exception as error:  # noqa: BLE001 - whatever one pool holds, the others choose (guard.py)
            selection = Selection.none(pool, error)
        claims |= selection.claims
        looks |= selection.looks
        for case in pool.candidates:
            name, verdict = case.node.name, selection.verdicts[case.node.name]
            # For nearly every candidate there is nothing to ask the agent, and `judge` has found that out.
            chosen[name] = with_gpunode(verdict, case) if verdicts[name].actions else verdict
    return Choice(chosen, claims, looks, ledger.crowd_known)


def _able_to_begin(waiting: Iterable[Pool]) -> Iterator[tuple[NodeCase, PolicyView]]:
    """The candidates of pools with room in their allowance, and newcomers of the others, which take none of it."""
    for pool in waiting:
        for case in pool.candidates:
            if pool.limit > pool.used or is_newcomer(case.node, case.gpunode):
                yield case, pool.policy
