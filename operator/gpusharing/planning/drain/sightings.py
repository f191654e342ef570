"""What several looks at a node in work add up to: since when LISTs find it empty, and since when its agent is quiet.

A process remembers this between passes, in `NodeWork`; after a restart it starts again.
"""

from dataclasses import replace
from datetime import datetime

from gpusharing.planning.drain.holders import Scope, is_idle
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView

KEPT = 32
"""The most LISTs remembered of one node."""


def looked(before: NodeWork | None, now: NodeWork, node: NodeView | None, scope: Scope) -> NodeWork:
    """`now`, a LIST just made, with what the earlier ones add to it."""
    if before is not None:
        now = replace(now, quiet_for=before.quiet_for, quiet_since=before.quiet_since)
    if now.error or not is_idle(now.pods, scope):
        return replace(now, all_pods=scope.all_pods)
    fenced = node.fence.since if node is not None and node.fence is not None else None
    earlier = before.empty_lists if before is not None and before.all_pods == scope.all_pods else ()
    # Before the cordon pods could still come: what was seen then proves nothing.
    lists = (*(moment for moment in earlier if fenced is None or moment > fenced), now.listed_at)
    since = before.empty_since if before is not None and len(lists) > 1 else None
    if since is None or (fenced is not None and since <= fenced):
        since = lists[0]
    return replace(now, empty_since=since, empty_lists=lists[-KEPT:], all_pods=scope.all_pods)


def heard(work: NodeWork, gpunode: GPUNodeView | None, now: datetime) -> NodeWork:
    """`work` with the agent's answer, once the agent has closed NVML for the current request."""
    observed = gpunode.observed if gpunode is not None else None
    if gpunode is None or observed is None or not observed.quiet or observed.request_id != gpunode.request_id:
        return work if not work.quiet_for else replace(work, quiet_for="", quiet_since=None)
    if work.quiet_for == gpunode.request_id:
        return work
    return replace(work, quiet_for=gpunode.request_id, quiet_since=now)
