"""How much memory and SM time pods use right now: from the agents' metrics through the API server, or else from
Prometheus."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.troubles import Trouble, error_text
from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Forbidden, KubeError, first_of
from gpusharing.kube.raw import entries, section, text, whole
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.usage.prometheus.client import prometheus_at
from gpusharing.usage.prometheus.services import find_place
from gpusharing.usage.read.series import Pod, pod_of
from gpusharing.usage.reckon.holdings import Row

PORT = 8080
"""The port with the metrics of an agent whose pod names none."""
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
USED = ("gpu", "profile", "memoryBytes", "deviceMemoryBytes", "smRatio")
"""The columns about what a pod uses of a GPU or MIG device: the index of the GPU, the MIG profile, which is empty for a
whole GPU, the bytes of memory that the pod uses, the memory of the device, and the share of the GPU's SM time that the
pod used, from 0 to 1. Each is None if it is unknown, as the last one always is on a MIG device."""
_COLUMN_OF = {SLICES: "", MEMORY: "memoryBytes", SM: "smRatio"}
"""The column for the value of each metric of a pod; empty if only its labels are used."""


@dataclass(frozen=True, slots=True)
class UsageNow:
    """What pods use, where that was read, and what is unknown."""

    by_pod: Mapping[Pod, Mapping[str, Row]] = field(default_factory=dict)
    """The columns of USED by namespace and name of the pod, then by UUID of the device."""
    notes: tuple[str, ...] = ()
    """Sentences about where the numbers are from."""
    unknown: tuple[str, ...] = ()
    """Sentences about what could not be read, and why."""
    simulated: tuple[str, ...] = ()
    """Names of the nodes whose GPUs are SIMULATED; empty strings if Prometheus does not name the node."""


async def read_usage(session: Session, agents: Iterable[JSON], nodes: set[str], service: str) -> UsageNow:
    """Return what pods on `nodes` use now. `agents` are the raw pods of our agent on all nodes. Those on `nodes` are
    asked if there are at most MOST_ASKED of them and the user may. If there are none, or one is not asked or does
    not answer, or they report no pods, Prometheus is queried instead, for all pods that it knows: the Service named
    `service`, or the one that `cost` would find. Its answer replaces those of the agents, unless the query fails.
    Raises no Trouble: what could not be read is in `unknown`."""
    asked = [agent for agent in agents if text(agent, "spec", "nodeName") in nodes]
    samples: list[Sample] = []
    if not asked:
        why = "no agent pod (gpusharing-agent) was found on the nodes of these pods"
    elif len(asked) > MOST_ASKED:
        why = f"{len(asked)} agents are too many to query one by one"
    else:
        samples, why = await _ask_agents(session, asked)
    live = _fold(samples, ("memory and SM use are from the agents, read a moment ago",))
    if live.by_pod and not why:
        return live
    why = why or "the agents report no pods"
    try:
        place = await find_place(session, service)
        async with prometheus_at(place) as prometheus:
            answer = await prometheus.instant(f'{{__name__=~"{"|".join(METRICS)}"}}', None)
    except Trouble as trouble:
        some_pods = " of some pods" if live.by_pod else ""
        missing = f"memory and SM use{some_pods} are unknown: {why}. Prometheus could not be used instead: {trouble}"
        return replace(live, notes=(), unknown=(missing.rstrip("."),))
    found = [(series.labels.get("__name__", ""), series.labels, series.value) for series in answer]
    source = f"memory and SM use are from {place.where}, as last scraped, because {why}"
    usage = _fold(found, (source, *filter(None, (place.remark,))))
    if not usage.by_pod:
        missing = f"memory and SM use are unknown: {place.where} has no {SLICES} series, and {why}"
        return replace(usage, notes=(), unknown=(missing,))
    return usage


async def _ask_agents(session: Session, agents: Sequence[JSON]) -> tuple[list[Sample], str]:
    """Return the samples of the agents that answered, and why some did not; that is empty if all did. After the first
    Forbidden, all open requests are canceled, and no samples are returned."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask_agent(session, agent)) for agent in agents]
    except BaseExceptionGroup as errors:
        error = first_of(errors)
        if isinstance(error, Forbidden):
            return [], f"you are not allowed to query the agents: {error_text(error)}"
        raise error from None
    answers = [task.result() for task in tasks]
    samples = [sample for _, page, _ in answers for sample in page]
    silent = sorted((node, why) for node, _, why in answers if why)
    if not silent:
        return samples, ""
    return samples, f"the agent on {some([node for node, _ in silent])} did not respond: {silent[0][1]}"


async def _ask_agent(session: Session, agent: JSON) -> tuple[str, list[Sample], str]:
    """Return the node of an agent, its samples, and why it did not answer, which is empty if it did. `agent` is its raw
    pod. Raises Forbidden if the user may not ask it."""
    node, place = text(agent, "spec", "nodeName"), section(agent, "metadata")
    ports = [port for one in entries(agent, "spec", "containers") for port in entries(one, "ports")]
    port = next((whole(port, "containerPort") for port in ports if text(port, "name") == "metrics"), PORT)
    try:
        page = await session.client.scrape(text(place, "namespace"), text(place, "name"), port)
    except Forbidden:
        raise
    except KubeError as error:
        return node, [], error_text(error)
    return node, list(parse_page(page, node)), ""


def parse_page(page: str, node: str) -> Iterator[Sample]:
    """Yield the samples of METRICS in the metrics page of the agent on `node`, each with the label `node`. Raises
    ValueError if a value is not a number."""
    for name, labels, value in _SAMPLE.findall(page):
        yield name, {**dict(_LABEL.findall(labels)), "node": node}, float(value)


def _fold(samples: Iterable[Sample], notes: tuple[str, ...]) -> UsageNow:
    """Return the use of each pod on each device, and which nodes are SIMULATED. Samples of other metrics are ignored.
    Raises ValueError or OverflowError if a value in bytes is NaN or infinite."""
    kept = list(samples)
    sizes = {labels.get("uuid", ""): int(value) for name, labels, value in kept if name == SIZE}
    by_pod: dict[Pod, dict[str, Row]] = {}
    for name, labels, value in kept:
        pod = pod_of(labels) if name in _COLUMN_OF else None
        if pod is not None:
            use = by_pod.setdefault(pod, {}).setdefault(labels.get("uuid", ""), _device(labels, sizes))
            use |= _measured(name, value)
    simulated = {labels.get("node", "") for name, labels, value in kept if name == SIMULATED and value}
    return UsageNow(by_pod, notes, simulated=tuple(sorted(simulated)))


def _measured(name: str, value: float) -> Row:
    """Return the column of USED for a sample of a pod; empty if its value is not shown."""
    column = _COLUMN_OF[name]
    return {column: value if name == SM else int(value)} if column else {}


def _device(labels: Mapping[str, str], sizes: Mapping[str, float]) -> Row:
    """Return the columns of USED for a device of which only the labels are known, and its size if `sizes` has it."""
    gpu = labels.get("gpu", "")
    device = {"gpu": int(gpu) if gpu.isdecimal() else None, "profile": labels.get("profile", "")}
    return {**dict.fromkeys(USED), **device, "deviceMemoryBytes": sizes.get(labels.get("uuid", ""))}
