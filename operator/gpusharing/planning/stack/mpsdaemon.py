"""How often config-manager restarted while the MPS daemon of a node kept running.

Each such restart ends the node's MPS clients: config-manager begins with the fallback configuration and names the one
of the label a moment later, and it signals the daemon both times (docs/design/nvidia.md#b5). The daemon then serves
again, so the restart is counted and reported, and no node is drained for it.
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
    """How often its config-manager has restarted alone, less the restarts of the daemon alone; may be negative."""
    name: str
    """Name of the pod."""
    cause: str
    """Why config-manager last exited, or an empty string."""
    settling: bool = False
    """Whether config-manager is not running, so that `count` cannot be compared, such as after a reboot of the node."""

    def since(self, before: "MpsLapses | None") -> int:
        """Return how many restarts are new since the count `before`; None is a count that is not known."""
        if before is None or before.settling or self.settling:
            return 0
        return max(0, self.count - before.count if before.pod == self.pod else self.count)

    def describe(self, count: int) -> str:
        if count <= 0:
            return ""
        times, last = ("once", "") if count == 1 else (f"{count} times", "the last time ")
        cause = f" ({last}{self.cause})" if self.cause else ""
        return (
            f"the config-manager container in pod {self.name} restarted {times}{cause} while the MPS daemon kept"
            " running; every such restart ends the MPS clients on the node"
        )


def find_lapses(node: NodeView, operands: Mapping[Program, Operand], stack: StackView) -> MpsLapses | None:
    """Return the count for the node's MPS daemon, or None if the node has no MPS clients that a restart would end."""
    pod = operands.get(Program.MPS_DAEMON)
    if pod is None or node.fence is not None or not is_told_mps(node, stack):
        return None
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    if daemon is not None and find_deafness(daemon):  # config-manager fails again and again beside it
        return None
    return MpsLapses(pod.uid, pod.lone_restarts, pod.name, pod.restart_cause, pod.settling)
