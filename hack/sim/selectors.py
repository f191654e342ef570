"""Label and field selectors as the API server reads them from a query, for FakeCluster."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from gpusharing.api.names import GROUP
from gpusharing.kube.raw import part
from hack.customresources import RESOURCES

JSON = dict[str, Any]
Matcher = Callable[[JSON], bool]
BOOLEANS = {"spec.unschedulable", "spec.hostNetwork"}
"""The boolean fields by which an API server selects nodes and pods. If one is absent, it counts as false (Kubernetes:
NodeToSelectableFields in pkg/registry/core/node/strategy.go, ToSelectableFields in that of pods)."""
EVERYWHERE = ("metadata.name", "metadata.namespace")
FIELDS: Mapping[str, Iterable[str]] = {
    "pods": (
        *("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"),
        *("spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName"),
    ),
    "nodes": ("spec.unschedulable",),
    "events": ("reason", "type", "involvedObject.kind", "involvedObject.namespace", "involvedObject.name"),
    "events.events.k8s.io": (
        *("reason", "type", "reportingController", "regarding.kind", "regarding.namespace", "regarding.name"),
        *("regarding.uid", "regarding.apiVersion", "regarding.resourceVersion", "regarding.fieldPath"),
    ),
    "resourceslices.resource.k8s.io": ("spec.nodeName", "spec.driver"),
    **{f"{one.plural}.{GROUP}": [path.removeprefix(".") for path in one.selectable] for one in RESOURCES},
}
"""The fields by which an API server selects objects of a kind, beside EVERYWHERE, by the kind's name for kubectl. Events
are without the old field `source` (Kubernetes: conversion.go in pkg/apis). Our kinds have the selectable fields of
their CRDs."""

_REQUIREMENT = re.compile(
    r"(?P<not>!?)\s*(?P<key>[\w./-]+)\s*"
    r"(?:(?P<op>==|=|!=)\s*(?P<value>[\w.-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)


def matcher(label_selector: str = "", field_selector: str = "") -> Matcher:
    """Return a predicate for both selectors; an empty one matches every object."""
    checks = [*_label_checks(label_selector), *_field_checks(field_selector)]
    return lambda obj: all(check(obj) for check in checks)


def find_unsupported(kind: str, field_selector: str) -> str:
    """Return the first field by which an API server does not select objects of this kind, or an empty string."""
    paths = (re.split("!?=", one, maxsplit=1)[0] for one in field_selector.split(",") if one)
    return next((path for path in paths if path not in (*EVERYWHERE, *FIELDS.get(kind, ()))), "")


def selects(selector: JSON | None, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector object, as in a PodDisruptionBudget, selects these labels."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    rows = selector.get("matchExpressions") or []
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(row["operator"], labels.get(row["key"]), row.get("values") or []) for row in rows
    )


def _holds(operator: str, value: str | None, values: list[str]) -> bool:
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise ValueError(f"unknown operator {operator}")


def _label_checks(selector: str) -> Iterator[Matcher]:
    position = 0
    while position < len(selector):
        match = _REQUIREMENT.match(selector, position)
        if not match or (match["not"] and (match["op"] or match["set"])):
            raise ValueError(f"bad label selector {selector!r}")
        position = match.end()
        if match["op"]:
            operator, values = ("NotIn" if match["op"] == "!=" else "In"), [match["value"]]
        elif match["set"]:
            operator = "In" if match["set"] == "in" else "NotIn"
            values = [value.strip() for value in match["values"].split(",")]
        else:
            operator, values = ("DoesNotExist" if match["not"] else "Exists"), []
        yield partial(_has_label, match["key"], operator, values)


def _has_label(key: str, operator: str, values: list[str], obj: JSON) -> bool:
    return _holds(operator, (obj["metadata"].get("labels") or {}).get(key), values)


def _field_checks(selector: str) -> Iterator[Matcher]:
    for requirement in filter(None, selector.split(",")):
        path, sign, value = requirement.partition("!=" if "!=" in requirement else "=")
        if not sign:
            raise ValueError(f"bad field selector {selector!r}")
        yield partial(_has_field, path, value.removeprefix("="), sign == "=")


def _has_field(path: str, wanted: str, equal: bool, obj: JSON) -> bool:
    content = part(obj, *path.split("."))
    if content is None:
        content = False if path in BOOLEANS else ""
    shown = str(content).lower() if isinstance(content, bool) else str(content)
    return (shown == wanted) is equal
