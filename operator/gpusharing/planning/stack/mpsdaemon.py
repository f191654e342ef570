"""NVIDIA's MPS daemon: whether labels can switch MPS on in this installation, and how often config-manager restarted
while the daemon of a node kept running. Each such restart ends the node's MPS clients.

config-manager begins with the fallback configuration and names the one of the label a moment later, and it signals the
daemon both times (docs/design/nvidia.md#b5). The daemon then serves again, so the node is as it was proven, and nothing
has to be corrected. The restart is counted and reported, and no node is drained for it.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Mapping

from gpusharing.api.names import Mode
from gpusharing.planning.snapshot.stackviews import Operand, Program, StackView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.stack.installationviews import InstallationView, Symptoms, Topic, error
from gpusharing.planning.stack.mpsrepair import VALUE
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.toolversions import SKIPS_THREADS, find_deafness, find_remedy
from gpusharing.planning.wanted.verify import is_told_mps


def find_deaf_mps(view: InstallationView) -> Symptoms:
    """Yield an error if a policy has mode MPS and the GPU Operator's MPS daemon would not read the configuration that
    a label names (docs/design/nvidia.md#b5). The message has all steps of the remedy, and the command is the first
    step. Yields nothing if it is unknown what the daemon would read."""
    wanted = sorted(
        policy.name for policy in view.policies if policy.spec is not None and policy.spec.mode is Mode.MPS
    )
    stack = view.followed_policy
    daemon = stack.mps_daemon if stack is not None else None
    if not wanted or stack is None or daemon is None or not (why := find_deafness(daemon)):
        return
    remedy = find_remedy(daemon)
    newer = kubectl_patch(stack.name, {"devicePlugin": {"version": SKIPS_THREADS}})
    yield error(
        Topic.CLUSTER_POLICY,
        str(Reason.MPS_NOT_SWITCHABLE),
        f"{daemon.name}: no node can change to MPS for policy {', '.join(wanted)}, because {why}. {remedy.text}"
        f"{_by_itself(view)}",
        newer if remedy.needs_plugin else remedy.command,
    )


def _by_itself(view: InstallationView) -> str:
    """Return the end of a message: that the operator makes this repair by itself, and which command shows what it still
    waits for. It begins with a period and a space, and has no period at its end. Empty if the chart value that allows
    the repair is off."""
    if not view.place.repair_mps:
        return ""
    return f". The operator sets the name itself ({VALUE}): `kubectl get gpun -o wide` says what it waits for"


@value
class MpsLapses:
    """How often the MPS clients of a node ended because config-manager's container restarted alone."""

    pod: str
    """UID of the MPS daemon's pod. Another pod starts a new count."""
    count: int
    """How often its config-manager has restarted alone, less the restarts of the daemon alone."""
    name: str
    """Name of the pod."""
    cause: str
    """Why config-manager last exited. Empty if it is unknown."""
    settling: bool = False
    """Whether config-manager is not running, so that `count` cannot be compared. A reboot of the node may have
    restarted the daemon already and config-manager not yet."""

    def since(self, before: "MpsLapses | None") -> int:
        """Return how many restarts are new since the count `before`. If `before` is about another pod, all restarts
        are new. 0 if it is None, because it is then unknown whether the restarts ended any client, and 0 if either of
        the two is `settling`."""
        if before is None or before.settling or self.settling:
            return 0
        return max(0, self.count - before.count if before.pod == self.pod else self.count)

    def describe(self, count: int) -> str:
        """Return what `count` restarts of config-manager alone did to the MPS clients, and why. Empty if `count` is not
        positive."""
        if count <= 0:
            return ""
        times, last = ("once", "") if count == 1 else (f"{count} times", "the last time ")
        cause = f" ({last}{self.cause})" if self.cause else ""
        return (
            f"the config-manager container in pod {self.name} restarted {times}{cause} while the MPS daemon kept"
            " running; every such restart ends the MPS clients on the node"
        )


def find_lapses(node: NodeView, operands: Mapping[Program, Operand], stack: StackView) -> MpsLapses | None:
    """Return how often config-manager has restarted alone in the pod of the node's MPS daemon, less the restarts of the
    daemon alone; the count may be 0 or negative (`lone_restarts`). The pod is taken from `operands`. None if there is
    no such pod, if the device plugin is not configured for MPS, or if the node has our fence, which keeps clients away.
    Also None if the daemon follows no label: config-manager then fails again and again alongside a daemon that has no
    clients."""
    pod = operands.get(Program.MPS_DAEMON)
    if pod is None or node.fence is not None or not is_told_mps(node, stack):
        return None
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    if daemon is not None and find_deafness(daemon):
        return None
    return MpsLapses(pod.uid, pod.lone_restarts, pod.name, pod.restart_cause, pod.settling)
