"""SIMULATED nvidia-mig-manager: one run for each new value of the label; numbers are the steps of docs/design/nvidia.md#a3.

Two bugs of the real program are reproduced (a.7): in 0.13.1 a run that times out while it waits for the operands
writes no state, and after the first complete run a failure leaves the operands paused.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gpusharing.agent.library import GPU, LibraryError, Reading
from gpusharing.api.names import (
    DEPLOY_PAUSABLE,
    LABEL_DEPLOY_CLIENT,
    LABEL_DEPLOY_PREFIX,
    LABEL_MIG_STATE,
    PAUSED_FOR_MIG,
)
from hack.sim.gpu import SimulatedGPUs
from hack.sim.migparted import ApplyError, ConfigError, Entry, applied, apply_layout, apply_mode, entries, mode_applied
from hack.sim.readings import Readings
from hack.sim.settings import Clock, SimSettings


class NodePort(Protocol):
    """The node as mig-manager reads and changes it, apart from the GPUs."""

    @property
    def labels(self) -> Mapping[str, str]: ...

    async def patch_labels(self, changes: Mapping[str, str | None]) -> None: ...

    async def operands_gone(self, seconds: float) -> bool:
        """Wait until no operand pod is left on the node. Returns False if one is left after this many seconds."""

    def mig_file(self) -> str:
        """Return the content of the mig-parted configuration file as the pod sees it now."""

    @property
    def with_reboot(self) -> bool:
        """Whether WITH_REBOOT is set in migManager.env of ClusterPolicy."""

    async def reboot(self) -> None:
        """Reboot the node, which kills the caller's process."""

    def log(self, line: str) -> None: ...


class Register:
    """The label's value as mig-manager stores it: only the latest value is kept, and there is no queue (a.2)."""

    def __init__(self) -> None:
        self._current = self._last_read = ""
        self._signal = asyncio.Event()

    def set(self, value: str) -> None:
        self._current = value
        if value:
            self._signal.set()

    async def get(self) -> str:
        """Return the latest value, after waiting for a new one that is not empty if it was returned already."""
        if self._last_read == self._current:
            self._signal.clear()
            await self._signal.wait()
        self._signal.clear()
        self._last_read = self._current
        return self._last_read


@dataclass
class MigManagerFaults:
    """Faults for the next run that changes GPUs. A run resets each fault that it meets, except `refused`."""

    wedge_pending: bool = False
    """The run ends while it waits for the operand pods, and the state stays pending, in any version (a.7, 1)."""
    wedge_paused: bool = False
    """The apply fails as in a process that has had its first full run: the operands stay paused (a.7, 2)."""
    failed: bool = False
    """The apply fails, and the operands are restored unless an earlier run was complete."""
    refuse: bool = False
    """The apply fails halfway, and so does every later one of this configuration."""
    refused: str = ""
    """The name of the configuration of which every apply fails; empty if there is none."""
    reboot: bool = False
    """The next mode change meets a foreign NVML client and fails, and WITH_REBOOT counts as set. After the reboot an
    Ampere card has the new mode; a newer one has lost it, which ends in `failed` (step 5)."""


class _NeedsReboot(ApplyError):
    """The mode change failed because a fault was injected that makes WITH_REBOOT count as set."""


class MigManager:
    """The process of one mig-manager pod. Create a new object for a new pod. To kill the process, cancel `run`."""

    def __init__(
        self, port: NodePort, gpus: SimulatedGPUs, faults: MigManagerFaults, clock: Clock, settings: SimSettings
    ) -> None:
        self._port = port
        self._gpus = gpus
        self._faults = faults
        self._clock = clock
        self._settings = settings
        self._times = settings.times
        self._register = Register()
        self._last_value = ""
        self._no_restart_on_exit = False

    def note(self, value: str) -> None:
        if value != self._last_value:
            self._last_value = value
            self._register.set(value)

    async def run(self) -> None:
        """Reconfigure the GPUs for each new value of the label, until canceled."""
        while True:
            name = await self._register.get()
            await self._clock.sleep(self._times.watch)
            await self._reconfigure(name)

    async def _reconfigure(self, name: str) -> None:
        self._port.log(f"mig-manager: {name or '(empty)'}")
        labels = self._port.labels
        keys = (f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in DEPLOY_PAUSABLE)
        # That of NVIDIA's client only if the Node has it (a.1).
        deploy = {key: labels.get(key, "") for key in keys if key != LABEL_DEPLOY_CLIENT or labels.get(key)}  # 1
        before = labels.get(LABEL_MIG_STATE, "")
        try:
            items = entries(self._port.mig_file(), name)  # 2
            gpus = await self._read()
            if applied(items, gpus):  # 3
                await self._leave(deploy, "success")
                return
            if before == "rebooting" and not mode_applied(items, gpus):  # 5
                raise ApplyError("MIG mode did not take effect after rebooting")
            await self._change(name, items, gpus, deploy)
        except (ConfigError, ApplyError, LibraryError) as error:
            self._port.log(f"mig-manager: {name}: {error}")
            await self._leave(deploy, "failed")

    async def _change(
        self, name: str, items: tuple[Entry, ...], gpus: tuple[GPU, ...], deploy: Mapping[str, str]
    ) -> None:
        await self._state("pending")  # 6
        await self._port.patch_labels(
            {key: "false" if value == "false" else PAUSED_FOR_MIG for key, value in deploy.items()}
        )  # 7
        stuck, self._faults.wedge_pending = self._faults.wedge_pending, False
        if stuck or not await self._port.operands_gone(self._times.pod_wait):
            if not stuck and self._settings.mig_manager != "0.13.1":
                raise ApplyError("timed out waiting for operand pods")
            # The first bug: no state is written, and the operands stay paused.
            self._port.log("mig-manager: timed out waiting for operand pods")
            return
        await self._clock.sleep(self._times.finish / 2)  # 8, 9
        self._fail_if_injected(name)
        try:
            await self._apply_mode(items, gpus)  # 10
        except ApplyError as error:
            if isinstance(error, _NeedsReboot) or self._port.with_reboot:
                self._port.log(f"mig-manager: {error}; rebooting")
                await self._state("rebooting")
                await self._port.reboot()
                return
            self._port.log(f"mig-manager: {error}; continuing")  # mig-manager drops this error
        await self._apply_all(name, items)  # 11
        await self._clock.sleep(self._times.finish / 2)  # 12, 13
        await self._restore(deploy)
        await self._state("success")
        self._no_restart_on_exit = True  # from now on `_leave` does not restore the operands

    async def _apply_mode(self, items: tuple[Entry, ...], gpus: tuple[GPU, ...]) -> None:
        if mode_applied(items, gpus):
            return
        await self._clock.sleep(self._times.apply / 2)
        reboot, self._faults.reboot = self._faults.reboot, False
        if reboot:
            with self._gpus.client():  # a foreign NVML client makes mode change and reset fail
                try:
                    apply_mode(items, gpus, self._gpus)
                except ApplyError as error:
                    raise _NeedsReboot(str(error)) from None
        apply_mode(items, await self._read(), self._gpus)
        if not mode_applied(items, await self._read()):
            raise ApplyError("Assertion failure: selected configuration not currently applied")

    async def _apply_all(self, name: str, items: tuple[Entry, ...]) -> None:
        await self._clock.sleep(self._times.apply / 2)
        gpus = await self._read()
        if not mode_applied(items, gpus):
            apply_mode(items, gpus, self._gpus)
            gpus = await self._read()
            if not mode_applied(items, gpus) and any(gpu.mig_mode != gpu.mig_mode_pending for gpu in gpus):
                raise ApplyError("MIG mode is pending a reset")
        if name == self._faults.refused:  # a card that cannot create an instance has lost its old ones (a.6)
            if gpus[0].mig_mode == "Enabled":
                self._gpus.destroy_all(gpus[0].index)
            raise ApplyError(f"error creating MIG device on GPU {gpus[0].index}: SIMULATED, requested by inject")
        apply_layout(items, gpus, self._gpus)

    def _fail_if_injected(self, name: str) -> None:
        if self._faults.refuse:
            self._faults.refuse, self._faults.refused = False, name
        wedge, self._faults.wedge_paused = self._faults.wedge_paused, False
        failed, self._faults.failed = self._faults.failed, False
        if wedge:
            self._no_restart_on_exit = True
        if wedge or failed:
            raise ApplyError("SIMULATED failure, requested by inject")

    async def _leave(self, deploy: Mapping[str, str], state: str) -> None:
        """End a run early. After the first complete run the operands stay paused (the bug a.7, 2)."""
        if not self._no_restart_on_exit:
            await self._restore(deploy)
        await self._state(state)

    async def _restore(self, deploy: Mapping[str, str]) -> None:
        await self._port.patch_labels({key: "false" if value == "false" else "true" for key, value in deploy.items()})

    async def _state(self, state: str) -> None:
        self._port.log(f"mig-manager: {state}")
        await self._port.patch_labels({LABEL_MIG_STATE: state})

    async def _read(self) -> tuple[GPU, ...]:
        await self._clock.sleep(self._times.parted)
        reading: Reading = await Readings(self._gpus)(self._gpus.read_as_operand, "mig-parted")
        return reading.gpus
