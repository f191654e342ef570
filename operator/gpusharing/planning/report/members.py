"""The nodes that a policy's status is about, and the messages that name them.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Sequence

from gpusharing.api.names import Phase
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.members import is_begun
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.ownership import selects_node


@value
class Members:
    """The nodes of one policy with their verdicts. Nodes that spec.products leaves out are listed separately, in
    `skipped`."""

    policy: PolicyView
    """The policy."""
    verdicts: tuple[Verdict, ...]
    """The verdict of each node."""
    nodes: tuple[NodeView, ...]
    """The Nodes, in the order of `verdicts`."""
    skipped: tuple[Verdict, ...]
    """The verdicts of the nodes that spec.products leaves out."""
    lost: tuple[str, ...]
    """Nodes that the policy selects but another policy owns, sorted. Only filled in if the policy has no nodes of its
    own."""
    coming: tuple[str, ...]
    """Nodes that the policy owns but that are still in a change which another policy began."""

    done: int
    """How many of the nodes are Synced and Ready, with no action left in their verdicts (`is_done`)."""
    unproven: tuple[Verdict, ...]
    """The verdicts of the nodes that are not proven, which are those in any phase but Synced."""
    away: str
    """The name of the first node that is proven (Synced) but whose kubelet does not report Ready. Empty if there is
    none."""
    failures: tuple[Verdict, ...]
    """The verdicts of the nodes whose change failed: those that are held as Failed, are being rolled back, or were
    rolled back and have the reason RolledBack."""


def members(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Members:
    """Return the nodes of a policy with their verdicts, sorted by name. The nodes that spec.products leaves out are in
    a field of their own, and `lost` is filled in only if the policy has no nodes at all, none is coming and its spec
    can be read. `plan` must have been made from this snapshot, with this policy."""
    verdicts = [plan.verdicts[name] for name in sorted(plan.pools[policy.name].names)]
    skipped = tuple(
        verdict for verdict in verdicts if is_product_skipped(verdict, snapshot.nodes[verdict.node])
    )
    names = {verdict.node for verdict in skipped}
    counted = tuple(verdict for verdict in verdicts if verdict.node not in names)
    nodes = tuple(snapshot.nodes[verdict.node] for verdict in counted)
    coming = plan.coming.get(policy.name, ())
    lost = () if verdicts or coming else _lost(policy, plan, snapshot)
    pairs = tuple(zip(counted, nodes, strict=True))
    return Members(
        policy,
        counted,
        nodes,
        skipped,
        lost,
        coming,
        done=sum(is_done(verdict, node) for verdict, node in pairs),
        unproven=tuple(verdict for verdict in counted if verdict.phase is not Phase.SYNCED),
        away=next((node.name for v, node in pairs if v.phase is Phase.SYNCED and not node.ready), ""),
        failures=tuple(
            verdict
            for verdict, node in pairs
            if verdict.phase is Phase.FAILED
            or verdict.reason in (Reason.ROLLING_BACK, Reason.ROLLED_BACK)
            # The reason of a node that is being rolled back may name whatever it waits for.
            or (node.fence is not None and node.fence.rolls_back)
        ),
    )


def is_product_skipped(verdict: Verdict, node: NodeView) -> bool:
    """Whether spec.products leaves the node out (the reason is ProductSkipped) and no change has begun on it. A node on
    which one has begun counts as skipped only after it is returned to service."""
    return verdict.reason is Reason.PRODUCT_SKIPPED and not is_begun(node)


def _lost(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> tuple[str, ...]:
    """Return the nodes that the policy selects but another policy owns, sorted. Empty if the spec cannot be read."""
    if policy.spec is None:
        return ()
    selector, verdicts = policy.spec.node_selector, plan.verdicts
    owned = (name for name in sorted(verdicts) if verdicts[name].policy not in ("", policy.name))
    return tuple(name for name in owned if selects_node(selector, snapshot.nodes[name].labels))


def is_done(verdict: Verdict, node: NodeView) -> bool:
    """Whether the node is proven (Synced) and Ready, and its verdict has no action left."""
    return verdict.phase is Phase.SYNCED and node.ready and not verdict.actions


def urgency(verdict: Verdict) -> tuple[tuple[int, int], str]:
    """Return a sort key that puts in front the verdict that a person should read first: by urgency of the reason, then
    by node name."""
    return verdict.reason.urgency, verdict.node


def tell_first(verdicts: Sequence[Verdict]) -> str:
    """Return the message of the most urgent verdict, preceded by the name of its node unless the message begins with
    that name. Raises ValueError if there are no verdicts."""
    shown = min(verdicts, key=urgency)
    prefix = "" if shown.message.startswith(shown.node) else f"{shown.node}: "
    return f"{prefix}{shown.message}"
