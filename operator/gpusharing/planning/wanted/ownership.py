"""Which policy owns a node?

The present owner is the policy that the fence names, because the fence is written before the label, else that of the
label gpusharing.dev/policy.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from gpusharing.api import names
from gpusharing.api.policy import LabelSelector
from gpusharing.api.selectors import selects
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.vocabulary.values import value


def selects_node(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether the selector matches. Unlike in Kubernetes, an empty one matches nothing; the API refuses it anyway."""
    if not selector.match_labels and not selector.match_expressions:
        return False
    return selects(selector, labels)


@value
class Contender:
    """The parts of a policy that decide which nodes it owns."""

    name: str
    created: str
    selector: LabelSelector | None
    """None if the spec cannot be read."""
    priority: int
    leaving: bool = False
    """Whether it resets its nodes before its deletion: it keeps those that no other selects, and gets no more."""


def find_contenders(policies: Iterable[PolicyView]) -> tuple[Contender, ...]:
    """Return the policies that may own nodes; one whose spec cannot be read keeps its nodes, without a selector."""
    return tuple(
        Contender(one.name, one.created, None, 0)
        if one.spec is None
        else Contender(one.name, one.created, one.spec.node_selector, one.spec.priority, one.resetting)
        for one in policies
        if not one.deleting
    )


class Owners:
    """Finds the owner of a node among contenders.

    node has no owner          the selecting policy of highest priority; then the oldest; then the first by name
    node has an owner          the owner keeps it until its selector no longer matches the node ...
                               ... or a policy of strictly higher priority selects it
    its spec cannot be read    the owner keeps it, and nothing happens until the spec is corrected
    its policy is being reset  the policy keeps a node that no other selects, and gets no more nodes
    fence of another policy    that change ends first; then the node moves as a normal, budgeted change. A Failed
                               change does not end: the new owner repairs the node, in the same slot

    Most selectors require one label value. Contenders are indexed by it, so that a node is compared only with those
    that can match.
    """

    def __init__(self, contenders: Iterable[Contender]) -> None:
        self._by_label: dict[str, dict[str, list[tuple[LabelSelector, Contender]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._others: list[tuple[LabelSelector, Contender]] = []
        self._unreadable: set[str] = set()
        for contender in contenders:
            selector = contender.selector
            if selector is None:
                self._unreadable.add(contender.name)
            elif selector.match_labels:
                key, value = min(selector.match_labels.items())
                self._by_label[key][value].append((selector, contender))
            else:
                self._others.append((selector, contender))

    def owner(self, node: NodeView) -> str:
        present = node.fence.policy if node.fence is not None else node.labels.get(names.LABEL_POLICY, "")
        if present in self._unreadable:
            return present
        selecting = self.selecting(node)
        claiming = [contender for contender in selecting if not contender.leaving]
        if not claiming:
            return present if any(contender.name == present for contender in selecting) else ""
        best = claiming[0]
        for contender in claiming:
            if contender.name == present and contender.priority == best.priority:
                return present
        return best.name

    def selecting(self, node: NodeView) -> list[Contender]:
        """Return the contenders whose selector matches the node, by priority, then the older one first."""
        labels = node.labels
        contenders = [contender for selector, contender in self._others if selects_node(selector, labels)]
        for key, by_value in self._by_label.items():
            value = labels.get(key)
            if value is not None and value in by_value:
                contenders += [contender for selector, contender in by_value[value] if selects_node(selector, labels)]
        if len(contenders) > 1:
            contenders.sort(key=lambda one: (-one.priority, one.created, one.name))
        return contenders


def find_coming(owners: Mapping[str, str], fences: Mapping[str, Fence]) -> dict[str, tuple[str, ...]]:
    """Return, by owner or empty if none owns them, the nodes whose fence belongs to a change of another policy, sorted."""
    coming = defaultdict(list)
    for name in sorted(fences):
        if name in owners and owners[name] != fences[name].policy:
            coming[owners[name]].append(name)
    return {owner: tuple(nodes) for owner, nodes in coming.items()}
