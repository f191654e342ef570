"""Pools with nodes that wait behind the start-up taint, and who of them is begun with."""

from typing import Any

from tests.build import H100, NOW, make_node, make_policy, make_snapshot, make_work

from gpusharing.api import names
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode

PRESENT = {names.LABEL_GPU_PRESENT: "true", names.LABEL_GPU_PRODUCT: H100.replace(" ", "-")}


def fleet(*, served: int, new: int, **rollout: Any) -> Any:
    """A pool whose nodes all differ from what is wanted; `new` of them wait behind the taint. Their pods are listed."""
    nodes = [make_node(f"old-{n}", labels=PRESENT) for n in range(served)]
    nodes += [make_node(f"new-{n}", gated=True, labels=PRESENT) for n in range(new)]
    work = {node.name: make_work() for node in nodes}
    return make_snapshot(nodes, [make_policy(rollout=rollout)], work=work)


def begun(snapshot: Any) -> list[str]:
    """Which nodes are fenced now; those that took no slot in capitals."""
    verdicts = plan_rollout(snapshot, NOW).verdicts.values()
    fences = [action.fence for verdict in verdicts for action in verdict.actions if isinstance(action, FenceNode)]
    uids = {node.uid: name for name, node in snapshot.nodes.items()}
    return sorted(uids[one.node_uid].upper() if one.newcomer else uids[one.node_uid] for one in fences)
