"""A node of the API server whose config-manager links the configuration of its label to where the plugin reads it, and an API server that answers only when it may: what a program does before it has heard anything is no race then."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane
from hack.nvidia.sandbox import Sandbox
from tests.nvidia.programs import Program

from gpusharing.api.names import LABEL_PLUGIN_CONFIG

NODES = "/api/v1/nodes"


class ConfiguredNode:
    """One node; `keys` is what the mounted ConfigMap holds, `first` the label it begins with."""

    def __init__(self, plane: ControlPlane, sandbox: Sandbox, name: str, keys: Mapping[str, str], first: str) -> None:
        self.api: Api = plane.api
        self.sandbox, self.name, self.kubeconfig = sandbox, name, plane.kubeconfig
        self.source, self.link = sandbox.folder / "available", sandbox.folder / "config"
        self.source.mkdir()
        for key, text in keys.items():
            (self.source / key).write_text(text)
        self.api.create(NODES, {"metadata": {"name": name, "labels": {LABEL_PLUGIN_CONFIG: first}}})
        self.program = self.start()

    def start(self, *flags: str, fallback: str = "empty", kubeconfig: Path | None = None) -> Program:
        """Start config-manager; `fallback`: the GPU Operator's, or `named,single` as NVIDIA's own chart gives.

        What it links first is a race between two of its own threads: it takes the fallback unless the API server has answered by then, which is rare. A `kubeconfig` of a server that is held decides it.
        """
        return Program(
            self.sandbox, "config-manager", "--node-name", self.name,
            "--kubeconfig", str(kubeconfig or self.kubeconfig),
            "--config-file-srcdir", str(self.source), "--config-file-dst", str(self.link), "--send-signal=false",
            "--fallback-strategies", fallback, *flags,
        )  # fmt: skip

    def label(self, value: str) -> None:
        self.api.merge_patch(f"{NODES}/{self.name}", {"metadata": {"labels": {LABEL_PLUGIN_CONFIG: value}}})

    def wait_for(self, key: str) -> None:
        self.program.wait(lambda: self.linked() == key)

    def linked(self) -> str:
        """Name of the configuration that is linked; empty for none (config-manager removes the link first)."""
        try:
            return Path(self.link.readlink()).name
        except FileNotFoundError:
            return ""

    def changes(self) -> int:
        return self.program.log.read_text().count("Label change detected")


@dataclass(frozen=True)
class HeldServer:
    """A door on loopback before the API server's, with the server's own certificate."""

    kubeconfig: Path
    """The admin's, by this door."""
    released: threading.Event
    """Set it, and what was said so far goes through, and all that follows."""


@contextlib.contextmanager
def held_server(plane: ControlPlane, folder: Path) -> Iterator[HeldServer]:
    """Take connections and pass nothing on until `released` is set."""
    server = urlsplit(plane.url)
    upstream = (str(server.hostname), int(server.port or 443))
    released, over = threading.Event(), threading.Event()

    def join(client: socket.socket) -> None:
        with client:
            released.wait()
            if over.is_set():
                return
            with contextlib.suppress(OSError), socket.create_connection(upstream) as answers:
                back = threading.Thread(target=pass_on, args=(answers, client), daemon=True)
                back.start()
                pass_on(client, answers)
                back.join()

    def take(door: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the door is closed
            while True:
                client, _ = door.accept()
                threading.Thread(target=join, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as door:
        kubeconfig = folder / "held.kubeconfig"
        by_door = f"127.0.0.1:{door.getsockname()[1]}"
        kubeconfig.write_text(plane.kubeconfig.read_text().replace(server.netloc, by_door))
        taking = threading.Thread(target=take, args=(door,), daemon=True)
        taking.start()
        try:
            yield HeldServer(kubeconfig, released)
        finally:
            over.set()
            released.set()
            door.shutdown(socket.SHUT_RDWR)
            taking.join()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
