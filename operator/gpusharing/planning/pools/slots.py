"""Which claims stay though their nodes carry no fence, and which policies keep our finalizer for it.

A claim is written before its fence. Where the operator ends in between, the next one may find the node's gate shut
once more: giving claim and finalizer back then, and taking them again, would be four writes for nothing.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.planning.actions import SetFinalizer
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.records import Claim
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.reasons import Reason

CLOCKS = timedelta(seconds=1.5)
"""By how much the clocks of two processes may differ: each was set by a Date of whole seconds (kube/clock.py)."""


def opens_again(verdict: Verdict, now: datetime) -> bool:
    """Whether the gate was open for the process before, and opens for this one by itself and soon.

    A wait that was just over may have a moment to go by another clock; and since when a node drifts is known to a
    process only, so a new one waits anew. What waits for an answer or for a person may do so for ever.
    """
    if verdict.wake is None:
        return False
    return verdict.reason is Reason.DRIFTED or verdict.wake - now <= CLOCKS


def find_resumed(
    claims: Mapping[str, Claim],
    nodes: Mapping[str, NodeView],
    verdicts: Mapping[str, Verdict],
    now: datetime,
) -> dict[str, Claim]:
    """Claims of nodes whose change begins in a moment: no fence yet, and nothing but a brief wait before it."""
    resumed = {}
    for name, claim in claims.items():
        node, verdict = nodes.get(name), verdicts.get(name)
        if node is None or verdict is None or node.fence is not None or node.uid != claim.node_uid:
            continue
        if verdict.policy == claim.policy and opens_again(verdict, now):
            resumed[name] = claim
    return resumed


def plan_finalizers(
    pools: Mapping[str, Pool],
    claims: Collection[Claim],
    fenced: Collection[NodeView],
    verdicts: Mapping[str, Verdict],
) -> list[SetFinalizer]:
    """Finalizers to put on or to take off. `claims`: all that stand after this pass; `fenced`: nodes with our fence."""
    actions = []
    claiming = {claim.policy for claim in claims}
    for name, pool in sorted(pools.items()):
        policy = pool.policy
        wanted = name in claiming or (policy.finalizer and bool(pool.candidates)) or _resets(policy)
        if policy.resetting:
            wanted = name in claiming or bool(pool.names)
        if policy.deleting:
            wanted = any(_holds_up(node, name, verdicts[node.name]) for node in fenced)
        if wanted != policy.finalizer and not (wanted and policy.going):
            actions.append(SetFinalizer(name, wanted, policy.uid))
    return actions


def _resets(policy: PolicyView) -> bool:
    """The finalizer is held from the start: nobody can put it on when the policy is being deleted already. What cannot
    be read may have said so."""
    return policy.finalizer if policy.spec is None else policy.spec.deletion_policy == "Reset"


def _holds_up(node: NodeView, policy: str, verdict: Verdict) -> bool:
    """Whether a policy waits for this node before it goes.

    A Failed node may never end: what it waits for then is a policy, any policy. A yielded one is left to somebody else.
    """
    fence = node.fence
    if fence is None or fence.policy != policy or fence.stage == "yielded":
        return False
    return verdict.phase is not Phase.FAILED
