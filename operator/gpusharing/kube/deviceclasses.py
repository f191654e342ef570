"""Reads DeviceClasses, and creates, corrects and removes those that are ours (planning/wanted/deviceclasses.py)."""

import structlog

from gpusharing.api.names import LABEL_MANAGED_BY, MANAGED_BY
from gpusharing.kube.client import DEVICE_CLASSES, JSON, KubeClient
from gpusharing.kube.errors import NotFound
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.wanted.deviceclasses import ClassPlan, DeviceClassView, WantedClass

log = structlog.get_logger()

_SPEC = frozenset({"selectors", "extendedResourceName"})


def device_class_view(raw: JSON) -> DeviceClassView:
    """Convert a raw DeviceClass."""
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
    """Return a DeviceClass of ours as it is created."""
    return {
        "apiVersion": DEVICE_CLASSES.api_version,
        "kind": "DeviceClass",
        "metadata": {"name": wanted.name, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "spec": _spec(wanted),
    }


def _spec(wanted: WantedClass) -> JSON:
    """Return the spec of a DeviceClass of ours."""
    return {
        "selectors": [{"cel": {"expression": wanted.selector}}],
        "extendedResourceName": wanted.resource,
    }


async def write_classes(client: KubeClient, plan: ClassPlan) -> None:
    """Carry out a plan, and log each write. A class that is gone already counts as removed.

    Raises:
        AlreadyExists: somebody else has just created a class of that name.
        Conflict: a class has changed since it was read; the next pass decides again.
    """
    for wanted in plan.create:
        await client.create(DEVICE_CLASSES, device_class(wanted))
        log.info("the DeviceClass was created", deviceclass=wanted.name, resource=wanted.resource)
    for wanted, current in plan.correct:
        metadata = {"resourceVersion": current.version}
        spec = {"config": None, **_spec(wanted)}
        await client.patch(DEVICE_CLASSES, wanted.name, {"metadata": metadata, "spec": spec})
        log.info("the DeviceClass was corrected", deviceclass=wanted.name)
    for current in plan.remove:
        try:
            await client.delete(DEVICE_CLASSES, current.name, uid=current.uid)
        except NotFound:
            continue
        log.info("the DeviceClass was removed, because no policy uses it", deviceclass=current.name)
