"""What the agent needs from a GPU library, in our words. NVML is one implementation, a simulation another.

What a card or driver does not support is a value (NotSupported, None, an empty tuple), never an error; what NVML denies
the agent's container is one too (None, Unknown, `instances_withheld`, UNKNOWN_PROCESS): unknown, not empty. GPUs and
their models are the records of `api/gpunode.py`, as they are reported.
"""

from dataclasses import field
from typing import ClassVar, Protocol

from gpusharing.api.gpunode import GPU, Access, Instance, Model, Process
from gpusharing.planning.vocabulary.values import value

UNKNOWN_PROCESS = Process(pid=0, name="")
"""Any processes that may exist: not all processes of a GPU could be listed. Counts as busy."""


def unreachable(index: int, access: Access, error: str = "") -> GPU:
    """A GPU that NVML cannot talk to: nothing is known about it but its last position."""
    return GPU(
        index=index,
        uuid="",
        product="",
        mig_mode="NotSupported",
        mig_mode_pending="NotSupported",
        compute_mode="NotSupported",
        instances=(),
        processes=(),
        ecc_uncorrected=None,
        remapped_rows=None,
        access=access,
        error=error,
    )


@value
class PodID:
    """A pod, as the node itself knows it."""

    uid: str
    """UID of the pod, for a static pod the hash of its manifest."""
    namespace: str = ""
    """Empty together with `name`."""
    name: str = ""
    """Both empty when nothing on the node shows the name for the uid."""


@value
class ProcessUse:
    """What one process takes of one device at the moment of a reading."""

    pid: int
    """Process id on the host."""
    device: str
    """UUID of the GPU or of the MIG device."""
    memory: int | None
    """Bytes; None when the driver does not report it."""
    sm_percent: int | None = None
    """Share of the time of the GPU's SMs, of 100; None when the driver does not report it."""
    pod: PodID | None = None
    """By its cgroup; None: it belongs to no pod, or has ended."""


@value
class DeviceUse:
    """What is used of a whole GPU or of a MIG device, and what it is: only the metrics use it."""

    gpu: int
    """Index of the GPU."""
    gpu_uuid: str
    """UUID of that GPU."""
    uuid: str
    """That of the GPU, or of the MIG device."""
    memory_used: int | None
    """Bytes, without what the driver reserves; None when the driver does not report it."""
    memory: int | None
    """Bytes in total; None likewise."""
    instance: Instance | None = None
    """None: the whole GPU."""
    all_seen: bool = True
    """Every process on it is among the processes of the Use: otherwise sums over them are too low."""
    tells_sm: bool = False
    """The driver reports shares of SM time. It never does on a GPU with MIG on."""


@value
class Use:
    """What the GPUs are used for, and their XIDs: for the metrics. Nothing is decided by it."""

    devices: tuple[DeviceUse, ...] = ()
    """By GPU, then in the order of its MIG devices."""
    processes: tuple[ProcessUse, ...] = ()
    """What each process takes of each device."""
    xids: tuple[tuple[int, int, int], ...] = ()
    """GPU index, XID, and how often it was heard since the agent started."""


@value
class Reading:
    """Everything about the GPUs of this node, read in one go. Two readings are equal when they describe the same GPUs,
    whatever the GPUs are used for."""

    driver_version: str
    """NVIDIA driver version, empty when unknown."""
    models: tuple[Model, ...]
    """Card models, each once, in the order of the first GPU of each."""
    gpus: tuple[GPU, ...]
    """GPUs by index."""
    use: Use = field(default_factory=Use, compare=False)
    """What they are used for."""


class LibraryError(Exception):
    """No reading was possible. Report it, keep the last known GPUs and read again at the next turn.

    The message says what to do about it.
    """

    reason: ClassVar[str] = "NVMLFailed"
    """First word of `status.observed.error`."""
    patience: ClassVar[int] = 0
    """Readings in a row with this error after which only a new process can help; 0: never."""


class NotLoaded(LibraryError):
    """There is no library or no driver: nothing can be read until somebody installs it."""

    reason = "NVMLNotLoaded"


class Replaced(LibraryError):
    """The loaded driver is not the one whose library this container has: only a new container gets the right one."""

    reason = "NVMLReplaced"
    patience = 1


class AccessLost(LibraryError):
    """The container cannot open the devices, for example since systemd was reloaded: only a new one can."""

    reason = "NVMLAccessLost"
    patience = 3


class Library(Protocol):
    """The GPUs of this node."""

    @property
    def simulated(self) -> bool:
        """Whether these GPUs are SIMULATED."""
        ...

    def read(self) -> Reading:
        """Open the library, read everything, close it again whatever happens; raises LibraryError.

        It blocks for as long as the driver blocks, for ever with a hung GPU, so it is never called from the
        event loop. Between two calls no device is held: any open NVML client makes a MIG mode change fail
        (docs/design/nvidia.md#a9).
        """
        ...
