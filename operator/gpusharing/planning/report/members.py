"""The nodes that a policy's status is about, and texts about them.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Sequence

from gpusharing.api.names import Phase
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.transition.members import is_outside
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.ownership import selects_node


@value
class Members:
    """The nodes of one policy with their verdicts, without those that are left alone on purpose (spec.products)."""

    policy: PolicyView
    """The policy."""
    verdicts: tuple[Verdict, ...]
    """The verdict of each node."""
    nodes: tuple[NodeView, ...]
    """The Nodes, in the order of `verdicts`."""
    skipped: tuple[Verdict, ...]
    """The verdicts of the nodes that spec.products leaves out."""
    lost: tuple[str, ...] = ()
    """Nodes that the policy selects and another policy owns. Empty unless the policy has no node at all."""
    coming: tuple[str, ...] = ()
    """Nodes of the policy that a change of another policy still keeps."""

    @property
    def done(self) -> int:
        """How many of the nodes are proven and Ready, with nothing left to write."""
        return sum(is_done(verdict, node) for verdict, node in zip(self.verdicts, self.nodes, strict=True))

    @property
    def unproven(self) -> list[Verdict]:
        """The verdicts of the nodes that are not proven."""
        return [verdict for verdict in self.verdicts if verdict.phase is not Phase.SYNCED]

    @property
    def away(self) -> str:
        """The first proven node whose kubelet does not report Ready. Empty if there is none."""
        pairs = zip(self.verdicts, self.nodes, strict=True)
        return next((node.name for v, node in pairs if v.phase is Phase.SYNCED and not node.ready), "")

    @property
    def failures(self) -> list[Verdict]:
        """The verdicts of the nodes that failed past the point of no return in this generation: held, going back, or
        gone back.

        The verdict of a node that goes back names whatever it waits for now, so its fence is checked for that.
        """
        return [
            verdict
            for verdict, node in zip(self.verdicts, self.nodes, strict=True)
            if verdict.phase is Phase.FAILED
            or verdict.reason in (Reason.ROLLING_BACK, Reason.ROLLED_BACK)
            or (node.fence is not None and node.fence.rolls_back)
        ]


def members(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Members:
    """Return the nodes that the status of a policy is about, with their verdicts, sorted by name."""
    verdicts = [plan.verdicts[name] for name in sorted(plan.pools[policy.name].names)]
    skipped = tuple(
        verdict for verdict in verdicts if is_product_skipped(verdict, snapshot.nodes[verdict.node])
    )
    names = {verdict.node for verdict in skipped}
    counted = tuple(verdict for verdict in verdicts if verdict.node not in names)
    nodes = tuple(snapshot.nodes[verdict.node] for verdict in counted)
    coming = plan.coming.get(policy.name, ())
    lost = () if verdicts or coming else _lost(policy, plan, snapshot)
    return Members(policy, counted, nodes, skipped, lost, coming)


def is_product_skipped(verdict: Verdict, node: NodeView) -> bool:
    """Whether the node is left alone on purpose; one whose change had begun before is not, until it is given back."""
    return verdict.reason is Reason.PRODUCT_SKIPPED and is_outside(verdict, node)


def _lost(policy: PolicyView, plan: RolloutPlan, snapshot: ClusterSnapshot) -> tuple[str, ...]:
    """Return the nodes that the policy selects and another policy owns, sorted. Empty if the spec cannot be read."""
    if policy.spec is None:
        return ()
    selector, verdicts = policy.spec.node_selector, plan.verdicts
    owned = (name for name in sorted(verdicts) if verdicts[name].policy not in ("", policy.name))
    return tuple(name for name in owned if selects_node(selector, snapshot.nodes[name].labels))


def is_done(verdict: Verdict, node: NodeView) -> bool:
    """Whether the node is proven and Ready, with nothing left to write."""
    return verdict.phase is Phase.SYNCED and node.ready and not verdict.actions


def urgency(verdict: Verdict) -> tuple[tuple[int, int], str]:
    """Return the sort key by which the verdict that a person should read first comes first."""
    return verdict.reason.urgency, verdict.node


def tell_first(verdicts: Sequence[Verdict]) -> str:
    """Return the message of the most urgent verdict, preceded by the name of its node unless it begins with that.
    Raises ValueError if there are no verdicts."""
    shown = min(verdicts, key=urgency)
    prefix = "" if shown.message.startswith(shown.node) else f"{shown.node}: "
    return f"{prefix}{shown.message}"
