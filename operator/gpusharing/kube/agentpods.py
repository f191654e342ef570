"""The agent's pods, and the Warnings of Kubernetes about those that do not come up."""

from dataclasses import replace
from datetime import datetime
from sys import intern

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.kube.convert import has_condition
from gpusharing.kube.raw import entries, part, section, text, whole
from gpusharing.kube.startgate import tolerates
from gpusharing.planning.snapshot.agents import AgentPod, AgentWarning

AGENT = "gpusharing-agent"
_OF_PODS = frozenset({"FailedCreatePodSandBox", "FailedMount"})
"""Why a container is only "ContainerCreating": a RuntimeClass whose handler the node lacks, a missing folder. The
other Warnings of pods repeat what their status says."""


def agent_pod(raw: JSON) -> AgentPod:
    """One pod of the DaemonSet; for a Ready one nothing else is kept."""
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


def agent_warning(raw: JSON) -> AgentWarning | None:
    """What a Warning (events.k8s.io/v1) says about the DaemonSet or about a pod's start; None if it is about others."""
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
        # Not the last time, which changes with every attempt and must not wake the loop.
        return AgentWarning(
            namespace, name, text(raw, "note"), from_rfc3339(part(raw, "metadata", "creationTimestamp"))
        )
    return None


def _last_seen(raw: JSON) -> datetime | None:
    """Core events keep it in a deprecated field, new ones in their series."""
    written = (
        part(raw, "series", "lastObservedTime")
        or raw.get("deprecatedLastTimestamp")
        or raw.get("eventTime")
        or part(raw, "metadata", "creationTimestamp")
    )
    return from_rfc3339(written)


def _meant_for(raw: JSON) -> str:
    """The node of a DaemonSet's pod that is not bound yet: its controller writes it into the affinity."""
    required = part(raw, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    for term in entries(required, "nodeSelectorTerms"):
        for row in entries(term, "matchFields"):
            values = row.get("values")
            if row.get("key") == "metadata.name" and isinstance(values, list) and len(values) == 1:
                return str(values[0])
    return ""


def _with_trouble(pod: AgentPod, raw: JSON) -> AgentPod:
    statuses = entries(raw, "status", "containerStatuses")
    status = next((one for one in statuses if text(one, "name") == "agent"), {})
    containers = entries(raw, "spec", "containers")
    waiting = section(status, "state", "waiting")
    ended: JSON = {}
    if status.get("started") is not True:  # it has not come up since
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
        image=next((text(one, "image") for one in containers if text(one, "name") == "agent"), ""),
        waiting=text(waiting, "reason"),
        message=text(waiting, "message"),
        ended=f"{text(ended, 'reason')}, exit code {whole(ended, 'exitCode')}" if ended else "",
        last_words=text(ended, "message"),
    )
