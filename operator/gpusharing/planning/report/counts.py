"""What columns and metrics count: devices that pods hold or could get, and pods that wait for one."""

from collections import Counter
from collections.abc import Iterable, Mapping

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.afterwards import find_holdings
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.transition.members import is_unavailable
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import is_plugin_resource
from gpusharing.planning.wanted.verify import served

MOST_WAITED_FOR = 16
"""The most resource names that pods wait for and no node serves: anyone who may create pods may invent names."""
OTHERS = "_others"
"""The name under which the other resources are counted; no resource can have it."""


def count_used(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> str:
    """Return how many devices pods hold, of all that the nodes serve, such as `27/32`, or `27+?/32` if it is unknown
    for some node what its pods hold. Pods keep their devices when the device plugin of their node is gone, so
    `16/0` is possible."""
    used = total = 0
    known = True
    for node in nodes:
        now = served(node)
        total += sum(now.values())
        holdings = find_holdings(node, snapshot)
        known = known and (holdings is not None or not now)
        counted = now or filter(is_plugin_resource, holdings or ())
        used += sum((holdings or {}).get(name, 0) for name in counted)
    return f"{used}{'' if known else '+?'}/{total}"


def count_pending(
    nodes: Iterable[NodeView],
    spec: GPUSharingPolicySpec | None,
    targets: Mapping[str, Mapping[str, int]],
    snapshot: ClusterSnapshot,
) -> int:
    """Count the Pending pods that ask for a resource which these nodes serve. If the policy may strand pods, also count
    those that ask for a resource which no node of the cluster serves or should serve.

    It is unknown which change removed such a resource, so every such policy counts them. `targets`: what each node
    should serve, by the name of the node.
    """
    names = {name for node in nodes for name in served(node)}
    others = snapshot.pending.keys() - names
    if others and spec is not None and spec.drain.stranded_pods == "Allow":
        known = {name for node in snapshot.nodes.values() for name in served(node)}
        known.update(name for resources in targets.values() for name in resources)
        names |= others - known
    return sum(count for name, count in snapshot.pending.items() if name in names)


@value
class Slices:
    """The slices of some nodes, by resource name."""

    advertised: Mapping[str, int]
    """How many slices the nodes serve."""
    idle: Mapping[str, int]
    """How many of those no pod holds, on nodes that accept pods and report who holds what. 0 if all are held."""


def count_slices(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> Slices:
    """Return the slices that the nodes serve, and how many of them a pod could get now."""
    totals: Counter[str] = Counter()
    idle: Counter[str] = Counter()
    for node in nodes:
        now = served(node)
        totals.update(now)
        holdings = find_holdings(node, snapshot) if _takes_pods(node) else None
        if holdings is not None:
            idle.update({name: max(0, count - holdings.get(name, 0)) for name, count in now.items()})
    return Slices(totals, {name: idle[name] for name in totals})


def _takes_pods(node: NodeView) -> bool:
    """Whether the scheduler may place pods on the node: it is available and has no start-up taint."""
    return not is_unavailable(node) and node.gate is None


def waited_for(snapshot: ClusterSnapshot) -> Mapping[str, int]:
    """Return how many Pending pods ask for each GPU resource. Names that no node serves are limited to the
    MOST_WAITED_FOR most frequent; the rest is counted under OTHERS."""
    served_names = {name for node in snapshot.nodes.values() for name in served(node)}
    strange = sorted(snapshot.pending.keys() - served_names, key=lambda name: (-snapshot.pending[name], name))
    counts = {name: count for name, count in snapshot.pending.items() if name in served_names}
    counts |= {name: snapshot.pending[name] for name in strange[:MOST_WAITED_FOR]}
    if rest := strange[MOST_WAITED_FOR:]:
        counts[OTHERS] = sum(snapshot.pending[name] for name in rest)
    return counts
