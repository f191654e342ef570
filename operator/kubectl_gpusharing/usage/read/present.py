"""How much memory and SM time pods use right now: from the agents' metrics through the API server, or else from Prometheus."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from gpusharing.kube.agentpods import has_secure_metrics
from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Forbidden, KubeError
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.planning.vocabulary.lengths import some
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.troubles import Trouble, error_text
from kubectl_gpusharing.usage.prometheus.client import Series, prometheus_at, side_by_side
from kubectl_gpusharing.usage.prometheus.matchers import nodes_of
from kubectl_gpusharing.usage.prometheus.services import find_place
from kubectl_gpusharing.usage.read.queries import OWN, SIMULATED, SLICES, SM
from kubectl_gpusharing.usage.read.series import Pod, pod_of
from kubectl_gpusharing.usage.reckon.holdings import Row

PORT = 8080
"""Of the metrics of an agent whose pod names none."""
MOST_ASKED = 100
"""The most agents that are queried one by one. If there are more, Prometheus is used instead."""
SIZE = "gpusharing_device_memory_bytes"
METRICS = (SLICES, OWN, SM, SIZE, SIMULATED)
"""Metrics of the agent (docs/reference/metrics.md)."""
_SAMPLE = re.compile(rf"^({'|'.join(METRICS)})(?:{{(.*)}})? (\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

USED = ("gpu", "profile", "memoryBytes", "deviceMemoryBytes", "smRatio")
"""The columns about what a pod uses of a device. `profile` is empty for a whole GPU; `smRatio` is of the GPU's SM time, 0 to 1, and unknown on a MIG device."""
Reason = tuple[str, str]
"""Why agents did not say what pods use: the words before and after the names of their nodes."""


@dataclass(frozen=True, slots=True)
class UsageNow:
    by_pod: Mapping[Pod, Mapping[str, Row]] = field(default_factory=dict)
    """The columns of USED by pod, then by UUID of the device; `resource` too, if it is known as which the pod holds the device."""
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    """Nodes whose GPUs are SIMULATED; an empty string if Prometheus does not name one."""


async def read_usage(
    session: Session, agents: Iterable[JSON], bound: Mapping[Pod, str], service: str
) -> UsageNow:
    """Return what the pods in `bound`, with their nodes, use now. Raises no Trouble: what could not be read is in `unknown`."""
    nodes = set(bound.values())
    series, silent = await _ask_agents(session, agents, nodes)
    live = _fold(series)
    notes = ("memory and SM use are from the agents, read a moment ago",) if nodes - set(silent) else ()
    if not silent:
        return replace(live, notes=notes)
    # At most three reasons are given, each with up to three of its nodes, and the number of the others.
    nodes_of_reason: dict[Reason, list[str]] = {}
    for node, reason in sorted(silent.items()):
        nodes_of_reason.setdefault(reason, []).append(node)
    why = some([f"{before} {some(names)}{after}" for (before, after), names in nodes_of_reason.items()])
    missing = f"memory and SM use{' of some pods' if live.by_pod else ''} are unknown: {why}"
    try:
        place = await find_place(session, service)
        async with prometheus_at(place) as prometheus:
            answer = await prometheus.instant(f'{{__name__=~"{"|".join(METRICS)}"}}', None)
    except Trouble as trouble:
        missing = f"{missing}. Prometheus could not be used instead: {trouble}".rstrip(".")
        return replace(live, notes=notes, unknown=(missing,))
    about = []
    for one in answer:
        # A series that names no node may be about any; one that names another node than the pod's is not.
        pod = pod_of(one.labels)
        home = one.node if pod is None else bound.get(pod, "")
        if (home in silent and one.node in ("", home)) or (pod is None and not home):
            about.append(one)
    stored = _fold(about)
    if stored.by_pod:
        rest = " of the other pods" if notes else ""
        source = f"memory and SM use{rest} are from {place.where}, as last scraped, because {why}"
        notes = (*notes, source, *filter(None, (place.remark,)))
    by_pod = {**stored.by_pod, **live.by_pod}
    left = {node for pod, node in bound.items() if node in silent and pod not in by_pod}
    some_pods = " of some pods" if by_pod else ""
    lacks = f"{place.where} has no series {SLICES} of pods on {some(sorted(left))}"
    missing = f"memory and SM use{some_pods} are unknown: {lacks}, and {why}"
    simulated = tuple(sorted({*live.simulated, *stored.simulated}))
    return UsageNow(by_pod, notes, (missing,) if left else (), simulated)


async def _ask_agents(
    session: Session, agents: Iterable[JSON], nodes: set[str]
) -> tuple[list[Series], dict[str, Reason]]:
    asked = [agent for agent in agents if text(agent, "spec", "nodeName") in nodes]
    if len(asked) > MOST_ASKED:
        reason = "the agents on", f" are too many ({len(asked)}) to be asked one by one"
        return [], dict.fromkeys(nodes, reason)
    silent = dict.fromkeys(nodes, ("no pod of the agent (gpusharing-agent) was seen on", ""))
    found: list[Series] = []
    for node, page, reason in await side_by_side(*(_ask_agent(session, agent) for agent in asked)):
        silent[node] = reason
        found += page
    reported = nodes_of(series for series in found if series.labels["__name__"] == SLICES)
    return found, {node: reason for node, reason in silent.items() if node not in reported}


async def _ask_agent(session: Session, agent: JSON) -> tuple[str, list[Series], Reason]:
    """Return the agent's node, its series, and why none of them is about a pod, to be ignored if one is. The API server's proxy removes the user's token."""
    node, place = text(agent, "spec", "nodeName"), section(agent, "metadata")
    if has_secure_metrics(section(agent, "spec")):
        reason = "the metrics on", " need a token, which the API server does not pass on to the agent"
        return node, [], reason
    ports = [port for one in entries(agent, "spec", "containers") for port in entries(one, "ports")]
    port = next((whole(port, "containerPort") for port in ports if text(port, "name") == "metrics"), PORT)
    try:
        page = await session.client.scrape(text(place, "namespace"), text(place, "name"), port)
    except Forbidden as error:
        return node, [], ("you may not ask the agent on", f": {error_text(error)}")
    except KubeError as error:
        return node, [], ("the agent on", f" did not respond: {error_text(error)}")
    found = [
        Series({**dict(_LABEL.findall(labels)), "node": node, "__name__": name}, ((0.0, float(value)),))
        for name, labels, value in _SAMPLE.findall(page)
    ]
    return node, found, ("the agent on", " reports no pods")


def _fold(found: Iterable[Series]) -> UsageNow:
    kept = [(series.labels.get("__name__", ""), series) for series in found if 0 <= series.value < inf]
    sizes = {series.labels.get("uuid", ""): int(series.value) for name, series in kept if name == SIZE}
    by_pod: dict[Pod, dict[str, Row]] = {}
    for name, series in kept:
        labels, uuid = series.labels, series.labels.get("uuid", "")
        if name not in (SLICES, OWN, SM) or (pod := pod_of(labels)) is None:
            continue
        gpu, profile = labels.get("gpu", ""), labels.get("profile", "")
        device = {"gpu": int(gpu) if gpu.isdecimal() else None, "profile": profile}
        device |= {"memoryBytes": None, "deviceMemoryBytes": sizes.get(uuid), "smRatio": None}
        use = by_pod.setdefault(pod, {}).setdefault(uuid, device)
        if name == OWN:
            use["memoryBytes"] = int(series.value)
        elif name == SM:
            use["smRatio"] = series.value
        elif labels.get("resource"):
            use["resource"] = labels["resource"]
    simulated = nodes_of(series for name, series in kept if name == SIMULATED and series.value)
    return UsageNow(by_pod, simulated=tuple(sorted(simulated)))
