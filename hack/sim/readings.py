"""How the SIMULATED programs of a node call NVML: at once, for a reading of simulated GPUs takes microseconds.

A thread for each, as with a real library, would cost more than the reading, and at which moment of the others' work it
reads would be the machine's choice. Only a reading that hangs on purpose gets one: it is a client of NVML for as long,
and in the way of what the driver refuses beside clients, as any reading of a real library is while it lasts.

A reading can also be changed on its way to the agent (ODDITIES), for drivers and cards that are not as our table has
them.
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

from gpusharing.agent.background import in_daemon_thread
from gpusharing.agent.library import Library, NotLoaded, Reading
from gpusharing.api.gpunode import Model

T = TypeVar("T")
HANGING: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""Threads in a reading that hangs on purpose: nothing should wait for them."""


class Hang:
    """A call of NVML that does not return, and the threads that are in it."""

    def __init__(self) -> None:
        """None hangs at first."""
        self._end: threading.Event | None = None
        """Of the hang that has begun: each has its own, so that who is in one does not wait for the next."""
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether a call that is made now does not return."""
        return self._end is not None

    def begin(self) -> None:
        """From now on calls do not return."""
        with self._lock:
            self._end = self._end or threading.Event()

    def end(self) -> None:
        """Let them return. From here on they are waited for again: when their threads get to run is the machine's
        choice, and minutes of a simulated clock might pass before."""
        with self._lock:
            HANGING.difference_update(self._threads)
            self._threads.clear()
            if self._end is not None:
                self._end.set()
            self._end = None

    def wait(self) -> None:
        """Be in such a call, for as long as it hangs."""
        with self._lock:
            if (end := self._end) is None:
                return
            thread = threading.current_thread()
            self._threads.add(thread)
            HANGING.add(thread)
        end.wait()


class CanHang(Protocol):
    """SIMULATED GPUs."""

    @property
    def hangs(self) -> bool:
        """Whether a reading that begins now does not return."""


class Readings:
    """An `agent.background.Background` for calls that read these GPUs."""

    def __init__(self, gpus: CanHang) -> None:
        self._gpus = gpus

    def __call__(self, call: Callable[[], T], name: str) -> asyncio.Future[T]:
        """See Background. What is read is of now; the caller goes on in another turn of the loop, as with a thread."""
        if self._gpus.hangs:
            return in_daemon_thread(call, name)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            loop.call_soon(_settle, future, call(), None)
        except Exception as error:  # noqa: BLE001 - handed over to the one who awaits
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
"""In no table."""
NO_NVML = "libnvidia-ml.so.1 is not in the agent's container; give the agent the runtime class `nvidia`"
Change: TypeAlias = Callable[[Reading], Reading]


class ChangedReading:
    """What NVML reports to the agent of a SIMULATED node: a reading of its GPUs, changed."""

    simulated = True

    def __init__(self, gpus: Library) -> None:
        self._gpus = gpus
        self.change: Change = ODDITIES["as-it-is"]

    def read(self) -> Reading:
        """See Library.read."""
        return self.change(self._gpus.read())


def _renamed(reading: Reading, product: str) -> Reading:
    models = tuple(replace(model, product=product) for model in reading.models)
    return replace(reading, models=models, gpus=tuple(replace(gpu, product=product) for gpu in reading.gpus))


def _unknown_card(reading: Reading) -> Reading:
    """Nobody knows the card, and its driver lists no profiles."""
    return _silent(_renamed(reading, UNKNOWN))


def _new_card(reading: Reading) -> Reading:
    """Nobody knows the card, but its driver does."""
    return _renamed(reading, UNKNOWN)


def _other_profiles(reading: Reading) -> Reading:
    """Profiles of three slices fit only once, at the start, whatever our table says."""

    def changed(model: Model) -> Model:
        rows = (
            replace(row, starts=row.starts[:1], max_count=1) if row.slices == 3 else row
            for row in model.profiles
        )
        return replace(model, profiles=tuple(rows))

    return replace(reading, models=tuple(map(changed, reading.models)))


def _silent(reading: Reading) -> Reading:
    return replace(reading, models=tuple(replace(model, profiles=()) for model in reading.models))


def _old_driver(reading: Reading) -> Reading:
    """It knows neither profiles nor what a mode change takes, nor the health of the memory."""
    models = tuple(replace(model, mig_mode_change="Unknown") for model in _silent(reading).models)
    gpus = tuple(replace(gpu, ecc_uncorrected=None, remapped_rows=None) for gpu in reading.gpus)
    return replace(reading, driver_version="450.80.02", models=models, gpus=gpus)


def _second_model(reading: Reading) -> Reading:
    """The last GPU is another one, without MIG."""
    *others, last = reading.gpus
    ada = replace(
        last, product="NVIDIA L40S", mig_mode="NotSupported", mig_mode_pending="NotSupported", instances=()
    )
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
    raise NotLoaded(NO_NVML)


def _gpu_gone(reading: Reading) -> Reading:
    """The last GPU did not come back after a reboot."""
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
