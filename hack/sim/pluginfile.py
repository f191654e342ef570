"""The SIMULATED device plugin's own parser: what k8s-device-plugin v0.19.3, api/config/v1, makes of a text.

It follows encoding/json step by step: structs find their fields in any case and ignore the rest, types with an
UnmarshalJSON of their own look keys up exactly, and null leaves a plain field as it was. The real answers are in
tests/foreign/device-plugin.yaml; the product has a reader of its own (planning/wanted/pluginconfig.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hack.sim.goyaml import GoError, JSONValue, to_json

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


class FileRefused(Exception):
    """The plugin ends with this error."""


@dataclass(frozen=True)
class SharedFile:
    """A block under `sharing`."""

    kind: Literal["mps", "time-slicing"]
    replicas: Mapping[str, int]
    """By the whole name of the resource."""
    rename: bool
    fails: bool


@dataclass(frozen=True)
class ReadFile:
    """What matters here of a configuration that the plugin takes."""

    strategy: str
    """flags.migStrategy; empty: not set."""
    shared: SharedFile | None


def read(text: str) -> ReadFile:
    """Return what the plugin makes of a configuration. Raises FileRefused if the plugin would end with an error."""
    try:
        document = to_json(text)
    except GoError as error:
        raise FileRefused(f"unmarshal error: {error}") from None
    if _text(_field(document, "version")) not in ("", "v1"):
        raise FileRefused(f"unknown version: {_field(document, 'version')}")
    flags, sharing, imex = (_struct(_field(document, name)) for name in ("flags", "sharing", "imex"))
    _flags(flags)
    for kind in ("gpus", "mig"):
        for row in _list(_field(_struct(_field(document, "resources")), kind)):
            _resource(row)
    for channel in _list(_field(imex, "channelIDs")):
        _whole(channel)
    _bool(_field(imex, "required"))
    slices = _block(_field(sharing, "timeSlicing"), "time-slicing") if _has(sharing, "timeSlicing") else None
    mps = _field(sharing, "mps")
    shared = _block(mps, "mps") if mps is not None else slices
    return ReadFile(_text(_field(flags, "migStrategy")), shared)


def _flags(flags: JSONValue) -> None:
    """Check the type of every flag. Raises FileRefused."""
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
        raise FileRefused("invalid duration")
    if isinstance(interval, str) and not _DURATION.fullmatch(interval):
        raise FileRefused(f"invalid duration {interval!r}")


def _block(found: JSONValue, kind: Literal["mps", "time-slicing"]) -> SharedFile:
    """Read `sharing.mps` or `sharing.timeSlicing`, whose keys count only as they are written. Raises FileRefused."""
    if not isinstance(found, dict | None):
        raise FileRefused(f"cannot unmarshal {found!r} into a map")
    block = found or {}
    rename, fails = _bool(block.get("renameByDefault")), _bool(block.get("failRequestsGreaterThanOne"))
    rows = _list(block.get("resources"))
    if not rows:
        raise FileRefused("no resources specified")
    return SharedFile(kind, dict(map(_row, rows)), rename, fails)


def _row(found: JSONValue) -> tuple[str, int]:
    """Return the whole name and the replicas of one shared resource. Raises FileRefused."""
    if not isinstance(found, dict | None):
        raise FileRefused(f"cannot unmarshal {found!r} into a map")
    row = found or {}
    for key in ("name", "replicas"):
        if key not in row:
            raise FileRefused(f"no {key} specified")
    name = _name(row["name"])
    if "devices" in row:
        _devices(row["devices"])
    if (replicas := _whole(row["replicas"])) < 2:
        raise FileRefused("number of replicas must be >= 2")
    if "rename" in row:
        _name(row["rename"])
    return name, replicas


def _resource(found: JSONValue) -> None:
    """Check one entry of `resources`, which the plugin reads and then ignores. Raises FileRefused."""
    if not isinstance(found, dict) or not {"pattern", "name"} <= found.keys():
        raise FileRefused("resources must have a pattern and a name")
    _text(found["pattern"])
    _name(found["name"])


def _devices(found: JSONValue) -> None:
    """Check the devices of a shared resource: `all`, a number of them, or a list. Raises FileRefused."""
    if found == "all" or (type(found) is int and 0 < found < 2**63):
        return
    if not isinstance(found, list) or not all(map(_is_device, found)):
        raise FileRefused(f"unrecognized type for devices spec: {found!r}")


def _is_device(found: JSONValue) -> bool:
    if type(found) is int:
        return 0 <= found < 2**64
    return found is None or (isinstance(found, str) and bool(_DEVICE.fullmatch(found)))


def _name(found: JSONValue) -> str:
    name = _text(found)
    full = name if name.startswith("nvidia.com/") else f"nvidia.com/{name}"
    if len(full) > 63 or not _NAME.fullmatch(full.removeprefix("nvidia.com/")):
        raise FileRefused(f"incorrect format for resource name {full!r}")
    return full


# --- encoding/json -------------------------------------------------------------------------------------------


def _struct(found: JSONValue) -> JSONValue:
    if not isinstance(found, dict | None):
        raise FileRefused(f"cannot unmarshal {found!r} into a struct")
    return found


def _has(found: JSONValue, name: str) -> bool:
    return any(key.lower() == name.lower() for key in found or {})


def _field(found: JSONValue, name: str) -> JSONValue:
    """The last of the fields with this name, in any case; None without one."""
    values = [value for key, value in sorted((_struct(found) or {}).items()) if key.lower() == name.lower()]
    return values[-1] if values else None


def _list(found: JSONValue) -> Sequence[JSONValue]:
    if not isinstance(found, list | None):
        raise FileRefused(f"cannot unmarshal {found!r} into a list")
    return found or []


def _text(found: JSONValue) -> str:
    if not isinstance(found, str | None):
        raise FileRefused(f"cannot unmarshal {found!r} into a string")
    return found or ""


def _bool(found: JSONValue) -> bool:
    if not isinstance(found, bool | None):
        raise FileRefused(f"cannot unmarshal {found!r} into a bool")
    return bool(found)


def _whole(found: JSONValue) -> int:
    if found is None:
        return 0
    if type(found) is not int or not -(2**63) <= found < 2**63:
        raise FileRefused(f"cannot unmarshal {found!r} into an int")
    return found
