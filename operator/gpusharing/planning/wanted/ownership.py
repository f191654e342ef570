"""Which policy owns a node.

    node has no owner          the highest priority that selects it; then the oldest; then the first name
    node has an owner          the owner keeps it until it leaves the selector ...
                               ... or a policy of strictly higher priority selects it
    its spec cannot be read    the owner keeps it, and nothing happens until the spec is corrected
    its policy is being reset  it keeps what it has while nobody else selects that, and takes nothing (target.py)
    fence of another policy    that change ends first; then the node moves as a normal, budgeted change. A Failed one
                               does not end: its new owner repairs it, in the same slot (judge.py)

The owner is the policy of the fence, which is there before the node is anybody's; without a fence it is the label
gpusharing.dev/policy on the Node, written when a node is adopted or released.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from gpusharing.api import names
from gpusharing.api.policy import LabelSelector
from gpusharing.api.selectors import selects
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.vocabulary.values import value


def selects_node(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Kubernetes' LabelSelector semantics; an empty selector selects nothing here (it is refused anyway)."""
    if not selector.match_labels and not selector.match_expressions:
        return False
    return selects(selector, labels)


@value
class Contender:
    """The parts of a policy that decide about ownership; the rest may change without a new choice."""

    name: str
    """Name of the policy."""
    created: str
    """Its creationTimestamp: of equal priorities, the oldest wins."""
    selector: LabelSelector | None
    """None: the spec cannot be read."""
    priority: int
    """`spec.priority`: the highest wins."""
    leaving: bool = False
    """It only keeps what it has; a node that another policy selects too belongs to that one."""

    @property
    def order(self) -> tuple[int, str, str]:
        """The smallest comes first."""
        return (-self.priority, self.created, self.name)


def find_contenders(policies: Iterable[PolicyView]) -> tuple[Contender, ...]:
    """The policies that may own nodes: all but those that are being deleted."""
    return tuple(
        Contender(one.name, one.created, None, 0)
        if one.spec is None
        else Contender(one.name, one.created, one.spec.node_selector, one.spec.priority, one.resetting)
        for one in policies
        if not one.deleting
    )


class Owners:
    """Finds the owner of a node among contenders. Built once per set of them, then asked per node.

    Most selectors name one label value; contenders are indexed by it, so a node is compared only with those that can
    match.
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
        """The policy that owns the node; empty when none does."""
        present = node.fence.policy if node.fence is not None else node.labels.get(names.LABEL_POLICY, "")
        return present if present in self._unreadable else _choose(present, self.selecting(node))

    def selecting(self, node: NodeView) -> list[Contender]:
        """All contenders whose selector matches, in order."""
        labels = node.labels
        found = [contender for selector, contender in self._others if selects_node(selector, labels)]
        for key, by_value in self._by_label.items():
            value = labels.get(key)
            if value is not None and value in by_value:
                found += [
                    contender for selector, contender in by_value[value] if selects_node(selector, labels)
                ]
        if len(found) > 1:
            found.sort(key=lambda contender: contender.order)
        return found


def find_coming(owners: Mapping[str, str], fences: Mapping[str, Fence]) -> dict[str, tuple[str, ...]]:
    """By policy, the nodes that it owns and that a change of another policy keeps until that ends, sorted by name."""
    coming = defaultdict(list)
    for name in sorted(fences):
        if (owner := owners.get(name, "")) not in ("", fences[name].policy):
            coming[owner].append(name)
    return {owner: tuple(nodes) for owner, nodes in coming.items()}


def _choose(present: str, selecting: Sequence[Contender]) -> str:
    """The owner among those that select a node, in order, while `present` has it; empty when none does."""
    staying = [contender for contender in selecting if not contender.leaving]
    if not staying:
        return present if any(contender.name == present for contender in selecting) else ""
    best = staying[0]
    for contender in staying:
        if contender.name == present:
            return best.name if best.priority > contender.priority else present
    return best.name
