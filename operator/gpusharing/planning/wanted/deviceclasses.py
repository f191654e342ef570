"""The DeviceClasses with which pods go on requesting MIG instances as extended resources where NVIDIA's DRA driver
serves the GPUs: one for each profile in use, such as `nvidia.com/mig-1g.10gb`.

Whole GPUs need none, because the driver's chart brings class `gpu.nvidia.com` for nvidia.com/gpu (dra-driver-nvidia-gpu
v0.5.0, templates/deviceclass-gpu.yaml).
"""

from collections.abc import Iterable, Mapping

from gpusharing.api.names import RESOURCE_MIG_PREFIX
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.snapshot.draviews import DRA_DRIVER
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value

PREFIX = "gpusharing-mig-"
"""How the names of our DeviceClasses begin. The suffix of the extended resource follows."""


@value
class DeviceClassView:
    """A DeviceClass in the cluster."""

    name: str
    """Name of the class."""
    uid: str
    """UID of the class."""
    version: str
    """The resourceVersion at which it was read."""
    ours: bool
    """Whether it has our label."""
    resource: str
    """The extended resource by which pods may request its devices. Empty if it has none."""
    selectors: tuple[str, ...]
    """The CEL expressions that a device must satisfy."""
    plain: bool = True
    """Whether its spec has nothing besides these two."""


@value
class WantedClass:
    """A DeviceClass of ours as it should be."""

    name: str
    """Name of the class."""
    resource: str
    """The extended resource by which pods request the profile."""
    selector: str
    """The CEL expression that selects the MIG devices of the profile."""


@value
class ClassPlan:
    """What has to be done about our DeviceClasses."""

    create: tuple[WantedClass, ...] = ()
    """The classes that are missing, by name."""
    correct: tuple[tuple[WantedClass, DeviceClassView], ...] = ()
    """Classes of ours that somebody has changed, with what they are now."""
    remove: tuple[DeviceClassView, ...] = ()
    """Classes of ours whose profile no policy uses any more, by name."""
    conflict: str = ""
    """The message about the first class of somebody else that takes the place of one of ours. Empty if there is
    none."""


def wanted_class(profile: str) -> WantedClass:
    """Return the DeviceClass for the MIG devices of a profile. The `+` of a profile with an attribute is a dot in both
    names, as in the names of the device plugin."""
    resource = resource_name(profile)
    kind = f"device.attributes['{DRA_DRIVER}']"
    return WantedClass(
        name=PREFIX + resource.removeprefix(RESOURCE_MIG_PREFIX),
        resource=resource,
        selector=f"device.driver == '{DRA_DRIVER}' && {kind}.type == 'mig' && {kind}.profile == '{profile}'",
    )


def find_profiles(layouts: Iterable[Layout | None]) -> tuple[str, ...]:
    """Return the profiles of these layouts, each once and sorted."""
    return tuple(sorted({profile for layout in layouts for profile, _ in layout or ()}))


def plan_classes(profiles: Iterable[str], present: Iterable[DeviceClassView]) -> ClassPlan:
    """Return what has to be done so that there is exactly one class of ours for each of `profiles`. `present` are all
    DeviceClasses of the cluster.

    A class of somebody else is never touched. If it has the name or the extended resource of one of ours, that one is
    not created, and the conflict names it: of two classes with the same extended resource the scheduler uses one.
    """
    classes = {one.name: one for one in sorted(present, key=lambda one: one.name)}
    wanted = {one.name: one for one in map(wanted_class, sorted(set(profiles)))}
    foreign = {name: found for name, one in wanted.items() if (found := _foreign(one, classes))}
    create, correct = [], []
    for name, one in wanted.items():
        if (current := classes.get(name)) is None and name not in foreign:
            create.append(one)
        elif current is not None and current.ours and not _is_right(current, one):
            correct.append((one, current))
    unused = (one for one in classes.values() if one.ours and one.name not in wanted)
    return ClassPlan(tuple(create), tuple(correct), tuple(unused), _tell(foreign, wanted))


def _is_right(current: DeviceClassView, wanted: WantedClass) -> bool:
    """Whether the class selects exactly the devices of its profile, under its extended resource."""
    return current.plain and (current.resource, current.selectors) == (wanted.resource, (wanted.selector,))


def _foreign(wanted: WantedClass, classes: Mapping[str, DeviceClassView]) -> str:
    """Return the name of somebody else's class that has the name or the extended resource of `wanted`. Empty if there
    is none."""
    taken = (one for one in classes.values() if not one.ours)
    return next((one.name for one in taken if wanted.name == one.name or wanted.resource == one.resource), "")


def _tell(foreign: Mapping[str, str], wanted: Mapping[str, WantedClass]) -> str:
    """Return the message about the first class in `foreign`, which maps the name of one of ours to that of somebody
    else's, with the resources of all. Empty if `foreign` is empty."""
    if not foreign:
        return ""
    theirs = next(iter(foreign.values()))
    resources = some([wanted[name].resource for name in foreign])
    return (
        f"DeviceClass {theirs} was created by somebody else and serves {resources}, so the operator creates none;"
        f" to hand it over: kubectl delete deviceclass {theirs}"
    )
