"""The simulated machine as plain data."""

from typing import Any

from hack.nvmlsim import layout

RESULTS = {
    "INVALID_ARGUMENT": 2, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "NOT_FOUND": 6, "INSUFFICIENT_POWER": 8,
    "DRIVER_NOT_LOADED": 9, "TIMEOUT": 10, "IRQ_ISSUE": 11, "FUNCTION_NOT_FOUND": 13, "GPU_IS_LOST": 15,
    "RESET_REQUIRED": 16, "OPERATING_SYSTEM": 17, "LIB_RM_VERSION_MISMATCH": 18, "IN_USE": 19,
    "INSUFFICIENT_RESOURCES": 23, "UNKNOWN": 999,
}  # fmt: skip
"""NVML's result codes by name, as faults are asked for."""


def text(raw: bytes) -> str:
    """A text field."""
    return raw.decode()


def machine(state: layout.SimState) -> dict[str, Any]:
    """Everything that a person wants to know."""
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
        "name": text(gpu.name),
        "uuid": text(gpu.uuid),
        "bus_id": f"0000:{gpu.pci_bus:02x}:00.0",
        "pci_device_id": f"0x{gpu.pci_device_id:08X}",
        "mig": mig,
        "instances": [_instance(gpu, instance) for instance in instances],
        "compute_mode": gpu.compute_mode,
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
            {
                "id": ci.id,
                "start": ci.start,
                "slices": ci.slices,
                "uuid": text(ci.uuid),
                "index": ci.mig_index,
            }
            for ci in instance.compute
            if ci.used
        ],
    }


def _process(process: layout.SimProcess) -> dict[str, Any]:
    return {
        "gpu": process.gpu,
        "gpu_instance": process.gpu_instance,
        "compute_instance": process.compute_instance,
        "pid": process.pid,
        "name": text(process.name),
        "memory_mib": None if process.memory_mib == layout.MEMORY_UNKNOWN else process.memory_mib,
        "sm_percent": process.sm_percent,
        "mps": bool(process.mps),
        "graphics": bool(process.graphics),
        "pid_namespace": process.pid_namespace,
    }


def _fault(fault: layout.SimFault) -> dict[str, Any]:
    names = {code: name for name, code in RESULTS.items()}
    return {
        "function": text(fault.function),
        "fault": "hang" if fault.kind == layout.FAULT_HANG else names[fault.result],
        "gpu": fault.gpu,
        "skip": fault.skip,
        "remaining": fault.remaining,
        "hits": fault.hits,
    }
