"""What the agent needs from a library that reads GPUs: NVML is one, a simulation another.

What a card or driver does not support is a value (NotSupported, None, an empty tuple), never an error. What NVML denies
to the agent's container is a value too (None, Unknown, `instances_withheld`, UNKNOWN_PROCESS), which means unknown and
not empty.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import field
from functools import partial
from typing import Literal, Protocol, TypeAlias

from gpusharing.api.gpunode import Access, ComputeMode, RecoveryAction, Request
from gpusharing.kube.background import Background
from gpusharing.kube.errors import describe_bug
from gpusharing.planning.gpus.cards import Profile
from gpusharing.planning.vocabulary.values import value

MigMode = Literal["Enabled", "Disabled", "NotSupported"]
Virtualization = Literal["None", "PassThrough", "VGPU", "HostVGPU", "HostVSGA", "Unknown"]


@value
class Model:
    """A card model found in this node; GPUs refer to it by name."""

    product: str
    mig_capable: bool
    mig_mode_change: Literal["Live", "Reset", "Unknown"]
    """Whether switching MIG mode needs a GPU reset (NVML field 184)."""
    profiles: tuple[Profile, ...]
    """MIG profiles that the driver offers; some drivers list none while MIG is off."""
    virtualization: Virtualization = "Unknown"
    """How the card is virtualized (nvmlDeviceGetVirtualizationMode), PassThrough in most virtual machines of clouds."""
    placements_withheld: bool = False
    """Whether NVML withholds the placements of the profiles from the agent's container."""


@value
class Instance:
    """A MIG GPU instance that exists now."""

    profile: str
    start: int
    """Where the instance starts, in NVML placement units; -1 when the agent may not read placements."""
    size: int
    """Size of the instance, in the same units."""
    id: int
    uuid: str
    """UUID of its MIG device; empty if it has none, or none that can be seen."""
    parts: tuple[tuple[str, str], ...] | None = None
    """Name, as in `nvidia-mig-parted export`, and UUID of each compute instance; None if it has one of its full size."""

    @property
    def uuids(self) -> tuple[str, ...]:
        return tuple(uuid for _, uuid in self.parts) if self.parts else (self.uuid,)


@value
class Process:
    """A process that uses a GPU: for computing, as a client of MPS, or for graphics."""

    pid: int
    """Process id on the host; 0 represents all processes that the agent may not see."""
    name: str
    """Name of the program, empty when the agent cannot tell; an MPS daemon's only if it is one of NVIDIA's."""
    device: str = ""
    """UUID of the MIG device that the process uses; empty for the whole GPU."""


@value
class GPU:
    """One GPU of the node, as NVML reports it. Of one that NVML cannot reach, only the index, `access` and `error`."""

    index: int
    uuid: str = ""
    product: str = ""
    mig_mode: MigMode = "NotSupported"
    mig_mode_pending: MigMode = "NotSupported"
    """MIG mode that the next reset brings into force."""
    compute_mode: ComputeMode = "NotSupported"
    instances: tuple[Instance, ...] = ()
    """MIG instances that exist; there may be more if `instances_withheld` is true."""
    processes: tuple[Process, ...] = ()
    ecc_uncorrected: int | None = None
    """Uncorrected volatile ECC errors; None when not supported."""
    remapped_rows: tuple[bool, bool] | None = None
    """Whether a row remapping of the memory is pending, and whether one has failed; None when not supported."""
    access: Access = "Ok"
    recovery_action: RecoveryAction | Literal["None"] | None = None
    """Recovery action that the driver requests (NVML field 230); None with drivers before R565."""
    xid: int | None = None
    """The first critical XID that the agent received since it started."""
    error: str = ""
    instances_withheld: bool = False
    """Whether NVML withholds MIG instances, or what is in them, from the agent's container."""

    @property
    def uuids(self) -> tuple[str, ...]:
        """The UUIDs of the GPU and of its MIG devices; empty ones of what cannot be seen."""
        return (self.uuid, *(uuid for instance in self.instances for uuid in instance.uuids))


UNKNOWN_PROCESS = Process(pid=0, name="")
"""Stands for processes that may exist, because not all processes of a GPU could be listed. Counts as busy."""


def bug_text(bug: Exception) -> str:
    """Return the text that reports an unexpected error."""
    return (
        f"AgentFault: {describe_bug(bug)}; this is a bug in the agent or a driver that it does not know: please report"
        " it with the agent's log"
    )


@value
class PodID:
    """A pod as the node itself identifies it."""

    uid: str
    namespace: str = ""
    name: str = ""
    """Name of the pod; it and `namespace` are empty if nothing on the node shows them for the uid."""


@value
class ProcessUse:
    """What one process uses of one device at the moment of a reading."""

    pid: int
    device: str
    """UUID of the GPU or of the MIG device."""
    memory: int | None
    """Bytes that the process uses; None when the driver does not report it."""
    sm_percent: int | None = None
    """Percentage of SM time; None when the driver does not report it."""
    pod: PodID | None = None
    """The pod that its cgroup belongs to, or None if it is in no pod or has ended."""


@value
class DeviceUse:
    """A whole GPU or MIG device, and how much of it is in use."""

    gpu: int
    gpu_uuid: str
    uuid: str
    """UUID of the device itself: of the GPU, or of the MIG device."""
    memory_used: int | None
    """Bytes in use, without what the driver reserves; None when the driver does not report it."""
    memory: int | None
    """Bytes of the device in total; None when the driver does not report it."""
    instance: Instance | None = None
    """The MIG instance, or None if the device is a whole GPU."""
    all_listed: bool = True
    """Whether every process on the device is in `Use.processes`; if not, sums over them are too low."""
    reports_sm: bool = False
    """Whether the driver reports shares of SM time, which it never does with MIG on."""


@value
class Use:
    """What the GPUs are used for, and their XIDs. Only the metrics need this: no decision depends on it."""

    devices: tuple[DeviceUse, ...] = ()
    processes: tuple[ProcessUse, ...] = ()
    xids: tuple[tuple[int, int, int], ...] = ()
    """Index of the GPU, the XID, and how often it was received since the agent started."""


@value
class Reading:
    """Everything about the GPUs of this node, read in one go. Two are equal if the GPUs are, however they are used."""

    driver_version: str
    """Version of the NVIDIA driver; empty when unknown."""
    models: tuple[Model, ...]
    gpus: tuple[GPU, ...]
    use: Use = field(default_factory=Use, compare=False)
    bugs: tuple[Exception, ...] = field(default=(), compare=False)
    """Unexpected errors about single GPUs, which are in `gpus` as unreachable."""


_PATIENCE = {"NVMLReplaced": 1, "NVMLAccessLost": 3}
"""How many readings in a row may fail with this error before the process ends. It ends because a new one can read."""


class LibraryError(Exception):
    """No reading was possible. The message says what to do about it.

    `reason` is the first word of `status.observed.error`:

    - NVMLNotLoaded: nothing can be read until somebody installs a library or a driver;
    - NVMLReplaced: only a new container gets the library of the loaded driver;
    - NVMLAccessLost: only a new container can open the devices again, for example after a reload of systemd;
    - NVMLHung: the library has not answered by the deadline, but still may.
    """

    def __init__(
        self,
        message: str,
        reason: Literal["NVMLFailed", "NVMLNotLoaded", "NVMLReplaced", "NVMLAccessLost", "NVMLHung"] = "NVMLFailed",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.patience = _PATIENCE.get(reason, 0)
        """0 if a new process would not help."""


class Library(Protocol):
    """A library that reads the GPUs of this node."""

    @property
    def simulated(self) -> bool: ...

    def read(self, leave: Collection[int] = ()) -> Reading:
        """Open the library, read everything, and close it again even after an error. Raises LibraryError.

        This blocks for as long as the driver blocks, which is forever with a hung GPU, so it is never called from the
        event loop. Between two calls no device is held open: any open NVML client makes a MIG mode change fail. No
        handle is taken of a GPU to `leave`, because the driver destroys no MIG instance that a client has opened
        (docs/design/nvidia.md#a9); in the reading such a GPU is unreachable.
        """
        ...


Attempt: TypeAlias = tuple[Request, Reading | Exception, float]
"""The request that a reading is for, the reading or its error, and its seconds."""
ReadFor: TypeAlias = Callable[[Request, tuple[int, ...]], Awaitable[Attempt]]
"""Reads for a request, without the GPUs to leave alone."""


def in_background(
    library: Library,
    hung_after: float,
    clock: Callable[[], float],
    on_late: Callable[[], None],
    background: Background,
) -> ReadFor:
    """Return a function that reads a library, so that a hung NVML call never delays the report that it hangs.

    It waits for a reading that is still under way for an earlier request: a second one would hang too, and leak a
    thread at every turn. If that one leaves other GPUs alone, it is no answer, and another follows. `on_late` is called
    when one that was reported as hung ends.
    """
    attempt: tuple[Request, tuple[int, ...], asyncio.Future[Reading], float] | None = None
    is_late = False

    async def read(request: Request, leave: tuple[int, ...]) -> Attempt:
        nonlocal attempt, is_late
        while True:
            if attempt is None:
                future = background(partial(library.read, leave), "nvml-reading")
                attempt, is_late = (request, leave, future, clock()), False
            begun_for, left, future, started = attempt
            await asyncio.wait({future}, timeout=max(0.0, started + hung_after - clock()))
            seconds = clock() - started
            if not future.done():
                if not is_late:
                    is_late = True
                    future.add_done_callback(lambda _: on_late())
                why = (  # without the elapsed seconds, so that repeated reports are equal
                    f"a reading did not return within {hung_after:g} s; the driver or a GPU is hung. See"
                    " `dmesg | grep -i xid` on the node; if it does not recover, drain and reboot the node"
                )
                return begun_for, LibraryError(why, "NVMLHung"), seconds
            attempt = None
            try:
                result: Reading | Exception = future.result()
            except Exception as error:  # noqa: BLE001 -- the error is reported, and the next turn reads again
                result = error
            if left == leave:
                return begun_for, result, seconds

    return read
