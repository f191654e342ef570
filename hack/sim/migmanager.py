"""SIMULATED nvidia-mig-manager: one run of its pod on one node, transition by transition (docs/design/nvidia.md#a3).

The numbers in the comments are the steps of a.3. Two bugs of the real one are kept (a.7): a time-out while waiting
for the operands returns without a state, and after the first full run a failure leaves the operands paused.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gpusharing.agent.library import LibraryError, Reading
from gpusharing.api.gpunode import GPU
from gpusharing.api.names import (
    DEPLOY_PAUSABLE,
    LABEL_DEPLOY_PREFIX,
    LABEL_MIG_STATE,
    PAUSED_FOR_MIG,
)
from hack.sim.gpu import SimulatedGPUs
from hack.sim.migparted import (
    ApplyError,
    ConfigError,
    Entry,
    applied,
    apply_layout,
    apply_mode,
    entries,
    mode_applied,
)
from hack.sim.readings import Readings
from hack.sim.settings import Clock, SimSettings

CLIENT_LABEL = f"{LABEL_DEPLOY_PREFIX}client"


class NodePort(Protocol):
    """What mig-manager sees and does outside of the GPUs."""

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of its Node."""

    async def patch_labels(self, changes: Mapping[str, str | None]) -> None:
        """Merge-patch labels of its Node; None removes one."""

    async def operands_gone(self, seconds: float) -> bool:
        """Wait until no operand pod is left on the node; False when they are still there after that time."""

    def mig_file(self) -> str:
        """The configuration file as the pod sees it now."""

    @property
    def with_reboot(self) -> bool:
        """WITH_REBOOT of ClusterPolicy migManager.env."""

    async def reboot(self) -> None:
        """Reboot the node: this process is killed, so the call does not return."""

    def log(self, line: str) -> None:
        """One line for people."""


class Register:
    """The label's value as mig-manager keeps it: one place, the latest wins, nothing is queued (a.2)."""

    def __init__(self) -> None:
        self._current = self._last_read = ""
        self._signal = asyncio.Event()

    def set(self, value: str) -> None:
        """The informer saw another value. An empty one is kept but wakes nobody."""
        self._current = value
        if value:
            self._signal.set()

    async def get(self) -> str:
        """Wait for a value other than the one read last, or for a signal, and read it."""
        if self._last_read == self._current:
            self._signal.clear()
            await self._signal.wait()
        self._signal.clear()
        self._last_read = self._current
        return self._last_read


@dataclass
class MigManagerFaults:
    """What is to go wrong at the next run that changes GPUs; each but `refused` is used up by one run."""

    wedge_pending: bool = False
    """The operand pods never go: pending for ever (a.7, 1)."""
    wedge_paused: bool = False
    """The apply fails as in a process that has had its first full run: operands stay paused (a.7, 2)."""
    failed: bool = False
    """The apply fails."""
    refuse: bool = False
    """The apply fails half way, and from now on every one of this configuration does: the card does not take it."""
    refused: str = ""
    """That configuration."""
    reboot: bool = False
    """The next mode change meets a foreign NVML client and fails, and WITH_REBOOT counts as on. After the reboot
    an Ampere card has the new mode; a newer one has lost it, which ends in `failed` (step 5)."""


class _NeedsReboot(ApplyError):
    """The mode change failed as it was asked to; WITH_REBOOT counts as on."""


class MigManager:
    """The process of one mig-manager pod. A new pod is a new object; killing the pod cancels `run`."""

    def __init__(
        self,
        port: NodePort,
        gpus: SimulatedGPUs,
        faults: MigManagerFaults,
        clock: Clock,
        settings: SimSettings,
    ) -> None:
        self._port = port
        self._gpus = gpus
        self._faults = faults
        self._clock = clock
        self._settings = settings
        self._times = settings.times
        self._register = Register()
        self._seen = ""
        self._no_restart_on_exit = False

    def note(self, value: str) -> None:
        """The node's mig.config, seen at the start of the pod and on every change; the same value is nothing."""
        if value != self._seen:
            self._seen = value
            self._register.set(value)

    async def run(self) -> None:
        """Reconfigure for every value, for as long as the pod lives."""
        while True:
            name = await self._register.get()
            await self._clock.sleep(self._times.watch)
            await self._reconfigure(name)

    async def _reconfigure(self, name: str) -> None:
        self._port.log(f"mig-manager: {name or '(empty)'}")
        deploy = {key: self._port.labels.get(key, "") for key in _pausable(self._port.labels)}  # 1
        before = self._port.labels.get(LABEL_MIG_STATE, "")
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
            # The bug: no state is written, the operands stay paused.
            self._port.log("mig-manager: timed out waiting for operand pods")
            return
        await self._clock.sleep(self._times.finish / 2)  # 8, 9
        self._fail_if_asked(name)
        try:
            await self._apply_mode(items, gpus)  # 10
        except ApplyError as error:
            if isinstance(error, _NeedsReboot) or self._port.with_reboot:
                self._port.log(f"mig-manager: {error}; rebooting")
                await self._state("rebooting")
                await self._port.reboot()
                return
            self._port.log(f"mig-manager: {error}; going on")  # the error is dropped
        await self._apply_all(name, items)  # 11
        await self._clock.sleep(self._times.finish / 2)  # 12, 13
        await self._restore(deploy)
        await self._state("success")
        self._no_restart_on_exit = True

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
            raise ApplyError("MIG mode is pending a reset")

    async def _apply_all(self, name: str, items: tuple[Entry, ...]) -> None:
        await self._clock.sleep(self._times.apply / 2)
        gpus = await self._read()
        if not mode_applied(items, gpus):
            apply_mode(items, gpus, self._gpus)
            gpus = await self._read()
            if not mode_applied(items, gpus) and any(gpu.mig_mode != gpu.mig_mode_pending for gpu in gpus):
                raise ApplyError("MIG mode is pending a reset")
        if (
            name == self._faults.refused
        ):  # as a card does that cannot make an instance: what it had is gone (a.6)
            if gpus[0].mig_mode:
                self._gpus.destroy_all(gpus[0].index)
            raise ApplyError(
                f"error creating MIG device on GPU {gpus[0].index}: SIMULATED, asked for by inject"
            )
        apply_layout(items, gpus, self._gpus, empty_on_unknown=self._settings.empty_on_unknown_profile)

    def _fail_if_asked(self, name: str) -> None:
        if self._faults.refuse:
            self._faults.refuse, self._faults.refused = False, name
        wedge, self._faults.wedge_paused = self._faults.wedge_paused, False
        failed, self._faults.failed = self._faults.failed, False
        if wedge:
            self._no_restart_on_exit = True
        if wedge or failed:
            raise ApplyError("SIMULATED failure, asked for by inject")

    async def _leave(self, deploy: Mapping[str, str], state: str) -> None:
        """The deferred part of a run that ends early. The flags are never reset: that is the second bug."""
        if not self._no_restart_on_exit:
            await self._restore(deploy)
        await self._state(state)

    async def _restore(self, deploy: Mapping[str, str]) -> None:
        await self._port.patch_labels(
            {key: "false" if value == "false" else "true" for key, value in deploy.items()}
        )

    async def _state(self, state: str) -> None:
        self._port.log(f"mig-manager: {state}")
        await self._port.patch_labels({LABEL_MIG_STATE: state})

    async def _read(self) -> tuple[GPU, ...]:
        """One call of nvidia-mig-parted reads every GPU; it hangs when NVML hangs."""
        await self._clock.sleep(self._times.parted)
        reading: Reading = await Readings(self._gpus)(self._gpus.read_as_operand, "mig-parted")
        return reading.gpus


def _pausable(labels: Mapping[str, str]) -> list[str]:
    """Deploy labels that a run pauses and restores; the client's only where it exists (a.1)."""
    keys = [f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in DEPLOY_PAUSABLE]
    return [*keys, CLIENT_LABEL] if labels.get(CLIENT_LABEL) else keys
