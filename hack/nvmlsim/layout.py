"""The state file, field by field: one description that the C library and the Python tool share.

The tool maps the structures below as they are. `c_header` writes the same structures for C at build time, with
assertions on every size. nvml_abi.h and the C sources say what the fields mean to NVML.
"""

import ctypes
import hashlib
from ctypes import Structure, c_char, c_int32, c_uint32, c_uint64
from typing import Any

MAGIC = 0x4E564D4C53494D31  # "NVMLSIM1"
NAME = 96
TEXT = 80
PATH = 256
MAX_GPUS = 16
MAX_PROFILES = 18
MAX_STARTS = 16
MAX_GPU_INSTANCES = 8
MAX_COMPUTE_INSTANCES = 8
MAX_PROCESSES = 64
MAX_CLIENTS = 128
MAX_FAULTS = 16
MAX_EVENTS = 256
MEMORY_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE, of a process
CLIENT_LOCKS = 1  # the byte whose lock the client in the first slot holds; byte 0 guards the file
CONSTANTS = (
    "NAME", "TEXT", "PATH", "MAX_GPUS", "MAX_PROFILES", "MAX_STARTS", "MAX_GPU_INSTANCES", "MAX_COMPUTE_INSTANCES",
    "MAX_PROCESSES", "MAX_CLIENTS", "MAX_FAULTS", "MAX_EVENTS", "CLIENT_LOCKS",
)  # fmt: skip

# sim_profile.media: the media engines that an instance uses; +me.all shares a GPU only with -me (nvml.h, ALL_ME).
MEDIA_PLAIN, MEDIA_EXTENSIONS, MEDIA_ALL, MEDIA_NONE = range(4)
# sim_fault.kind
FAULT_NONE, FAULT_RETURN, FAULT_HANG = range(3)


class SimProfile(Structure):
    """A GPU instance profile that the card supports."""

    _fields_ = (
        ("index", c_uint32),  # NVML_GPU_INSTANCE_PROFILE_*, by which NVML looks it up
        ("id", c_uint32),  # the id by which instances are created and listed
        ("slices", c_uint32),
        ("instance_count", c_uint32),
        ("sm_count", c_uint32),
        ("copy_engines", c_uint32),
        ("decoders", c_uint32),
        ("encoders", c_uint32),
        ("jpegs", c_uint32),
        ("ofas", c_uint32),
        ("capabilities", c_uint32),
        ("media", c_uint32),
        ("size", c_uint32),  # in memory units
        ("start_count", c_uint32),
        ("starts", c_uint32 * MAX_STARTS),
        ("memory_mib", c_uint64),
        ("name", c_char * NAME),
    )


class SimComputeInstance(Structure):
    """A compute instance; with its GPU instance it is one MIG device."""

    _fields_ = (
        ("used", c_uint32),
        ("id", c_uint32),  # within its GPU instance
        ("slices", c_uint32),
        ("start", c_uint32),
        ("mig_index", c_uint32),  # index of the MIG device under its GPU
        ("reserved", c_uint32),
        ("serial", c_uint64),  # never reused, so that handles of destroyed instances are recognized
        ("uuid", c_char * TEXT),
    )


class SimGpuInstance(Structure):
    _fields_ = (
        ("used", c_uint32),
        ("id", c_uint32),
        ("profile", c_uint32),  # index into SimGpu.profiles
        ("start", c_uint32),
        ("serial", c_uint64),
        ("compute", SimComputeInstance * MAX_COMPUTE_INSTANCES),
    )


class SimGpu(Structure):
    """One GPU: its identity, MIG state and health."""

    _fields_ = (
        ("name", c_char * NAME),
        ("uuid", c_char * TEXT),
        ("model", c_char * TEXT),
        ("pci_bus", c_uint32),
        ("pci_device_id", c_uint32),  # device << 16 | vendor
        ("pci_subsystem_id", c_uint32),
        ("minor", c_uint32),
        ("cc_major", c_uint32),
        ("cc_minor", c_uint32),
        ("architecture", c_uint32),
        ("brand", c_uint32),
        ("memory_mib", c_uint64),
        ("reserved_mib", c_uint64),
        ("lost", c_uint32),
        ("busy", c_uint32),  # whether an unnamed client (X, nvidia-persistenced, DCGM) holds the GPU
        ("passthrough", c_uint32),  # whether it is in a VM that cannot reset the GPU
        ("explicit_reset", c_uint32),  # whether only nvidia-smi -r resets it for a MIG mode (Ampere)
        ("compute_mode", c_uint32),
        ("mig_capable", c_uint32),
        ("mig_resetless", c_uint32),  # Hopper and later
        ("mig_current", c_uint32),
        ("mig_pending", c_uint32),
        ("units", c_uint32),  # memory units for placements
        ("max_mig_devices", c_uint32),
        ("ecc_supported", c_uint32),
        ("ecc_current", c_uint32),
        ("ecc_pending", c_uint32),
        ("remap_supported", c_uint32),
        ("remapped_corrected", c_uint32),
        ("remapped_uncorrected", c_uint32),
        ("remap_pending", c_uint32),
        ("remap_failed", c_uint32),
        ("recovery_action", c_uint32),
        ("utilization", c_uint32),
        ("temperature", c_uint32),
        ("power_mw", c_uint32),
        ("ecc_volatile_corrected", c_uint64),
        ("ecc_volatile_uncorrected", c_uint64),
        ("ecc_aggregate_corrected", c_uint64),
        ("ecc_aggregate_uncorrected", c_uint64),
        ("profile_count", c_uint32),
        ("profiles", SimProfile * MAX_PROFILES),
        ("instances", SimGpuInstance * MAX_GPU_INSTANCES),
    )


class SimProcess(Structure):
    """A process that computes on a GPU or on a MIG device."""

    _fields_ = (
        ("used", c_uint32),
        ("gpu", c_uint32),
        ("gpu_instance", c_int32),  # -1 on the whole GPU
        ("compute_instance", c_int32),
        ("pid", c_uint32),
        ("mps", c_uint32),  # whether it is a client of the MPS server
        ("graphics", c_uint32),  # whether it draws, as X and compositors do
        ("sm_percent", c_uint32),  # share of SM time; without samples if 0, because it is idle
        ("memory_mib", c_uint64),  # MEMORY_UNKNOWN if the driver does not report it
        ("pid_namespace", c_uint64),  # inode of its PID namespace; 0 for the machine's own
        ("name", c_char * NAME),
    )


class SimFault(Structure):
    """A fault of one function: calls to it get this result, or hang, instead of being answered."""

    _fields_ = (
        ("kind", c_uint32),
        ("result", c_uint32),
        ("gpu", c_int32),  # -1 for any
        ("skip", c_uint32),  # number of calls that still succeed first
        ("remaining", c_int32),  # number of calls that fail then; -1 for all
        ("hits", c_uint32),  # number of calls that it hit
        ("function", c_char * TEXT),
    )


class SimEvent(Structure):
    """One entry of the ring of events; its place is `sequence % MAX_EVENTS`."""

    _fields_ = (
        ("sequence", c_uint64),
        ("type", c_uint64),
        ("data", c_uint64),
        ("gpu", c_uint32),
        ("gpu_instance", c_uint32),  # 0xFFFFFFFF if there is none
        ("compute_instance", c_uint32),
        ("reserved", c_uint32),
    )


class SimState(Structure):
    _fields_ = (
        ("magic", c_uint64),
        ("size", c_uint64),
        ("layout_hash", c_uint64),  # hash of every name, type and size in this module
        ("driver_version", c_char * TEXT),
        ("nvml_version", c_char * TEXT),
        ("cuda_version", c_uint32),  # 13000 is 13.0
        ("driver_loaded", c_uint32),
        ("clients_block", c_uint32),  # whether other NVML clients block a change of the MIG mode
        ("gpu_count", c_uint32),
        ("fault_count", c_uint32),
        ("access_epoch", c_uint32),  # programs from an earlier epoch can no longer open the devices
        ("pid_namespace", c_uint64),  # inode of the machine's own PID namespace; 0 if unknown: all are in it
        ("user_namespace", c_uint64),  # inode of the only user namespace whose capabilities count; 0 for any
        ("capabilities", c_char * PATH),  # stand-in for /proc/driver/nvidia/capabilities; empty if none
        ("devices", c_char * PATH),  # stand-in for /dev; empty if all GPUs have their device files
        ("next_serial", c_uint64),
        ("event_count", c_uint64),  # number of events so far
        ("calls", c_uint64),  # number of calls of programs so far
        ("call_ns", c_uint64),  # the CPU time of these calls inside the library, without the caller's
        ("gpus", SimGpu * MAX_GPUS),
        ("processes", SimProcess * MAX_PROCESSES),
        ("clients", c_uint32 * MAX_CLIENTS),  # pids that attached to the GPUs; 0 if the slot is free
        ("client_migs", c_uint32 * MAX_CLIENTS),  # bits of the GPUs of which each has opened a MIG device
        ("faults", SimFault * MAX_FAULTS),
        ("events", SimEvent * MAX_EVENTS),
    )


STRUCTURES: tuple[tuple[str, type[Structure]], ...] = (
    ("sim_profile", SimProfile),
    ("sim_compute_instance", SimComputeInstance),
    ("sim_gpu_instance", SimGpuInstance),
    ("sim_gpu", SimGpu),
    ("sim_process", SimProcess),
    ("sim_fault", SimFault),
    ("sim_event", SimEvent),
    ("sim_state", SimState),
)
_SCALARS = {c_int32: "int32_t", c_uint32: "uint32_t", c_uint64: "uint64_t", c_char: "char"}


def layout_hash() -> int:
    """Return a hash of the layout. Library and tool refuse a file whose stored hash differs."""
    return int.from_bytes(hashlib.sha256("\n".join(declarations()).encode()).digest()[:8], "little")


def c_header() -> str:
    """Return the C header for the library: the layout's hash, and the structures and constants of this module."""
    head = ["/* Generated from hack/nvmlsim/layout.py. */", "#pragma once", "#include <stdint.h>", ""]
    head += [f"#define SIM_MAGIC 0x{MAGIC:X}ULL", f"#define SIM_LAYOUT_HASH 0x{layout_hash():016X}ULL"]
    return "\n".join([*head, *declarations()])


def declarations() -> list[str]:
    """Return CONSTANTS, the enums and STRUCTURES in C, with an assertion on the size of each structure."""
    types: dict[Any, str] = {**_SCALARS, **{kind: f"struct {name}" for name, kind in STRUCTURES}}
    lines = [f"#define SIM_{name} {globals()[name]}" for name in CONSTANTS]
    lines += ["enum { SIM_MEDIA_PLAIN, SIM_MEDIA_EXTENSIONS, SIM_MEDIA_ALL, SIM_MEDIA_NONE };"]
    lines += ["enum { SIM_FAULT_NONE, SIM_FAULT_RETURN, SIM_FAULT_HANG };", ""]
    for name, kind in STRUCTURES:
        lines += [f"struct {name} {{"]
        for field, of in ((row[0], row[1]) for row in kind._fields_):
            length = f"[{of._length_}]" if hasattr(of, "_length_") else ""
            lines.append(f"    {types[getattr(of, '_type_', of) if length else of]} {field}{length};")
        lines += ["};", f'_Static_assert(sizeof(struct {name}) == {ctypes.sizeof(kind)}, "{name}");', ""]
    return lines
