"""What NVIDIA's programs answer, as plain data."""

import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hack.cluster.process import end_group
from hack.nvidia.kubelet import gfd_labels_in
from hack.nvidia.sandbox import KUBELET_PLUGINS, Sandbox

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.wanted import migfile

SECONDS = 90.0
MPS_FOLDER = "mps"
"""Plugin and MPS daemon share /mps."""
_REGISTERED = re.compile(r"Registered device plugin for '([^']+)'")


@dataclass(frozen=True)
class Done:
    status: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line, where mig-parted sums up; the cause is in the lines before."""
        return self.output.strip().rpartition("\n")[2]


class MigParted:
    def __init__(self, sandbox: Sandbox, entries: Mapping[str, migfile.Entry]) -> None:
        self.sandbox = sandbox
        self.file = sandbox.folder / "config.yaml"
        self.file.write_text(migfile.render(entries))

    def apply(self, name: str) -> Done:
        return self._run("apply", "-f", str(self.file), "-c", name)

    def check(self, name: str) -> Done:
        return self._run("assert", "-f", str(self.file), "-c", name)

    def export(self) -> migfile.Entry:
        """The configuration of the machine, as mig-parted reads it back."""
        done = self.sandbox.run("nvidia-mig-parted", "export")
        assert done.returncode == 0, done.stderr
        entry: migfile.Entry = yaml.safe_load(done.stdout)["mig-configs"]["current"]
        return entry

    def _run(self, *arguments: str) -> Done:
        done = self.sandbox.run("nvidia-mig-parted", *arguments)
        # Its success is a line on stdout; its log, with go-nvlib's warnings in it, goes to stderr before that.
        return Done(done.returncode, done.stderr + done.stdout)


def entry_for(layout: Layout | None) -> migfile.Entry:
    devices = {} if layout is None else {"mig-devices": dict(layout)}
    return [{"devices": "all", "mig-enabled": layout is not None, **devices}]


def set_layouts(sandbox: Sandbox, *layouts: Layout | None) -> None:
    rows = [{**entry_for(layout)[0], "devices": [index]} for index, layout in enumerate(layouts)]
    done = MigParted(sandbox, {"wanted": rows}).apply("wanted")
    assert done.status == 0, done.last_line


def gfd_labels(sandbox: Sandbox, config: str, limits: Sequence[str] = ()) -> dict[str, str]:
    """The labels that GPU feature discovery writes once, with this configuration of the device plugin.

    Raises: ProgramEnded: it gave up.
    """
    output, file = sandbox.folder / "labels", sandbox.folder / "plugin.yaml"
    file.write_text(config)
    done = sandbox.run(
        "gpu-feature-discovery", "--oneshot", "--no-timestamp", "--use-node-feature-api=false",
        "--output-file", str(output), "--config-file", str(file), extra={"NODE_NAME": "simulated"},
        limits=limits,
    )  # fmt: skip
    if done.returncode != 0:
        raise ProgramEnded(done.stderr)
    return gfd_labels_in(output)


class ProgramEnded(Exception):
    """A program ended by itself; the text is its log."""


class Program:
    def __init__(
        self, sandbox: Sandbox, name: str, *arguments: str, added: Sequence[str] = (), limits: Sequence[str] = ()
    ) -> None:
        self.log = sandbox.folder / f"{name}.log"
        binds = {KUBELET_PLUGINS: sandbox.plugins}
        with self.log.open("w") as log:
            self.process = sandbox.start(name, *arguments, log=log, binds=binds, added=added, limits=limits)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds.

        Raises: ProgramEnded: it ended first. TimeoutError: it took too long.
        """
        deadline = time.monotonic() + SECONDS
        while not condition():
            if self.process.poll() is not None:
                raise ProgramEnded(self.log.read_text())
            if time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(self.log.read_text())
            time.sleep(0.02)

    def wait_for_log(self, text: str) -> None:
        self.wait(lambda: text in self.log.read_text())

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it is gone, with the children it may leave behind when killed."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        self.process.wait(SECONDS)
        end_group(self.process)


class DevicePluginProgram:
    """The device plugin, registered with the stand-in for the kubelet."""

    def __init__(
        self, sandbox: Sandbox, config: str, *arguments: str, added: Sequence[str] = (), limits: Sequence[str] = ()
    ) -> None:
        file, socket = sandbox.folder / "plugin.yaml", sandbox.plugins / "kubelet.sock"
        file.write_text(config)
        socket.unlink(missing_ok=True)
        self.stub = Program(sandbox, "kubeletstub", str(KUBELET_PLUGINS))
        self.stub.wait(socket.exists)
        self.plugin = Program(
            sandbox, "nvidia-device-plugin", "--config-file", str(file), *arguments, added=added, limits=limits
        )

    def resources(self, expected: int) -> dict[str, int]:
        """Healthy devices per resource, once as many resources as expected are there and the plugin has stopped.

        The plugin handles SIGTERM only after it has registered everything: what is there then is all.
        """
        try:
            self.plugin.wait(lambda: len(self.counts()) >= expected)
            counts = self.counts()
        finally:
            self.stop()
        log = self.plugin.log.read_text()
        assert set(_REGISTERED.findall(log)) == set(counts), log
        return counts

    def counts(self) -> dict[str, int]:
        """Healthy devices per resource as streamed last."""
        return {line["resource"]: len(line["healthy"]) for line in self._lines()}

    def wait_for(self, resource: str, healthy: int) -> None:
        self.plugin.wait(lambda: self.counts().get(resource) == healthy)

    def stop(self) -> None:
        self.plugin.stop()
        self.stub.stop()

    def _lines(self) -> list[dict[str, Any]]:
        texts = [text for text in self.stub.log.read_text().splitlines(keepends=True) if text.startswith("{")]
        lines = [json.loads(text) for text in texts if text.endswith("\n")]
        return [line for line in lines if not line.get("gone")]


def served(sandbox: Sandbox, config: str, expected: int, limits: Sequence[str] = ()) -> dict[str, int]:
    """What the device plugin advertises with this configuration, through its start and its end."""
    return DevicePluginProgram(sandbox, config, limits=limits).resources(expected)


def served_in(sandbox: Sandbox, mode: Mode, config: str, expected: int) -> dict[str, int]:
    """As `served`, beside the MPS daemon where the mode has one."""
    if mode is not Mode.MPS:
        return served(sandbox, config, expected)
    with running_mps_daemon(sandbox, config):
        return start_mps_plugin(sandbox, config).resources(expected)


def start_mps_daemon(sandbox: Sandbox, config: str) -> Program:
    file = sandbox.folder / "mps.yaml"
    file.write_text(config)
    return Program(sandbox, "mps-control-daemon", "--config-file", str(file), added=[MPS_FOLDER])


@contextlib.contextmanager
def running_mps_daemon(sandbox: Sandbox, config: str) -> Iterator[Program]:
    """The MPS control daemon, ready; it ends with the context."""
    daemon = start_mps_daemon(sandbox, config)
    try:
        daemon.wait((sandbox.folder / "added" / MPS_FOLDER / ".ready").exists)
        yield daemon
    finally:
        daemon.stop()


def start_mps_plugin(sandbox: Sandbox, config: str) -> DevicePluginProgram:
    return DevicePluginProgram(sandbox, config, "--mps-root", "/run/nvidia/mps", added=[MPS_FOLDER])
