"""Tables as `kubectl get` prints them. They are built from the JSONPaths in the CRDs, so that they show what a user
would see.

The forms of JSONPath that our columns use are supported: `.key`, an escaped dot in a key, and `[?(@.key=="value")]`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpusharing.kube.client import EVENTS, GPUNODES, JSON, NODES, POLICIES, Resource
from hack.customresources import GPUNODE, POLICY, CustomResource

_STEP = re.compile(r'\.(?P<key>(?:\\.|[^.\[\\])+)|\[\?\(@\.(?P<field>\w+)=="(?P<value>[^"]*)"\)\]')
PADDING = 3
MIN_WIDTH = 6
"""The smallest width of a column including its padding, as in kubectl."""


@dataclass(frozen=True, slots=True)
class KubectlView:
    """One call of `kubectl get`: which objects it lists, and which columns it shows."""

    resource: Resource
    columns: tuple[tuple[str, str], ...]
    kind: str
    dates: frozenset[str] = frozenset()
    """The headings of columns whose value is a time, which is shown as an age."""
    custom: bool = True
    names: tuple[str, ...] = ()
    """The names of the objects to show, or empty for all."""
    field: tuple[str, str] | None = None
    """A field selector: the path without its first dot, and the value; or None to select all objects."""
    sort_by: str = ".metadata.name"

    @property
    def arguments(self) -> tuple[str, ...]:
        words = ["get", self.kind, *self.names]
        if self.field:
            words += ["--field-selector", "=".join(self.field)]
        if self.sort_by != ".metadata.name":
            words.append(f"--sort-by={self.sort_by}")
        if self.custom:
            words += ["-o", "custom-columns=" + ",".join(f"{name}:{path}" for name, path in self.columns)]
        return tuple(words)

    @property
    def command(self) -> str:
        """The command as a person would type it, except that the paths of custom columns are replaced by `...`."""
        words = self.arguments[:-1] if self.custom else self.arguments
        return " ".join(("kubectl", *words, *(("custom-columns=...",) if self.custom else ())))


def printed(resource: Resource, source: CustomResource, kind: str) -> KubectlView:
    """Return the view that `kubectl get` prints without `-o wide`, by the columns of a CRD."""
    shown = [column for column in source.columns if not column.wide]
    return KubectlView(
        resource,
        (("NAME", ".metadata.name"), *((column.name.upper(), column.path) for column in shown)),
        kind,
        dates=frozenset(column.name.upper() for column in shown if column.type == "date"),
        custom=False,
    )


POOLS = printed(POLICIES, POLICY, "gpusharingpolicies")
FLEET = KubectlView(
    NODES,
    (
        ("NAME", ".metadata.name"),
        ("POOL", r".metadata.labels.gpusharing\.dev/pool"),
        ("PRODUCT", r".metadata.labels.nvidia\.com/gpu\.product"),
        ("GPUS", r".status.allocatable.nvidia\.com/gpu"),
        ("CORDONED", ".spec.unschedulable"),
    ),
    "nodes",
)
_GPUNODE_PATHS = {column.name.upper(): column.path for column in GPUNODE.columns}


def places(*nodes: str) -> KubectlView:
    shown = ("OBSERVED", "PHASE", "REASON", "PODS", "CULPRIT")
    columns = (("NAME", ".metadata.name"), *((name, _GPUNODE_PATHS[name]) for name in shown))
    return KubectlView(GPUNODES, columns, "gpunodes", names=nodes)


def events_about(policy: str) -> KubectlView:
    """Return a view of the Events about a policy, the oldest first."""
    columns = (("TYPE", ".type"), ("REASON", ".reason"), ("NOTE", ".note"))
    return KubectlView(
        EVENTS, columns, "events.v1.events.k8s.io", field=("regarding.name", policy), sort_by=".eventTime"
    )


def find(obj: JSON, path: str) -> Any:
    """Return what a JSONPath finds. Raises ValueError for a form that our columns do not use."""
    value: Any = obj
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise ValueError(f"JSONPath {path!r}: cannot read {path[at:]!r}")
        at = step.end()
        if step["key"] is not None:
            value = value.get(step["key"].replace("\\", "")) if isinstance(value, dict) else None
        else:
            value = next((row for row in value or () if row.get(step["field"]) == step["value"]), None)
    return value


def render(view: KubectlView, objects: Iterable[JSON], now: datetime) -> str:
    chosen = [obj for obj in objects if _selected(view, obj)]
    chosen.sort(key=lambda obj: str(find(obj, view.sort_by)))
    rows = [[name for name, _ in view.columns]]
    rows += [[_cell(view, name, find(obj, path), now) for name, path in view.columns] for obj in chosen]
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as a table: one string with a line for each row, without trailing spaces."""
    widths = [max(MIN_WIDTH, *(len(cell) + PADDING for cell in column)) for column in zip(*rows, strict=True)]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _selected(view: KubectlView, obj: JSON) -> bool:
    if view.names and obj["metadata"]["name"] not in view.names:
        return False
    return view.field is None or find(obj, f".{view.field[0]}") == view.field[1]


def _cell(view: KubectlView, name: str, value: Any, now: datetime) -> str:
    if value is None or value == "":
        return "<none>" if view.custom and value is None else ""
    if name in view.dates:
        return age((now - datetime.fromisoformat(value).astimezone(UTC)).total_seconds())
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def age(seconds: float) -> str:
    """Return a duration as kubectl prints ages (HumanDuration)."""
    whole = max(0, int(seconds))
    minutes, hours = whole // 60, whole // 3600
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        rest = whole % 60
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        rest = minutes % 60
        return f"{hours}h{rest}m" if rest else f"{hours}h"
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"
