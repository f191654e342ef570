"""Which policy owns a node.

    node has no owner          the highest priority that selects it; then the oldest; then the first name
    node has an owner          the owner keeps it until it leaves the selector ...
                               ... or a policy of strictly higher priority selects it
    its spec cannot be read    the owner keeps it, and nothing happens until the spec is mended
    fence of another policy    that change ends first; then the node moves as a normal, budgeted change. A Failed one
                               does not end: its new owner repairs it, in the same slot (judge.py)

The owner is the policy of the fence, which is there before the node is anybody's; without a fence it is the label
gpusharing.dev/policy on the Node, written when a node is adopted or released.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from gpusharing.api import names
from gpusharing.api.policy import LabelSelector
from gpusharing.planning.snapshot.views import NodeView, PolicyView


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Kubernetes' LabelSelector semantics; an empty selector selects nothing here (it is refused anyway)."""
    if not selector.match_labels and not selector.match_expressions:
        return False
    for key, value in selector.match_labels.items():
        if labels.get(key) != value:
            return False
    for row in selector.match_expressions:
        present = row.key in labels
        match row.operator:
            case "In":
                holds = present and labels[row.key] in row.values
            case "NotIn":
                holds = not present or labels[row.key] not in row.values
            case "Exists":
                holds = present
            case "DoesNotExist":
                holds = not present
        if not holds:
            return False
    return True


class Owners:
    """Finds the owner of a node among policies. Built once per set of policies, then asked per node.

    Most selectors name one label value; policies are indexed by it, so a node is compared only with policies
    that can match.
    """

    def __init__(self, policies: Sequence[PolicyView]) -> None:
        self._by_label: dict[str, dict[str, list[tuple[LabelSelector, PolicyView]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._others: list[tuple[LabelSelector, PolicyView]] = []
        self._unreadable = {
            policy.name: policy for policy in policies if policy.spec is None and not policy.deleting
        }
        for policy in policies:
            if policy.spec is None or policy.deleting:
                continue
            selector = policy.spec.node_selector
            if selector.match_labels:
                key, value = min(selector.match_labels.items())
                self._by_label[key][value].append((selector, policy))
            else:
                self._others.append((selector, policy))

        self.rules = tuple(map(_rule, policies))
        """All that decides about ownership; the rest of the policies may change without a new choice."""

    def owner(self, node: NodeView) -> PolicyView | None:
        """The policy that owns the node; None when none does."""
        present = self._unreadable.get(_holder(node))
        return present or choose_owner(node, self.selecting(node))

    def selecting(self, node: NodeView) -> list[PolicyView]:
        """Every policy whose selector matches, best claim first."""
        labels = node.labels
        found = [policy for selector, policy in self._others if selects(selector, labels)]
        for key, by_value in self._by_label.items():
            value = labels.get(key)
            if value is not None and value in by_value:
                found += [policy for selector, policy in by_value[value] if selects(selector, labels)]
        if len(found) > 1:
            found.sort(key=_claim)
        return found


def _rule(policy: PolicyView) -> tuple[object, ...]:
    spec = policy.spec
    chosen_by = (spec.node_selector, spec.priority) if spec is not None else None
    return policy.name, policy.created, policy.deleting, chosen_by


def _claim(policy: PolicyView) -> tuple[int, str, str]:
    assert policy.spec is not None, "policies without a spec are left out"
    return (-policy.spec.priority, policy.created, policy.name)


def _holder(node: NodeView) -> str:
    """The policy that has the node now, empty when none does."""
    return node.fence.policy if node.fence is not None else node.labels.get(names.LABEL_POLICY, "")


def choose_owner(node: NodeView, selecting: Sequence[PolicyView]) -> PolicyView | None:
    """The owner among the policies that select the node, best claim first."""
    if not selecting:
        return None
    best = selecting[0]
    present = _holder(node)
    for policy in selecting:
        if policy.name == present and policy.spec is not None and best.spec is not None:
            return best if best.spec.priority > policy.spec.priority else policy
    return best
