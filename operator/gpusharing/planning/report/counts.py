"""How many devices do pods hold, how many could they get, and how many pods wait for one?"""

from collections import Counter
from collections.abc import Iterable, Mapping

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.pools.afterwards import find_holdings
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.transition.cases import is_unavailable
from gpusharing.planning.wanted.target import is_plugin_resource
from gpusharing.planning.wanted.verify import served

MOST_WAITED_FOR = 16
"""The most names without a node that `waited_for` lists; whoever may create pods may invent such names."""
OTHERS = "_others"
"""The key under which the remaining resources are counted together; no resource can have this name."""


def count_used(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> str:
    """Return how many of the served devices pods hold, such as `27/32`, or `27+?/32` if some holdings are unknown.

    On a node that serves nothing, the device plugin resources that pods still hold count, so `16/0` is possible.
    """
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


def count_devices(
    nodes: Iterable[NodeView], targets: Mapping[str, Mapping[str, int]]
) -> tuple[Counter[str], Counter[str]]:
    """Return how many devices of each resource the nodes serve now, and how many after all changes."""
    before, after = Counter[str](), Counter[str]()
    for node in nodes:
        resources = served(node)
        before.update(resources)
        after.update(targets.get(node.name, resources))
    return before, after


def count_pending(
    nodes: Iterable[NodeView],
    spec: GPUSharingPolicySpec | None,
    targets: Mapping[str, Mapping[str, int]],
    snapshot: ClusterSnapshot,
) -> int:
    """Return the number of requests by Pending pods without a node for a resource that a node serves.

    If the policy may strand pods, requests for resources that no node serves or will serve count too: it is unknown
    which change removed them.
    """
    names = {name for node in nodes for name in served(node)}
    others = snapshot.pending.keys() - names
    if others and spec is not None and spec.drain.stranded_pods == "Allow":
        known = {name for node in snapshot.nodes.values() for name in served(node)}
        known.update(name for resources in targets.values() for name in resources)
        names |= others - known
    return sum(count for name, count in snapshot.pending.items() if name in names)


def count_slices(nodes: Iterable[NodeView], snapshot: ClusterSnapshot) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Return the slices that `nodes` serve, by resource name, and how many of them a pod could get now.

    The second lacks a resource of which no node that takes pods tells what they hold.
    """
    totals: Counter[str] = Counter()
    idle: Counter[str] = Counter()
    unknown: set[str] = set()
    for node in nodes:
        now = served(node)
        totals.update(now)
        # The scheduler places no pod on a node that is unavailable, even by a change without a cordon, or behind the
        # start-up taint.
        takes_pods = not is_unavailable(node) and node.gate is None
        holdings = find_holdings(node, snapshot) if takes_pods else {}
        if holdings is None:
            unknown.update(now)
        elif takes_pods:
            idle.update({name: max(0, count - holdings.get(name, 0)) for name, count in now.items()})
    return totals, {name: idle[name] for name in totals if name in idle or name not in unknown}


def waited_for(snapshot: ClusterSnapshot) -> Mapping[str, int]:
    """Return how many Pending pods without a node request each GPU resource; rare unknown ones together as OTHERS."""
    served_names = {name for node in snapshot.nodes.values() for name in served(node)}
    strange = sorted(snapshot.pending.keys() - served_names, key=lambda name: (-snapshot.pending[name], name))
    counts = {name: count for name, count in snapshot.pending.items() if name in served_names}
    counts |= {name: snapshot.pending[name] for name in strange[:MOST_WAITED_FOR]}
    if rest := strange[MOST_WAITED_FOR:]:
        counts[OTHERS] = sum(snapshot.pending[name] for name in rest)
    return counts
