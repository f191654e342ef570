"""Read the GPUs of this node through NVML: the order of a reading, and what is remembered from one to the next.

Only this module and the others named `nvml_*` import pynvml. Calls and their traps: docs/design/hardware.md#nvml,
nvml.h of NVML 13.3 and NVIDIA's reference for it.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pynvml

from gpusharing.agent.library import (
    GPU,
    UNKNOWN_PROCESS,
    Instance,
    LibraryError,
    MigMode,
    Model,
    Reading,
    Virtualization,
    bug_text,
)
from gpusharing.agent.nvml_devices import (
    REFUSED,
    Xids,
    compute_mode,
    ecc_uncorrected,
    fields,
    list_processes,
    maybe,
    recovery_action,
    remapped_rows,
    supported,
)
from gpusharing.agent.nvml_mig import Device, mig_instances, mig_profiles
from gpusharing.agent.nvml_use import UseOfGPUs
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import Access
from gpusharing.planning.gpus.health import XIDS

_MOST_PROCESSES = 1024  # the limit of the CRD; fewer are enough to show that a GPU is busy

_MIG_MODES: dict[bool | None, MigMode] = {None: "NotSupported", False: "Disabled", True: "Enabled"}
_VIRTUALIZATION: dict[int | None, Virtualization] = {
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE: "None",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH: "PassThrough",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU: "VGPU",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU: "HostVGPU",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA: "HostVSGA",
}
_UNREACHABLE: dict[int, Access] = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "Lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "ResetRequired",
}
"""Errors of one GPU that have an Access value of their own; the others are Failed."""
_NOT_LOADED = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "libnvidia-ml.so.1 is not in the agent's container; run the agent with the runtime class `nvidia`, "
        "NVIDIA_VISIBLE_DEVICES=all and NVIDIA_DRIVER_CAPABILITIES=utility"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver is not loaded on this node; check the driver pod of the GPU Operator"
    ),
}
_NO_ACCESS = {
    REFUSED: "the agent's container is not allowed to open the NVIDIA devices",
    pynvml.NVML_ERROR_UNKNOWN: (
        "this usually happens after systemd was reloaded on the node; see `dmesg | grep -i nvrm` there"
    ),
}
_OF_THE_NODE = (*_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_UNINITIALIZED)
"""Errors that concern all GPUs, even if a call about a single GPU returns them."""


class NVML:
    """Reads the real GPUs of this node."""

    simulated = False

    def __init__(self, processes: Processes | None = None) -> None:
        self._processes = processes or Processes()
        self._use = UseOfGPUs(self._processes.pod_of)
        self._xids: dict[int, int] = {}
        """First critical XID of each GPU, by index: NVML remembers none, and only the driver's recovery action lasts."""
        self._uuids: dict[int, str] = {}
        """UUID of the GPU at each index, as last read there."""
        self._models: dict[str, Model] = {}
        """The models whose properties are all known, by product.

        They do not change: once another driver is loaded, NVML opens only in a new process
        (docs/design/hardware.md#nvml)."""
        self._products: dict[str, str] = {}
        """Product name of each GPU in the last reading, by UUID. It does not change either."""

    def read(self, leave: Collection[int] = ()) -> Reading:
        """Read as `Library` does. LibraryError is for the whole node; a GPU that cannot be read is unreachable."""
        try:
            pynvml.nvmlInit()
            try:
                return self._read(leave)
            finally:
                pynvml.nvmlShutdown()  # raises if it fails, because the devices may still be held open
        except pynvml.NVMLError as error:
            raise _library_error(error) from error

    def _read(self, leave: Collection[int]) -> Reading:
        models = dict(self._models)
        gpus: list[GPU] = []
        errors: list[Any] = []
        bugs: list[Exception] = []
        self._processes.begin()
        self._use.begin()
        with Xids() as listening:
            for index in range(pynvml.nvmlDeviceGetCount()):
                if index in leave:
                    gpus.append(GPU(index, access="Failed", error="left alone for the present change"))
                    continue
                try:
                    gpus.append(self._gpu(index, models, listening))
                except pynvml.NVMLError as error:
                    if error.value in _OF_THE_NODE:
                        raise
                    errors.append(error)
                    access = _UNREACHABLE.get(error.value, "Failed")
                    gpus.append(GPU(index, access=access, error=str(error) if access == "Failed" else ""))
                except Exception as bug:  # noqa: BLE001 -- a mistake about one GPU must not hide the others
                    bugs.append(bug)
                    gpus.append(GPU(index, access="Failed", error=bug_text(bug)))
            self._follow_indices(gpus)
            for index, xid in listening.heard():
                self._use.hear(index, xid)
                if xid in XIDS:
                    self._xids.setdefault(index, xid)
        if gpus and len(errors) == len(gpus):
            (code, *others) = {error.value for error in errors}
            if not others and (code == REFUSED or (code in _NO_ACCESS and len(errors) > 1)):
                raise errors[0]
        self._models = {product: model for product, model in models.items() if _is_complete(model)}
        self._products = {gpu.uuid: gpu.product for gpu in gpus if gpu.product}
        xids = self._xids
        observed = tuple(replace(gpu, xid=xids[gpu.index]) if gpu.index in xids else gpu for gpu in gpus)
        present = dict.fromkeys(gpu.product for gpu in gpus if gpu.product)
        version = maybe("", pynvml.nvmlSystemGetDriverVersion)
        read = tuple(models[product] for product in present)
        return Reading(version, read, observed, self._use.so_far(), tuple(bugs))

    def _follow_indices(self, gpus: Sequence[GPU]) -> None:
        """Keep each XID at its GPU when a GPU came or went and indices have shifted; without the GPU, drop it."""
        read = {gpu.index: gpu.uuid for gpu in gpus if gpu.uuid}
        if any(self._uuids.get(index, uuid) != uuid for index, uuid in read.items()) or any(
            index >= len(gpus) for index in self._uuids
        ):
            places = {uuid: index for index, uuid in read.items()}
            found = ((places.get(self._uuids.get(index, "")), xid) for index, xid in self._xids.items())
            self._xids = {index: xid for index, xid in found if index is not None}
            self._uuids = {}
        self._uuids |= read

    def _gpu(self, index: int, models: dict[str, Model], xids: Xids) -> GPU:
        """Read one GPU, and its model into `models` if it is new or was incomplete. Errors of NVML are raised."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        xids.listen(index, handle)
        uuid: str = pynvml.nvmlDeviceGetUUID(handle)
        product = self._products.get(uuid) or pynvml.nvmlDeviceGetName(handle)
        # The modes now and after the next reset (docs/design/hardware.md#nvml-mode). Everything depends on them, so a
        # refusal is an error of the GPU.
        modes = supported((None, None), pynvml.nvmlDeviceGetMigMode, handle)
        current, pending = (_MIG_MODES[None if mode is None else bool(mode)] for mode in modes)
        capable = current != "NotSupported"
        # Some drivers list no profiles while MIG is off, or deny for a moment that a card has MIG. Another GPU of this
        # model, or the next reading, may show them.
        if product not in models or (capable and not models[product].profiles):
            models[product] = _model(handle, product, mig_capable=capable)
        model = models[product]
        devices: Sequence[Device] = [(handle, uuid, None)]
        instances: tuple[Instance, ...] = ()
        withheld = False
        if current == "Enabled":
            instances, devices, withheld, hidden = mig_instances(handle, model.profiles)
            lists = [list_processes(self._processes, device, name) for device, name, _ in devices]
            listed = list(chain.from_iterable(lists))
            known = {process.pid for process, _ in listed} - {UNKNOWN_PROCESS.pid}
            # An empty list for the whole GPU does not contradict the lists of its MIG devices.
            rest = list_processes(self._processes, handle, required=False, hidden=hidden)
            listed = [each for each in rest if each[0].pid not in known] + listed
        else:
            listed = list_processes(self._processes, handle)
            lists = [listed]
        gpu = GPU(
            index=index,
            uuid=uuid,
            product=model.product,
            mig_mode=current,
            mig_mode_pending=pending,
            compute_mode=compute_mode(handle),
            instances=instances,
            processes=tuple(process for process, _ in listed[:_MOST_PROCESSES]),
            ecc_uncorrected=ecc_uncorrected(handle),
            remapped_rows=remapped_rows(handle),
            recovery_action=recovery_action(handle),
            # Listing instances needs the same right as listing placements.
            instances_withheld=model.placements_withheld or withheld,
        )
        self._use.take(gpu, devices, lists)
        return gpu


def _library_error(error: Any) -> LibraryError:
    if error.value in _NOT_LOADED:
        return LibraryError(_NOT_LOADED[error.value], "NVMLNotLoaded")
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return LibraryError(
            "the driver was replaced while the agent was running, so the agent is restarting; if this persists, delete "
            "this agent pod",
            "NVMLReplaced",
        )
    if error.value in _NO_ACCESS:
        message = f"NVML: {error}; {_NO_ACCESS[error.value]}; the agent is restarting"
        return LibraryError(message, "NVMLAccessLost")
    return LibraryError(f"NVML: {error}; see `dmesg | grep -i nvrm` on the node")


def _model(handle: Any, product: str, *, mig_capable: bool) -> Model:
    live = fields(handle, pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED) if mig_capable else None
    profiles, withheld = mig_profiles(handle) if mig_capable else ((), False)
    virtualized = maybe(None, pynvml.nvmlDeviceGetVirtualizationMode, handle)
    return Model(
        product=product,
        mig_capable=mig_capable,
        mig_mode_change="Unknown" if live is None else "Live" if live[0] else "Reset",
        profiles=profiles,
        virtualization=_VIRTUALIZATION.get(virtualized, "Unknown"),
        placements_withheld=withheld,
    )


def _is_complete(model: Model) -> bool:
    known = "Unknown" not in (model.mig_mode_change, model.virtualization)
    return not model.placements_withheld and (not model.mig_capable or bool(model.profiles and known))
