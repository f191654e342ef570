"""NVIDIA's DRA stack: the driver that serves GPUs to ResourceClaims, the devices that it publishes, and our DeviceClasses and DeviceTaintRules for them.

The names of programs, attributes and settings are as in dra-driver-nvidia-gpu v0.5.0.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime
from hashlib import sha256

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.vocabulary.values import value

DRA_DRIVER = "gpu.nvidia.com"
"""The name under which NVIDIA's DRA driver publishes GPUs and MIG devices in ResourceSlices."""


@value
class DraDriverView:
    """The DaemonSet of NVIDIA's DRA driver, whose pods are the kubelet plugins."""

    name: str
    release: str = ""
    """Name of its Helm release. Empty if it is unknown."""
    serves_gpus: bool = True
    """Whether it serves GPUs (value resources.gpus.enabled of its chart), and not only compute domains."""
    gates: frozenset[str] = frozenset()
    """The feature gates that are switched on in the container that serves GPUs."""
    tolerates_gate: bool = True
    """Whether its pods tolerate the start-up taint."""
    tolerations: str = "[]"
    """The tolerations of its pods as JSON."""


def key_of(uuids: Iterable[str]) -> str:
    """Return a hash of these UUIDs of devices, as 16 hexadecimal digits. It does not depend on their order."""
    return sha256("\n".join(sorted(uuids)).encode(errors="backslashreplace")).hexdigest()[:16]


@value
class NodeDevices:
    """The devices that NVIDIA's DRA driver publishes for one node."""

    layouts: tuple[Layout | None, ...]
    """The layout of each GPU of which it publishes a device, sorted; None for a whole GPU. A GPU with MIG on and without instances has no device."""
    others: tuple[str, ...] = ()
    """Names of the devices that are neither a whole GPU nor a MIG device with its profile and GPU, or that several ResourceClaims may hold at once."""
    missing: int = 0
    """How many ResourceSlices of the node's pool have not been published yet."""
    key: str = ""
    """The result of `key_of` for all of its devices. Empty if it is unknown."""
    names: Mapping[str, str] = field(default_factory=dict)
    """For each whole GPU and each MIG device, by its name: the extended resource by which pods may request it. Empty if unknown."""
    resources: Mapping[str, int] = field(init=False, compare=False)
    """The devices as counts of the extended resources by which pods may request them, such as nvidia.com/gpu."""

    def __post_init__(self) -> None:
        counts: Counter[str] = Counter()
        for layout in self.layouts:
            for name, count in [(RESOURCE_GPU, 1)] if layout is None else layout:
                counts[name if layout is None else resource_name(name)] += count
        object.__setattr__(self, "resources", dict(counts))


@value
class DeviceClassView:
    """A DeviceClass in the cluster."""

    name: str
    uid: str
    version: str
    """The resourceVersion at which it was read."""
    ours: bool
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
    resource: str
    """The extended resource by which pods request the profile."""
    selector: str
    """The CEL expression that selects the MIG devices of the profile."""


RULE_PREFIX = "gpusharing-node-"
"""How the names of our DeviceTaintRules for nodes begin. The name of the node follows."""
TAINT_TEST = "gpusharing-taint-test"
"""The name of all objects with which the scheduler is tested for DeviceTaintRules."""


@value
class TaintRuleView:
    """A DeviceTaintRule with our label."""

    name: str
    uid: str
    since: datetime | None
    """When it was created. None if it is being deleted, or does not keep new pods off exactly the devices of the node in its name."""

    @property
    def node(self) -> str:
        """Name of the node that the rule is for. Empty if its name is not that of a rule for a node."""
        return self.name.removeprefix(RULE_PREFIX) if self.name.startswith(RULE_PREFIX) else ""


@value
class TaintProof:
    """Whether nodes may be fenced by DeviceTaintRules (docs/adr/0079-a-device-taint-rule-for-a-cordon.md)."""

    works: bool = False
    """Whether the scheduler was shown to obey DeviceTaintRules, and no write of one fails."""
    error: str = ""
    """Why nodes are cordoned although the setting `device_taints` is on. Empty if the setting is off, if rules work, or if the scheduler has not been tested yet."""


UNTESTED = TaintProof()


@value
class DraView:
    """NVIDIA's DRA stack. The ResourceSlices are read only if there is a GPUCluster or a DRA driver that serves GPUs."""

    driver: DraDriverView | None = None
    """The DRA driver in the namespace of NVIDIA's components. None if there is none."""
    mig_manager: str = ""
    """Name of the DaemonSet of a mig-manager that runs without the GPU Operator, in the same namespace. Empty if there is none."""
    mig_manager_version: str = ""
    """Empty if it is unknown."""
    mig_config_map: str = ""
    """Name of the ConfigMap from which that mig-manager reads its configurations. Empty if it mounts none."""
    with_reboot: bool = False
    """Whether that mig-manager reboots the node when a GPU cannot be reset (env WITH_REBOOT)."""
    unread: str = ""
    """Why the ResourceSlices cannot be read, as a sentence without its period. Empty if they can be read or need not be."""
    doubles: tuple[str, ...] = ()
    """Names of the nodes whose GPUs both the DRA driver and a device plugin serve."""
    classes: tuple[DeviceClassView, ...] | None = None
    """All DeviceClasses by name, or None if they were not read."""
    class_error: str = ""
    """Why the last write of our DeviceClasses failed. Empty if it did not."""
    taints: TaintProof = UNTESTED
    rule_error: str = ""
    """Why our DeviceTaintRules cannot be read or written. Empty if they can, or if none was tried."""


NO_DRA = DraView()
