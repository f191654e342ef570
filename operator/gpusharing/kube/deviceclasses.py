"""Converts DeviceClasses (planning/wanted/deviceclasses.py)."""

from gpusharing.api.names import LABEL_MANAGED_BY, MANAGED_BY
from gpusharing.kube.client import DEVICE_CLASSES, JSON
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.snapshot.draviews import DeviceClassView, WantedClass

_SPEC = frozenset({"selectors", "extendedResourceName"})


def device_class_view(raw: JSON) -> DeviceClassView:
    """Convert a raw DeviceClass. Missing or malformed parts become empty. `ours` is True if it has our label. `plain`
    is True if its spec sets nothing but selectors and an extended resource; empty fields do not count."""
    spec = section(raw, "spec")
    return DeviceClassView(
        name=text(raw, "metadata", "name"),
        uid=text(raw, "metadata", "uid"),
        version=text(raw, "metadata", "resourceVersion"),
        ours=texts(part(raw, "metadata", "labels")).get(LABEL_MANAGED_BY) == MANAGED_BY,
        resource=text(spec, "extendedResourceName"),
        selectors=tuple(text(row, "cel", "expression") for row in entries(spec, "selectors")),
        plain={key for key, setting in spec.items() if setting} <= _SPEC,
    )


def device_class(wanted: WantedClass) -> JSON:
    """Return the manifest with which a DeviceClass of ours is created."""
    return {
        "apiVersion": DEVICE_CLASSES.api_version,
        "kind": "DeviceClass",
        "metadata": {"name": wanted.name, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "spec": class_spec(wanted),
    }


def class_spec(wanted: WantedClass) -> JSON:
    """Return the spec of a DeviceClass of ours: its one selector and its extended resource."""
    return {
        "selectors": [{"cel": {"expression": wanted.selector}}],
        "extendedResourceName": wanted.resource,
    }
