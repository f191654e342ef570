"""How the SIMULATED programs of a node call NVML, and how a reading can be changed on its way to the agent (ODDITIES).

They call it without a thread: a thread would cost more than the reading, and its timing would depend on the machine.
Only a reading that hangs on purpose gets one, and it counts as an open NVML client meanwhile.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

from gpusharing.agent.library import Library, LibraryError, Model, Reading
from gpusharing.kube.background import in_daemon_thread

T = TypeVar("T")
HANGING: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""Threads in a reading that hangs on purpose. Simulated time need not wait for them."""


class Hang:
    """A state in which NVML calls do not return, and the threads that are blocked by it."""

    def __init__(self) -> None:
        self._end: threading.Event | None = None
        """An event that is set when the present hang ends, or None. Each hang has its own, so that calls blocked by one
        hang do not wait for the next."""
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def begun(self) -> bool:
        return self._end is not None

    def begin(self) -> None:
        with self._lock:
            self._end = self._end or threading.Event()

    def end(self) -> None:
        """End the hang. Its threads leave HANGING, so that simulated time waits while the machine gets to run them."""
        with self._lock:
            HANGING.difference_update(self._threads)
            self._threads.clear()
            if self._end is not None:
                self._end.set()
            self._end = None

    def wait(self) -> None:
        """Block until the hang ends, with the calling thread in HANGING until then."""
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
        self._gpus = gpus

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """Make the call at once, or in a daemon thread while readings hang. The loop's next turn sets the future."""
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
    if future.done():  # the caller gave up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


UNKNOWN = "NVIDIA X9000 96GB"
NO_NVML = "libnvidia-ml.so.1 is not in the agent's container; run the agent with the runtime class `nvidia`"
Change: TypeAlias = Callable[[Reading], Reading]


class ChangedReading:
    """The NVML library of the agent on a SIMULATED node."""

    simulated = True

    def __init__(self, gpus: Library) -> None:
        self._gpus = gpus
        self.change: Change = ODDITIES["as-it-is"]

    def read(self, leave: Collection[int] = ()) -> Reading:
        return self.change(self._gpus.read(leave))


def _new_card(reading: Reading) -> Reading:
    models = tuple(replace(model, product=UNKNOWN) for model in reading.models)
    return replace(reading, models=models, gpus=tuple(replace(gpu, product=UNKNOWN) for gpu in reading.gpus))


def _other_profiles(reading: Reading) -> Reading:
    """Let profiles of three slices fit only once per GPU, at their first start, unlike in our table."""

    def changed(model: Model) -> Model:
        rows = (replace(row, starts=row.starts[:1], max_count=1) if row.slices == 3 else row for row in model.profiles)
        return replace(model, profiles=tuple(rows))

    return replace(reading, models=tuple(map(changed, reading.models)))


def _silent(reading: Reading) -> Reading:
    return replace(reading, models=tuple(replace(model, profiles=()) for model in reading.models))


def _old_driver(reading: Reading) -> Reading:
    models = tuple(replace(model, mig_mode_change="Unknown") for model in _silent(reading).models)
    gpus = tuple(replace(gpu, ecc_uncorrected=None, remapped_rows=None) for gpu in reading.gpus)
    return replace(reading, driver_version="450.80.02", models=models, gpus=gpus)


def _second_model(reading: Reading) -> Reading:
    *others, last = reading.gpus
    ada = replace(last, product="NVIDIA L40S", mig_mode="NotSupported", mig_mode_pending="NotSupported", instances=())
    model = Model(product="NVIDIA L40S", mig_capable=False, mig_mode_change="Unknown", profiles=())
    return replace(reading, models=(*reading.models, model), gpus=(*others, ada))


def _no_nvml(reading: Reading) -> Reading:
    raise LibraryError(NO_NVML, "NVMLNotLoaded")


ODDITIES: Mapping[str, Change] = {
    "unknown-card": lambda reading: _silent(_new_card(reading)),
    "new-card": _new_card,
    "other-profiles": _other_profiles,
    "old-driver": _old_driver,
    "second-model": _second_model,
    "gpu-gone": lambda reading: replace(reading, gpus=reading.gpus[:-1]),
    "no-nvml": _no_nvml,
    "as-it-is": lambda reading: reading,
}
