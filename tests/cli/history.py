"""A real Prometheus with a SIMULATED past, and what agents, operator and OpenCost told it in the past, as OpenMetrics to backfill it with."""

import subprocess
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path

from hack.cluster.process import free_ports, wait_until
from hack.promtool import ensure

from kubectl_gpusharing.usage.bills import Part

EVERY = 288
"""Seconds between two scrapes: fewer than those for which Prometheus goes on telling a value. Days are multiples of it, so that `increase` has nothing to extrapolate."""
PATIENCE = 120.0
"""Seconds for Prometheus to be ready."""


@dataclass(frozen=True)
class Stretch:
    """How things stood on a node, in GPUs, from one hour of the history to another."""

    hours: tuple[float, float]
    held: Mapping[tuple[str, str], Fraction] = field(default_factory=dict)
    """By namespace and resource."""
    idle: Mapping[str, Fraction] = field(default_factory=dict)
    """By resource."""
    stranded: Fraction = Fraction(0)
    transition: Fraction = Fraction(0)


@dataclass(frozen=True)
class Node:
    name: str
    policy: str
    gpus: int
    stretches: Sequence[Stretch]
    product: str = "NVIDIA H100 80GB HBM3"
    slices: Mapping[str, int] = field(default_factory=dict)
    """By resource: of one device."""
    restarts: Sequence[float] = ()
    """Hours at which the agent's container began anew, with counters at 0."""
    unseen: Sequence[tuple[float, float]] = ()
    """Hours from and to, in which Prometheus did not scrape."""
    labels: Mapping[str, str] = field(default_factory=dict)
    simulated: int = 0
    """1: its agent says that its GPUs are."""


@dataclass(frozen=True)
class Gauge:
    """A series that is always the same, told once an hour unless `every` says otherwise."""

    name: str
    labels: Mapping[str, str]
    value: str
    hours: tuple[float, float] = (0, 1e9)
    every: int = 3600
    """Seconds between two scrapes."""


Account = tuple[tuple[str, str], ...]
NAMES = {
    Part.HELD: "gpusharing_slice_seconds",
    Part.IDLE: "gpusharing_idle_slice_seconds",
    Part.STRANDED: "gpusharing_stranded_slice_seconds",
    Part.TRANSITION: "gpusharing_transition_slice_seconds",
}
GPUS = "gpusharing_gpu_seconds"
KINDS = dict.fromkeys((*NAMES.values(), GPUS), "counter")


@dataclass(frozen=True)
class History:
    begin: datetime
    hours: float
    nodes: Sequence[Node]
    gauges: Sequence[Gauge] = ()
    every: int = EVERY
    """Seconds between two scrapes."""


def openmetrics(histories: Sequence[History]) -> list[str]:
    return daily_texts(sample for history in histories for sample in _samples(history))


def daily_texts(samples: Iterable[tuple[str, str, int]]) -> list[str]:
    """A text for each day for `promtool tsdb create-blocks-from openmetrics`, once read for every two hours. What several tell of one thing at one time is said once."""
    daily: dict[int, dict[str, dict[str, int]]] = {}
    for name, text, at in samples:
        daily.setdefault(at // 86400, {}).setdefault(name, {})[f"{text} {at}"] = at
    texts = []
    for _, lines in sorted(daily.items()):
        told = [
            line
            for name, found in sorted(lines.items())
            for line in (f"# TYPE {name} {KINDS.get(name, 'gauge')}", *sorted(found, key=found.__getitem__))
        ]
        texts.append("\n".join([*told, "# EOF"]) + "\n")
    return texts


def _samples(history: History) -> Iterator[tuple[str, str, int]]:
    start = int(history.begin.timestamp())
    for node in history.nodes:
        yield from _counters(node, start, history)
    for gauge in (*history.gauges, *(told for node in history.nodes for told in _gauges(node))):
        first, last = max(0.0, gauge.hours[0]), min(history.hours, gauge.hours[1])
        for at in range(start + int(first * 3600), start + int(last * 3600) + 1, gauge.every):
            yield gauge.name, f"{gauge.name}{text_of(gauge.labels)} {gauge.value}", at


def _gauges(node: Node) -> Iterator[Gauge]:
    where = {"node": node.name, **node.labels}
    for gpu in range(node.gpus):
        labels = {**where, "gpu": str(gpu), "uuid": f"u{gpu}" if gpu else "u", "product": node.product}
        yield Gauge("gpusharing_agent_gpu_info", labels, "1")
    yield Gauge("gpusharing_agent_simulated", where, str(node.simulated))
    for resource, count in node.slices.items():
        labels = {**where, "gpu": "0", "uuid": "u", "profile": "", "resource": resource}
        yield Gauge("gpusharing_device_slices", labels, str(count))


def _counters(node: Node, start: int, history: History) -> Iterator[tuple[str, str, int]]:
    seconds: dict[tuple[str, Account], Fraction] = {}
    before = Fraction(0)
    for at in range(0, int(history.hours * 3600) + 1, history.every):
        now = Fraction(at, 3600)
        if any(before < Fraction(hour) <= now for hour in node.restarts):
            seconds = dict.fromkeys(seconds, Fraction(0))
        else:
            for stretch in node.stretches:
                begin, end = map(Fraction, stretch.hours)
                shared = max(Fraction(0), min(end, now) - max(begin, before)) * 3600
                if shared or (before <= begin <= now):
                    for key, gpus in _rates(node, stretch):
                        seconds[key] = seconds.get(key, Fraction(0)) + gpus * shared
        before = now
        if any(first <= now < last for first, last in node.unseen):
            continue
        for (name, account), value in seconds.items():
            labels = {"node": node.name, "policy": node.policy, "instance": "10.0.0.1:8080", **node.labels}
            yield name, f"{name}_total{text_of({**labels, **dict(account)})} {float(value):.6f}", start + at


def _rates(node: Node, stretch: Stretch) -> Iterator[tuple[tuple[str, Account], Fraction]]:
    for (namespace, resource), gpus in stretch.held.items():
        yield (NAMES[Part.HELD], (("namespace", namespace), ("resource", resource))), gpus
    for resource, gpus in stretch.idle.items():
        yield (NAMES[Part.IDLE], (("resource", resource),)), gpus
    yield (NAMES[Part.STRANDED], ()), stretch.stranded
    yield (NAMES[Part.TRANSITION], ()), stretch.transition
    yield (GPUS, ()), Fraction(node.gpus)


def text_of(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


@contextmanager
def prometheus_with(folder: Path, texts: Sequence[str], *flags: str) -> Iterator[str]:
    """Its address. It scrapes nothing: all that it knows are these texts, in OpenMetrics. `flags`: further ones."""
    told, data = folder / "past.txt", folder / "data"
    for text in texts:
        told.write_text(text)
        command: list[str | Path] = [
            ensure("promtool"), "tsdb", "create-blocks-from", "openmetrics", told, data
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    (folder / "prometheus.yaml").write_text("scrape_configs: []\n")
    (port,) = free_ports(1)
    started: list[str | Path] = [
        ensure("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
        *flags,
    ]
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(started, stderr=log, stdout=log) as running:
        try:
            wait_until(lambda: _ready(url), PATIENCE, "Prometheus to be ready")
            yield url
        finally:
            running.terminate()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready"):
            return True
    except OSError:
        return False
