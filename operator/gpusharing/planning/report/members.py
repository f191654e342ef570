"""The nodes that a policy's status is about, and the messages that name them."""

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
    """The nodes of one policy with their verdicts, sorted by name; those that spec.products leaves out are in `skipped`."""

    policy: PolicyView
    verdicts: tuple[Verdict, ...]
    nodes: tuple[NodeView, ...]
    """The Nodes, in the order of `verdicts`."""
    skipped: tuple[Verdict, ...]
    lost: tuple[str, ...]
    """Nodes that the policy selects but another policy owns. Only filled in if the policy has no nodes of its own."""
    coming: tuple[str, ...]
    """Nodes that the policy owns but that are still in a change which another policy began."""
    done: int
    """How many of the nodes are Synced and Ready, with no action left in their verdicts (`is_done`)."""
    unproven: tuple[Verdict, ...]
    away: str
    """The first node that is proven (Synced) but not Ready; empty if there is none."""
    failures: tuple[Verdict, ...]
    """The verdicts of the nodes that are Failed, are being rolled back, or were rolled back."""


def members(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Members:
    """Return the nodes of a policy with their verdicts. The plan must have been made from this snapshot, with this policy."""
    rows = [(plan.verdicts[name], snapshot.nodes[name]) for name in sorted(plan.pools[policy.name].names)]
    pairs = [(verdict, node) for verdict, node in rows if not is_product_skipped(verdict, node)]
    coming = plan.coming.get(policy.name, ())
    lost: tuple[str, ...] = ()
    if not rows and not coming and policy.spec is not None:
        selector, others = policy.spec.node_selector, sorted(plan.verdicts.items())
        owned = (name for name, verdict in others if verdict.policy not in ("", policy.name))
        lost = tuple(name for name in owned if selects_node(selector, snapshot.nodes[name].labels))
    return Members(
        policy,
        tuple(verdict for verdict, _ in pairs),
        tuple(node for _, node in pairs),
        skipped=tuple(verdict for verdict, node in rows if is_product_skipped(verdict, node)),
        lost=lost,
        coming=coming,
        done=sum(is_done(verdict, node) for verdict, node in pairs),
        unproven=tuple(verdict for verdict, _ in pairs if verdict.phase is not Phase.SYNCED),
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
    """Whether spec.products leaves the node out and no change has begun on it."""
    return verdict.reason is Reason.PRODUCT_SKIPPED and not is_begun(node)


def is_done(verdict: Verdict, node: NodeView) -> bool:
    """Whether the node is proven and Ready, and nothing is left to write."""
    return verdict.phase is Phase.SYNCED and node.ready and not verdict.actions


def urgency(verdict: Verdict) -> tuple[tuple[int, int], str]:
    """Return a sort key that puts in front the verdict that a person should read first."""
    return verdict.reason.urgency, verdict.node


def tell_first(verdicts: Sequence[Verdict]) -> str:
    """Return the message of the most urgent verdict, with the name of its node in front. Raises ValueError if there are no verdicts."""
    shown = min(verdicts, key=urgency)
    prefix = "" if shown.message.startswith(shown.node) else f"{shown.node}: "
    return f"{prefix}{shown.message}"
