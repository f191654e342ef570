"""SIMULATED config-manager and device plugin: which configuration applies, and which resources a node then advertises.

Pure functions for docs/design/nvidia.md, b.1 to b.7 and #served. The parser follows k8s-device-plugin v0.19.3,
api/config/v1, and encoding/json: structs match fields case-insensitively and ignore unknown ones, types with an
UnmarshalJSON match keys exactly, and null leaves a plain field unchanged. tests/foreign has the real plugin's answers.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from gpusharing.agent.library import GPU
from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.geometry import resource_name
from hack.sim.goyaml import GoError, JSONValue, to_json
from hack.sim.gpu import mig_devices
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
    """The part of a device plugin configuration (version v1) that determines names and numbers of resources."""

    mig_strategy: MigStrategy = "none"
    sharing: Literal["none", "time-slicing", "mps"] = "none"
    replicas: Mapping[str, int] | None = None
    """Replicas by resource name, or None without sharing."""
    rename: bool = False
    """Whether the name of a shared resource ends in `.shared` (renameByDefault)."""
    one_each: bool = False
    """Whether a container that requests several shares is refused (failRequestsGreaterThanOne)."""

    @property
    def clients(self) -> int | None:
        """Clients of MPS per GPU, or None without MPS or if whole GPUs are not among the shared resources."""
        return (self.replicas or {}).get(RESOURCE_GPU) if self.sharing == "mps" else None


@lru_cache(maxsize=256)
def parse_config(text: str, strategy: str = "") -> SimPluginConfig:
    """Return the parsed file; `strategy` takes precedence (b.2). Raises PluginError where the plugin exits."""
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
    # If it has both kinds of sharing, both must be valid, and mps counts. An `mps` of null is ignored, but a
    # `timeSlicing` of null is an error.
    if any(key.lower() == "timeslicing" for key in sharing or {}):
        config = _block(_field(sharing, "timeSlicing"), "time-slicing")
    if (mps := _field(sharing, "mps")) is not None:
        config = _block(mps, "mps")
    wanted = strategy or _text(_field(flags, "migStrategy")) or "none"
    valid = next((known for known in STRATEGIES if known == wanted), None)
    if valid is None:
        raise PluginError(f"invalid migStrategy {wanted!r}")
    return replace(config, mig_strategy=valid)


def _flags(flags: JSONValue) -> None:
    plugin, gfd = _struct(_field(flags, "plugin")), _struct(_field(flags, "gfd"))
    for where, names in ((flags, _TEXTS), (plugin, _PLUGIN), (gfd, _GFD)):
        for name in names:
            _text(_field(where, name))
    for where, switches in ((flags, _BOOLS), (plugin, ["passDeviceSpecs"]), (gfd, ["oneshot", "noTimestamp"])):
        for name in switches:
            _bool(_field(where, name))
    strategies = _field(plugin, "deviceListStrategy")
    for strategy in strategies if isinstance(strategies, list) else [strategies]:
        _text(strategy)
    interval = _field(gfd, "sleepInterval")
    if isinstance(interval, bool | list | dict):
        raise PluginError("invalid duration")
    if isinstance(interval, str) and not _DURATION.fullmatch(interval):
        raise PluginError(f"invalid duration {interval!r}")


def _block(value: JSONValue, kind: Literal["mps", "time-slicing"]) -> SimPluginConfig:
    """Return a block of the file. Keys are case-sensitive here, and of two entries for one resource the last counts."""
    if not isinstance(value, dict | None):
        raise PluginError(f"cannot unmarshal {value!r} into a map")
    block = value or {}
    fails = block.get("failRequestsGreaterThanOne")
    one_each = kind == "mps" if fails is None else _bool(fails)
    rename = _bool(block.get("renameByDefault"))
    rows = _list(block.get("resources"))
    if not rows:
        raise PluginError("no resources specified")
    return SimPluginConfig("none", kind, dict(map(_row, rows)), rename, one_each)


def _row(value: JSONValue) -> tuple[str, int]:
    if not isinstance(value, dict | None):
        raise PluginError(f"cannot unmarshal {value!r} into a map")
    row = value or {}
    for key in ("name", "replicas"):
        if key not in row:
            raise PluginError(f"no {key} specified")
    name = _name(row["name"])
    devices = row.get("devices", "all")
    is_count = type(devices) is int and 0 < devices < 2**63
    if not (devices == "all" or is_count or (isinstance(devices, list) and all(map(_is_device, devices)))):
        raise PluginError(f"unrecognized type for devices spec: {devices!r}")
    if (replicas := _whole(row["replicas"])) < 2:
        raise PluginError("number of replicas must be >= 2")
    if "rename" in row:
        _name(row["rename"])
    return name, replicas


def _is_device(value: JSONValue) -> bool:
    if type(value) is int:
        return 0 <= value < 2**64
    return value is None or (isinstance(value, str) and bool(_DEVICE.fullmatch(value)))


def _resource(value: JSONValue) -> None:
    if not isinstance(value, dict) or not {"pattern", "name"} <= value.keys():
        raise PluginError("resources must have a pattern and a name")
    _text(value["pattern"])
    _name(value["name"])


def _name(value: JSONValue) -> str:
    name = _text(value)
    full = name if name.startswith("nvidia.com/") else f"nvidia.com/{name}"
    if len(full) > 63 or not _NAME.fullmatch(full.removeprefix("nvidia.com/")):
        raise PluginError(f"incorrect format for resource name {full!r}")
    return full


# --- encoding/json -------------------------------------------------------------------------------------------


def _struct(value: JSONValue) -> JSONValue:
    if not isinstance(value, dict | None):
        raise PluginError(f"cannot unmarshal {value!r} into a struct")
    return value


def _field(value: JSONValue, name: str) -> JSONValue:
    """Return a field. Names match case-insensitively, and of several keys the last by name counts."""
    values = [item for key, item in sorted((_struct(value) or {}).items()) if key.lower() == name.lower()]
    return values[-1] if values else None


def _list(value: JSONValue) -> Sequence[JSONValue]:
    if not isinstance(value, list | None):
        raise PluginError(f"cannot unmarshal {value!r} into a list")
    return value or []


def _text(value: JSONValue) -> str:
    if not isinstance(value, str | None):
        raise PluginError(f"cannot unmarshal {value!r} into a string")
    return value or ""


def _bool(value: JSONValue) -> bool:
    if not isinstance(value, bool | None):
        raise PluginError(f"cannot unmarshal {value!r} into a bool")
    return bool(value)


def _whole(value: JSONValue) -> int:
    if value is None:
        return 0
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise PluginError(f"cannot unmarshal {value!r} into an int")
    return value


def choose_key(label: str | None, keys: Sequence[str], default: str) -> str | None:
    """Return the key that config-manager loads, empty for the built-in configuration, or None where it exits with
    status 1 (b.4; 0.19.3 "no configuration files available")."""
    if not keys:
        return None
    wanted = label or default
    return wanted if not wanted or wanted in keys else None


def advertised(gpus: Sequence[GPU], config: SimPluginConfig, version: PluginVersion = "0.20.0") -> dict[str, int]:
    if config.sharing == "mps":  # excludes MIG (docs/design/hardware.md#mig-mps); the daemon checks the clients
        if config.mig_strategy == "mixed":
            raise PluginError("using --mig-strategy=mixed is not supported with MPS")
        if any(map(_mig, gpus)):
            raise PluginError("sharing using MPS is not supported for MIG devices")
    counts = Counter(_devices(gpus, config.mig_strategy, version))
    replicas = config.replicas or {}
    resources: dict[str, int] = {}
    for name, count in sorted(counts.items()):
        shared = name in replicas
        resources[f"{name}.shared" if shared and config.rename else name] = count * replicas.get(name, 1)
    return resources


def find_refusal(config: SimPluginConfig, requests: Mapping[str, int], version: PluginVersion = "0.20.0") -> str:
    """Return the error of Allocate for the requests of one container; empty if it is admitted.

    As ValidateRequest of internal/rm/rm.go; before v0.20 an explicit false did not count for MPS (b.3).
    """
    shared = {f"{name}.shared" if config.rename else name for name in config.replicas or {}}
    if config.one_each or (config.sharing == "mps" and version == "0.19.3"):
        for count in (count for name, count in requests.items() if name in shared and count > 1):
            return f"invalid request: maximum request size for shared resources is 1; found {count}"
    return ""


def single_profile(gpus: Sequence[GPU]) -> str:
    """Return the profile of strategy single, empty if MIG is off."""
    if not any(map(_mig, gpus)):
        return ""
    if not all(map(_mig, gpus)):
        raise PluginError("all devices on the node must be configured with the same migEnabled value")
    if (empty := next((gpu for gpu in gpus if not mig_devices(gpu)), None)) is not None:
        raise PluginError(f"device {empty.index} has no MIG devices configured")
    profiles = sorted({instance.profile for gpu in gpus for instance in mig_devices(gpu)})
    if len(profiles) > 1:
        raise PluginError("more than one MIG device type present on node")
    return profiles[0]


def _devices(gpus: Sequence[GPU], strategy: MigStrategy, version: PluginVersion) -> list[str]:
    """Return the resource name of each device. With strategy none every GPU counts as a whole one, even with MIG."""
    if strategy == "none":  # the plugin's mistake, reproduced (docs/design/hardware.md#mig-none)
        return [RESOURCE_GPU for _ in gpus]
    if strategy == "single":
        if not single_profile(gpus):
            return [RESOURCE_GPU for _ in gpus]
        return [RESOURCE_GPU for gpu in gpus for _ in mig_devices(gpu)]
    names: list[str] = []
    for gpu in gpus:
        profiles = [instance.profile for instance in mig_devices(gpu)]
        if version == "0.19.3":  # its patterns are not anchored, so it ignores attributes such as `+me` (DP PR#1807)
            profiles = [re.sub(r"[+-].*", "", profile) for profile in profiles]
        names += [resource_name(profile) for profile in profiles] if _mig(gpu) else [RESOURCE_GPU]
    return names


def _mig(gpu: GPU) -> bool:
    return gpu.mig_mode == "Enabled"
