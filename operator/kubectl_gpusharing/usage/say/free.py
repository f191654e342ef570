"""Show who holds the GPUs and what is free: as text, data and CSV. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpusharing.api.times import from_rfc3339
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell import drawing
from kubectl_gpusharing.shell.documents import InventoryData
from kubectl_gpusharing.shell.drawing import BLANK, Column, Ink, Line, Paper, Span, age, prose, table
from kubectl_gpusharing.usage.read.present import USED, UsageNow
from kubectl_gpusharing.usage.reckon.holdings import NUMBERS, GPUPod, Inventory, Row, count_rows, share_nodes
from kubectl_gpusharing.usage.say.cost import describe_doubts

MOST = 20
"""How many pods that wait, and nodes that are closed, are listed; -o wide lists all."""
TITLES = {"largest": "LARGEST FIT", "memoryBytes": "MEMORY", "deviceMemoryBytes": "OF", "smRatio": "SM"}
DROPS = {
    "state": 1,
    "deviceMemoryBytes": 1,
    "policy": 2,
    "profile": 2,
    "closed": 3,
    "waiting": 3,
    "taints": 4,
    "others": 5,
}
"""See Column.drop."""


@dataclass(frozen=True, slots=True)
class FreeReport:
    inventory: Inventory
    by: str
    now: datetime
    usage: UsageNow | None
    """None if that was not requested."""

    @property
    def waiting(self) -> list[GPUPod]:
        return sorted((pod for pod in self.inventory.subjects if not pod.node), key=lambda pod: pod.created)

    @property
    def simulated(self) -> list[str]:
        names = {name for name, stock in self.inventory.stocks.items() if stock.simulated}
        return sorted(names.union(() if self.usage is None else self.usage.simulated))

    @property
    def unknown(self) -> list[str]:
        """Sentences about what is unknown, and why; empty if the answer is complete."""
        found, usage = self.inventory, self.usage
        sentences = []
        if found.no_nodes:
            sentences.append(f"what is allocatable and free is unknown, because {found.no_nodes}")
        if found.no_pods:
            seen = "no pods are" if found.blind else f"only the pods of namespace {found.namespace} are"
            agents = all(stock.allocated is not None for stock in found.stocks.values() if stock.allocatable)
            free = "computed from what the agents report as allocated" if agents else "unknown"
            rest = "" if found.no_nodes else f"; what is free is {free}"
            sentences.append(f"{seen} counted (-n NAME chooses another namespace){rest}: {found.no_pods}")
        return [*sentences, *(() if usage is None else usage.unknown)]

    @property
    def notes(self) -> list[str]:
        free = defaultdict[str, Counter[str]](Counter)
        for stock, shares in share_nodes(self.inventory):
            for taint in () if stock.closed else stock.taints:
                free[taint].update({name: share[3] or 0 for name, share in shares.items()})
        notes = [
            f"{_counts(counts)} of the free devices are only for pods that tolerate the taint {taint}"
            for taint, counts in sorted(free.items())
            if any(counts.values())
        ]
        if claims := self.inventory.with_claims:
            have = "has" if claims == 1 else "have"
            notes.append(
                f"{counted(claims, 'pod')} {have} ResourceClaims, whose devices are not counted here"
            )
        unread = sorted({one.policy for one in self.inventory.stocks.values() if one.one_each is None})
        if unread and "largest" in self.columns:
            notes.append(
                "the largest request that fits may be 1 on time-sliced nodes: whether containers may request more than"
                f" one share is in policies that could not be read ({some(unread)})"
            )
        pods = self.inventory.pods
        if kept := sorted(pod.ref for pod in pods if pod.reserves and self.inventory.counts(pod)):
            notes.append(
                f"with {some(kept)}, KAI-Scheduler reserves GPUs for pods that request fractions, which may be in other"
                " namespaces; the GPUs count as held by the reservation, and the fractions are not counted here"
            )
        return notes + ([] if self.usage is None else list(self.usage.notes))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.inventory.columns(self.by), *(() if self.usage is None else USED))

    def rows(self) -> list[Row]:
        """Return the rows by `by`. With --usage, a row is repeated for every device that the pod holds as this resource; a device of unknown resource belongs to its first row."""
        rows, pairs = count_rows(self.inventory, self.by), []
        if self.usage is None:
            return rows
        left = {"/".join(pod): dict(devices) for pod, devices in self.usage.by_pod.items()}
        for row in rows:
            known = left.get(row["pod"], {}) if row["node"] else {}
            devices = {
                uuid: known.pop(uuid)
                for uuid, use in list(known.items())
                if use.get("resource", row["resource"]) == row["resource"]
            }
            for uuid, use in (devices or {"": dict.fromkeys(USED)}).items():
                pairs.append(((row["node"], use["gpu"] or 0, uuid, row["pod"]), row | use))
        return [row for _, row in sorted(pairs, key=lambda pair: pair[0])]


def describe(report: FreeReport, paper: Paper) -> list[Line]:
    lines, rows = drawing.describe_simulated(report.simulated, paper), report.rows()
    columns = [
        Column(TITLES.get(name, name.upper()), DROPS.get(name, 0), name in NUMBERS or name in USED)
        for name in report.columns
    ]
    cells = [[_cell(name, value, row) for name, value in row.items()] for row in rows]
    if rows:
        lines += table(columns, cells, paper)
    else:
        found = report.inventory
        nodes = f"node{' with these labels' * found.chosen} advertises a GPU resource"
        pods = f"pod{f' in namespace {found.namespace}' * bool(found.namespace)} requests"
        nothing = f"No {nodes}, and no {pods} one." if report.by == "resource" else f"No {nodes}."
        if report.by in ("namespace", "pod"):
            nothing = f"No {pods} a GPU resource{' of these nodes' * found.chosen}."
        lines += prose(nothing, paper)
    if report.by != "node":
        closed = [(stock.name, stock.closed, _counts(unused)) for stock, unused in report.inventory.closed]
        lines += _listed(("CLOSED NODE", "STATE", "NOT COUNTED AS FREE"), closed, paper)
    if waiting := report.waiting:
        pending = [
            (
                pod.ref,
                _counts(pod.requests),
                age(from_rfc3339(pod.created), report.now),
                pod.message * paper.wide,
            )
            for pod in waiting
        ]
        titles = ("WAITING POD", "REQUESTS", "SINCE", "SCHEDULER")
        lines += [BLANK] if report.by == "pod" else _listed(titles, pending, paper)
        why = f"To see why a pod is waiting: kubectl gpusharing why {waiting[0].ref}"
        lines += prose(why, paper, hang="  ", ink=Ink.FAINT)
    notes, unknown = report.notes, report.unknown
    return [*lines, *([BLANK] if notes or unknown else []), *describe_doubts(notes, unknown, paper)]


def _cell(column: str, value: Any, row: Row) -> Span:
    if value is None:
        return Span("?" if row.get("node", True) else "", Ink.WAITING)
    if column.endswith("Bytes"):
        return Span(f"{value / 2**30:.1f}Gi")
    if column == "smRatio":
        return Span(f"{value:.0%}")
    good = Ink.GOOD if column == "free" and value else Ink.PLAIN
    return Span(str(value), Ink.WAITING if column in ("state", "taints") else good)


def _counts(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{number} {name}" for name, number in sorted(counts.items()) if number)


def _listed(titles: Sequence[str], rows: Sequence[Sequence[str]], paper: Paper) -> list[Line]:
    shown = rows if paper.wide else rows[:MOST]
    if not shown:
        return []
    columns = [Column(title) for title in titles]
    lines = [BLANK, *table(columns, [list(map(Span, row)) for row in shown], paper)]
    left = len(rows) - len(shown)
    return lines + (prose(f"and {left} more; -o wide lists all", paper, ink=Ink.FAINT) if left else [])


def as_data(report: FreeReport) -> InventoryData:
    found = report.inventory
    return {
        "by": report.by,
        "namespace": found.namespace or None,
        "rows": report.rows(),
        "closed": [{"node": one.name, "state": one.closed, "unused": unused} for one, unused in found.closed],
        "waiting": [
            {"pod": pod.ref, "requests": dict(pod.requests), "created": pod.created, "message": pod.message}
            for pod in report.waiting
        ],
        "notes": report.notes,
        "unknown": report.unknown,
        "simulated": report.simulated,
    }


def as_rows(report: FreeReport) -> Iterator[Sequence[object]]:
    yield report.columns
    yield from (tuple(row.values()) for row in report.rows())
