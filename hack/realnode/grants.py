"""What NVIDIA's container toolkit would give a container, decided from its OCI configuration alone.

Sources: nvidia-container-toolkit, cmd/nvidia-container-runtime-hook (which variables count, and what is refused to a
container that is not privileged); MIG user guide, "Device Nodes and Capabilities".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hack.cluster.api import Object
from hack.nvmlsim.simulator import CONFIG, MONITOR, MachineDevice, of_device

VISIBLE, CAPABILITIES = "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"
SPECIAL_DEVICES = {"NVIDIA_MIG_CONFIG_DEVICES": CONFIG, "NVIDIA_MIG_MONITOR_DEVICES": MONITOR}
DEFAULT_CAPABILITIES = "compute,utility"
WITHOUT_DRIVER = ("", "void")
MPS_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
"""Whoever has it is a client of MPS."""


class GrantRefused(Exception):
    """The toolkit would not start this container. The text says why."""


@dataclass(frozen=True)
class Grant:
    """What a container gets."""

    library: bool
    """libnvidia-ml comes only with the driver capability `utility`."""
    minors: tuple[int, ...]
    """GPUs whose device node is there."""
    capabilities: tuple[str, ...]
    """Capability files that it can open."""
    computes_on: tuple[MachineDevice, ...]
    """Devices that were named one by one: its first process computes on them. SIMULATED."""
    mps: bool = False
    """As a client of the MPS server."""


def find_grant(spec: Object, devices: Sequence[MachineDevice]) -> Grant | None:
    """What the container with this OCI configuration gets; None: nothing of the driver.

    Raises:
        GrantRefused: it names a device that is not there, or asks for rights over MIG without being privileged.
    """
    environ = dict(entry.partition("=")[::2] for entry in spec["process"].get("env") or ())
    named = environ.get(VISIBLE, "")
    if named in WITHOUT_DRIVER:
        return None
    told = (environ.get(CAPABILITIES) or DEFAULT_CAPABILITIES).split(",")
    library = not {"all", "utility"}.isdisjoint(told)
    special = _special(environ, privileged=is_privileged(spec))
    if named == "none":
        return Grant(library, (), special, ())
    chosen = list(devices) if named == "all" else [_find(name, devices) for name in named.split(",")]
    access = [name for one in chosen if one.instance for name in of_device(one.gpu, *one.instance)]
    minors = tuple(sorted({one.gpu for one in chosen}))
    computes_on = tuple(chosen) if named != "all" else ()
    return Grant(library, minors, (*special, *access), computes_on, mps=MPS_PIPES in environ)


def is_privileged(spec: Object) -> bool:
    """As the toolkit asks it: SYS_ADMIN is in the bounding set."""
    held = (spec["process"].get("capabilities") or {}).get("bounding") or ()
    return "CAP_SYS_ADMIN" in held


def _special(environ: Mapping[str, str], *, privileged: bool) -> tuple[str, ...]:
    asked = [name for name in SPECIAL_DEVICES if environ.get(name)]
    if asked and not privileged:
        raise GrantRefused(f"cannot set {asked[0].removeprefix('NVIDIA_')} in non privileged container")
    return tuple(SPECIAL_DEVICES[name] for name in asked)


def _find(name: str, devices: Sequence[MachineDevice]) -> MachineDevice:
    for device in devices:
        if name == device.uuid or (device.instance is None and name == str(device.gpu)):
            return device
    raise GrantRefused(
        f"unknown device {name}: this machine has {', '.join(device.uuid for device in devices)}"
    )
