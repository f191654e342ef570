"""Programs of their own on a SIMULATED machine: NVML is loaded once per process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.process import wait_until
from hack.nvmlsim.simulator import EVENT_XID, Simulator

ROOT = Path(__file__).parents[2]
SECONDS = 60
ROOT_RIGHTS = "root"
"""Tests run as whoever: those that are not about rights have them all."""
needs_compiler = pytest.mark.tools
"""Marks tests that load hack/nvmlsim, which a C compiler builds."""


def start(
    simulator: Simulator,
    *arguments: str,
    privilege: str | None = ROOT_RIGHTS,
    module: str = "nvml_process",
    inside: Sequence[str] = (),
    **environ: str,
) -> "subprocess.Popen[str]":
    """Start a module of this folder on a simulated machine; `environ` comes on top.

    `privilege`: None for the rights that the process really has. `inside`: the command that runs it.
    """
    environment = {
        **os.environ,
        **simulator.environment(privilege),
        "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
        **environ,
    }
    command = [*inside, sys.executable, "-m", f"tests.agent.{module}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(process: "subprocess.Popen[str]", seconds: float = SECONDS) -> Any:
    out, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors
    return json.loads(out)


def in_process(simulator: Simulator, *arguments: str, privilege: str | None = ROOT_RIGHTS) -> Any:
    """Run tests.agent.nvml_process on a simulated machine."""
    return finish(start(simulator, *arguments, privilege=privilege))


def read(simulator: Simulator, privilege: str | None = ROOT_RIGHTS) -> Any:
    return in_process(simulator, "read", privilege=privilege)


class Agent:
    """One process with one adapter, for many commands: most of a short process is its imports."""

    def __init__(
        self, simulator: Simulator, *, privilege: str | None = ROOT_RIGHTS, inside: Sequence[str] = ()
    ) -> None:
        self._process = start(simulator, "serve", privilege=privilege, inside=inside)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=SECONDS)  # the end of its input ends it

    def tell(self, *command: str) -> None:
        """Send a command of nvml_process without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate(timeout=SECONDS)[1]
        return json.loads(line)

    def ask(self, *command: str) -> Any:
        self.tell(*command)
        return self.answer()

    def gpus(self) -> Any:
        return self.ask("read")["gpus"]


def raise_during_a_reading(machine: Simulator, agent: Agent, *raised: tuple[int, int]) -> Any:
    """A reading in the middle of which these GPUs, by their index, raise these XIDs."""
    machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=1)
    agent.tell("read")
    wait_until(lambda: machine.show()["faults"][0]["hits"] > 0, SECONDS, "the reading to come that far", poll=0.01)
    for gpu, xid in raised:
        machine.post_event(gpu, EVENT_XID, xid)
    machine.clear_faults()
    return agent.answer()
