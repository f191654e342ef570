"""A simulated machine with GPUs: create it, inspect it, and change it while programs use it."""

import ctypes
import fcntl
import itertools
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict, Unpack

from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.vocabulary.lengths import counted
from hack.nvmlsim import build, layout
from hack.nvmlsim.models import GpuPlace, fill_gpu, find_model

RESULTS = {
    "INVALID_ARGUMENT": 2, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "NOT_FOUND": 6, "INSUFFICIENT_POWER": 8,
    "DRIVER_NOT_LOADED": 9, "TIMEOUT": 10, "IRQ_ISSUE": 11, "FUNCTION_NOT_FOUND": 13, "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16, "OPERATING_SYSTEM": 17, "LIB_RM_VERSION_MISMATCH": 18, "IN_USE": 19,
    "INSUFFICIENT_RESOURCES": 23, "ARGUMENT_VERSION_MISMATCH": 25, "UNKNOWN": 999,
}  # fmt: skip
"""NVML's result codes by name, as the names of faults."""


def text(raw: bytes) -> str:
    return raw.decode()


def _plain(structure: ctypes.Structure, *names: str) -> dict[str, Any]:
    values = {name: getattr(structure, name) for name in names}
    return {name: text(value) if isinstance(value, bytes) else value for name, value in values.items()}


def machine(state: layout.SimState) -> dict[str, Any]:
    return {
        "simulated": True,
        "driver": text(state.driver_version),
        "gpus": [_gpu(index, gpu) for index, gpu in enumerate(state.gpus[: state.gpu_count])],
        "processes": [_process(process) for process in state.processes if process.used],
        "faults": [_fault(fault) for fault in state.faults if fault.kind != layout.FAULT_NONE],
        "clients": [pid for pid in state.clients if pid],
    }


def _gpu(index: int, gpu: layout.SimGpu) -> dict[str, Any]:
    mig = {"current": bool(gpu.mig_current), "pending": bool(gpu.mig_pending)} if gpu.mig_capable else None
    instances = sorted((i for i in gpu.instances if i.used), key=lambda instance: int(instance.start))
    return {
        "index": index,
        **_plain(gpu, "name", "uuid", "compute_mode"),
        "bus_id": f"0000:{gpu.pci_bus:02x}:00.0",
        "pci_device_id": f"0x{gpu.pci_device_id:08X}",
        "mig": mig,
        "instances": [_instance(gpu, instance) for instance in instances],
        "lost": bool(gpu.lost),
    }


def _instance(gpu: layout.SimGpu, instance: layout.SimGpuInstance) -> dict[str, Any]:
    profile = gpu.profiles[instance.profile]
    return {
        "id": instance.id,
        "profile": text(profile.name).removeprefix("MIG "),
        "start": instance.start,
        "size": profile.size,
        "compute": [
            {**_plain(ci, "id", "start", "slices", "uuid"), "index": ci.mig_index} for ci in instance.compute if ci.used
        ],
    }


def _process(process: layout.SimProcess) -> dict[str, Any]:
    return {
        **_plain(process, "gpu", "pid", "name", *ANY_PROCESS),
        "memory_mib": None if process.memory_mib == layout.MEMORY_UNKNOWN else process.memory_mib,
        "mps": bool(process.mps),
        "graphics": bool(process.graphics),
    }


def _fault(fault: layout.SimFault) -> dict[str, Any]:
    names = {code: name for name, code in RESULTS.items()}
    shown = _plain(fault, "function", "gpu", "skip", "remaining", "hits")
    return {**shown, "fault": "hang" if fault.kind == layout.FAULT_HANG else names[fault.result]}


DRIVER = "580.159.03"
CUDA = 13000
NO_INSTANCE = 0xFFFFFFFF
ALWAYS = -1
EVENT_XID = 0x8
EVENT_TYPES = {
    "single-bit-ecc": 0x1, "double-bit-ecc": 0x2, "xid": EVENT_XID, "mig-config-change": 0x100,
    "dram-retirement": 0x400, "dram-retirement-failure": 0x800, "non-fatal-poison": 0x1000,
    "fatal-poison": 0x2000, "unavailable": 0x4000, "recovery-action": 0x8000,
}  # fmt: skip
_RECOVERED_BY_RESET = (1, 4)  # GPU_RESET, DRAIN_AND_RESET

_FIXED_FIELDS = ("magic", "size", "layout_hash", "reserved")

_threads = threading.Lock()


class ProcessFields(TypedDict, total=False):
    memory_mib: int | None
    """The GPU memory that it uses, or None if the driver does not report it."""
    sm_percent: int
    """The share of SM time, which NVML reports while MIG is off; 0 for an idle process."""
    gpu_instance: int
    """With `compute_instance` the MIG device that it computes on; -1 for the whole GPU."""
    compute_instance: int
    mps: bool
    graphics: bool
    pid_namespace: int
    """Inode of the PID namespace of the process; 0 for the machine's own, which sees every process."""


ANY_PROCESS = ProcessFields(
    memory_mib=512, sm_percent=0, gpu_instance=-1, compute_instance=-1, mps=False, graphics=False, pid_namespace=0
)


class SimulatorError(Exception):
    """The simulated machine refuses a change; the message says why."""


class Simulator:
    """One simulated machine: a state file that all programs with NVMLSIM_STATE set to it share. The lock is a record
    lock of this process. If the simulated library is also loaded in this process, a change made here releases the lock
    that a thread inside the library may hold: use separate processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes]

    @classmethod
    def create(cls, path: Path, models: Sequence[str], *, driver: str = DRIVER, seed: str | None = None) -> "Simulator":
        """Create a machine, or overwrite one in place. Without `seed` its UUIDs follow from the path."""
        if not 0 < len(models) <= layout.MAX_GPUS:
            raise SimulatorError(f"a simulated machine has 1 to {layout.MAX_GPUS} GPUs, not {len(models)}")
        cards = [find_model(model) for model in models]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(ctypes.sizeof(layout.SimState))
        simulator = cls(path)
        with simulator.edit(new=True) as state:
            _fill_state(state, cards, driver, seed or str(path.resolve()))
        return simulator

    def environment(self, privilege: str | None = None, *, sanitized: bool = False) -> dict[str, str]:
        """Return the environment of a program that is to see this machine, and build the library if it is missing.
        `privilege` (`none`, `monitor`, `config`, `root`) overrides the program's own rights, `sanitized` ends it at a
        bad access."""
        library = build.library_directory(sanitized=sanitized)
        environ = {"NVMLSIM_STATE": str(self.path), "LD_LIBRARY_PATH": str(library)}
        if sanitized:
            # The memory that Python holds at exit is not our leak.
            environ["LD_PRELOAD"] = os.pathsep.join(map(str, build.sanitizer_runtimes()))
            environ["ASAN_OPTIONS"] = "detect_leaks=0:abort_on_error=1"
            environ["UBSAN_OPTIONS"] = "print_stacktrace=1"
        return {**environ, "NVMLSIM_PRIVILEGE": privilege} if privilege else environ

    def upgrade_driver(self, version: str) -> None:
        """Load another driver. Programs that began before get LIB_RM_VERSION_MISMATCH for ever."""
        self.set_machine(driver_version=version, nvml_version=f"13.{version}")

    def take_devices_away(self) -> None:
        """Take the devices away as `systemctl daemon-reload` does in containers: nvmlInit returns UNKNOWN forever."""
        with self.edit() as state:
            state.access_epoch += 1

    def set_gpu(self, gpu: int | None, **fields: int | str) -> None:
        """Set fields such as `lost=1`, `busy=1`, `compute_mode=3` or `remap_pending=1` of one GPU, or of all."""
        with self.edit() as state:
            for index in self._indexes(state, gpu):
                for name, value in fields.items():
                    set_field(state.gpus[index], name, value)

    def set_machine(self, **fields: int | str) -> None:
        """Set fields of the machine: `driver_version="470.57.02"`, `driver_loaded=0`, `clients_block=0`."""
        with self.edit() as state:
            for name, value in fields.items():
                set_field(state, name, value)

    def set_profile(self, gpu: int | None, profile: str, **fields: int | str) -> None:
        """Make one GPU, or all, report other values for a profile: `set_profile(0, "1g.10gb", id=99)`."""
        with self.edit() as state:
            for index in self._indexes(state, gpu):
                gpu_profiles = state.gpus[index].profiles[: state.gpus[index].profile_count]
                slot = next((one for one in gpu_profiles if text(one.name).removeprefix("MIG ") == profile), None)
                if slot is None:
                    raise SimulatorError(f"{text(state.gpus[index].name)} has no profile {profile}")
                for name, value in fields.items():
                    set_field(slot, name, value)

    def add_process(self, gpu: int, pid: int, name: str = "", **fields: Unpack[ProcessFields]) -> None:
        """Start a process on a GPU; NVML knows no name if it is empty. `fields` replace those of ANY_PROCESS."""
        with self.edit() as state:
            self._indexes(state, gpu)
            slot = next((process for process in state.processes if not process.used), None)
            if slot is None:
                raise SimulatorError(f"the machine has {layout.MAX_PROCESSES} processes already: end one first")
            _put_text(slot, "name", name)
            slot.gpu, slot.pid = gpu, pid
            for field, value in {**ANY_PROCESS, **fields}.items():
                setattr(slot, field, layout.MEMORY_UNKNOWN if value is None else value)
            slot.used = 1

    def remove_process(self, pid: int) -> None:
        with self.edit() as state:
            for process in state.processes:
                if process.pid == pid:
                    process.used = 0

    def inject(self, function: str, fault: str, *, gpu: int = -1, skip: int = 0, count: int = ALWAYS) -> None:
        """Make calls to an NVML function fail with a result of RESULTS, or hang until the fault is cleared. The first
        `skip` calls still succeed, then `count` calls fail. `gpu` restricts the fault to calls about one GPU. Versions
        of a function (`…_v2`) count as one."""
        known = {name.split("_v")[0] for name in build.implemented_functions()}
        if function.split("_v")[0] not in known:
            raise SimulatorError(f"{function} is not simulated; simulated are {', '.join(sorted(known))}")
        if fault != "hang" and fault not in RESULTS:
            raise SimulatorError(f"there is no fault {fault!r}: choose hang, {', '.join(RESULTS)}")
        with self.edit() as state:
            slot = next((entry for entry in state.faults if entry.kind == layout.FAULT_NONE), None)
            if slot is None:
                raise SimulatorError(f"the machine has {layout.MAX_FAULTS} faults already: clear them first")
            _put_text(slot, "function", function)
            slot.gpu, slot.skip, slot.remaining = gpu, skip, count
            slot.hits, slot.result = 0, RESULTS.get(fault, 0)
            slot.kind = layout.FAULT_HANG if fault == "hang" else layout.FAULT_RETURN
            state.fault_count = layout.MAX_FAULTS

    def clear_faults(self) -> None:
        """Remove all faults. Calls that hang are then carried out."""
        with self.edit() as state:
            for entry in state.faults:
                entry.kind = layout.FAULT_NONE
            state.fault_count = 0

    def post_event(self, gpu: int, event_type: int, data: int = 0, *, gpu_instance: int = NO_INSTANCE) -> None:
        with self.edit() as state:
            self._indexes(state, gpu)
            slot = state.events[state.event_count % layout.MAX_EVENTS]
            slot.sequence, slot.type, slot.data = state.event_count, event_type, data
            slot.gpu, slot.gpu_instance, slot.compute_instance = gpu, gpu_instance, NO_INSTANCE
            state.event_count += 1

    def find_gpus(self, names: Sequence[str]) -> list[int]:
        """Return the indexes of the GPUs with these indexes, PCI bus ids or UUIDs."""
        by_name = {
            str(gpu[key]).lower(): int(gpu["index"])
            for gpu in self.show()["gpus"]
            for key in ("index", "bus_id", "uuid")
        }
        wanted = [name.lower() for name in names if name]
        if unknown := [name for name in wanted if name not in by_name]:
            raise SimulatorError(f"there is no GPU {unknown[0]}: the machine has {', '.join(by_name)}")
        return [by_name[name] for name in wanted]

    def reset(self, gpus: Sequence[int] | None = None) -> None:
        """Reset GPUs, or all if None, as `nvidia-smi -r` does. Cards that switch MIG without a reset (Hopper and later)
        lose their MIG mode. Raises SimulatorError, and resets none, if one is in use or belongs to a VM."""
        with self.edit() as state:
            indexes = range(state.gpu_count) if gpus is None else gpus
            holders = self._holders(state)
            for index in indexes:
                self._indexes(state, index)
                if state.gpus[index].passthrough:
                    raise SimulatorError(f"GPU {index} is in a VM that cannot reset it: reboot the machine")
                used = any(process.used and process.gpu == index for process in state.processes)
                if used or state.gpus[index].busy:
                    raise SimulatorError(f"GPU {index} is in use by one or more processes")
                if state.clients_block and holders:
                    raise SimulatorError(f"GPU {index} is held by NVML clients: {', '.join(map(str, holders))}")
            for index in indexes:
                _reset_gpu(state.gpus[index])

    def reboot(self) -> None:
        """Reboot. Ampere cards get the pending MIG mode, others lose it; injected faults stay."""
        with self.edit() as state:
            for process in state.processes:
                process.used = 0
            for slot in range(layout.MAX_CLIENTS):
                state.clients[slot] = 0
            for gpu in state.gpus[: state.gpu_count]:
                gpu.lost = gpu.busy = 0
                gpu.recovery_action = 0
                _reset_gpu(gpu)

    def show(self) -> dict[str, Any]:
        with self.edit() as state:
            return machine(state)

    def library_calls(self) -> tuple[int, float]:
        """Return the number of NVML calls so far, and the milliseconds of CPU time that the library used for them."""
        with self.edit() as state:
            return int(state.calls), state.call_ns / 1e6

    @contextmanager
    def edit(self, *, new: bool = False) -> Iterator[layout.SimState]:
        """Lock the file, also against other threads of this process, and yield its state. A nested call deadlocks."""
        with _threads, self.path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size != ctypes.sizeof(layout.SimState):
                raise SimulatorError(f"{self.path} is not a state file of this version: create it again")
            fcntl.lockf(file, fcntl.LOCK_EX, 1)
            self._file = file
            # The mapping ends with the last structure that refers to it, and the lock when the file is closed.
            state = layout.SimState.from_buffer(mmap.mmap(file.fileno(), 0))
            if not new and (state.magic, state.layout_hash) != (layout.MAGIC, layout.layout_hash()):
                raise SimulatorError(f"{self.path} is not a state file: create it first")
            yield state

    def _holders(self, state: layout.SimState) -> list[int]:
        pids = []
        for slot, pid in enumerate(state.clients):
            byte = layout.CLIENT_LOCKS + slot
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except OSError:
                pids += [pid] if pid else []
            else:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
        return pids

    @staticmethod
    def _indexes(state: layout.SimState, gpu: int | None) -> range:
        if gpu is None:
            return range(state.gpu_count)
        if not 0 <= gpu < state.gpu_count:
            raise SimulatorError(f"there is no GPU {gpu}: the machine has {counted(state.gpu_count, 'GPU')}, from 0 on")
        return range(gpu, gpu + 1)


def set_field(target: ctypes.Structure, name: str, value: int | str) -> None:
    now = {field[0]: getattr(target, field[0]) for field in target._fields_}
    plain = [key for key, present in now.items() if isinstance(present, int | bytes) and key not in _FIXED_FIELDS]
    if name not in plain:
        raise SimulatorError(f"there is no field {name!r} to set: choose from {', '.join(sorted(plain))}")
    if isinstance(now[name], bytes):
        _put_text(target, name, str(value))
    else:
        setattr(target, name, int(value))


def _put_text(target: ctypes.Structure, field: str, value: str) -> None:
    room = getattr(type(target), field).size - 1
    raw = value.encode()
    if len(raw) > room:
        raise SimulatorError(f"{field}: {value[:40]}… has {len(raw)} bytes, the file has room for {room}")
    setattr(target, field, raw)


def _fill_state(state: layout.SimState, cards: Sequence[Card], driver: str, seed: str) -> None:
    ctypes.memset(ctypes.addressof(state), 0, ctypes.sizeof(state))
    state.size, state.layout_hash = ctypes.sizeof(layout.SimState), layout.layout_hash()
    state.pid_namespace, state.user_namespace = _namespace("pid"), _namespace("user")
    _put_text(state, "driver_version", driver)
    _put_text(state, "nvml_version", f"13.{driver}")
    state.cuda_version = CUDA
    state.driver_loaded = state.clients_block = 1
    for index, card in enumerate(cards):
        fill_gpu(state.gpus[index], card, GpuPlace(index, seed))
    state.gpu_count = len(cards)
    state.magic = layout.MAGIC


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def _reset_gpu(gpu: layout.SimGpu) -> None:
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


MONITOR, CONFIG = "mig/monitor", "mig/config"
GPU_INSTANCE_IDS, COMPUTE_INSTANCE_IDS = range(15), range(8)
FIRST_CAP_MINOR = 3  # 1 is mig/config, 2 is mig/monitor (MIG user guide, Device Nodes and Capabilities)


def of_device(gpu: int, gpu_instance: int, compute_instance: int) -> tuple[str, str]:
    """Return the capability files of one MIG device: of its GPU instance and its compute instance."""
    instance = f"gpu{gpu}/mig/gi{gpu_instance}"
    return f"{instance}/access", f"{instance}/ci{compute_instance}/access"


def cap_minors(gpus: int) -> dict[str, int]:
    """Return the minor number of each capability of a machine, by its file."""
    names = []
    for gpu, instance in itertools.product(range(gpus), GPU_INSTANCE_IDS):
        names.append(of_device(gpu, instance, 0)[0])
        names += [of_device(gpu, instance, compute)[1] for compute in COMPUTE_INSTANCE_IDS]
    return {CONFIG: 1, MONITOR: 2, **{name: number for number, name in enumerate(names, FIRST_CAP_MINOR)}}


def give(simulator: Simulator, folder: Path, *names: str) -> None:
    """Grant capabilities to programs without CAP_SYS_ADMIN, by their files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SIMULATED\n")
    simulator.set_machine(capabilities=str(folder))


@dataclass(frozen=True)
class MachineDevice:
    """A GPU, or a MIG device on it if `instance` is set."""

    gpu: int
    uuid: str
    instance: tuple[int, int] | None = None
    """The ids of GPU instance and compute instance, or None for a GPU."""


def machine_devices(shown: dict[str, Any]) -> list[MachineDevice]:
    """Return the devices of a simulated machine, given what `Simulator.show` returns."""
    devices: list[MachineDevice] = []
    for gpu in shown["gpus"]:
        devices.append(MachineDevice(gpu["index"], gpu["uuid"]))
        for instance in gpu["instances"]:
            devices += [
                MachineDevice(gpu["index"], compute["uuid"], (instance["id"], compute["id"]))
                for compute in instance["compute"]
            ]
    return devices
