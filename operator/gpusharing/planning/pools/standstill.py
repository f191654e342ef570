"""Whether a pool only seems to go on: pass after pass looks at the pods of nodes that might start, and none starts."""

from collections.abc import Mapping

from gpusharing.api.names import Phase
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.looks import Look
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict

MOST = 60
"""This many passes without progress are a fault of the planner, because a look at pods ends with a start or with a
blocker."""


def count_vain(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    looks: Mapping[str, Look],
    snapshot: ClusterSnapshot,
) -> dict[str, int]:
    """Return how many passes in a row, up to MOST, made no progress, by policy; policies that progress are missing.
    Such a pass wants to look at the pods of a candidate for the first time although none of those whose pods are
    known started, and nothing new was found that blocks one.

    The count starts anew while pods that the last pass wanted are missing: then the API server delays a LIST, and the
    planner can do nothing but want it again.
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
