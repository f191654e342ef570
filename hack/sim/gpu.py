"""SIMULATED GPUs behind the agent's Library Protocol, with the rules of MIG that a driver enforces (docs/design/hardware.md#mig).

A mode change needs every client gone, and on Ampere a reset. Resets destroy the instances; from Hopper on a reboot
switches MIG off. Where the driver puts an instance is a guess: the highest free start. Without rights a container sees
less, after nvml.h and NVIDIA's trackers: no memory with MIG on, no instances or placements without mig/config, no MIG
device that it may not open, so none that is newer than it, and no process of another PID namespace.
"""

import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from gpusharing.agent.library import (
    GPU,
    UNKNOWN_PROCESS,
    DeviceUse,
    Instance,
    LibraryError,
    MigMode,
    Model,
    Process,
    ProcessUse,
    Reading,
    Use,
)
from gpusharing.api.gpunode import Access, ComputeMode, RecoveryAction
from gpusharing.planning.gpus.cards import Card, Profile, find_card
from gpusharing.planning.vocabulary.lengths import counted
from hack.cards import mig_mode_needs_reset
from hack.sim.readings import Hang


@dataclass(frozen=True, slots=True)
class Container:
    """The rights of the container that reads from NVML."""

    mig: bool = True
    """Read access to mig/config, and CAP_SYS_ADMIN, as `privileged` grants them."""
    host_pid: bool = True
    devices: frozenset[str] = frozenset()
    """UUIDs of the MIG devices that the container may open even without `mig`: those that existed when it started."""


ALL_RIGHTS = Container()


def gpu_as_seen(gpu: GPU, container: Container) -> GPU:
    if gpu.access != "Ok":
        return gpu
    if not container.mig and gpu.mig_mode != "NotSupported":
        gpu = replace(gpu, instances_withheld=True)
    if not container.mig and gpu.mig_mode == "Enabled":
        visible = container.devices
        gpu = replace(
            gpu,
            instances=tuple(replace(i, start=-1, size=0) for i in gpu.instances if i.uuid in visible),
            processes=(UNKNOWN_PROCESS, *(p for p in gpu.processes if p.device in visible)),
        )
    return gpu if container.host_pid else replace(gpu, processes=(UNKNOWN_PROCESS,))


def model_as_seen(model: Model, container: Container) -> Model:
    if container.mig or not model.mig_capable:
        return model
    profiles = tuple(replace(profile, starts=(), size=0) for profile in model.profiles)
    return replace(model, profiles=profiles)


def mig_devices(gpu: GPU) -> tuple[Instance, ...]:
    """Return the instances that programs find: those with a compute instance."""
    return tuple(instance for instance in gpu.instances if instance.parts is None)


DRIVER_VERSION = "580.159.03"
HEALTHY_ROWS = False, False


class DriverRefusal(Exception):
    """The simulated driver refuses a change; the message says why."""


class InUse(DriverRefusal):
    """A client, a process or an instance blocks the change (NVML_ERROR_IN_USE)."""


class NoFreePlace(DriverRefusal):
    """The GPU has no free place for the instance now (NVML_ERROR_INSUFFICIENT_RESOURCES)."""


class NotSupported(DriverRefusal):
    """The card has no MIG, or lacks this profile (NVML_ERROR_NOT_SUPPORTED)."""


@dataclass
class _GPU:
    index: int
    uuid: str
    product: str
    card: Card
    mig: bool = False
    mig_pending: bool = False
    compute_mode: ComputeMode = "Default"
    instances: list[Instance] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    ecc_uncorrected: int | None = 0
    remapped_rows: tuple[bool, bool] | None = HEALTHY_ROWS
    recovery_action: RecoveryAction | Literal["None"] | None = "None"
    access: Access = "Ok"
    error: str = ""

    @property
    def mig_capable(self) -> bool:
        return bool(self.card.profiles)


class SimulatedGPUs:
    simulated = True

    def __init__(self, node: str, products: Sequence[str], *, driver_version: str = DRIVER_VERSION) -> None:
        self.open_sessions = 0
        """Number of NVML clients that are open now: readings, and clients added with `client`."""
        self.readings = 0
        self.uses: dict[int, ProcessUse] = {}
        """How much of a GPU each process uses, by pid. A process that is missing uses nothing."""
        self.is_guest = False
        """Whether the node is a virtual machine, which cannot reset a GPU."""
        self._node = node
        self._driver_version = driver_version
        self._lock = threading.RLock()
        self._hang = Hang()
        self._failure: LibraryError | None = None
        self._container = ALL_RIGHTS
        self._gpus: list[_GPU] = []
        for index, product in enumerate(products):
            if (card := find_card(product)) is None:
                raise ValueError(f"{product!r} is not in planning/gpus/cards.py")
            self._gpus.append(_GPU(index, self._uuid("GPU", index), product, card))

    # --- the agent's side -------------------------------------------------------------------------------

    def read(self, leave: Collection[int] = ()) -> Reading:
        """Return a reading with the rights of the agent's container."""
        return self._read(self._container, leave)

    def read_as_operand(self) -> Reading:
        """Return a reading with all rights, as one of NVIDIA's operands reads."""
        return self._read(ALL_RIGHTS)

    def _read(self, container: Container, leave: Collection[int] = ()) -> Reading:
        with self.client():
            self.readings += 1
            self._hang.wait()
            with self._lock:
                if self._failure is not None:
                    raise self._failure
                gpus = tuple(
                    GPU(gpu.index, access="Failed") if gpu.index in leave else gpu_as_seen(_observed(gpu), container)
                    for gpu in self._gpus
                )
                use = use_of(gpus, [gpu.card for gpu in self._gpus], self.uses)
                virtual: Literal["PassThrough", "None"] = "PassThrough" if self.is_guest else "None"
                models = {gpu.product: replace(_model(gpu), virtualization=virtual) for gpu in self._gpus}
                seen = tuple(model_as_seen(model, container) for model in models.values())
                return Reading(self._driver_version, seen, gpus, use)

    def look(self) -> tuple[GPU, ...]:
        """Return the GPUs as an agent with all rights would report them, without using NVML."""
        with self._lock:
            return tuple(map(_observed, self._gpus))

    @contextmanager
    def client(self) -> Iterator[None]:
        """Add one to the open NVML clients of this node for the duration of the `with` block."""
        with self._lock:
            self.open_sessions += 1
        try:
            yield
        finally:
            with self._lock:
                self.open_sessions -= 1

    @property
    def hangs(self) -> bool:
        """Whether a reading that begins now would block."""
        return self._hang.begun

    def hang(self) -> None:
        """Make every reading block from now on, as when a GPU hangs in the kernel."""
        self._hang.begin()

    def unhang(self) -> None:
        self._hang.end()

    def contain(self, *, mig: bool = True, host_pid: bool = True) -> None:
        """Restart the agent's container with other rights."""
        with self._lock:
            devices = frozenset(instance.uuid for gpu in self._gpus for instance in gpu.instances)
            self._container = Container(mig, host_pid, devices)

    def fail(self, error: LibraryError | None) -> None:
        """Make every reading raise this error from now on; None ends that."""
        self._failure = error

    # --- the driver's side: what mig-manager, workloads and MPS do -------------------------------------

    @property
    def count(self) -> int:
        """The number of GPUs of the node, lost ones included."""
        return len(self._gpus)

    def card(self, index: int) -> Card:
        return self._gpus[index].card

    def set_mig_mode(self, index: int, on: bool) -> Literal["Applied", "Pending"]:
        """Switch the mode (nvmlDeviceSetMigMode): Hopper and later at once, or InUse; Ampere may leave it pending."""
        with self._lock:
            gpu = self._mig_gpu(index)
            if not on and gpu.instances:
                raise InUse(f"GPU {index}: destroy its {counted(len(gpu.instances), 'instance')} first")
            if mig_mode_needs_reset(gpu.card):
                gpu.mig_pending = on
                if gpu.mig != on:
                    try:
                        self.reset(index)
                    except DriverRefusal:
                        return "Pending"
                return "Applied"
            if gpu.mig != on:
                self._refuse_clients(gpu)
            gpu.mig = gpu.mig_pending = on
            return "Applied"

    def reset(self, *indexes: int) -> None:
        """Reset these GPUs, or all (`nvidia-smi -r`); none if a client, a process or the VM prevents it."""
        with self._lock:
            gpus = [self._gpus[index] for index in indexes] or self._gpus
            for gpu in gpus:
                self._refuse_reset(gpu)
            for gpu in gpus:
                _reset(gpu)

    def reboot(self) -> None:
        """Reboot the node. Cards that store the MIG mode get the pending one, and MIG is off on all others."""
        with self._lock:
            for gpu in self._gpus:
                gpu.processes.clear()
                gpu.compute_mode = "Default"
                gpu.access = "Ok"
                # Ampere stores the mode in the InfoROM; newer cards do not (guide).
                gpu.mig_pending = gpu.mig_pending and mig_mode_needs_reset(gpu.card)
                _reset(gpu)

    def create(self, index: int, profile: str, start: int | None = None) -> Instance:
        """Create an instance with one compute instance, at `start` or else at the highest free start."""
        with self._lock:
            gpu = self._mig_gpu(index)
            if not gpu.mig:
                raise NotSupported(f"GPU {index}: MIG mode is off")
            wanted = next((p for p in gpu.card.profiles if p.name == profile), None)
            if wanted is None:
                raise NotSupported(f"GPU {index}: {gpu.product} has no profile {profile}")
            _refuse_too_many(gpu, wanted)
            taken = {unit for one in gpu.instances for unit in range(one.start, one.start + one.size)}
            starts = sorted(wanted.starts, reverse=True) if start is None else {start} & {*wanted.starts}
            free = (first for first in starts if taken.isdisjoint(range(first, first + wanted.size)))
            if (place := next(free, None)) is None:
                raise NoFreePlace(f"GPU {gpu.index}: insufficient resources for {wanted.name}")
            number = next(i for i in range(1, 100) if all(i != known.id for known in gpu.instances))
            created = Instance(
                profile=profile,
                start=place,
                size=wanted.size,
                id=number,
                uuid=self._uuid("MIG", index, number),
            )
            gpu.instances.append(created)
            return created

    def destroy_compute(self, index: int) -> Instance:
        """Destroy the compute instance of the first instance without a process (`nvidia-smi mig -dci`)."""
        with self._lock:
            gpu = self._mig_gpu(index)
            used = {process.device for process in gpu.processes}
            free = (at for at, one in enumerate(gpu.instances) if one.parts is None and one.uuid not in used)
            if (at := next(free, None)) is None:
                raise InUse(f"GPU {index} has no compute instance without a process")
            gpu.instances[at] = replace(gpu.instances[at], uuid="", parts=())
            return gpu.instances[at]

    def destroy_all(self, index: int) -> None:
        """Destroy the instances of a GPU on which no process computes. Raises InUse if any remains."""
        with self._lock:
            gpu = self._mig_gpu(index)
            used = {process.device for process in gpu.processes}
            gpu.instances = [instance for instance in gpu.instances if instance.uuid in used]
            if gpu.instances:
                raise InUse(f"GPU {index} has {counted(len(gpu.instances), 'instance')} in use")

    def set_compute_mode(self, index: int, mode: ComputeMode) -> None:
        """Set the CUDA compute mode of a GPU, even of one that NVML cannot reach; MPS uses ExclusiveProcess."""
        self._gpus[index].compute_mode = mode

    def add_process(self, index: int, name: str, pid: int, device: str = "") -> None:
        """Start a process that computes on a whole GPU, or on the MIG device with the UUID `device`."""
        with self._lock:
            self._gpus[index].processes.append(Process(pid=pid, name=name, device=device))

    def remove_process(self, pid: int) -> None:
        with self._lock:
            for gpu in self._gpus:
                gpu.processes = [process for process in gpu.processes if process.pid != pid]

    def set_health(self, index: int, ecc_uncorrected: int | None, rows: tuple[bool, bool] | None) -> None:
        """Set the number of uncorrected ECC errors and the remapped rows; None if NVML does not report them."""
        with self._lock:
            self._gpus[index] = replace(self._gpus[index], ecc_uncorrected=ecc_uncorrected, remapped_rows=rows)

    def ask_recovery(self, index: int, action: RecoveryAction | Literal["None"] | None) -> None:
        """Set the recovery action: `"None"` if the driver asks for none, None if NVML does not report it."""
        self._gpus[index].recovery_action = action

    def lose(self, index: int, access: Access = "Lost", error: str = "") -> None:
        """Make a GPU unreachable for NVML, or reachable again with `Ok`. `error` is NVML's answer with Failed."""
        self._gpus[index].access, self._gpus[index].error = access, error

    # --- inside -----------------------------------------------------------------------------------------

    def _uuid(self, kind: str, *numbers: int) -> str:
        return f"{kind}-{uuid.uuid5(uuid.NAMESPACE_DNS, '/'.join(map(str, (self._node, *numbers))))}"

    def _mig_gpu(self, index: int) -> _GPU:
        gpu = self._gpus[index]
        if not gpu.mig_capable:
            raise NotSupported(f"GPU {index}: {gpu.product} has no MIG")
        return gpu

    def _refuse_clients(self, gpu: _GPU) -> None:
        if self.open_sessions:
            sessions = counted(self.open_sessions, "NVML session")
            raise InUse(f"GPU {gpu.index}: in use by another client ({sessions})")
        if gpu.processes:
            raise InUse(f"GPU {gpu.index} is in use by {counted(len(gpu.processes), 'process', 'processes')}")

    def _refuse_reset(self, gpu: _GPU) -> None:
        if self.is_guest:
            raise NotSupported(f"GPU {gpu.index}: a virtual machine cannot reset it")
        self._refuse_clients(gpu)


def _reset(gpu: _GPU) -> None:
    gpu.mig = gpu.mig_pending
    gpu.instances.clear()
    gpu.recovery_action = None if gpu.recovery_action is None else "None"


def _refuse_too_many(gpu: _GPU, wanted: Profile) -> None:
    by_name = {profile.name: profile for profile in gpu.card.profiles}
    present = [by_name[instance.profile] for instance in gpu.instances]
    if sum(profile.name == wanted.name for profile in present) >= wanted.max_count:
        raise NoFreePlace(f"GPU {gpu.index}: at most {wanted.max_count} instances of {wanted.name}")
    names = [profile.name for profile in (*present, wanted)]
    if sum(name.endswith("+me") for name in names) > 1:
        raise NoFreePlace(f"GPU {gpu.index}: only one instance has the media engines")
    others = [name for name in names if not name.endswith(("+me.all", "-me"))]
    if others and any(name.endswith("+me.all") for name in names):
        raise NoFreePlace(f"GPU {gpu.index}: beside all media engines only -me instances are possible")
    if sum(name.endswith("+me.all") for name in names) > 1:
        raise NoFreePlace(f"GPU {gpu.index}: only one instance has all media engines")
    slices = max(profile.slices for profile in by_name.values())
    if sum(profile.slices for profile in present) + wanted.slices > slices:
        raise NoFreePlace(f"GPU {gpu.index}: only {slices} compute slices")


def _observed(gpu: _GPU) -> GPU:
    def mode(on: bool) -> MigMode:
        return ("Enabled" if on else "Disabled") if gpu.mig_capable else "NotSupported"

    if gpu.access != "Ok":
        return GPU(gpu.index, access=gpu.access, error=gpu.error)
    return GPU(
        index=gpu.index,
        uuid=gpu.uuid,
        product=gpu.product,
        mig_mode=mode(gpu.mig),
        mig_mode_pending=mode(gpu.mig_pending),
        compute_mode=gpu.compute_mode,
        instances=tuple(sorted(gpu.instances, key=lambda instance: instance.start)),
        processes=tuple(gpu.processes),
        ecc_uncorrected=gpu.ecc_uncorrected,
        remapped_rows=gpu.remapped_rows,
        recovery_action=gpu.recovery_action,
    )


def _model(gpu: _GPU) -> Model:
    card = gpu.card
    needs_reset: Literal["Live", "Reset"] = "Reset" if mig_mode_needs_reset(card) else "Live"
    return Model(
        product=gpu.product,
        mig_capable=gpu.mig_capable,
        mig_mode_change=needs_reset if gpu.mig_capable else "Unknown",
        profiles=card.profiles,
    )


GIB = 1024**3


def use_of(gpus: Sequence[GPU], cards: Sequence[Card], uses: Mapping[int, ProcessUse]) -> Use:
    """Return the memory use of the GPUs' devices and processes, as a container sees it."""
    processes = tuple(each for gpu in gpus for each in _processes(gpu, uses))
    devices = tuple(each for gpu, card in zip(gpus, cards, strict=True) for each in _devices(gpu, card, processes))
    return Use(devices, processes)


def _processes(gpu: GPU, uses: Mapping[int, ProcessUse]) -> Iterator[ProcessUse]:
    for process in gpu.processes:
        if process != UNKNOWN_PROCESS:
            use = uses.get(process.pid, ProcessUse(process.pid, "", 0))
            yield replace(use, pid=process.pid, device=process.device or gpu.uuid)


def _devices(gpu: GPU, card: Card, processes: Sequence[ProcessUse]) -> Iterator[DeviceUse]:
    if gpu.access != "Ok":
        return
    all_seen = UNKNOWN_PROCESS not in gpu.processes
    if gpu.mig_mode != "Enabled":
        yield DeviceUse(
            gpu.index,
            gpu.uuid,
            gpu.uuid,
            _used(gpu.uuid, processes),
            card.memory_gb * GIB,
            all_listed=all_seen,
        )
        return
    memory_gb = {profile.name: profile.memory_gb for profile in card.profiles}
    for instance in mig_devices(gpu):
        memory = memory_gb[instance.profile] * GIB
        used = _used(instance.uuid, processes)
        yield DeviceUse(gpu.index, gpu.uuid, instance.uuid, used, memory, instance, all_listed=all_seen)


def _used(uuid: str, processes: Sequence[ProcessUse]) -> int:
    return sum(process.memory or 0 for process in processes if process.device == uuid)
