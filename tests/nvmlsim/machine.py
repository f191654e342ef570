"""A simulated machine for a test, and programs that use it in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hack.nvmlsim.simulator import Simulator

CLIENT = Path(__file__).with_name("client.py")
SECONDS = 60


class SimMachine:
    """The simulator, and `ask` to call a function of client.py on it."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def ask(self, function: str, *, privilege: str | None = "root", **arguments: Any) -> Any:
        """Call a function of client.py in a process of its own; its result, or `{"error": code}`.

        `privilege`: None for the rights that the process really has.
        """
        client = self.start(function, privilege=privilege, **arguments)
        return client.result()

    def start(
        self,
        function: str,
        *,
        privilege: str | None = "root",
        inside: Sequence[str] = (),
        sanitized: bool = False,
        **arguments: Any,
    ) -> "Client":
        """Start a function of client.py without waiting for its end; `inside`: the command that runs it."""
        environ = {**os.environ, **self.simulator.environment(privilege, sanitized=sanitized)}
        command = [*inside, sys.executable, str(CLIENT), function, json.dumps(arguments)]
        pipe = subprocess.PIPE
        return Client(subprocess.Popen(command, env=environ, text=True, stdin=pipe, stdout=pipe, stderr=pipe))


class Client:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def wait_ready(self) -> None:
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        line = stdout.readline()
        assert line.strip() == "READY", line + self.process.communicate(timeout=SECONDS)[1]

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """Wait for the end; the last line of the output as data."""
        out, errors = self.process.communicate(timeout=SECONDS)
        assert self.process.returncode == 0, errors
        return json.loads(out.splitlines()[-1])
