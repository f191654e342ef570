"""NVML as an implementation of the Library protocol. Only this module and `nvml_*.py` beside it import pynvml.

Calls and their traps: docs/design/hardware.md#nvml, nvml.h of NVML 13.3 and NVIDIA's reference for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pynvml

from gpusharing.agent.library import (
    AccessLost,
    LibraryError,
    NotLoaded,
    Reading,
    Replaced,
    bug_text,
    unreachable,
)
from gpusharing.agent.nvml_health import (
    REFUSED,
    Xids,
    ecc_uncorrected,
    fields,
    maybe,
    recovery_action,
    remapped_rows,
    supported,
)
from gpusharing.agent.nvml_mig import mig_devices, mig_instances, mig_profiles
from gpusharing.agent.nvml_processes import ProcessLists
from gpusharing.agent.nvml_use import UseOfGPUs
from gpusharing.agent.processes import Processes
from gpusharing.api.gpunode import GPU, Access, ComputeMode, MigMode, Model, Virtualization
from gpusharing.planning.gpus.health import XIDS

_MOST_PROCESSES = 1024  # the limit of the CRD; fewer are enough to show that a GPU is busy
_MIB = 1024 * 1024

_COMPUTE_MODES: dict[int, ComputeMode] = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "Default",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "Prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "ExclusiveProcess",
}
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
"""Errors of one GPU that have an Access value of their own; for any other error it is Failed. The other GPUs are still
read."""
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


@dataclass(frozen=True, slots=True)
class _Card:
    """The properties that are read once for all GPUs of a model."""

    model: Model
    placements_withheld: bool
    """Whether NVML refuses to list placements; listing instances needs the same right."""

    @property
    def is_complete(self) -> bool:
        """Whether NVML gave every property of the card, so that the card need not be read again. MIG profiles, the way
        to change the MIG mode and the virtualization are required only of a card with MIG."""
        model = self.model
        known = "Unknown" not in (model.mig_mode_change, model.virtualization)
        mig = not model.mig_capable or (model.profiles and known)
        rest = model.memory_mib is not None and model.compute_capability and not self.placements_withheld
        return bool(mig and rest)


class NVML:
    """Reads the real GPUs of this node."""

    simulated = False

    def __init__(self, processes: Processes | None = None) -> None:
        """Begin without any known card. `processes` finds processes by pid, with procfs at /proc by default."""
        self._processes = processes or Processes()
        self._lists = ProcessLists(self._processes)
        self._use = UseOfGPUs(self._processes.pod_of)
        self._xids: dict[int, int] = {}
        """First critical XID of each GPU, by index. NVML does not remember any; only the driver's recovery action
        lasts."""
        self._cards: dict[str, _Card] = {}
        """The models whose properties are all known. They do not change: once another driver is loaded, NVML opens
        only in a new process (docs/design/hardware.md#nvml)."""
        self._products: dict[str, str] = {}
        """Product name of each GPU in the last reading, by UUID. It does not change either."""

    def read(self) -> Reading:
        """Open NVML, read everything about the GPUs, and close NVML again even after an error. A GPU that cannot be
        read is reported as unreachable. Raises LibraryError if NVML cannot be opened or closed, for an error that
        concerns the whole node, and if the agent lacks access to all GPUs. If reading and closing both fail, the error
        is that of closing."""
        try:
            pynvml.nvmlInit()
            try:
                return self._read()
            finally:
                pynvml.nvmlShutdown()  # raises if it fails, because the devices may still be held open
        except pynvml.NVMLError as error:
            raise _library_error(error) from error

    def _read(self) -> Reading:
        """Read all GPUs, and remember the complete cards, the products and the first critical XID of each GPU. A GPU
        that fails is reported as unreachable and does not stop the others. The driver's version is empty if NVML does
        not report it. Raises NVMLError if it concerns the whole node, or if all GPUs fail because the agent lacks
        access; cards and products are not updated then."""
        cards = dict(self._cards)
        self._processes.begin()
        self._use.begin()
        with Xids() as listening:
            gpus, errors, bugs = self._gpus(cards, listening)
            for index, xid in listening.heard():
                self._use.hear(index, xid)
                if xid in XIDS:
                    self._xids.setdefault(index, xid)
        if gpus and len(errors) == len(gpus):
            _refuse_without_access(errors)
        self._cards = {product: card for product, card in cards.items() if card.is_complete}
        self._products = {gpu.uuid: gpu.product for gpu in gpus if gpu.product}
        xids = self._xids
        observed = tuple(replace(gpu, xid=xids[gpu.index]) if gpu.index in xids else gpu for gpu in gpus)
        present = dict.fromkeys(gpu.product for gpu in gpus if gpu.product)
        models = tuple(cards[product].model for product in present)
        version = maybe("", pynvml.nvmlSystemGetDriverVersion)
        return Reading(version, models, observed, self._use.so_far(), tuple(bugs))

    def _gpus(self, cards: dict[str, _Card], xids: "Xids") -> tuple[list[GPU], list[Any], list[Exception]]:
        """Return all GPUs, and NVML's errors and the unexpected errors of the GPUs that cannot be read; these GPUs are
        included as unreachable. Adds new models to `cards` and listens with `xids`. Raises an error that concerns the
        whole node."""
        gpus: list[GPU] = []
        errors: list[Any] = []
        bugs: list[Exception] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                gpus.append(self._gpu_at(index, cards, xids))
            except pynvml.NVMLError as error:
                if error.value in _OF_THE_NODE:
                    raise
                errors.append(error)
                access = _UNREACHABLE.get(error.value, "Failed")
                gpus.append(unreachable(index, access, str(error) if access == "Failed" else ""))
            except Exception as bug:  # noqa: BLE001 -- a mistake of ours about one GPU must not hide the others
                bugs.append(bug)
                gpus.append(unreachable(index, "Failed", bug_text(bug)))
        return gpus, errors, bugs

    def _gpu_at(self, index: int, cards: dict[str, _Card], xids: "Xids") -> GPU:
        """Read the GPU at `index`, and subscribe `xids` to its errors. Adds its model to `cards` if it is not there
        yet, and reads the model again if the GPU can do MIG but the model has no MIG profiles. Errors of NVML are
        raised."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        xids.listen(index, handle)
        uuid: str = pynvml.nvmlDeviceGetUUID(handle)
        product = self._products.get(uuid) or pynvml.nvmlDeviceGetName(handle)
        known, modes = cards.get(product), _mig_mode(handle)
        capable = modes[0] != "NotSupported"
        # Some drivers list no profiles while MIG is off, or deny for a moment that a card has MIG. Another GPU of this
        # model, or the next reading, may show them.
        if known is None or (capable and not known.model.profiles):
            cards[product] = _card(handle, product, mig_capable=capable)
        return self._gpu(handle, index, uuid, cards[product], modes)

    def _gpu(self, handle: Any, index: int, uuid: str, card: _Card, modes: tuple[MigMode, MigMode]) -> GPU:
        """Read the properties of a GPU that change, such as its MIG instances and its processes (at most
        _MOST_PROCESSES), and add the devices and their processes to the record of the GPUs' use. `modes` are its
        current and its pending MIG mode. Errors of NVML are raised."""
        current, pending = modes
        on = current == "Enabled"
        devices = tuple(mig_devices(handle)) if on else ((handle, uuid),)
        mig = mig_instances(handle, card.model.profiles, devices) if on else None
        lists = [self._lists.of(device, name if mig else "") for device, name in devices]
        beside = self._lists.beside(handle, lists, hidden=mig.hidden) if mig else []
        listed = [*beside, *chain.from_iterable(lists)]
        gpu = GPU(
            index=index,
            uuid=uuid,
            product=card.model.product,
            mig_mode=current,
            mig_mode_pending=pending,
            compute_mode=_compute_mode(handle),
            instances=mig.instances if mig else (),
            processes=tuple(each.process for each in listed[:_MOST_PROCESSES]),
            ecc_uncorrected=ecc_uncorrected(handle),
            remapped_rows=remapped_rows(handle),
            recovery_action=recovery_action(handle),
            instances_withheld=card.placements_withheld or (mig is not None and mig.withheld),
        )
        self._use.take(gpu, devices, mig.devices if mig else (None,), lists)
        return gpu


def _library_error(error: Any) -> LibraryError:
    """Return the LibraryError for an NVML error that concerns the whole node, with a message about what to do:
    NotLoaded, Replaced or AccessLost for the errors with that meaning, else a plain LibraryError."""
    if error.value in _NOT_LOADED:
        return NotLoaded(_NOT_LOADED[error.value])
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return Replaced(
            "the driver was replaced while the agent was running, so the agent is restarting; if this persists, delete "
            "this agent pod"
        )
    if error.value in _NO_ACCESS:
        return AccessLost(f"NVML: {error}; {_NO_ACCESS[error.value]}; the agent is restarting")
    return LibraryError(f"NVML: {error}; see `dmesg | grep -i nvrm` on the node")


def _refuse_without_access(errors: Sequence[Any]) -> None:
    """Raise the first of `errors` if the container lacks access to the GPUs: all errors have the same code, and it is
    a refusal or, with several GPUs, NVML's unknown error. Otherwise return. `errors` has one error for each GPU of
    the node, and must not be empty."""
    (code, *others) = {error.value for error in errors}
    if not others and (code == REFUSED or (code in _NO_ACCESS and len(errors) > 1)):
        raise errors[0]


def _mig_mode(handle: Any) -> tuple[MigMode, MigMode]:
    """Return the current MIG mode and the mode after the next reset (docs/design/hardware.md#nvml-mode), or
    NotSupported for both if the GPU or its driver does not support MIG. Everything depends on the mode, so a refusal is
    raised as an error of the GPU."""
    modes = supported(None, pynvml.nvmlDeviceGetMigMode, handle)
    if modes is None:
        return "NotSupported", "NotSupported"
    current, pending = modes
    return ("Enabled" if current else "Disabled"), ("Enabled" if pending else "Disabled")


def _compute_mode(handle: Any) -> ComputeMode:
    """Return the compute mode of a GPU, or NotSupported. Unknown if NVML refuses to report it to the agent, or reports
    a mode that is not known here. Other errors are raised."""
    try:
        mode = supported(None, pynvml.nvmlDeviceGetComputeMode, handle)
    except pynvml.NVMLError as error:
        if error.value != REFUSED:
            raise
        return "Unknown"
    return "NotSupported" if mode is None else _COMPUTE_MODES.get(mode, "Unknown")


def _card(handle: Any, product: str, *, mig_capable: bool) -> _Card:
    """Read the properties of the card model `product` from one GPU. `mig_capable` says whether NVML reports a MIG mode
    for it; if not, it has no profiles, and `mig_mode_change` is Unknown. Else that is Live if NVML says that the mode
    changes without a reset, or Reset if not. A property that NVML does not report, or not to the agent, becomes None,
    empty or Unknown. Other errors are raised."""
    # On a GPU with MIG on, only a container with rights can read the memory (docs/design/hardware.md#device-memory).
    memory = maybe(None, pynvml.nvmlDeviceGetMemoryInfo, handle)
    capability = maybe((), pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    live = fields(handle, pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED) if mig_capable else None
    profiles, withheld = mig_profiles(handle) if mig_capable else ((), False)
    virtualized = maybe(None, pynvml.nvmlDeviceGetVirtualizationMode, handle)
    model = Model(
        product=product,
        memory_mib=memory.total // _MIB if memory else None,
        compute_capability=".".join(map(str, capability)),
        mig_capable=mig_capable,
        mig_mode_change="Unknown" if live is None else "Live" if live[0] else "Reset",
        profiles=profiles,
        virtualization=_VIRTUALIZATION.get(virtualized, "Unknown"),
    )
    return _Card(model, withheld)
