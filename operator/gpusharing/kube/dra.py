"""The objects of DRA: NVIDIA's driver, its ResourceSlices, our DeviceClasses and DeviceTaintRules.

The driver has one pool for each node, named after it. A whole GPU is a device of type `gpu` with its `uuid`; a MIG
device has type `mig`, its `profile` and the `parentUUID` of its GPU (dra-driver-nvidia-gpu v0.5.0,
cmd/gpu-kubelet-plugin/deviceinfo.go and mig.go).

The scheduler gives no pod a device that a DeviceTaintRule with effect NoSchedule selects (Kubernetes v1.36,
resource.k8s.io/v1beta2). Pods that have the device keep it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gpusharing.api.names import LABEL_MANAGED_BY, MANAGED_BY, PREFIX, RESOURCE_GPU
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import DEVICE_CLASSES, DEVICE_TAINT_RULES, JSON
from gpusharing.kube.convert import daemon_set_state
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.raw import entries, is_true, part, section, strings, text, variable, whole
from gpusharing.planning.gpus.geometry import normalize, resource_name
from gpusharing.planning.gpus.texts import key_of
from gpusharing.planning.snapshot.nvidia import (
    DRA_DRIVER,
    RULE_PREFIX,
    DaemonSetState,
    DeviceClassView,
    NodeDevices,
    Program,
    TaintRuleView,
)

GPUS, GPU_PROGRAM = "gpus", "gpu-kubelet-plugin"
"""The container of the driver's pods that serves GPUs, and the program that it starts. The chart leaves it out with
`resources.gpus.enabled=false` (templates/kubeletplugin.yaml)."""
FIELD_SELECTOR = f"spec.driver={DRA_DRIVER}"
"""Selects the ResourceSlices of NVIDIA's GPUs."""
OUR_RULES = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
"""Selects the DeviceTaintRules with our label."""
SLICES_UNSERVED = "the API server does not serve resource.k8s.io/v1, which requires Kubernetes 1.34 or newer"
RULES_UNSERVED = (
    f"the API server does not serve DeviceTaintRules in {DEVICE_TAINT_RULES.api_version}"
    f" (--runtime-config={DEVICE_TAINT_RULES.api_version}=true)"
)


def starts(container: JSON, program: str) -> bool:
    words = *strings(container.get("command")), *strings(container.get("args"))
    return any(program in word for word in words)


def dra_driver_view(raw: JSON, containers: Mapping[str, JSON]) -> DaemonSetState | None:
    """Convert a raw DaemonSet with these containers that runs NVIDIA's DRA driver, with GPUs or not; or None."""
    gpus = starts(containers.get(GPUS, {}), GPU_PROGRAM)
    if not gpus and not starts(containers.get("compute-domains", {}), "compute-domain-kubelet-plugin"):
        return None
    gates = variable(containers.get(GPUS, {}), "FEATURE_GATES")
    pairs = (pair.strip().partition("=") for pair in gates.split(","))
    on = frozenset(name for name, _, state in pairs if is_true(state.strip()))
    label = text(raw, "spec", "template", "metadata", "labels", Program.KUBELET_PLUGIN.label)
    labelled = label == Program.KUBELET_PLUGIN
    return replace(daemon_set_state(raw), serves_gpus=gpus, gates=on, labelled=labelled)


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    uuid: str
    gpu: str
    """UUID of the GPU that it is, or of which it is a part. It is empty if the device is neither a GPU nor a MIG device
    with all of its attributes, or if several claims may hold it at once."""
    profile: str
    """The MIG profile; empty for a whole GPU."""


@dataclass(frozen=True, slots=True)
class SliceView:
    pool: str
    """Name of the pool, which is that of the node."""
    generation: int
    """Generation of the pool; a slice of an older one is out of date."""
    of: int
    """How many slices the pool has in this generation."""
    devices: tuple[Device, ...]


def slice_view(raw: JSON) -> SliceView:
    pool = section(raw, "spec", "pool")
    return SliceView(
        pool=text(pool, "name"),
        generation=whole(pool, "generation"),
        of=whole(pool, "resourceSliceCount"),
        devices=tuple(map(_device, entries(raw, "spec", "devices"))),
    )


def _device(raw: JSON) -> Device:
    attributes = section(raw, "attributes")

    def read(attribute: str) -> str:  # a driver may write its own attributes with or without its name as a prefix
        plain = text(attributes, attribute, "string")
        return plain or text(attributes, f"{DRA_DRIVER}/{attribute}", "string")

    kind, name, profile, uuid = read("type"), text(raw, "name"), read("profile"), read("uuid")
    if part(raw, "allowMultipleAllocations") is True:
        return Device(name, uuid, "", profile)
    if kind == "gpu":
        return Device(name, uuid, uuid, "")
    return Device(name, uuid, read("parentUUID") if kind == "mig" and profile and uuid else "", profile)


def tell_unread(error: KubeError | None, kind: str, unserved: str = SLICES_UNSERVED) -> str:
    """Return why objects of `kind` cannot be read; empty also for an error that may go away by itself."""
    match error:
        case NotFound():
            return unserved
        case Forbidden():
            return f"this operator is not allowed to list {kind} (chart value rbac.create)"
    return ""


def device_index(slices: Callable[[], Mapping[str, SliceView]]) -> Callable[[], dict[str, NodeDevices]]:
    """Return a function that finds the devices of each node in `slices`, the same objects while these are equal."""
    known: dict[str, tuple[list[SliceView], NodeDevices]] = {}

    def by_node() -> dict[str, NodeDevices]:
        nonlocal known
        pools: defaultdict[str, list[SliceView]] = defaultdict(list)
        for one in slices().values():
            pools[one.pool].append(one)
        known = {
            name: row if (row := known.get(name)) is not None and row[0] == pool else (pool, _pool(pool))
            for name, pool in pools.items()
        }
        return {name: devices for name, (_, devices) in known.items()}

    return by_node


def _pool(slices: list[SliceView]) -> NodeDevices:
    newest = max(one.generation for one in slices)
    current = [one for one in slices if one.generation == newest]
    devices = [device for one in current for device in one.devices]
    held = [device for device in devices if device.gpu]
    profiles: defaultdict[str, Counter[str]] = defaultdict(Counter)
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for device in held:
        if device.profile:
            profiles[device.gpu][device.profile] += 1
            parts[device.gpu].append(device.uuid)
    return NodeDevices(
        layouts=(
            *sorted(normalize(counts) for counts in profiles.values()),
            *(None for device in held if not device.profile),
        ),
        others=tuple(sorted(device.name for device in devices if not device.gpu)),
        missing=max(0, max(one.of for one in current) - len(current)),
        key=key_of([*map(key_of, parts.values()), *(device.uuid for device in held if not device.profile)]),
        names={one.name: resource_name(one.profile) if one.profile else RESOURCE_GPU for one in held},
    )


def device_class_view(raw: JSON) -> DeviceClassView:
    spec = section(raw, "spec")
    return DeviceClassView(
        name=text(raw, "metadata", "name"),
        uid=text(raw, "metadata", "uid"),
        version=text(raw, "metadata", "resourceVersion"),
        ours=text(raw, "metadata", "labels", LABEL_MANAGED_BY) == MANAGED_BY,
        resource=text(spec, "extendedResourceName"),
        selectors=tuple(text(row, "cel", "expression") for row in entries(spec, "selectors")),
        plain={key for key, setting in spec.items() if setting} <= {"selectors", "extendedResourceName"},
    )


def device_class(wanted: DeviceClassView) -> JSON:
    return {
        "apiVersion": DEVICE_CLASSES.api_version,
        "kind": "DeviceClass",
        "metadata": {"name": wanted.name, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "spec": class_spec(wanted),
    }


def class_spec(wanted: DeviceClassView) -> JSON:
    return {
        "selectors": [{"cel": {"expression": one}} for one in wanted.selectors],
        "extendedResourceName": wanted.resource,
    }


def taint_rule(name: str, devices: Mapping[str, str]) -> JSON:
    """Return a DeviceTaintRule of ours that keeps new pods off `devices`, selected by driver, pool and device."""
    return {
        "apiVersion": DEVICE_TAINT_RULES.api_version,
        "kind": "DeviceTaintRule",
        "metadata": {"name": name, "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
        "spec": {
            "deviceSelector": dict(devices),
            "taint": {"key": f"{PREFIX}changing", "value": "true", "effect": "NoSchedule"},
        },
    }


def rule_for(node: str) -> JSON:
    """Return the DeviceTaintRule for all devices that NVIDIA's DRA driver publishes for a node."""
    return taint_rule(RULE_PREFIX + node, {"driver": DRA_DRIVER, "pool": node})


def taint_rule_view(raw: JSON) -> TaintRuleView:
    """Convert a raw DeviceTaintRule, which keeps pods off (`since`) only if it is `rule_for` its node and stays."""
    view = TaintRuleView(text(raw, "metadata", "name"), text(raw, "metadata", "uid"), None)
    spec, wanted = section(raw, "spec"), rule_for(view.node)["spec"]
    taint = {key: value for key, value in section(spec, "taint").items() if key != "timeAdded"}
    right = section(spec, "deviceSelector") == wanted["deviceSelector"] and taint == wanted["taint"]
    if not right or "deletionTimestamp" in section(raw, "metadata"):
        return view
    return replace(view, since=from_rfc3339(text(raw, "metadata", "creationTimestamp")))
