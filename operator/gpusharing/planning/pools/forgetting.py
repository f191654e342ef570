"""The last step of a policy with deletionPolicy Reset: our labels and records are removed from its nodes (docs/design/transition.md#reset). What the actuator has written may stay.

A rollout keeps its state on its nodes: which of them are being changed, which canaries serve and since when, what failed, and which plan was approved. So nodes with whole GPUs are not forgotten one by one, but all together when the last one is proven.
"""

from collections.abc import Mapping
from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.actions import LabelNode
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators.actuator import Actuator


def find_forgotten(
    pools: Mapping[str, Pool],
    verdicts: Mapping[str, Verdict],
    nodes: Mapping[str, NodeView],
    actuator: Actuator,
) -> dict[str, Verdict]:
    """Return the new verdicts, by name, of the nodes from which our labels and records are removed now, in place of other actions."""
    forgotten: dict[str, Verdict] = {}
    for pool in pools.values():
        members = [one.node.name for one in pool.members] if pool.policy.resetting else []
        if any(verdicts[name].phase is not Phase.SYNCED for name in members):
            continue
        for name in members:
            verdict, node = verdicts[name], nodes[name]
            message = (
                f"{verdict.message}, and the policy is being deleted, so the operator removes its labels"
                f"{actuator.tell_left(node)}"
            )
            labels = dict.fromkeys(
                key for key in (names.LABEL_POLICY, names.LABEL_MODE) if key in node.labels
            )
            verdict = replace(verdict, reason=Reason.DELETING, message=message)
            forgotten[name] = verdict.then(LabelNode(node, labels, forget=True))
    return forgotten
