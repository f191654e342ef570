"""Reads what NVIDIA's DRA driver publishes, and recognizes the driver's DaemonSet.

The driver has one pool for each node, named after it. A whole GPU is a device of type `gpu` with its `uuid`; a MIG
device has type `mig`, its `profile` and the `parentUUID` of its GPU (dra-driver-nvidia-gpu v0.5.0,
cmd/gpu-kubelet-plugin/deviceinfo.go and mig.go).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gpusharing.kube.client import JSON
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.raw import entries, is_true, section, strings, text, texts, variable, whole
from gpusharing.kube.startgate import tolerates, tolerations_text
from gpusharing.planning.gpus.geometry import Layout, normalize
from gpusharing.planning.snapshot.draviews import DRA_DRIVER, DraDriverView, NodeDevices, key_of
from gpusharing.planning.snapshot.views import NodeView

GPUS, GPU_PROGRAM = "gpus", "gpu-kubelet-plugin"
DOMAINS, DOMAIN_PROGRAM = "compute-domains", "compute-domain-kubelet-plugin"
"""The containers of the driver's pods, each with the program that it starts. The chart leaves out the first with
`resources.gpus.enabled=false` (templates/kubeletplugin.yaml)."""
FIELD_SELECTOR = f"spec.driver={DRA_DRIVER}"
"""Selects the ResourceSlices of NVIDIA's GPUs."""


def starts(container: JSON, program: str) -> bool:
    """Whether any word of a container's command or arguments contains `program`."""
    return any(
        program in word for word in (*strings(container.get("command")), *strings(container.get("args")))
    )


def dra_driver_view(raw: JSON, containers: Mapping[str, JSON]) -> DraDriverView | None:
    """Convert a raw DaemonSet that runs NVIDIA's DRA driver, or return None if it does not. One that serves only
    compute domains counts too; its `serves_gpus` is False. Only the feature gates that the environment of its container
    `gpus` sets to true are listed. `containers` are the containers of its pod template, by name."""
    gpus = starts(containers.get(GPUS, {}), GPU_PROGRAM)
    if not gpus and not starts(containers.get(DOMAINS, {}), DOMAIN_PROGRAM):
        return None
    gates = variable(containers.get(GPUS, {}), "FEATURE_GATES")
    tolerations = entries(raw, "spec", "template", "spec", "tolerations")
    pairs = (pair.strip().partition("=") for pair in gates.split(","))
    return DraDriverView(
        name=text(raw, "metadata", "name"),
        release=texts(section(raw, "metadata").get("labels")).get("app.kubernetes.io/instance", ""),
        serves_gpus=gpus,
        gates=frozenset(name for name, _, state in pairs if is_true(state.strip())),
        tolerates_gate=tolerates(tolerations),
        tolerations=tolerations_text(tolerations),
    )


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a ResourceSlice."""

    name: str
    """Name of the device."""
    uuid: str
    """UUID of the device."""
    gpu: str
    """UUID of the GPU that it is, or of which it is a part. Empty if it is neither a GPU nor a MIG device with all of
    its attributes."""
    profile: str
    """The MIG profile; empty for a whole GPU."""


@dataclass(frozen=True, slots=True)
class SliceView:
    """One ResourceSlice of NVIDIA's GPUs."""

    pool: str
    """Name of the pool, which is that of the node."""
    generation: int
    """Generation of the pool; a slice of an older one is out of date."""
    of: int
    """How many slices the pool has in this generation."""
    devices: tuple[Device, ...]
    """The devices that it lists."""


def slice_view(raw: JSON) -> SliceView:
    """Convert a raw ResourceSlice. Missing or malformed parts become empty or 0."""
    pool = section(raw, "spec", "pool")
    return SliceView(
        pool=text(pool, "name"),
        generation=whole(pool, "generation"),
        of=whole(pool, "resourceSliceCount"),
        devices=tuple(map(_device, entries(raw, "spec", "devices"))),
    )


def _device(raw: JSON) -> Device:
    """Convert one raw device. Its `gpu` is its own UUID if it is a GPU, the UUID of the parent if it is a MIG device
    with a UUID and a profile, and else empty. A missing UUID counts as empty. A driver may write its own attributes
    with or without its name as a prefix."""
    attributes = section(raw, "attributes")

    def read(attribute: str) -> str:
        """Return the string value of the attribute; empty if it has none."""
        plain = text(attributes, attribute, "string")
        return plain or text(attributes, f"{DRA_DRIVER}/{attribute}", "string")

    kind, name, profile, uuid = read("type"), text(raw, "name"), read("profile"), read("uuid")
    if kind == "gpu":
        return Device(name, uuid, uuid, "")
    return Device(name, uuid, read("parentUUID") if kind == "mig" and profile and uuid else "", profile)


UNSERVED = "the API server does not serve resource.k8s.io/v1, which requires Kubernetes 1.34 or newer"


def tell_unread(error: KubeError | None, kind: str, unserved: str = UNSERVED) -> str:
    """Return why objects of `kind`, of the group resource.k8s.io, cannot be read: `unserved` for a NotFound, because
    the API server does not serve them, or a message for a Forbidden. Empty for None, and for any other error, because
    that may go away by itself."""
    match error:
        case NotFound():
            return unserved
        case Forbidden():
            return f"this operator is not allowed to list {kind} (chart value rbac.create)"
    return ""


class DeviceIndex:
    """Adds what ResourceSlices publish to the views of their Nodes. In `join_all`, a view whose inputs did not change
    stays the same object; `join` returns a new one."""

    def __init__(self, slices: Callable[[], Mapping[str, SliceView]]) -> None:
        """`slices` returns all ResourceSlices of NVIDIA's GPUs by name."""
        self._slices = slices
        self._pools: dict[str, tuple[list[SliceView], NodeDevices]] = {}
        self._joined: dict[str, tuple[NodeView, NodeView]] = {}

    def by_node(self) -> dict[str, NodeDevices]:
        """Return the devices that are published for each node, by node name. A pool has the name of its node. Only the
        slices of the newest generation of a pool count. Nodes without a ResourceSlice are left out."""
        pools: defaultdict[str, list[SliceView]] = defaultdict(list)
        for one in self._slices().values():
            pools[one.pool].append(one)
        before, self._pools = self._pools, {}
        for name, slices in pools.items():
            known = before.get(name)
            self._pools[name] = known if known is not None and known[0] == slices else (slices, _pool(slices))
        return {name: devices for name, (_, devices) in self._pools.items()}

    def join(self, view: NodeView) -> NodeView:
        """Return `view` with the devices that are published for its node; unchanged if there is no ResourceSlice for
        it."""
        devices = self.by_node().get(view.name)
        return view if devices is None else replace(view, devices=devices)

    def join_all(self, nodes: dict[str, NodeView]) -> dict[str, NodeView]:
        """Return a copy of `nodes`, by name, in which each view has the devices of its node. If neither a node's view
        nor its devices have changed since the last call, the same joined view is returned. Devices of a node that
        is not in `nodes` are ignored."""
        copy, joined = dict(nodes), {}
        for name, devices in self.by_node().items():
            if (view := nodes.get(name)) is None:
                continue
            before, after = self._joined.get(name, (None, view))
            if before is not view or after.devices is not devices:
                after = replace(view, devices=devices)
            joined[name] = view, after
            copy[name] = after
        self._joined = joined
        return copy


def _pool(slices: list[SliceView]) -> NodeDevices:
    """Return the devices of one pool. `slices` are all of its slices, at least one; only those of the newest
    generation count. In the result, `layouts` has the layouts of divided GPUs, sorted, then a None for each whole
    GPU. `others` has the names of all other devices, sorted, `missing` is how many slices of the generation do not
    exist yet, and `key` stands for the UUIDs of all devices."""
    newest = max(one.generation for one in slices)
    current = [one for one in slices if one.generation == newest]
    devices = [device for one in current for device in one.devices]
    profiles: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for device in devices:
        if device.gpu and device.profile:
            profiles[device.gpu][device.profile] += 1
    whole_gpus = [None for device in devices if device.gpu and not device.profile]
    divided: list[Layout] = sorted(normalize(counts) for counts in profiles.values())
    return NodeDevices(
        layouts=(*divided, *whole_gpus),
        others=tuple(sorted(device.name for device in devices if not device.gpu)),
        missing=max(0, max(one.of for one in current) - len(current)),
        key=key_of(device.uuid for device in devices),
    )
