"""The restarts of config-manager while the MPS daemon of a node keeps running. Each of them ends the node's MPS
clients.

config-manager begins with the fallback configuration and names the one of the label a moment later, and it signals the
daemon both times (docs/design/nvidia.md#b5). The daemon then serves again, so the node is as it was proven, and nothing
has to be corrected. The restart is counted and reported, and no node is drained for it.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Mapping

from gpusharing.planning.snapshot.stackviews import Operand, Program, StackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.toolversions import find_deafness
from gpusharing.planning.wanted.verify import is_told_mps


@value
class MpsLapses:
    """How often the MPS clients of a node ended because config-manager's container restarted alone."""

    pod: str
    """UID of the MPS daemon's pod. Another pod starts a new count."""
    count: int
    """How often its config-manager has restarted alone."""
    text: str
    """What happened and why, for people. Empty if the count is 0."""

    def since(self, before: "MpsLapses | None") -> int:
        """Return how many restarts are new since the count `before`. If `before` is about another pod, all restarts
        are new. 0 if it is None, because it is then unknown whether the restarts ended any client."""
        if before is None:
            return 0
        return max(0, self.count - before.count) if before.pod == self.pod else self.count


def find_lapses(node: NodeView, operands: Mapping[Program, Operand], stack: StackView) -> MpsLapses | None:
    """Return how often config-manager has restarted alone, which may be 0 times, in the pod of the node's MPS daemon.
    The pod is taken from `operands`. None if there is no such pod, if the device plugin is not configured for MPS,
    or if the node has our fence, which keeps clients away. Also None if the daemon follows no label: config-manager
    then fails again and again alongside a daemon that has no clients."""
    pod = operands.get(Program.MPS_DAEMON)
    if pod is None or node.fence is not None or not is_told_mps(node, stack):
        return None
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    if daemon is not None and find_deafness(daemon):
        return None
    return MpsLapses(pod.uid, pod.lone_restarts, _describe(pod))


def _describe(pod: Operand) -> str:
    """Return what happened to the MPS clients and why, or an empty string if config-manager has not restarted alone."""
    count = pod.lone_restarts
    if not count:
        return ""
    times, last = ("once", "") if count == 1 else (f"{count} times", "the last time ")
    cause = f" ({last}{pod.restart_cause})" if pod.restart_cause else ""
    return (
        f"the config-manager container in pod {pod.name} restarted {times}{cause} while the MPS daemon kept running;"
        " every such restart ends the MPS clients on the node"
    )
