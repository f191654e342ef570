"""What successive LISTs of a node's pods show together: when the node was found empty, and since when its agent has been quiet.

The process keeps this in memory between passes, in `NodeWork`; after a restart it starts anew.
"""

from dataclasses import replace
from datetime import datetime

from gpusharing.planning.drain.holders import is_idle
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import GPUNodeView

KEPT = 32
"""The most LISTs that are remembered for one node."""


def looked(before: NodeWork | None, now: NodeWork, gpunode: GPUNodeView | None) -> NodeWork:
    """Return `now`, a LIST just made, with what `before`, the one before it, had found."""
    if before is not None:
        now = replace(now, quiet_for=before.quiet_for, quiet_since=before.quiet_since)
    if now.error or not is_idle(now.pods, now.scope):
        return now
    # Scopes are compared and not times: pods could still come before the cordon, and the clock that stamped it may have
    # been ahead of ours.
    if before is None or not before.empty_lists or before.scope != now.scope:
        stood = gpunode.request_id if gpunode is not None else ""
        return replace(now, empty_lists=(now.listed_at,), stood=stood)
    return replace(now, empty_lists=(*before.empty_lists, now.listed_at)[-KEPT:], stood=before.stood)


def heard(work: NodeWork, gpunode: GPUNodeView | None, now: datetime) -> NodeWork:
    """Return `work` with the time since which the agent has kept NVML closed for the current request."""
    observed = gpunode.observed if gpunode is not None else None
    if gpunode is None or observed is None or not observed.quiet or observed.request_id != gpunode.request_id:
        return work if not work.quiet_for else replace(work, quiet_for="", quiet_since=None)
    if work.quiet_for == gpunode.request_id:
        return work
    return replace(work, quiet_for=gpunode.request_id, quiet_since=now)
