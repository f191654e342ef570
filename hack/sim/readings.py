"""How the SIMULATED programs of a node call NVML, and how a reading can be changed on its way to the agent.

They call it without a thread, because a reading of simulated GPUs takes microseconds. A thread for each reading, as
with a real library, would cost more than the reading, and its timing would depend on the machine. Only a reading that
hangs on purpose gets a thread. While it hangs it counts as an open NVML client, so the driver refuses the changes that
it refuses while any client is open.

A reading is changed (ODDITIES) to simulate drivers and cards that differ from our table.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

from gpusharing.agent.library import Library, LibraryError, Reading
from gpusharing.api.gpunode import Model
from gpusharing.kube.background import in_daemon_thread

T = TypeVar("T")
HANGING: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""Threads in a reading that hangs on purpose. Simulated time need not wait for them."""


class Hang:
    """A state in which NVML calls do not return, and the threads that are blocked by it."""

    def __init__(self) -> None:
        """Create a state in which calls return."""
        self._end: threading.Event | None = None
        """An event that is set when the present hang ends, or None. Each hang has its own, so that calls blocked by one
        hang do not wait for the next."""
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether a call that is made now would block."""
        return self._end is not None

    def begin(self) -> None:
        """Make calls block from now on. Does nothing if they already do."""
        with self._lock:
            self._end = self._end or threading.Event()

    def end(self) -> None:
        """End the hang, so that blocked calls return. Their threads are removed from HANGING, so that simulated time
        waits for them again: the machine may take a while to run them, and meanwhile simulated minutes could pass."""
        with self._lock:
            HANGING.difference_update(self._threads)
            self._threads.clear()
            if self._end is not None:
                self._end.set()
            self._end = None

    def wait(self) -> None:
        """Block until the hang ends, with the calling thread in HANGING until then. Returns at once if there is no
        hang."""
        with self._lock:
            if (end := self._end) is None:
                return
            thread = threading.current_thread()
            self._threads.add(thread)
            HANGING.add(thread)
        end.wait()


class CanHang(Protocol):
    """GPUs whose readings can hang."""

    @property
    def hangs(self) -> bool:
        """Whether a reading that begins now would block."""


class Readings:
    """A `kube.background.Background` for calls that read the simulated GPUs."""

    def __init__(self, gpus: CanHang) -> None:
        """Prepare to make calls that read `gpus`."""
        self._gpus = gpus

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """Make the call at once, and return a future for its result or for the Exception that it raised. The future is
        set in the next turn of the event loop, as if a thread had made the call. While readings hang, a daemon
        thread named `name` makes it. Must be called from a running event loop."""
        if self._gpus.hangs:
            return in_daemon_thread(call, name)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            loop.call_soon(_settle, future, call(), None)
        except Exception as error:  # noqa: BLE001 - raised where the future is awaited
            loop.call_soon(_settle, future, None, error)
        return future


def _settle(future: asyncio.Future[T], result: Any, error: Exception | None) -> None:
    """Set the result of a future or, if `error` is not None, that error. Does nothing if the future is done, because
    its caller canceled it."""
    if future.done():  # the caller gave up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


UNKNOWN = "NVIDIA X9000 96GB"
"""A product that is in no table."""
NO_NVML = "libnvidia-ml.so.1 is not in the agent's container; run the agent with the runtime class `nvidia`"
Change: TypeAlias = Callable[[Reading], Reading]


class ChangedReading:
    """The NVML library of the agent on a SIMULATED node. It reads the GPUs and passes each reading through `change`."""

    simulated = True

    def __init__(self, gpus: Library) -> None:
        """Wrap `gpus`; readings are unchanged until `change` is set."""
        self._gpus = gpus
        self.change: Change = ODDITIES["as-it-is"]

    def read(self) -> Reading:
        """Return the reading of the GPUs as `change` leaves it. Raises the errors of Library.read and of `change`:
        LibraryError for the oddity `no-nvml`, and ValueError for `second-model` without GPUs."""
        return self.change(self._gpus.read())


def _renamed(reading: Reading, product: str) -> Reading:
    """Return the reading with this product for all GPUs and models."""
    models = tuple(replace(model, product=product) for model in reading.models)
    return replace(reading, models=models, gpus=tuple(replace(gpu, product=product) for gpu in reading.gpus))


def _unknown_card(reading: Reading) -> Reading:
    """Return the reading as if the card were in no table and the driver listed no profiles: all GPUs and models get the
    product UNKNOWN, and the models no profiles."""
    return _silent(_renamed(reading, UNKNOWN))


def _new_card(reading: Reading) -> Reading:
    """Return the reading as if the card were in no table, but the driver listed its profiles: all GPUs and models get
    the product UNKNOWN."""
    return _renamed(reading, UNKNOWN)


def _other_profiles(reading: Reading) -> Reading:
    """Return the reading as if each profile of three slices fitted only once per GPU, and only at its first start,
    unlike in our table. Instances that exist are not changed."""

    def changed(model: Model) -> Model:
        """Return the model with its profiles of three slices limited to their first start and one instance per GPU."""
        rows = (replace(row, starts=row.starts[:1], max_count=1) if row.slices == 3 else row for row in model.profiles)
        return replace(model, profiles=tuple(rows))

    return replace(reading, models=tuple(map(changed, reading.models)))


def _silent(reading: Reading) -> Reading:
    """Return the reading as if the driver listed no profiles."""
    return replace(reading, models=tuple(replace(model, profiles=()) for model in reading.models))


def _old_driver(reading: Reading) -> Reading:
    """Return the reading as if the driver were 450.80.02, and reported neither profiles, nor the effect of a mode
    change, nor the health of the memory."""
    models = tuple(replace(model, mig_mode_change="Unknown") for model in _silent(reading).models)
    gpus = tuple(replace(gpu, ecc_uncorrected=None, remapped_rows=None) for gpu in reading.gpus)
    return replace(reading, driver_version="450.80.02", models=models, gpus=gpus)


def _second_model(reading: Reading) -> Reading:
    """Return the reading with the last GPU replaced by a card without MIG, whose model is added. Raises ValueError for
    a reading without GPUs."""
    *others, last = reading.gpus
    ada = replace(last, product="NVIDIA L40S", mig_mode="NotSupported", mig_mode_pending="NotSupported", instances=())
    model = Model(
        product="NVIDIA L40S",
        memory_mib=46068,
        compute_capability="8.9",
        mig_capable=False,
        mig_mode_change="Unknown",
        profiles=(),
    )
    return replace(reading, models=(*reading.models, model), gpus=(*others, ada))


def _no_nvml(reading: Reading) -> Reading:
    """Raise LibraryError, as if the library were missing in the agent's container."""
    raise LibraryError(NO_NVML, "NVMLNotLoaded")


def _gpu_gone(reading: Reading) -> Reading:
    """Return the reading without the last GPU, as if it had not come back after a reboot; unchanged if it has none. Its
    model stays."""
    return replace(reading, gpus=reading.gpus[:-1])


ODDITIES: Mapping[str, Change] = {
    "unknown-card": _unknown_card,
    "new-card": _new_card,
    "other-profiles": _other_profiles,
    "old-driver": _old_driver,
    "second-model": _second_model,
    "gpu-gone": _gpu_gone,
    "no-nvml": _no_nvml,
    "as-it-is": lambda reading: reading,
}
