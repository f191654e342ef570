"""What NVIDIA's container toolkit would give a container, decided from its OCI configuration alone.

Sources: nvidia-container-toolkit, cmd/nvidia-container-runtime-hook (which variables count, and what is refused to an
unprivileged container); MIG user guide, "Device Nodes and Capabilities".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hack.cluster.api import Object
from hack.nvmlsim.simulator import CONFIG, MONITOR, MachineDevice, cap_minors, of_device

VISIBLE, CAPABILITIES = "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"
SPECIAL_DEVICES = {"NVIDIA_MIG_CONFIG_DEVICES": CONFIG, "NVIDIA_MIG_MONITOR_DEVICES": MONITOR}
CAPS = "/dev/nvidia-caps/nvidia-cap"
"""The path of a device file for a MIG capability, without its minor number."""
DEFAULT_CAPABILITIES = "compute,utility"
WITHOUT_DRIVER = ("", "void")
MPS_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
"""The variable whose presence makes a process a client of MPS."""


class GrantRefused(Exception):
    """The toolkit would refuse to start this container; the message says why."""


@dataclass(frozen=True)
class Grant:
    """What a container receives from the toolkit."""

    library: bool
    """Whether it has libnvidia-ml, which needs the driver capability `utility`."""
    minors: tuple[int, ...]
    capabilities: tuple[str, ...]
    computes_on: tuple[MachineDevice, ...]
    """The devices that the container names one by one. SIMULATED: the container's first process uses them."""
    mps: bool = False


def find_grant(spec: Object, devices: Sequence[MachineDevice]) -> Grant | None:
    """Return what the toolkit gives a container. With `all` or `none` it computes on no device."""
    environ = dict(entry.partition("=")[::2] for entry in spec["process"].get("env") or ())
    named = environ.get(VISIBLE, "")
    if named in WITHOUT_DRIVER:
        return None
    capabilities = (environ.get(CAPABILITIES) or DEFAULT_CAPABILITIES).split(",")
    library = not {"all", "utility"}.isdisjoint(capabilities)
    special = _special(environ, privileged=is_privileged(spec))
    if named == "none":
        return Grant(library, (), special, ())
    chosen = list(devices) if named == "all" else [_find(name, devices) for name in named.split(",")]
    access = [name for device in chosen if device.instance for name in of_device(device.gpu, *device.instance)]
    minors = tuple(sorted({device.gpu for device in chosen}))
    computes_on = tuple(chosen) if named != "all" else ()
    return Grant(library, minors, (*special, *access), computes_on, mps=MPS_PIPES in environ)


def find_injected(spec: Object, devices: Sequence[MachineDevice]) -> tuple[MachineDevice, ...]:
    """Return the devices whose files containerd has added, as the CDI devices of a ResourceClaim say."""
    files = {entry["path"] for entry in spec["linux"].get("devices") or ()}
    minors = cap_minors(len({device.gpu for device in devices}))
    divided = {device.gpu for device in devices if device.instance}

    def has(device: MachineDevice) -> bool:
        if device.instance is None:
            return device.gpu not in divided and f"/dev/nvidia{device.gpu}" in files
        return files.issuperset(f"{CAPS}{minors[name]}" for name in of_device(device.gpu, *device.instance))

    return tuple(filter(has, devices))


def is_privileged(spec: Object) -> bool:
    """Whether the toolkit counts the container as privileged, which it does if SYS_ADMIN is in the bounding set."""
    bounding = (spec["process"].get("capabilities") or {}).get("bounding") or ()
    return "CAP_SYS_ADMIN" in bounding


def _special(environ: Mapping[str, str], *, privileged: bool) -> tuple[str, ...]:
    requested = [name for name in SPECIAL_DEVICES if environ.get(name)]
    if requested and not privileged:
        raise GrantRefused(f"cannot set {requested[0].removeprefix('NVIDIA_')} in non privileged container")
    return tuple(SPECIAL_DEVICES[name] for name in requested)


def _find(name: str, devices: Sequence[MachineDevice]) -> MachineDevice:
    for device in devices:
        if name == device.uuid or (device.instance is None and name == str(device.gpu)):
            return device
    raise GrantRefused(f"unknown device {name}: this machine has {', '.join(device.uuid for device in devices)}")
