"""How much memory and SM time pods use right now: from the agents' metrics through the API server, or else from
Prometheus."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble, error_text
from gpusharing.kube.agentpods import AGENT
from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Forbidden, KubeError, first_of
from gpusharing.kube.raw import entries, text, whole
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.usage.prometheus.client import prometheus_at
from gpusharing.usage.prometheus.services import find_place
from gpusharing.usage.read.series import Pod, pod_of

MOST_ASKED = 100
"""The most agents that are asked one by one. For more of them, Prometheus is asked first."""
SLICES, MEMORY, SM = "gpusharing_pod_slices", "gpusharing_pod_memory_used_bytes", "gpusharing_pod_sm_ratio"
SIZE, SIMULATED = "gpusharing_device_memory_bytes", "gpusharing_agent_simulated"
METRICS = (SLICES, MEMORY, SM, SIZE, SIMULATED)
"""Metrics of the agent (docs/reference/metrics.md)."""
_SAMPLE = re.compile(rf"^({'|'.join(METRICS)})(?:{{(.*)}})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Sample = tuple[str, Mapping[str, str], float]
"""Name, labels and value of one series."""


@dataclass(frozen=True, slots=True)
class AgentPlace:
    """How an agent is reached through the API server."""

    node: str
    """The node that the agent runs on."""
    namespace: str
    """Namespace of its pod."""
    pod: str
    """Name of its pod."""
    port: int
    """The port with its metrics."""


@dataclass(frozen=True, slots=True)
class DeviceUseNow:
    """What one pod uses of one GPU or MIG device."""

    gpu: str = ""
    """Index of the GPU on its node."""
    profile: str = ""
    """MIG profile of the device; empty for a whole GPU."""
    size: int | None = None
    """Memory of the device in bytes, or None if it is unknown."""
    memory: int | None = None
    """Bytes of memory that the pod uses, or None if that is unknown."""
    sm: float | None = None
    """Share of the GPU's SM time that the pod used, from 0 to 1; None if it is unknown, as on a MIG device."""


@dataclass(frozen=True, slots=True)
class UsageNow:
    """What pods use, where that was read, and what is unknown."""

    by_pod: Mapping[Pod, Mapping[str, DeviceUseNow]] = field(default_factory=dict)
    """The use by namespace and name of the pod, then by UUID of the device."""
    notes: tuple[str, ...] = ()
    """Sentences about where the numbers are from."""
    unknown: tuple[str, ...] = ()
    """Sentences about what could not be read, and why."""
    simulated: tuple[str, ...] = ()
    """Names of the nodes whose GPUs are SIMULATED; empty strings if Prometheus does not name the node."""


def agent_place(raw: JSON) -> AgentPlace | None:
    """Return how to reach the agent that this raw Pod is; None if it is no agent or has no node or no metrics port."""
    if text(raw, "metadata", "labels", "app.kubernetes.io/name") != AGENT:
        return None
    containers = entries(raw, "spec", "containers")
    ports = [port for one in containers for port in entries(one, "ports") if text(port, "name") == "metrics"]
    node, port = text(raw, "spec", "nodeName"), whole(next(iter(ports), {}), "containerPort")
    if not node or not port:
        return None
    return AgentPlace(node, text(raw, "metadata", "namespace"), text(raw, "metadata", "name"), port)


async def read_usage(
    session: Session, agents: Iterable[AgentPlace], nodes: set[str], service: str
) -> UsageNow:
    """Return what pods on `nodes` use now. The agents there are asked if there are at most MOST_ASKED of them and
    the user may; for what they do not answer, Prometheus is asked: the Service named `service`, or the one that
    `cost` would find. Raises no Trouble: what could not be read is in `unknown`."""
    asked = [agent for agent in agents if agent.node in nodes]
    samples: list[Sample] = []
    if not asked:
        why = "no pod of the agent (gpusharing-agent) was seen on the nodes of these pods"
    elif len(asked) > MOST_ASKED:
        why = f"{len(asked)} agents are too many to be asked one by one"
    else:
        samples, why = await _ask_agents(session, asked)
    if not why:
        return _fold(samples, ("memory and SM use are from the agents, read a moment ago",))
    try:
        place = await find_place(session, service)
        async with prometheus_at(place) as prometheus:
            answer = await prometheus.instant(f'{{__name__=~"{"|".join(METRICS)}"}}', None)
    except Trouble as trouble:
        missing = f"memory and SM use are unknown: {why}. Prometheus was not read instead: {trouble}"
        return replace(_fold(samples, ()), unknown=(missing.rstrip("."),))
    found = [(series.labels.get("__name__", ""), series.labels, series.value) for series in answer]
    source = f"memory and SM use are from {place.where}, as last scraped, because {why}"
    usage = _fold(found, (source,))
    if not usage.by_pod:
        missing = f"memory and SM use are unknown: {place.where} has no series {SLICES}, and {why}"
        return replace(usage, notes=(), unknown=(missing,))
    return usage


async def _ask_agents(session: Session, agents: Sequence[AgentPlace]) -> tuple[list[Sample], str]:
    """Return the samples of the agents that answered, and why some did not; that is empty if all did. After the first
    Forbidden, no further agent is asked."""
    samples: list[Sample] = []
    errors: dict[str, str] = {}

    async def ask(agent: AgentPlace) -> None:
        """Add the samples of one agent to `samples`, or its error to `errors`. Raises Forbidden."""
        try:
            page = await session.client.scrape(agent.namespace, agent.pod, agent.port)
        except Forbidden:
            raise
        except KubeError as error:
            errors[agent.node] = error_text(error)
        else:
            samples.extend(parse_page(page, agent.node))

    try:
        async with asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(ask(agent))
    except BaseExceptionGroup as group_error:
        error = first_of(group_error)
        if not isinstance(error, Forbidden):
            raise error from None
        return samples, f"you may not ask the agents: {error_text(error)}"
    if not errors:
        return samples, ""
    first = next(iter(errors.values()))
    return samples, f"the agent on {some(sorted(errors))} did not answer: {first}"


def parse_page(page: str, node: str) -> Iterator[Sample]:
    """Yield the samples of METRICS in the metrics page of the agent on `node`, each with the label `node`."""
    for name, labels, value in _SAMPLE.findall(page):
        yield name, {**dict(_LABEL.findall(labels)), "node": node}, float(value)


def _fold(samples: Iterable[Sample], notes: tuple[str, ...]) -> UsageNow:
    """Return the use of each pod on each device. Samples of other metrics are ignored."""
    kept = list(samples)
    sizes = {labels.get("uuid"): int(value) for name, labels, value in kept if name == SIZE}
    by_pod: dict[Pod, dict[str, DeviceUseNow]] = {}
    for name, labels, value in kept:
        pod, uuid = pod_of(labels), labels.get("uuid", "")
        if pod is None or name not in (SLICES, MEMORY, SM):
            continue
        device = DeviceUseNow(labels.get("gpu", ""), labels.get("profile", ""), sizes.get(uuid))
        use = by_pod.setdefault(pod, {}).setdefault(uuid, device)
        read: dict[str, Any] = {MEMORY: {"memory": int(value)}, SM: {"sm": value}}.get(name, {})
        by_pod[pod][uuid] = replace(use, **read)
    simulated = {labels.get("node", "") for name, labels, value in kept if name == SIMULATED and value}
    return UsageNow(by_pod, notes, simulated=tuple(sorted(simulated)))
