"""The pods of NVIDIA's components, as far as the planner reads them."""

from collections.abc import Iterable

from gpusharing.kube.client import JSON
from gpusharing.kube.daemonsets import MANAGER, MPS
from gpusharing.kube.dra import GPUS
from gpusharing.kube.raw import entries, has_condition, part, section, text, whole
from gpusharing.planning.snapshot.nvidia import Operand, Program


def operand_view(raw: JSON) -> Operand:
    """Convert a raw pod of NVIDIA's components; the chart's MPS daemon, which has no label `app`, gets one here."""
    app = text(raw, "metadata", "labels", "app")
    containers = {text(container, "name") for container in entries(raw, "spec", "containers")}
    ready = has_condition(raw, "Ready")
    if text(raw, "metadata", "labels", Program.KUBELET_PLUGIN.label) == Program.KUBELET_PLUGIN:
        app = Program.KUBELET_PLUGIN if GPUS in containers else ""  # not one for compute domains only
        rows = entries(raw, "status", "containerStatuses")  # the one for compute domains may fail alone
        ready = ready or any(text(row, "name") == GPUS and row.get("ready") is True for row in rows)
    restarts, cause, settling = lone_restarts(raw) if app == Program.MPS_DAEMON else (0, "", False)
    if MPS in containers:
        app = Program.MPS_DAEMON
    deleting = "deletionTimestamp" in section(raw, "metadata")
    namespace, name, uid = (text(raw, "metadata", key) for key in ("namespace", "name", "uid"))
    return Operand(
        namespace,
        name,
        uid,
        ready=ready and not deleting,
        deleting=deleting,
        lone_restarts=restarts,
        restart_cause=cause,
        settling=settling,
        down=app == Program.MPS_DAEMON and is_daemon_down(raw),
        node=text(raw, "spec", "nodeName"),
        app=app,
    )


def unknown_operand(raw: JSON, _: str) -> Operand:
    namespace, name, uid = (text(raw, "metadata", key) for key in ("namespace", "name", "uid"))
    node, app = text(raw, "spec", "nodeName"), text(raw, "metadata", "labels", "app")
    return Operand(namespace, name, uid, ready=False, node=node, app=app)


def lone_restarts(pod: JSON) -> tuple[int, str, bool]:
    """Return how many more restarts config-manager has than the MPS daemon in a raw pod.

    Also why config-manager ended the last time, and whether it is not running. When the number rises between two times
    at which config-manager is running, it has restarted while the daemon kept running, because a reboot of the node
    restarts both. After a reboot the daemon is often started first, so the number falls until config-manager is running
    too. Times are not compared: the kubelet takes them from the clock of the node.
    """
    states = {text(row, "name"): row for row in entries(pod, "status", "containerStatuses")}
    manager, daemon = states.get(MANAGER, {}), states.get(MPS, {})
    count = whole(manager, "restartCount") - whole(daemon, "restartCount")
    settling = bool(section(manager, "state").keys() & {"waiting", "terminated"})
    ended = section(manager, "lastState", "terminated")
    if not ended:
        return count, "", settling
    reason = text(ended, "reason")
    return count, f"{reason + ', ' if reason else ''}exit code {whole(ended, 'exitCode')}", settling


def is_daemon_down(pod: JSON) -> bool:
    """Whether the MPS daemon in a raw pod is not running.

    It then does not set the compute mode of the GPUs back when its pod goes.
    """
    states = {text(row, "name"): row for row in entries(pod, "status", "containerStatuses")}
    return part(states.get(MPS, {}), "ready") is not True and not has_condition(pod, "Ready")


def by_node(pods: Iterable[Operand], app: str) -> dict[str, Operand]:
    """Return the pod of NVIDIA's component `app` on each node, by node name; of several, a Ready one."""
    operands: dict[str, Operand] = {}
    for pod in pods:
        if pod.app == app and pod.node and (pod.node not in operands or pod.ready):
            operands[pod.node] = pod
    return operands
