"""Detects a pool that only seems to make progress: every pass lists pods of nodes that might start, but no node
starts."""

from collections.abc import Mapping

from gpusharing.api.names import Phase
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict

MOST = 60
"""The limit of the count. This many passes without progress are a fault of the planner, because every look at pods
should lead to a start or to a blocker."""


def count_vain(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    looks: Mapping[str, Look],
    snapshot: ClusterSnapshot,
) -> dict[str, int]:
    """Return how many passes in a row, at most MOST, made no progress, by policy; policies that make progress are left
    out. A pass makes no progress if three conditions hold. It wants to list the pods of a candidate for the first
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
            counts[name] = min(vain.get(name, 0) + 1, MOST)
    return counts
