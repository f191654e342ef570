"""An API server that answers only when it may: what a program does before it has heard anything is no race then."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hack.cluster.controlplane import ControlPlane


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
