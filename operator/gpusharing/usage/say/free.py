"""Show who holds the GPUs and what is free: as text, data and CSV. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpusharing.api.times import from_rfc3339
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
    Span,
    age,
    describe_simulated,
    prose,
    table,
)
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.usage.read.present import DeviceUseNow, UsageNow
from gpusharing.usage.reckon.holdings import (
    FreeRow,
    GPUPod,
    Inventory,
    columns_of,
    count_rows,
    is_number,
    share_nodes,
)
from gpusharing.usage.say.cost import describe_doubts

MOST = 20
"""How many pods that wait, and nodes that are closed, are listed; -o wide lists all."""
TITLES = {"resource": "RESOURCE", "largest": "LARGEST FIT"}
DROPS = {"policy": 2, "taints": 4, "closed": 3, "waiting": 3, "others": 5, "state": 1}
"""The order in which columns are left out on a narrow terminal (see Column.drop)."""
USED = ("gpu", "profile", "memory", "size", "sm")
"""The fields of DeviceUseNow that --usage adds to the rows of pods."""
USED_COLUMNS = (
    Column("GPU", right=True),
    Column("PROFILE", drop=2),
    Column("MEMORY", right=True),
    Column("OF", drop=1, right=True),
    Column("SM", right=True),
)
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class FreeReport:
    """The answer of `free`."""

    inventory: Inventory
    """The nodes and pods that were read."""
    by: str
    """What the rows are about."""
    now: datetime
    """When the inventory was read."""
    unknown: tuple[str, ...]
    """Sentences about what is unknown, and why; empty if the answer is complete."""
    usage: UsageNow | None
    """What the pods use now; None if that was not requested."""
    notes: tuple[str, ...] = ()
    """What else a reader should know."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of the rows, in order."""
        return columns_of(self.inventory, self.by)

    @property
    def simulated(self) -> list[str]:
        """The sorted names of nodes that are known to have SIMULATED GPUs."""
        names = {name for name, stock in self.inventory.stocks.items() if stock.simulated}
        return sorted(names | set(() if self.usage is None else self.usage.simulated))

    @property
    def waiting(self) -> list[GPUPod]:
        """The pods of the answer that have no node, those that wait longest first."""
        return sorted(
            (pod for pod in self.inventory.subjects if not pod.node), key=lambda pod: (pod.created, pod.ref)
        )

    def rows(self) -> Iterator[tuple[FreeRow, DeviceUseNow | None]]:
        """Yield the rows. With --usage, a pod has a row for each device that it holds or uses, the pods of one device
        follow each other, and beside each row is what the pod uses there. Otherwise that is None."""
        rows = count_rows(self.inventory, self.by)
        if self.usage is None:
            yield from ((row, None) for row in rows)
            return
        pairs = []
        for row in rows:
            namespace, _, name = row.pod.partition("/")
            devices = self.usage.by_pod.get((namespace, name), {}) if row.node else {}
            pairs += [(row, uuid, use) for uuid, use in devices.items()] or [(row, "", DeviceUseNow())]
        pairs.sort(key=lambda each: (each[0].node, each[2].gpu.rjust(3), each[1], each[0].pod))
        yield from ((row, use) for row, _, use in pairs)


def describe(report: FreeReport, paper: Paper) -> list[Line]:
    """Draw the rows, the nodes that are closed, the pods that wait, and what a reader should know."""
    lines = describe_simulated(report.simulated, paper)
    rows = list(report.rows())
    if rows:
        columns = [
            Column(TITLES.get(name, name.upper()), DROPS.get(name, 0), is_number(name))
            for name in report.columns
        ]
        cells = [
            [*(_cell(row, name) for name in report.columns), *(() if use is None else _used(row, use))]
            for row, use in rows
        ]
        lines += table([*columns, *(() if report.usage is None else USED_COLUMNS)], cells, paper)
    else:
        lines += prose("No node advertises a GPU resource, and no pod requests one.", paper)
    lines += _closed_lines(report, paper)
    lines += _waiting_lines(report, paper)
    notes = (
        *report.notes,
        *taint_notes(report.inventory),
        *(() if report.usage is None else report.usage.notes),
    )
    return [
        *lines,
        *([BLANK] if notes or report.unknown else []),
        *describe_doubts(notes, report.unknown, paper),
    ]


def _cell(row: FreeRow, name: str) -> Span:
    """Return the cell of one field. An unknown number is a question mark."""
    value = getattr(row, name)
    if value is None:
        return Span(UNKNOWN, Ink.WAITING)
    if name == "free":
        return Span(str(value), Ink.GOOD if value else Ink.PLAIN)
    return Span(str(value), Ink.WAITING if name in ("state", "taints") else Ink.PLAIN)


def _used(row: FreeRow, use: DeviceUseNow) -> list[Span]:
    """Return the cells of USED_COLUMNS. All are empty for a pod that waits."""
    if not row.node:
        return [Span("")] * len(USED)
    sm = "" if use.profile else UNKNOWN
    return [
        Span(use.gpu or UNKNOWN),
        Span(use.profile),
        Span(_gib(use.memory)),
        Span(_gib(use.size)),
        Span(sm if use.sm is None else f"{use.sm:.0%}"),
    ]


def _gib(count: int | None) -> str:
    """Format bytes in GiB with one decimal, such as `15.0Gi`; a question mark if they are unknown."""
    return UNKNOWN if count is None else f"{count / 2**30:.1f}Gi"


def closed_nodes(inventory: Inventory) -> Iterator[dict[str, Any]]:
    """Yield the name, the state and the unused devices of each node that accepts no pods but has devices that no pod
    holds, sorted by name."""
    for stock, shares in share_nodes(inventory):
        unused = {name: share.free for name, share in sorted(shares.items()) if share.free}
        if stock.closed and unused:
            yield {"node": stock.name, "state": stock.closed, "unused": unused}


def taint_notes(inventory: Inventory) -> list[str]:
    """Return a sentence for each lasting taint on nodes with free devices: how many of them only pods that tolerate it
    can use."""
    free: dict[str, dict[str, int]] = {}
    for stock, shares in share_nodes(inventory):
        for taint in () if stock.closed else stock.taints:
            counts = free.setdefault(taint, {})
            for name, share in shares.items():
                counts[name] = counts.get(name, 0) + (share.free or 0)
    return [
        f"{_counts(counts)} of the free devices are only for pods that tolerate the taint {taint}"
        for taint, counts in sorted(free.items())
        if any(counts.values())
    ]


def _counts(counts: Mapping[str, int | None]) -> str:
    """Return the numbers that are not 0 with their resources, such as `2 nvidia.com/gpu and 1 nvidia.com/mig-1g`."""
    return " and ".join(f"{number} {name}" for name, number in sorted(counts.items()) if number)


def _closed_lines(report: FreeReport, paper: Paper) -> list[Line]:
    """Draw the nodes of `closed_nodes` as a table, which is empty if there are none. Nodes are not repeated if the rows
    of the answer are about nodes."""
    nodes = [] if report.by == "node" else list(closed_nodes(report.inventory))
    shown = nodes if paper.wide else nodes[:MOST]
    if not shown:
        return []
    columns = (Column("CLOSED NODE"), Column("STATE"), Column("NOT COUNTED AS FREE"))
    rows = [
        [Span(each["node"]), Span(each["state"], Ink.WAITING), Span(_counts(each["unused"]))]
        for each in shown
    ]
    return [BLANK, *table(columns, rows, paper), *_more(len(nodes) - len(shown), "node", paper)]


def _waiting_lines(report: FreeReport, paper: Paper) -> list[Line]:
    """Draw the pods that wait as a table, and the command that explains the first of them; empty if no pod waits. The
    rows of pods have them already."""
    pods = report.waiting
    shown = pods if paper.wide else pods[:MOST]
    if not shown:
        return []
    why = f"To see why a pod waits: kubectl gpusharing why {shown[0].ref}"
    if report.by == "pod":
        return [BLANK, *prose(why, paper, hang="  ", ink=Ink.FAINT)]
    rows = [
        [
            Span(pod.ref),
            Span(_counts(pod.requests)),
            Span(age(from_rfc3339(pod.created), report.now)),
            Span(pod.message if paper.wide else ""),
        ]
        for pod in shown
    ]
    columns = (Column("WAITING POD"), Column("REQUESTS"), Column("SINCE"), Column("SCHEDULER"))
    more = _more(len(pods) - len(shown), "pod", paper)
    return [BLANK, *table(columns, rows, paper), *more, *prose(why, paper, hang="  ", ink=Ink.FAINT)]


def _more(left: int, what: str, paper: Paper) -> list[Line]:
    """Say how many things were left out of a table; empty if none were."""
    return (
        prose(f"and {counted(left, f'more {what}')}; -o wide lists all", paper, ink=Ink.FAINT) if left else []
    )


def as_data(report: FreeReport) -> dict[str, Any]:
    """Return the answer as plain data. A number that is unknown is null."""
    usage = report.usage
    return {
        "by": report.by,
        "namespace": report.inventory.namespace or None,
        "rows": [_row_data(report, row, use) for row, use in report.rows()],
        "closed": list(closed_nodes(report.inventory)),
        "waiting": [
            {"pod": pod.ref, "requests": dict(pod.requests), "created": pod.created, "message": pod.message}
            for pod in report.waiting
        ],
        "notes": [*report.notes, *taint_notes(report.inventory), *(() if usage is None else usage.notes)],
        "unknown": list(report.unknown),
        "simulated": report.simulated,
    }


def _row_data(report: FreeReport, row: FreeRow, use: DeviceUseNow | None) -> dict[str, Any]:
    """Return one row as plain data, with what the pod uses if that was requested."""
    data = {name: getattr(row, name) for name in report.columns}
    if use is not None:
        used = {"gpu": int(use.gpu) if use.gpu.isdigit() else None, "profile": use.profile}
        data |= used | {"memoryBytes": use.memory, "deviceMemoryBytes": use.size, "smRatio": use.sm}
    return data


def as_rows(report: FreeReport) -> Iterator[Sequence[object]]:
    """Yield the header and the rows as CSV has them. A number that is unknown is empty."""
    used = (
        () if report.usage is None else ("gpu", "profile", "memory_bytes", "device_memory_bytes", "sm_ratio")
    )
    yield (*report.columns, *used)
    for row, use in report.rows():
        yield tuple(
            "" if value is None else value
            for value in (
                *(getattr(row, name) for name in report.columns),
                *(() if use is None else (use.gpu, use.profile, use.memory, use.size, use.sm)),
            )
        )
