"""Read the pods of the agent's DaemonSet, and why one does not start, from its status and from Warning events."""

from sys import intern

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import tolerates
from gpusharing.kube.raw import entries, has_condition, part, section, text, whole
from gpusharing.planning.snapshot.agents import AgentPod, AgentWarning

AGENT = "gpusharing-agent"


def agent_pod(raw: JSON) -> AgentPod:
    """Convert a raw pod of the agent's DaemonSet, with its troubles if it is neither Ready nor being deleted."""
    metadata = section(raw, "metadata")
    deleting = "deletionTimestamp" in metadata
    ready = has_condition(raw, "Ready") and not deleting
    trouble = {} if ready or deleting else _find_trouble(raw)
    return AgentPod(
        namespace=intern(text(metadata, "namespace")),
        name=text(metadata, "name"),
        node=text(raw, "spec", "nodeName") or _meant_for(raw),
        ready=ready,
        deleting=deleting,
        created=from_rfc3339(metadata.get("creationTimestamp")),
        tolerates_gate=tolerates(entries(raw, "spec", "tolerations")),
        **trouble,
    )


def _meant_for(raw: JSON) -> str:
    # The DaemonSet controller writes the node into a required affinity of each pod, which the scheduler then binds.
    required = part(raw, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    for term in entries(required, "nodeSelectorTerms"):
        for row in entries(term, "matchFields"):
            values = row.get("values")
            if row.get("key") == "metadata.name" and isinstance(values, list) and len(values) == 1:
                return str(values[0])
    return ""


def _find_trouble(raw: JSON) -> JSON:
    statuses = entries(raw, "status", "containerStatuses")
    status = next((status for status in statuses if text(status, "name") == "agent"), {})
    containers = entries(raw, "spec", "containers")
    waiting = section(status, "state", "waiting")
    ended: JSON = {}
    if status.get("started") is not True:  # it has not started since it ended
        ended = section(status, "state", "terminated") or section(status, "lastState", "terminated")
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {
        "scheduled": not any(unplaced.items() <= row.items() for row in entries(raw, "status", "conditions")),
        "image": next((text(row, "image") for row in containers if text(row, "name") == "agent"), ""),
        "waiting": text(waiting, "reason"),
        "message": text(waiting, "message"),
        "ended": f"{text(ended, 'reason')}, exit code {whole(ended, 'exitCode')}" if ended else "",
        "last_words": text(ended, "message"),
    }


def unknown_agent_pod(raw: JSON, why: str) -> AgentPod:
    namespace, name = text(raw, "metadata", "namespace"), text(raw, "metadata", "name")
    node = text(raw, "spec", "nodeName")
    return AgentPod(namespace, name, node, ready=False, deleting=False, waiting="Unreadable", message=why)


def has_secure_metrics(spec: JSON) -> bool:
    """Whether the agent of this pod spec guards its metrics by the API server (agent.secureMetrics)."""
    variables = [row for container in entries(spec, "containers") for row in entries(container, "env")]
    return {"name": "METRICS_SECURE", "value": "true"} in variables


def agent_warning(raw: JSON) -> AgentWarning | None:
    """Convert a Warning event that says why an agent's pod is not created or cannot start; else None."""
    created = part(raw, "metadata", "creationTimestamp")
    match text(raw, "regarding", "kind"), text(raw, "regarding", "name"), text(raw, "reason"):
        case "DaemonSet", name, "FailedCreate" if name == AGENT:
            pod = ""
            seen = (
                part(raw, "series", "lastObservedTime")
                or raw.get("deprecatedLastTimestamp")
                or raw.get("eventTime")
                or created
            )
        # Why a container is only "ContainerCreating": the node lacks the handler of a RuntimeClass, or a folder is
        # missing. Other Warning events about pods repeat what the pods' status says.
        case "Pod", pod, "FailedCreatePodSandBox" | "FailedMount" if pod.startswith(f"{AGENT}-"):
            seen = created  # the last occurrence changes with every attempt and would wake the loop
        case _:
            return None
    return AgentWarning(text(raw, "metadata", "namespace"), pod, text(raw, "note"), from_rfc3339(seen))
