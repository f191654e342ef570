"""The agent's pods, and the Kubernetes Warning events about those that do not come up."""

from dataclasses import replace
from datetime import datetime
from sys import intern

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, has_condition, part, section, text, whole
from gpusharing.kube.taints import tolerates
from gpusharing.planning.snapshot.agents import AgentPod, AgentWarning

AGENT = "gpusharing-agent"
_OF_PODS = frozenset({"FailedCreatePodSandBox", "FailedMount"})
"""Reasons of the Warning events that say why a container is only "ContainerCreating": the node lacks the handler of a
RuntimeClass, or a folder is missing. Other Warning events about pods repeat what the pods' status says."""


def agent_pod(raw: JSON) -> AgentPod:
    """Convert a raw pod of the agent's DaemonSet. A pod that is not bound yet gets the name of the node that it was
    created for (`_meant_for`), which may be empty. A pod that is being deleted is not Ready. `tolerates_gate` says
    whether it tolerates the start-up taint, and `created` is None if the time cannot be read. The reasons why a pod
    does not run (`_with_trouble`) are read only if it is neither Ready nor being deleted."""
    metadata = section(raw, "metadata")
    deleting = "deletionTimestamp" in metadata
    pod = AgentPod(
        namespace=intern(text(metadata, "namespace")),
        name=text(metadata, "name"),
        node=text(raw, "spec", "nodeName") or _meant_for(raw),
        ready=has_condition(raw, "Ready") and not deleting,
        deleting=deleting,
        created=from_rfc3339(metadata.get("creationTimestamp")),
        tolerates_gate=tolerates(entries(raw, "spec", "tolerations")),
    )
    return pod if pod.ready or deleting else _with_trouble(pod, raw)


def unknown_agent_pod(raw: JSON, why: str) -> AgentPod:
    """Return the view of an agent's pod that cannot be converted: it is not Ready."""
    namespace, name = text(raw, "metadata", "namespace"), text(raw, "metadata", "name")
    node = text(raw, "spec", "nodeName")
    return AgentPod(namespace, name, node, ready=False, deleting=False, waiting="Unreadable", message=why)


def has_secure_metrics(spec: JSON) -> bool:
    """Whether a container of this raw pod spec has the environment variable METRICS_SECURE with the value `true`, as
    the chart value agent.secureMetrics sets it. Its agent then gives its metrics only to those whom the API server
    allows to read them. Init containers and the arguments of containers are not checked."""
    variables = [row for container in entries(spec, "containers") for row in entries(container, "env")]
    return {"name": "METRICS_SECURE", "value": "true"} in variables


def agent_warning(raw: JSON) -> AgentWarning | None:
    """Convert a Warning event (events.k8s.io/v1) that says why the agent's DaemonSet cannot create a pod
    (FailedCreate), or why one of its pods cannot start (a reason in _OF_PODS). Return None for every other event. The
    DaemonSet is recognized by the name `gpusharing-agent`, and its pods by that name and a dash as a prefix, in any
    namespace; the event's type is not checked. The DaemonSet's warning names no pod and has the time when the event was
    last seen (`_last_seen`); a pod's warning has the time when the event was created. A time that cannot be read is
    None."""
    namespace, kind, name, reason = (
        text(raw, *path)
        for path in (
            ("metadata", "namespace"),
            ("regarding", "kind"),
            ("regarding", "name"),
            ("reason",),
        )
    )
    if kind == "DaemonSet" and name == AGENT and reason == "FailedCreate":
        return AgentWarning(namespace, "", text(raw, "note"), _last_seen(raw))
    if kind == "Pod" and name.startswith(f"{AGENT}-") and reason in _OF_PODS:
        # The event's creation is used and not its last occurrence, which changes with every attempt and would wake the
        # loop.
        return AgentWarning(
            namespace, name, text(raw, "note"), from_rfc3339(part(raw, "metadata", "creationTimestamp"))
        )
    return None


def _last_seen(raw: JSON) -> datetime | None:
    """Return when the event was last seen: the last time in its series, or else the deprecated time that events of the
    core API have, the event's own time, or the time of its creation. The first of these that is present counts.
    None if none is present, or if the one that counts cannot be read."""
    written = (
        part(raw, "series", "lastObservedTime")
        or raw.get("deprecatedLastTimestamp")
        or raw.get("eventTime")
        or part(raw, "metadata", "creationTimestamp")
    )
    return from_rfc3339(written)


def _meant_for(raw: JSON) -> str:
    """Return the name of the node that the DaemonSet controller created this pod for, read from the required node
    affinity that it writes (matchFields `metadata.name` with exactly one value, whatever the operator). The first such
    row counts. Empty if the pod has none. Used for pods that are not bound yet."""
    required = part(raw, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    for term in entries(required, "nodeSelectorTerms"):
        for row in entries(term, "matchFields"):
            values = row.get("values")
            if row.get("key") == "metadata.name" and isinstance(values, list) and len(values) == 1:
                return str(values[0])
    return ""


def _with_trouble(pod: AgentPod, raw: JSON) -> AgentPod:
    """Return a copy of `pod` with what is known about why it does not run: whether the scheduler found no node for it
    and, for its container `agent`, the image and the reason and message of what it is waiting for. How that container
    last ended (reason and exit code) and its last message are added unless its status has `started: true`. What the pod
    does not report stays empty. `pod` itself is not changed."""
    statuses = entries(raw, "status", "containerStatuses")
    status = next((status for status in statuses if text(status, "name") == "agent"), {})
    containers = entries(raw, "spec", "containers")
    waiting = section(status, "state", "waiting")
    ended: JSON = {}
    if status.get("started") is not True:  # it has not started since it ended
        ended = section(status, "state", "terminated") or section(status, "lastState", "terminated")
    unplaced = any(
        row.get("type") == "PodScheduled"
        and row.get("status") == "False"
        and row.get("reason") == "Unschedulable"
        for row in entries(raw, "status", "conditions")
    )
    return replace(
        pod,
        scheduled=not unplaced,
        image=next((text(row, "image") for row in containers if text(row, "name") == "agent"), ""),
        waiting=text(waiting, "reason"),
        message=text(waiting, "message"),
        ended=f"{text(ended, 'reason')}, exit code {whole(ended, 'exitCode')}" if ended else "",
        last_words=text(ended, "message"),
    )
