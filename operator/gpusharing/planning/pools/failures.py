"""The record of failures within one revision of a policy, so that a failure still counts after its node is gone.

Terms: docs/design/glossary.md#point-of-no-return, docs/design/glossary.md#claim, docs/design/glossary.md#fence.
"""

from collections.abc import Container, Iterable, Mapping

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import has_failed
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.records import Claim, FailedNode
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.members import Member

MOST = 200
"""The most failures on record, over all policies, because the Lease's annotations may have at most 256 KiB
(kube/fence.py)."""


def find_gone(claims: Mapping[str, Claim], nodes: Mapping[str, NodeView]) -> dict[str, FailedNode]:
    """Return the nodes that were deleted, or replaced under the same name, after the point of no return and before they
    were proven, by UID of the deleted Node. The nodes are found through their claims; the write that records the
    failures also removes these claims."""
    return {
        claim.node_uid: FailedNode(name, claim.version, gone=True)
        for name, claim in claims.items()
        if claim.version is not None and ((node := nodes.get(name)) is None or node.uid != claim.node_uid)
    }


def count_failures(
    pools: Iterable[Pool], recorded: Mapping[str, FailedNode], gone: Mapping[str, FailedNode]
) -> dict[str, FailedNode]:
    """Return the failures that are on record after this pass, by UID of the Node: at most MOST, in the order of `pools`
    and of the UIDs. Sets `failed_before` of each pool to the sorted names of nodes whose failure is known only from the
    record, with a remark after the name if the node was deleted in its change.

    A failure counts until its node is proven or the policy gets a new revision. It still counts if a person allows
    further failures (`holds.py`), and if its node is deleted, leaves the pool, or has its fence removed by a person,
    because none of these proves the node. `gone`: see `find_gone`.
    """
    recorded = {**gone, **recorded}
    failures: dict[str, FailedNode] = {}
    for pool in pools:
        version = pool.policy.version
        marked = (one for one in pool.members if one.marked)
        failing = {one.node.uid: one.node for one in marked if has_failed(one, pool.policy)}
        lost = _find_lost(pool, recorded, failing)
        ends = {True: " (deleted in the middle of its change)", False: ""}
        pool.failed_before = tuple(sorted(f"{one.node}{ends[one.gone]}" for one in lost.values()))
        shown = {uid: FailedNode(node.name, version) for uid, node in failing.items()}
        failures |= dict(sorted((lost | shown).items())[: MOST - len(failures)])
    return failures


def _find_lost(
    pool: Pool, recorded: Mapping[str, FailedNode], failing: Container[str]
) -> dict[str, FailedNode]:
    """Return the recorded failures of the pool's revision, by UID of the Node. Nodes that still show the failure
    themselves (`failing`) or have been proven since are left out."""
    version = pool.policy.version
    lost = {uid: one for uid, one in recorded.items() if one.version == version and uid not in failing}
    proven = {one.node.uid for one in pool.members if _is_proven(one)} if lost else set()
    return {uid: one for uid, one in lost.items() if uid not in proven}


def _is_proven(member: Member) -> bool:
    """Whether the node's earlier failure no longer counts: its verdict is Synced, or its fence is yielded and records a
    proof, because somebody else still works on the node."""
    fence = member.node.fence
    aside = fence is not None and fence.stage == "yielded" and fence.proven is not None
    return member.verdict.phase is Phase.SYNCED or aside
