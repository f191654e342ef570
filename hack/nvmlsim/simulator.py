"""A simulated machine with GPUs: create it, look at it, change it behind the programs' backs."""

import ctypes
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpusharing.planning.cards import Card
from hack.nvmlsim import build, layout
from hack.nvmlsim.models import Place, fill_gpu, find_model

DRIVER = "580.95.05"
CUDA = 13000
NO_INSTANCE = 0xFFFFFFFF
ALWAYS = -1
RESULTS = {
    "INVALID_ARGUMENT": 2, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "NOT_FOUND": 6, "DRIVER_NOT_LOADED": 9,
    "TIMEOUT": 10, "FUNCTION_NOT_FOUND": 13, "GPU_IS_LOST": 15, "RESET_REQUIRED": 16, "IN_USE": 19,
    "INSUFFICIENT_RESOURCES": 23, "UNKNOWN": 999,
}  # fmt: skip
EVENT_XID = 0x8
EVENT_TYPES = {
    "single-bit-ecc": 0x1, "double-bit-ecc": 0x2, "xid": EVENT_XID, "mig-config-change": 0x100,
    "dram-retirement": 0x400, "dram-retirement-failure": 0x800, "non-fatal-poison": 0x1000,
    "fatal-poison": 0x2000, "unavailable": 0x4000, "recovery-action": 0x8000,
}  # fmt: skip
_RECOVERED_BY_RESET = (1, 4)  # GPU_RESET, DRAIN_AND_RESET

_FIXED_FIELDS = ("magic", "reserved")

_threads = threading.Lock()


class SimulatorError(Exception):
    """The simulated machine cannot do this. The text says why."""


class Simulator:
    """One simulated machine: a state file that all programs with NVMLSIM_STATE set to it share.

    The lock is a record lock of this process. When the simulated library is also loaded in this process, a change
    made here gives up the lock that a thread inside the library may hold: use separate processes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls, path: Path, models: Sequence[str], *, driver: str = DRIVER, seed: str | None = None
    ) -> "Simulator":
        """Make a machine with one GPU per entry of `models`, or make an existing one new in place.

        `seed` decides the UUIDs; without it they follow from the path.

        Raises:
            SimulatorError: no GPU, or more than the file holds.
            UnknownModelError: a model that the card table does not know well enough.
        """
        if not 0 < len(models) <= layout.MAX_GPUS:
            raise SimulatorError(f"{len(models)} GPUs: a simulated machine has 1 to {layout.MAX_GPUS}")
        cards = [find_model(model) for model in models]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(ctypes.sizeof(layout.State))
        simulator = cls(path)
        with simulator._edit(new=True) as state:
            _fill_state(state, cards, driver, seed or str(path.resolve()))
        return simulator

    def environment(self, privilege: str | None = None) -> dict[str, str]:
        """What a program needs in its environment to see this machine; builds the library if it is missing.

        `privilege` (`none`, `monitor`, `config`, `root`) limits what NVML allows the program; default root.
        """
        environ = {"NVMLSIM_STATE": str(self.path), "LD_LIBRARY_PATH": str(build.library_directory())}
        return {**environ, "NVMLSIM_PRIVILEGE": privilege} if privilege else environ

    @contextmanager
    def edit(self) -> Iterator[layout.State]:
        """The whole state, locked against every program; `hack.nvmlsim.layout` names the fields."""
        with self._edit() as state:
            yield state

    def set_gpu(self, gpu: int | None, **fields: int | str) -> None:
        """Set fields of one GPU (of all with None): `lost=1`, `busy=1`, `compute_mode=3`, `remap_pending=1`, …"""
        with self._edit() as state:
            for index in self._indexes(state, gpu):
                for name, value in fields.items():
                    set_field(state.gpus[index], name, value)

    def set_machine(self, **fields: int | str) -> None:
        """Set fields of the machine: `driver_version="470.57.02"`, `driver_loaded=0`, `clients_block=0`."""
        with self._edit() as state:
            for name, value in fields.items():
                set_field(state, name, value)

    def set_profile(self, gpu: int | None, profile: str, **fields: int | str) -> None:
        """Let a card report something else than the table for a profile: `set_profile(0, "1g.10gb", id=99)`."""
        with self._edit() as state:
            for index in self._indexes(state, gpu):
                slot = _find_profile(state.gpus[index], profile)
                for name, value in fields.items():
                    set_field(slot, name, value)

    def add_process(
        self,
        gpu: int,
        pid: int,
        name: str = "",
        *,
        memory_mib: int = 512,
        gpu_instance: int = -1,
        compute_instance: int = -1,
        mps: bool = False,
    ) -> None:
        """Let a process compute on a GPU, or on the MIG device with these instance ids. No name: NVML knows none."""
        with self._edit() as state:
            self._indexes(state, gpu)
            slot = next((process for process in state.processes if not process.used), None)
            if slot is None:
                raise SimulatorError(f"a simulated machine has at most {layout.MAX_PROCESSES} processes")
            slot.gpu, slot.pid, slot.name, slot.memory_mib = gpu, pid, name.encode(), memory_mib
            slot.gpu_instance, slot.compute_instance, slot.mps = gpu_instance, compute_instance, mps
            slot.used = 1

    def remove_process(self, pid: int) -> None:
        """Let the process with this id end."""
        with self._edit() as state:
            for process in state.processes:
                if process.pid == pid:
                    process.used = 0

    def inject(self, function: str, fault: str, *, gpu: int = -1, skip: int = 0, count: int = ALWAYS) -> None:
        """Let calls of an NVML function fail with a result of RESULTS, or `hang` until the fault is cleared.

        The first `skip` calls still work, then `count` calls fail (ALWAYS: all). Versions of a function
        (`…_v2`) are one function here.

        Raises:
            SimulatorError: the simulator does not implement the function, or there is no such result.
        """
        known = {name.split("_v")[0] for name in build.implemented_functions()}
        if function.split("_v")[0] not in known:
            raise SimulatorError(f"{function} is not simulated; simulated are {', '.join(sorted(known))}")
        if fault != "hang" and fault not in RESULTS:
            raise SimulatorError(f"no fault {fault!r}: choose hang, {', '.join(RESULTS)}")
        with self._edit() as state:
            slot = next((entry for entry in state.faults if entry.kind == layout.FAULT_NONE), None)
            if slot is None:
                raise SimulatorError(f"at most {layout.MAX_FAULTS} faults at once: clear them first")
            slot.function, slot.gpu, slot.skip, slot.remaining = function.encode(), gpu, skip, count
            slot.hits, slot.result = 0, RESULTS.get(fault, 0)
            slot.kind = layout.FAULT_HANG if fault == "hang" else layout.FAULT_RETURN
            state.fault_count = layout.MAX_FAULTS

    def clear_faults(self) -> None:
        """Take back all faults; calls that hang go on."""
        with self._edit() as state:
            for entry in state.faults:
                entry.kind = layout.FAULT_NONE
            state.fault_count = 0

    def post_event(
        self,
        gpu: int,
        event_type: int,
        data: int = 0,
        *,
        gpu_instance: int = NO_INSTANCE,
        compute_instance: int = NO_INSTANCE,
    ) -> None:
        """Send an event to whoever waits: `post_event(0, EVENT_XID, 79)`."""
        with self._edit() as state:
            self._indexes(state, gpu)
            slot = state.events[state.event_count % layout.MAX_EVENTS]
            slot.sequence, slot.type, slot.data = state.event_count, event_type, data
            slot.gpu, slot.gpu_instance, slot.compute_instance = gpu, gpu_instance, compute_instance
            state.event_count += 1

    def find_gpus(self, names: Sequence[str]) -> list[int]:
        """Indexes of GPUs named by index, PCI bus id or UUID.

        Raises:
            SimulatorError: there is no such GPU.
        """
        by_name = {
            str(gpu[key]).lower(): int(gpu["index"])
            for gpu in self.show()["gpus"]
            for key in ("index", "bus_id", "uuid")
        }
        wanted = [name.lower() for name in names if name]
        if unknown := [name for name in wanted if name not in by_name]:
            raise SimulatorError(f"no GPU {unknown[0]}: the machine has {', '.join(by_name)}")
        return [by_name[name] for name in wanted]

    def reset(self, gpus: Sequence[int] | None = None) -> None:
        """What `nvidia-smi -r` does: apply pending modes; instances are gone, also on cards that keep the mode.

        Raises:
            SimulatorError: a GPU is held by a process or client, or sits in a VM that cannot reset it.
        """
        with self._edit() as state:
            chosen = range(state.gpu_count) if gpus is None else gpus
            for index in chosen:
                self._indexes(state, index)
                _check_reset(state, index)
            for index in chosen:
                _reset_gpu(state.gpus[index])

    def reboot(self) -> None:
        """What a reboot does: all processes end; Ampere keeps its MIG mode, later cards lose it."""
        with self._edit() as state:
            for process in state.processes:
                process.used = 0
            for slot in range(layout.MAX_CLIENTS):
                state.clients[slot] = 0
            for gpu in state.gpus[: state.gpu_count]:
                gpu.lost = gpu.busy = 0
                gpu.recovery_action = 0
                _reset_gpu(gpu)

    def show(self) -> dict[str, Any]:
        """The machine as plain data."""
        with self._edit() as state:
            return {
                "simulated": True,
                "driver": _text(state.driver_version),
                "gpus": [_show_gpu(index, gpu) for index, gpu in enumerate(state.gpus[: state.gpu_count])],
                "processes": [_show_process(process) for process in state.processes if process.used],
                "faults": [_show_fault(fault) for fault in state.faults if fault.kind != layout.FAULT_NONE],
                "clients": [pid for pid in state.clients if pid],
            }

    @contextmanager
    def _edit(self, *, new: bool = False) -> Iterator[layout.State]:
        with _threads, self.path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size != ctypes.sizeof(layout.State):
                raise SimulatorError(f"{self.path} is no state file of this version: create it again")
            fcntl.lockf(file, fcntl.LOCK_EX)
            # The mapping goes with the last structure that looks into it; the lock goes with the file.
            state = layout.State.from_buffer(mmap.mmap(file.fileno(), 0))
            if not new and state.magic != layout.MAGIC:
                raise SimulatorError(f"{self.path} is no state file: create it first")
            yield state

    @staticmethod
    def _indexes(state: layout.State, gpu: int | None) -> range:
        if gpu is None:
            return range(state.gpu_count)
        if not 0 <= gpu < state.gpu_count:
            raise SimulatorError(f"no GPU {gpu}: the machine has {state.gpu_count}")
        return range(gpu, gpu + 1)


def set_field(target: ctypes.Structure, name: str, value: int | str) -> None:
    """Set one plain field.

    Raises:
        SimulatorError: no such field, or one that is not a number or text.
    """
    now = {field[0]: getattr(target, field[0]) for field in target._fields_}
    plain = [key for key, held in now.items() if isinstance(held, int | bytes) and key not in _FIXED_FIELDS]
    if name not in plain:
        raise SimulatorError(f"no field {name!r}: choose from {', '.join(sorted(plain))}")
    setattr(target, name, str(value).encode() if isinstance(now[name], bytes) else int(value))


def _fill_state(state: layout.State, cards: Sequence[Card], driver: str, seed: str) -> None:
    ctypes.memset(ctypes.addressof(state), 0, ctypes.sizeof(state))
    state.size = ctypes.sizeof(layout.State)
    state.driver_version = driver.encode()
    state.nvml_version = f"13.{driver}".encode()
    state.cuda_version = CUDA
    state.driver_loaded = state.clients_block = 1
    for index, card in enumerate(cards):
        fill_gpu(state.gpus[index], card, Place(index, seed))
    state.gpu_count = len(cards)
    state.magic = layout.MAGIC


def _find_profile(gpu: layout.Gpu, name: str) -> layout.Profile:
    for profile in gpu.profiles[: gpu.profile_count]:
        if _text(profile.name).removeprefix("MIG ") == name:
            found: layout.Profile = profile
            return found
    raise SimulatorError(f"{_text(gpu.name)} has no profile {name}")


def _check_reset(state: layout.State, index: int) -> None:
    gpu = state.gpus[index]
    if gpu.passthrough:
        raise SimulatorError(f"GPU {index} sits in a VM that cannot reset it")
    if gpu.busy or any(process.used and process.gpu == index for process in state.processes):
        raise SimulatorError(f"GPU {index} is in use by one or more processes")
    others = [pid for pid in state.clients if pid and pid != os.getpid() and _alive(pid)]
    if state.clients_block and others:
        raise SimulatorError(f"GPU {index} is held by NVML clients: {', '.join(map(str, others))}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reset_gpu(gpu: layout.Gpu) -> None:
    if gpu.mig_resetless:
        gpu.mig_pending = 0
    gpu.mig_current = gpu.mig_pending
    for instance in gpu.instances:
        instance.used = 0
    gpu.compute_mode = 0
    gpu.ecc_current = gpu.ecc_pending
    gpu.ecc_volatile_corrected = gpu.ecc_volatile_uncorrected = 0
    gpu.remap_pending = 0
    if gpu.recovery_action in _RECOVERED_BY_RESET:
        gpu.recovery_action = 0


def _text(raw: bytes) -> str:
    return raw.decode()


def _show_gpu(index: int, gpu: layout.Gpu) -> dict[str, Any]:
    mig = {"current": bool(gpu.mig_current), "pending": bool(gpu.mig_pending)} if gpu.mig_capable else None
    instances = sorted((i for i in gpu.instances if i.used), key=lambda instance: int(instance.start))
    return {
        "index": index,
        "name": _text(gpu.name),
        "uuid": _text(gpu.uuid),
        "bus_id": f"0000:{gpu.pci_bus:02x}:00.0",
        "pci_device_id": f"0x{gpu.pci_device_id:08X}",
        "mig": mig,
        "instances": [_show_instance(gpu, instance) for instance in instances],
        "compute_mode": gpu.compute_mode,
        "lost": bool(gpu.lost),
    }


def _show_instance(gpu: layout.Gpu, instance: layout.GpuInstance) -> dict[str, Any]:
    profile = gpu.profiles[instance.profile]
    return {
        "id": instance.id,
        "profile": _text(profile.name).removeprefix("MIG "),
        "start": instance.start,
        "size": profile.size,
        "compute": [
            {
                "id": ci.id,
                "start": ci.start,
                "slices": ci.slices,
                "uuid": _text(ci.uuid),
                "index": ci.mig_index,
            }
            for ci in instance.compute
            if ci.used
        ],
    }


def _show_process(process: layout.Process) -> dict[str, Any]:
    return {
        "gpu": process.gpu,
        "gpu_instance": process.gpu_instance,
        "compute_instance": process.compute_instance,
        "pid": process.pid,
        "name": _text(process.name),
        "memory_mib": process.memory_mib,
        "mps": bool(process.mps),
    }


def _show_fault(fault: layout.Fault) -> dict[str, Any]:
    names = {code: name for name, code in RESULTS.items()}
    return {
        "function": _text(fault.function),
        "fault": "hang" if fault.kind == layout.FAULT_HANG else names[fault.result],
        "gpu": fault.gpu,
        "skip": fault.skip,
        "remaining": fault.remaining,
        "hits": fault.hits,
    }
