"""NVIDIA's DRA stack: the driver that serves GPUs to ResourceClaims, the devices that it publishes, and our
DeviceClasses and DeviceTaintRules for them.

The names of programs, attributes and settings are as in dra-driver-nvidia-gpu v0.5.0.

Terms: docs/design/glossary.md#fence.
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
    """Empty if it is unknown."""
    serves_gpus: bool = True
    """Whether it serves GPUs (value resources.gpus.enabled of its chart), and not only compute domains."""
    gates: frozenset[str] = frozenset()
    tolerates_gate: bool = True
    tolerations: str = "[]"


def key_of(uuids: Iterable[str]) -> str:
    """Return a hash of these UUIDs of devices, as 16 hexadecimal digits."""
    return sha256("\n".join(sorted(uuids)).encode(errors="backslashreplace")).hexdigest()[:16]


@value
class NodeDevices:
    """The devices that NVIDIA's DRA driver publishes for one node."""

    layouts: tuple[Layout | None, ...]
    """The layout of each GPU of which it publishes a device, sorted; None for a whole GPU."""
    others: tuple[str, ...] = ()
    missing: int = 0
    key: str = ""
    """The result of `key_of` for all of its devices. Empty if it is unknown."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Empty if the names are unknown."""
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
    ours: bool
    resource: str
    """Empty if it has none."""
    selectors: tuple[str, ...]
    plain: bool = True


@value
class WantedClass:
    """A DeviceClass of ours as it should be."""

    name: str
    resource: str
    selector: str


RULE_PREFIX = "gpusharing-node-"
"""How the names of our DeviceTaintRules for nodes begin."""
TAINT_TEST = "gpusharing-taint-test"
"""The name of all objects with which the scheduler is tested for DeviceTaintRules."""


@value
class TaintRuleView:
    """A DeviceTaintRule with our label."""

    name: str
    uid: str
    since: datetime | None
    """None if it is being deleted, or if it does not keep new pods off exactly the devices of the node in its name."""

    @property
    def node(self) -> str:
        """Name of the node that the rule is for."""
        return self.name.removeprefix(RULE_PREFIX) if self.name.startswith(RULE_PREFIX) else ""


@value
class TaintProof:
    """Whether nodes may be fenced by DeviceTaintRules (docs/adr/0079-a-device-taint-rule-for-a-cordon.md)."""

    works: bool = False
    error: str = ""
    """Why nodes are cordoned although the setting `device_taints` is on. Empty if the setting is off, if rules work, or if the scheduler has not been tested yet."""


UNTESTED = TaintProof()


@value
class DraView:
    """NVIDIA's DRA stack as far as it was seen."""

    driver: DraDriverView | None = None
    """None if there is none."""
    mig_manager: str = ""
    """Empty if there is none."""
    mig_manager_version: str = ""
    """Empty if it is unknown."""
    mig_config_map: str = ""
    """Empty if it mounts none."""
    with_reboot: bool = False
    unread: str = ""
    """Empty if they can be read or need not be."""
    doubles: tuple[str, ...] = ()
    classes: tuple[DeviceClassView, ...] | None = None
    """All DeviceClasses by name, or None if they were not read."""
    class_error: str = ""
    """Empty if it did not fail."""
    taints: TaintProof = UNTESTED
    rule_error: str = ""
    """Empty if they can, or if none was tried."""


NO_DRA = DraView()
