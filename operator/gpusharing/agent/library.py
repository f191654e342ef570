"""What the agent wants of a GPU library, in our words. NVML is one implementation, a simulation another.

A reading uses the wire types of `GPUNode.status.observed`: they are frozen and carry meaning and units. What
a card or driver does not support is a value there (NotSupported, None, an empty tuple), never an error.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from gpusharing.api.gpunode import ObservedGPU, ObservedModel


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything about the GPUs of this node, read in one go."""

    driver_version: str
    """NVIDIA driver version, empty when unknown."""
    models: tuple[ObservedModel, ...]
    """Card models, each once, in the order of the first GPU of each."""
    gpus: tuple[ObservedGPU, ...]
    """GPUs by index."""


class LibraryError(Exception):
    """No reading was possible. Report it, keep the last known GPUs and read again at the next turn.

    The message says what a person does about it.
    """

    reason: ClassVar[str] = "NVMLFailed"
    """First word of `status.observed.error`."""


class NotLoaded(LibraryError):
    """There is no library or no driver: nothing can be read before somebody installs it."""

    reason = "NVMLNotLoaded"


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
        (nvidia-actuators.md a.9).
        """
        ...
