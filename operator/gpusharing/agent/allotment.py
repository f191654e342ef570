"""Which tenant has how much of the node's GPUs now? A reading is combined with the kubelet's holdings. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from gpusharing.agent.library import GPU, Model, Reading
from gpusharing.agent.podresources import Holdings, base
from gpusharing.planning.gpus.cards import WHOLE, shares
from gpusharing.planning.vocabulary.values import value

NOTHING = Fraction(0)


@value
class Allotment:
    """Which tenant has how much of the node's GPUs at one moment. The parts, in GPUs, add up to all of them."""

    policy: str
    """The policy that owns the node; empty if none does."""
    allocated: Mapping[tuple[str, str], Fraction]
    """GPUs that pods hold, by namespace and resource."""
    idle: Mapping[str, Fraction]
    """GPUs in slices that no pod holds, by resource."""
    stranded: Fraction
    transition: Fraction


AllocatableSlices = Mapping[str, Mapping[str, int]]
"""Slices that the kubelet can allocate on each device: by UUID of the device, then by resource."""
NONE_ALLOCATABLE: AllocatableSlices = {}


def allotment_of(
    reading: Reading, holdings: Holdings, policy: str, *, changing: bool, known: AllocatableSlices = NONE_ALLOCATABLE
) -> Allotment:
    """Return who has how much of the node's GPUs now; with `changing`, what no pod holds counts as transition.

    A device is divided evenly among its slices: as many as the kubelet lists or listed last (`known`), or as pods hold
    if that is more. Only slices that it lists now can be idle.
    """
    allocated: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    idle: defaultdict[str, Fraction] = defaultdict(Fraction)
    listed = _allocatable(holdings)
    held, whole = _held(holdings, listed, known)
    cards = {model.product: model for model in reading.models}
    devices = (part for gpu in reading.gpus for part in _parts(gpu, cards.get(gpu.product), held))
    for uuid, share in devices:
        divided = uuid not in whole  # else one pod holds all of it, so nothing is idle
        here: Mapping[str, int] = listed.get(uuid, {}) if divided else {}
        slices = here or known.get(uuid, {}) if divided else {}
        taken = Counter(dict.fromkeys(slices, 0))
        for (_, resource), count in held.get(uuid, {}).items():
            taken[resource] += count
        parts = sum(max(count, slices.get(resource, 0)) for resource, count in taken.items())
        if not parts:
            continue
        each = share / parts
        for tenant, count in held.get(uuid, {}).items():
            allocated[tenant] += each * count
        for resource, count in taken.items():
            idle[resource] += each * max(0, here.get(resource, 0) - count)
    rest = len(reading.gpus) - sum(allocated.values(), NOTHING)
    if changing:
        return Allotment(policy, allocated, {}, NOTHING, rest)
    return Allotment(policy, allocated, idle, rest - sum(idle.values(), NOTHING), NOTHING)


def last_allocatable(reading: Reading, holdings: Holdings, before: AllocatableSlices) -> AllocatableSlices:
    """Return the slices of each device as the kubelet lists or last listed them.

    It lists healthy devices only (kubernetes pkg/kubelet/cm/devicemanager/manager.go, GetAllocatableDevices, v1.36.3),
    and none of a plugin that is restarting. For one never listed, the replica numbers that pods hold give a lower
    bound.
    """
    allocatable, known = _allocatable(holdings), dict(before)
    if all(gpu.access == "Ok" for gpu in reading.gpus):
        # While a GPU cannot be read it has no UUID, so any of the known devices may be its own.
        present = {uuid for gpu in reading.gpus for uuid in gpu.uuids}
        known = {uuid: slices for uuid, slices in known.items() if uuid in present}
    for each in holdings.by_pod:
        for device in each.devices:
            uuid, _, number = device.partition("::")
            if number.isdecimal():
                # No plugin shares a device as a single replica (k8s-device-plugin api/config/v1/replicas.go, v0.19.3).
                slices = known.get(uuid, {})
                least = max(2, int(number) + 1, slices.get(each.resource, 0))
                known[uuid] = {**slices, each.resource: least}
    return {**known, **allocatable}


def _allocatable(holdings: Holdings) -> dict[str, Counter[str]]:
    allocatable: dict[str, Counter[str]] = {}
    for resource, device in holdings.allocatable or ():
        allocatable.setdefault(base(device), Counter())[resource] += 1
    return allocatable


def _held(
    holdings: Holdings, listed: AllocatableSlices, known: AllocatableSlices
) -> tuple[dict[str, Counter[tuple[str, str]]], set[str]]:
    """Return the slices of each device by tenant, and the devices that became shared while a pod held them whole."""
    held: dict[str, Counter[tuple[str, str]]] = {}
    whole: set[str] = set()
    for each in holdings.by_pod:
        for device in each.devices:
            uuid = base(device)
            slices = sum((listed.get(uuid) or known.get(uuid, {})).values())
            if device == uuid and slices > 1:  # its holder still holds all of it
                whole.add(uuid)
            else:
                slices = 1
            held.setdefault(uuid, Counter())[each.namespace, each.resource] += slices
    return held, whole


def _parts(gpu: GPU, model: Model | None, held: Mapping[str, object]) -> Sequence[tuple[str, Fraction]]:
    """Return the UUID of each device of a GPU that pods may hold, with its part of the GPU."""
    if gpu.mig_mode != "Enabled":
        return ((gpu.uuid, WHOLE),) if gpu.uuid else ()
    profiles = () if model is None else model.profiles
    # A container without rights cannot read sizes, so memory is used instead.
    placed = all(profile.size for profile in profiles)
    extents = {each.name: (each.slices, each.size if placed else each.memory_gb) for each in profiles}
    slices, memory = (max((extent[i] for extent in extents.values()), default=0) for i in (0, 1))
    parts = shares([extents.get(one.profile, (0, 0)) for one in gpu.instances], (slices, memory))
    devices = [(instance.uuid, part) for instance, part in zip(gpu.instances, parts, strict=True)]
    if not gpu.uuid or gpu.uuid not in held:
        return devices
    # MIG was switched on while a pod held the whole GPU: it has what no other pod holds.
    others = [(uuid, share) for uuid, share in devices if uuid in held]
    return [*others, (gpu.uuid, WHOLE - sum((share for _, share in others), NOTHING))]
