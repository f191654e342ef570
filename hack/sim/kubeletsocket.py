"""SIMULATED: the podresources socket of a kubelet, `v1.PodResourcesLister` over gRPC on HTTP/2.

It answers as a kubelet does (kubernetes pkg/kubelet/apis/podresources/server_v1.go): all pods, also those without
devices, and one ContainerDevices for each device, with the NUMA node that it is near (pkg/kubelet/cm/helpers_linux.go).
Numbers of fields are those of api.proto; `gpusharing/agent/podresources.py` names them.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, WindowUpdated

from gpusharing.agent.kubelet import ALLOCATABLE, LIST
from gpusharing.agent.podresources import Held

Headers: TypeAlias = list[tuple[str, str]]
OK: Headers = [("grpc-status", "0")]
UNIMPLEMENTED: Headers = [
    ("grpc-status", "12"),
    ("grpc-message", "method GetAllocatableResources not implemented"),
]


def field(number: int, content: bytes | str) -> bytes:
    """One length-delimited protobuf field."""
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A protobuf varint."""
    more, rest = value & 0x7F, value >> 7
    return bytes([more | 0x80]) + varint(rest) if rest else bytes([more])


def framed(message: bytes) -> bytes:
    """A gRPC message with its prefix."""
    return b"\x00" + len(message).to_bytes(4) + message


def devices(number: int, rows: Iterable[tuple[str, str]]) -> bytes:
    """Resource name and id of each device, as that field of a message; all of them near NUMA node 0."""
    near = field(3, field(1, varint(8) + varint(0)))
    return b"".join(field(number, field(1, resource) + field(2, device) + near) for resource, device in rows)


def listed(held: Iterable[Held]) -> bytes:
    """A ListPodResourcesResponse. Each row is a pod of one container; who holds no device is listed all the same."""
    found = b""
    for each in held:
        container = field(1, "main") + devices(2, ((each.resource, device) for device in each.devices))
        found += field(1, field(1, each.pod) + field(2, each.namespace) + field(3, container))
    return found


def allocatable(offered: Iterable[tuple[str, str]]) -> bytes:
    """An AllocatableResourcesResponse."""
    return devices(1, offered)


class Kubelet:
    """A gRPC server with one answer per method; it honours flow control, so that large answers need window updates."""

    def __init__(
        self,
        body: bytes,
        trailers: Headers = OK,
        allocatable: bytes | None = None,
        instead: bytes | None = None,
    ) -> None:
        """`allocatable`: what there is to hold; None: this kubelet does not implement it. `instead`: what it says for
        HTTP/2 when it is asked for that, before it waits for the client to go."""
        self._instead = instead
        self._open: set[asyncio.StreamWriter] = set()
        self._over = False
        self._answers = {
            LIST: (body, trailers),
            ALLOCATABLE: (b"", UNIMPLEMENTED) if allocatable is None else (allocatable, OK),
        }

    def heard(self, request: Mapping[str, str]) -> None:
        """A request came, with these headers."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until who called hangs up."""
        self._open.add(writer)
        try:
            with suppress(ConnectionError):
                if not self._over:
                    await self._answer(reader, writer)
                while not self._over and await reader.read(65536):
                    pass
        finally:
            self._open.discard(writer)
            writer.close()

    def hang_up(self) -> None:
        """On everybody: who reads gets an end, and who comes now gets nothing else."""
        self._over = True
        for writer in self._open:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        http2.initiate_connection()
        left, trailers = b"", OK
        asked = ended = False
        while not ended:
            writer.write(http2.data_to_send())
            if not (received := await reader.read(65536)):
                return
            for event in http2.receive_data(received):
                if isinstance(event, RequestReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    self.heard(headers)
                    if self._instead is not None and headers[":path"] == ALLOCATABLE:
                        writer.write(self._instead)
                        return
                    left, trailers = self._answers[headers[":path"]]
                    asked = True
                    http2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
                if isinstance(event, (RequestReceived, WindowUpdated)) and not ended:
                    left = _send(http2, left)
                if asked and not left and not ended:
                    http2.send_headers(1, trailers, end_stream=True)
                    ended = True
        writer.write(http2.data_to_send())


def _send(http2: H2Connection, left: bytes) -> bytes:
    """Send what the flow control window allows; returns the rest."""
    while left and (window := http2.local_flow_control_window(1)):
        size = min(window, http2.max_outbound_frame_size, len(left))
        http2.send_data(1, left[:size])
        left = left[size:]
    return left


@contextmanager
def serving(socket: Path, held: Sequence[Held], offered: Sequence[tuple[str, str]]) -> Iterator[None]:
    """A kubelet in a thread of this process, for programs beside it. Raises OSError where the socket cannot be made."""
    kubelet = Kubelet(framed(listed(held)), allocatable=framed(allocatable(offered)))
    started: Future[Callable[[], object]] = Future()
    thread = Thread(target=asyncio.run, args=(_serve(kubelet, socket, started),), name="SIMULATED kubelet")
    thread.start()
    try:
        end = started.result()
        try:
            yield
        finally:
            end()
    finally:
        thread.join()


async def _serve(kubelet: Kubelet, socket: Path, started: "Future[Callable[[], object]]") -> None:
    """Until what `started` gets is called."""
    ended = asyncio.Event()
    try:
        server = await asyncio.start_unix_server(kubelet.serve, socket)
    except OSError as error:
        started.set_exception(error)
        return
    started.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, ended.set))
    await ended.wait()
    server.close()
    kubelet.hang_up()
    while calls := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.gather(*calls)
    await asyncio.sleep(0)  # closing takes one more turn
