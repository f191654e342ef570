"""Which failures of a generation are on record, so that no node takes its failure with it when it goes."""

from collections.abc import Iterable, Mapping

from gpusharing.api.names import Phase
from gpusharing.planning.pools.holds import has_failed
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.records import FailedNode
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.way.members import Member

MOST = 200
"""Failures on record, of all policies together: the annotations of the Lease may have 256 KiB (kube/fence.py)."""


def count_failures(pools: Iterable[Pool], recorded: Mapping[str, FailedNode]) -> dict[str, FailedNode]:
    """What is on record after this pass, by UID of the Node; each pool learns which of its failures only the record
    knows.

    A failure counts until its node is proven, or the policy has another generation, or a person resumed it. A node
    that was deleted, left the pool, or lost its fence to a person was not proven.
    """
    found: dict[str, FailedNode] = {}
    for pool in pools:
        policy, members = pool.policy, {member.node.uid: member for member in pool.members}
        if policy.resumed == str(policy.generation):
            continue
        own = {uid: one for uid, one in recorded.items() if _is_of(one, policy)}
        kept = {uid: one for uid, one in own.items() if not _is_proven(members.get(uid), policy)}
        failing = [member.node for member in members.values() if has_failed(member, policy)]
        pool.failed_before = tuple(
            sorted(one.node for uid, one in kept.items() if uid not in {node.uid for node in failing})
        )
        kept |= {node.uid: FailedNode(node.name, policy.uid, policy.generation) for node in failing}
        found |= dict(sorted(kept.items())[: MOST - len(found)])
    return found


def _is_of(failure: FailedNode, policy: PolicyView) -> bool:
    return (failure.policy_uid, failure.generation) == (policy.uid, policy.generation)


def _is_proven(member: Member | None, policy: PolicyView) -> bool:
    return member is not None and member.verdict.phase is Phase.SYNCED and not has_failed(member, policy)
