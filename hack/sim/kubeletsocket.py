"""SIMULATED: the podresources socket of a kubelet, `v1.PodResourcesLister` over gRPC on HTTP/2.

It answers as a kubelet does (kubernetes v1.36.3 pkg/kubelet/apis/podresources/server_v1.go): all pods, also those
without devices, and one ContainerDevices for each device, with the NUMA node that it is near
(pkg/kubelet/cm/container_manager.go), each time in another order, for they come from maps of Go (podsMapToPods in
pkg/kubelet/pod/pod_manager.go). It takes any number of calls on a connection and pings who sends data, as grpc-go
v1.79.3 does (internal/transport/bdp_estimator.go).
Numbers of fields are those of api.proto; `gpusharing/agent/podresources.py` names them.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingAckReceived, RequestReceived, StreamEnded

from gpusharing.agent.kubelet import ALLOCATABLE, LIST
from gpusharing.agent.podresources import Held

Body: TypeAlias = bytes | Callable[[], bytes]
"""What is answered, or what makes it at each call."""
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
        body: Body,
        trailers: Headers = OK,
        allocatable: Body | None = None,
        instead: bytes | None = None,
    ) -> None:
        """`allocatable`: what there is to hold; None: this kubelet does not implement it. `instead`: what it says for
        HTTP/2 when it is asked for that, before it waits for the client to go."""
        self._instead = instead
        self._open: set[asyncio.StreamWriter] = set()
        self._over = False
        self._answers: dict[str, tuple[Body, Headers]] = {
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
        """One call after the other, until who calls hangs up or gets something `instead`."""
        session = _Session(self._answers)
        while True:
            writer.write(session.http2.data_to_send())
            if not (received := await reader.read(65536)):
                return
            for event in session.http2.receive_data(received):
                if path := session.take(event):
                    self.heard(session.headers)
                if path == ALLOCATABLE and self._instead is not None:
                    writer.write(session.http2.data_to_send() + self._instead)
                    return
                session.send()


class _Session:
    """The server's side of one connection."""

    def __init__(self, answers: Mapping[str, tuple[Body, Headers]]) -> None:
        self.http2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.http2.initiate_connection()
        self.headers: dict[str, str] = {}
        """Of the last request."""
        self._answers = answers
        self._asked: dict[int, str] = {}
        self._left: dict[int, tuple[bytes, Headers]] = {}
        """By stream what is still to be sent."""
        self._pinged = False

    def take(self, event: Event) -> str:
        """Returns the path of a request that begins, else nothing."""
        if isinstance(event, RequestReceived):
            self.headers = {str(name): str(value) for name, value in event.headers}
            self._asked[event.stream_id] = self.headers[":path"]
            return self.headers[":path"]
        if isinstance(event, DataReceived):
            self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if not self._pinged:
                self.http2.ping(b"SIMULATE")
                self._pinged = True
        if isinstance(event, PingAckReceived):
            self._pinged = False
        if isinstance(event, StreamEnded):
            body, trailers = self._answers[self._asked.pop(event.stream_id)]
            self._left[event.stream_id] = (body if isinstance(body, bytes) else body(), trailers)
            self.http2.send_headers(
                event.stream_id, [(":status", "200"), ("content-type", "application/grpc")]
            )
        return ""

    def send(self) -> None:
        """What the flow control windows allow, and the trailers after all of a body."""
        for stream, (body, trailers) in list(self._left.items()):
            left = body
            while left and (window := self.http2.local_flow_control_window(stream)):
                size = min(window, self.http2.max_outbound_frame_size, len(left))
                self.http2.send_data(stream, left[:size])
                left = left[size:]
            self._left[stream] = (left, trailers)
            if not left:
                self.http2.send_headers(stream, trailers, end_stream=True)
                del self._left[stream]


def shuffled(parts: Sequence[bytes]) -> Callable[[], bytes]:
    """A message of these parts, each time in another order."""
    order = random.Random("SIMULATED kubelet")
    return lambda: framed(b"".join(order.sample(parts, len(parts))))


@contextmanager
def serving(socket: Path, held: Sequence[Held], offered: Sequence[tuple[str, str]]) -> Iterator[None]:
    """A kubelet in a thread of this process, for programs beside it. Raises OSError where the socket cannot be made."""
    pods, there = [listed([each]) for each in held], [allocatable([each]) for each in offered]
    kubelet = Kubelet(shuffled(pods), allocatable=shuffled(there))
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
