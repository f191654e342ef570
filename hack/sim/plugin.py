"""SIMULATED config-manager and device plugin: which configuration counts, and what a node then advertises.

Pure: docs/design/nvidia.md, b.1 to b.7, and docs/design/nvidia.md#served as functions. `operands.py` and `node.py`
give them time.

The parser of the plugin's file is what k8s-device-plugin v0.19.3, api/config/v1, makes of a text. It follows
encoding/json step by step: structs find their fields in any case and ignore the rest, types with an UnmarshalJSON of
their own look keys up exactly, and null leaves a plain field as it was. The real answers are in
tests/foreign/device-plugin.yaml; the product has a reader of its own (planning/wanted/pluginconfig.py).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from gpusharing.api.gpunode import GPU
from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.geometry import resource_name
from hack.sim.goyaml import GoError, JSONValue, to_json
from hack.sim.settings import PluginVersion

_TEXTS = [
    "migStrategy", "mpsRoot", "nvidiaDriverRoot", "nvidiaDevRoot", "deviceDiscoveryStrategy",
]  # fmt: skip
_BOOLS = ["failOnInitError", "gdrcopyEnabled", "gdsEnabled", "mofedEnabled", "useNodeFeatureAPI"]
_PLUGIN = ["deviceIDStrategy", "cdiAnnotationPrefix", "nvidiaCTKPath", "containerDriverRoot"]
_GFD = ["outputFile", "machineTypeFile"]
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_DEVICE = re.compile(rf"[0-9]+(:[0-9]+)?|GPU-{_UUID}|MIG-{_UUID}|MIG-GPU-{_UUID}/[0-9]+/[0-9]+")
_DURATION = re.compile(r"infinite|[-+]?(0|([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+")


class PluginError(Exception):
    """The plugin exits with an error: bad configuration, or a layout that its strategy cannot serve."""


MigStrategy = Literal["none", "single", "mixed"]
STRATEGIES: tuple[MigStrategy, ...] = ("none", "single", "mixed")


@dataclass(frozen=True, slots=True)
class SimPluginConfig:
    """A device plugin configuration (version v1), as far as it decides about names and counts."""

    mig_strategy: MigStrategy = "none"
    sharing: Literal["none", "time-slicing", "mps"] = "none"
    replicas: Mapping[str, int] | None = None
    """Resource name to replicas."""
    rename: bool = False
    """renameByDefault: a shared resource ends in `.shared`."""

    @property
    def clients(self) -> int | None:
        """Clients of MPS per GPU; None without MPS."""
        return (self.replicas or {}).get(RESOURCE_GPU) if self.sharing == "mps" else None


@lru_cache(maxsize=256)
def parse_config(text: str, strategy: str = "") -> SimPluginConfig:
    """Parse a configuration; unknown keys are ignored, as the plugin does. `strategy` is ClusterPolicy's
    mig.strategy, which beats the file (b.2). Raises PluginError if the plugin would end with an error."""
    try:
        document = to_json(text)
    except GoError as error:
        raise PluginError(f"unmarshal error: {error}") from None
    if _text(_field(document, "version")) not in ("", "v1"):
        raise PluginError(f"unknown version: {_field(document, 'version')}")
    flags, sharing, imex = (_struct(_field(document, name)) for name in ("flags", "sharing", "imex"))
    _flags(flags)
    for kind in ("gpus", "mig"):
        for row in _list(_field(_struct(_field(document, "resources")), kind)):
            _resource(row)
    for channel in _list(_field(imex, "channelIDs")):
        _whole(channel)
    _bool(_field(imex, "required"))
    config = SimPluginConfig()
    if any(key.lower() == "timeslicing" for key in sharing or {}):
        config = _block(_field(sharing, "timeSlicing"), "time-slicing")
    if (mps := _field(sharing, "mps")) is not None:
        config = _block(mps, "mps")
    wanted = strategy or _text(_field(flags, "migStrategy")) or "none"
    found = next((known for known in STRATEGIES if known == wanted), None)
    if found is None:
        raise PluginError(f"invalid migStrategy {wanted!r}")
    return replace(config, mig_strategy=found)


def _flags(flags: JSONValue) -> None:
    """Check the type of every flag. Raises PluginError."""
    plugin, gfd = _struct(_field(flags, "plugin")), _struct(_field(flags, "gfd"))
    for where, names in ((flags, _TEXTS), (plugin, _PLUGIN), (gfd, _GFD)):
        for name in names:
            _text(_field(where, name))
    for where, switches in (
        (flags, _BOOLS),
        (plugin, ["passDeviceSpecs"]),
        (gfd, ["oneshot", "noTimestamp"]),
    ):
        for name in switches:
            _bool(_field(where, name))
    strategies = _field(plugin, "deviceListStrategy")
    for one in strategies if isinstance(strategies, list) else [strategies]:
        _text(one)
    interval = _field(gfd, "sleepInterval")
    if isinstance(interval, bool | list | dict):
        raise PluginError("invalid duration")
    if isinstance(interval, str) and not _DURATION.fullmatch(interval):
        raise PluginError(f"invalid duration {interval!r}")


def _block(found: JSONValue, kind: Literal["mps", "time-slicing"]) -> SimPluginConfig:
    """Read `sharing.mps` or `sharing.timeSlicing`, whose keys count only as they are written. Raises PluginError."""
    if not isinstance(found, dict | None):
        raise PluginError(f"cannot unmarshal {found!r} into a map")
    block = found or {}
    _bool(block.get("failRequestsGreaterThanOne"))
    rename = _bool(block.get("renameByDefault"))
    rows = _list(block.get("resources"))
    if not rows:
        raise PluginError("no resources specified")
    return SimPluginConfig("none", kind, dict(map(_row, rows)), rename)


def _row(found: JSONValue) -> tuple[str, int]:
    """Return the whole name and the replicas of one shared resource. Raises PluginError."""
    if not isinstance(found, dict | None):
        raise PluginError(f"cannot unmarshal {found!r} into a map")
    row = found or {}
    for key in ("name", "replicas"):
        if key not in row:
            raise PluginError(f"no {key} specified")
    name = _name(row["name"])
    if "devices" in row:
        _device_list(row["devices"])
    if (replicas := _whole(row["replicas"])) < 2:
        raise PluginError("number of replicas must be >= 2")
    if "rename" in row:
        _name(row["rename"])
    return name, replicas


def _resource(found: JSONValue) -> None:
    """Check one entry of `resources`, which the plugin reads and then ignores. Raises PluginError."""
    if not isinstance(found, dict) or not {"pattern", "name"} <= found.keys():
        raise PluginError("resources must have a pattern and a name")
    _text(found["pattern"])
    _name(found["name"])


def _device_list(found: JSONValue) -> None:
    """Check the devices of a shared resource: `all`, a number of them, or a list. Raises PluginError."""
    if found == "all" or (type(found) is int and 0 < found < 2**63):
        return
    if not isinstance(found, list) or not all(map(_is_device, found)):
        raise PluginError(f"unrecognized type for devices spec: {found!r}")


def _is_device(found: JSONValue) -> bool:
    if type(found) is int:
        return 0 <= found < 2**64
    return found is None or (isinstance(found, str) and bool(_DEVICE.fullmatch(found)))


def _name(found: JSONValue) -> str:
    name = _text(found)
    full = name if name.startswith("nvidia.com/") else f"nvidia.com/{name}"
    if len(full) > 63 or not _NAME.fullmatch(full.removeprefix("nvidia.com/")):
        raise PluginError(f"incorrect format for resource name {full!r}")
    return full


# --- encoding/json -------------------------------------------------------------------------------------------


def _struct(found: JSONValue) -> JSONValue:
    if not isinstance(found, dict | None):
        raise PluginError(f"cannot unmarshal {found!r} into a struct")
    return found


def _field(found: JSONValue, name: str) -> JSONValue:
    """The last of the fields with this name, in any case; None without one."""
    values = [value for key, value in sorted((_struct(found) or {}).items()) if key.lower() == name.lower()]
    return values[-1] if values else None


def _list(found: JSONValue) -> Sequence[JSONValue]:
    if not isinstance(found, list | None):
        raise PluginError(f"cannot unmarshal {found!r} into a list")
    return found or []


def _text(found: JSONValue) -> str:
    if not isinstance(found, str | None):
        raise PluginError(f"cannot unmarshal {found!r} into a string")
    return found or ""


def _bool(found: JSONValue) -> bool:
    if not isinstance(found, bool | None):
        raise PluginError(f"cannot unmarshal {found!r} into a bool")
    return bool(found)


def _whole(found: JSONValue) -> int:
    if found is None:
        return 0
    if type(found) is not int or not -(2**63) <= found < 2**63:
        raise PluginError(f"cannot unmarshal {found!r} into an int")
    return found


def choose_key(label: str | None, keys: Sequence[str], default: str) -> str | None:
    """The key that config-manager loads: the label's, else the default's, else the empty configuration ("").

    None: the key does not exist, or none does at all, and config-manager exits 1 (b.4; 0.19.3 "no configuration files
    available").
    """
    if not keys:
        return None
    wanted = label or default
    return wanted if not wanted or wanted in keys else None


def advertised(
    gpus: Sequence[GPU], config: SimPluginConfig, version: PluginVersion = "0.20.0"
) -> dict[str, int]:
    """Resource name to count, as the plugin registers it; raises PluginError when it exits instead (b.6)."""
    if config.sharing == "mps":
        _refuse_mig(gpus, config)
    counts = Counter(_devices(gpus, config.mig_strategy, version))
    replicas = config.replicas or {}
    found: dict[str, int] = {}
    for name, count in sorted(counts.items()):
        shared = name in replicas
        found[f"{name}.shared" if shared and config.rename else name] = count * replicas.get(name, 1)
    return found


def single_profile(gpus: Sequence[GPU]) -> str:
    """The one profile that strategy single advertises, empty when MIG is off everywhere; raises PluginError."""
    if not any(map(_mig, gpus)):
        return ""
    if not all(map(_mig, gpus)):
        raise PluginError("all devices on the node must be configured with the same migEnabled value")
    if (empty := next((gpu for gpu in gpus if not gpu.instances), None)) is not None:
        raise PluginError(f"device {empty.index} has no MIG devices configured")
    profiles = sorted({instance.profile for gpu in gpus for instance in gpu.instances})
    if len(profiles) > 1:
        raise PluginError("more than one MIG device type present on node")
    return profiles[0]


def _refuse_mig(gpus: Sequence[GPU], config: SimPluginConfig) -> None:
    """MPS and MIG exclude each other (docs/design/hardware.md#mig-mps); the plugin does not ask for the card's limit,
    the daemon does."""
    if config.mig_strategy == "mixed":
        raise PluginError("using --mig-strategy=mixed is not supported with MPS")
    if any(map(_mig, gpus)):
        raise PluginError("sharing using MPS is not supported for MIG devices")


def _devices(gpus: Sequence[GPU], strategy: MigStrategy, version: PluginVersion) -> list[str]:
    """One resource name per device."""
    if strategy == "none":  # wrong, but so it is (docs/design/hardware.md#mig-none)
        return [RESOURCE_GPU for _ in gpus]
    if strategy == "single":
        if not single_profile(gpus):
            return [RESOURCE_GPU for _ in gpus]
        return [RESOURCE_GPU for gpu in gpus for _ in gpu.instances]
    return [name for gpu in gpus for name in _mixed_devices(gpu, version)]


def _mixed_devices(gpu: GPU, version: PluginVersion) -> list[str]:
    """The resource names of one GPU with strategy mixed: its own, or with MIG on one per instance."""
    if not _mig(gpu):
        return [RESOURCE_GPU]
    return [_mig_resource(instance.profile, version) for instance in gpu.instances]


def _mig_resource(profile: str, version: PluginVersion) -> str:
    if version == "0.19.3":  # its patterns are not anchored: attributes cannot be told apart (DP PR#1807)
        return resource_name(re.sub(r"[+-].*", "", profile))
    return resource_name(profile)


def _mig(gpu: GPU) -> bool:
    return gpu.mig_mode == "Enabled"
