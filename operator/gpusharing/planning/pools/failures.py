"""The record of failures within one revision of a policy, so that a failure still counts after its node is gone."""

from collections.abc import Iterable, Mapping

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import has_failed
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.views import NodeView

MOST = 200
"""The most failures on record, over all policies, because the Lease's annotations may have at most 256 KiB (kube/fence.py)."""


def find_gone(claims: Mapping[str, Claim], nodes: Mapping[str, NodeView]) -> dict[str, FailedNode]:
    """Return the nodes that were deleted, or replaced under the same name, after the point of no return and before they were proven, by UID of the deleted Node."""
    return {
        claim.node_uid: FailedNode(name, claim.version, gone=True)
        for name, claim in claims.items()
        if claim.version is not None and ((node := nodes.get(name)) is None or node.uid != claim.node_uid)
    }


def count_failures(
    pools: Iterable[Pool], recorded: Mapping[str, FailedNode], gone: Mapping[str, FailedNode]
) -> dict[str, FailedNode]:
    """Return the failures that are on record after this pass, by UID of the Node, and set `failed_before` of each pool.

    A failure counts until its node is proven or the policy gets a new revision, even if the node is gone by then.
    """
    recorded = {**gone, **recorded}
    failures: dict[str, FailedNode] = {}
    for pool in pools:
        version = pool.policy.version
        marked = (one for one in pool.members if one.marked)
        shown = {
            one.node.uid: FailedNode(one.node.name, version) for one in marked if has_failed(one, pool.policy)
        }
        lost = {uid: one for uid, one in recorded.items() if one.version == version and uid not in shown}
        for member in pool.members if lost else ():
            fence = member.node.fence
            aside = fence is not None and fence.stage == "yielded" and fence.proven is not None
            if aside or member.verdict.phase is Phase.SYNCED:
                lost.pop(member.node.uid, None)
        gone_by = " (deleted in the middle of its change)"
        pool.failed_before = tuple(sorted(one.node + (gone_by if one.gone else "") for one in lost.values()))
        failures |= dict(sorted((lost | shown).items())[: MOST - len(failures)])
    return failures
