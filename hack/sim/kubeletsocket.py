"""SIMULATED: the podresources socket of a kubelet, `v1.PodResourcesLister` over gRPC; numbers of fields are api.proto's.

As kubernetes v1.36.3 (pkg/kubelet/apis/podresources/server_v1.go) it lists all pods and one ContainerDevices for each
device, in another order each time (maps of Go: podsMapToPods in pkg/kubelet/pod/pod_manager.go), and pings a client
that sends data (grpc-go v1.79.3 internal/transport/bdp_estimator.go).
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
from gpusharing.agent.podresources import PodDevices

Body: TypeAlias = bytes | Callable[[], bytes]
"""A response, or a function that returns one for each call."""
Headers: TypeAlias = list[tuple[str, str]]
OK: Headers = [("grpc-status", "0")]
UNIMPLEMENTED: Headers = [("grpc-status", "12"), ("grpc-message", "method GetAllocatableResources not implemented")]


def field(number: int, content: bytes | str) -> bytes:
    """Return one length-delimited protobuf field with this number and content; a string is encoded as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    """Return a number, which must not be negative, as a protobuf varint."""
    more, rest = value & 0x7F, value >> 7
    return bytes([more | 0x80]) + varint(rest) if rest else bytes([more])


def framed(message: bytes) -> bytes:
    """Return a message as gRPC sends it, uncompressed, with its length prefix of five bytes."""
    return b"\x00" + len(message).to_bytes(4) + message


def devices(number: int, rows: Iterable[tuple[str, str]]) -> bytes:
    """Return a ContainerDevices message for each resource name and device id, on NUMA node 0."""
    near = field(3, field(1, varint(8) + varint(0)))
    return b"".join(field(number, field(1, resource) + field(2, device) + near) for resource, device in rows)


def listed(rows: Iterable[PodDevices]) -> bytes:
    """Return a ListPodResourcesResponse with one pod of one container for each row, also for those without devices."""
    response = b""
    for each in rows:
        container = field(1, "main") + devices(2, ((each.resource, device) for device in each.devices))
        response += field(1, field(1, each.pod) + field(2, each.namespace) + field(3, container))
    return response


def allocatable(rows: Iterable[tuple[str, str]]) -> bytes:
    """Return an AllocatableResourcesResponse with a device for each row (resource name, device id)."""
    return devices(1, rows)


class Kubelet:
    """A gRPC server with one answer for each method. Large answers need window updates, as it obeys flow control."""

    def __init__(
        self, body: Body, trailers: Headers = OK, allocatable: Body | None = None, instead: bytes | None = None
    ) -> None:
        """GetAllocatableResources gets `allocatable`, or the bytes `instead` in place of HTTP/2 frames."""
        self._instead = instead
        self._open: set[asyncio.StreamWriter] = set()
        self._over = False
        self._answers: dict[str, tuple[Body, Headers]] = {
            LIST: (body, trailers),
            ALLOCATABLE: (b"", UNIMPLEMENTED) if allocatable is None else (allocatable, OK),
        }

    def heard(self, request: Mapping[str, str]) -> None:
        """Take the headers of each request; for subclasses."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client hangs up or `hang_up` is called, and close it."""
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
        self._over = True
        for writer in self._open:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    def __init__(self, answers: Mapping[str, tuple[Body, Headers]]) -> None:
        self.http2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.http2.initiate_connection()
        self.headers: dict[str, str] = {}
        self._answers = answers
        self._paths: dict[int, str] = {}
        self._left: dict[int, tuple[bytes, Headers]] = {}
        """The rest of the body that must still be sent, and the trailers that follow it, by stream."""
        self._pinged = False

    def take(self, event: Event) -> str:
        if isinstance(event, RequestReceived):
            self.headers = {str(name): str(value) for name, value in event.headers}
            self._paths[event.stream_id] = self.headers[":path"]
            return self.headers[":path"]
        if isinstance(event, DataReceived):
            self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if not self._pinged:
                self.http2.ping(b"SIMULATE")
                self._pinged = True
        if isinstance(event, PingAckReceived):
            self._pinged = False
        if isinstance(event, StreamEnded):
            body, trailers = self._answers[self._paths.pop(event.stream_id)]
            self._left[event.stream_id] = (body if isinstance(body, bytes) else body(), trailers)
            self.http2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        return ""

    def send(self) -> None:
        """Queue as much of each answer as the flow control windows allow, and the trailers once its body is complete."""
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
    """Return a function that frames these parts as one gRPC message, in another random order at each call."""
    order = random.Random("SIMULATED kubelet")
    return lambda: framed(b"".join(order.sample(parts, len(parts))))


@contextmanager
def serving(socket: Path, holders: Sequence[PodDevices], healthy: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Run a kubelet with these pods and healthy devices in a thread of this process for the length of the block."""
    pods, devices = [listed([row]) for row in holders], [allocatable([row]) for row in healthy]
    kubelet = Kubelet(shuffled(pods), allocatable=shuffled(devices))
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
    await asyncio.sleep(0)  # closing takes one more turn of the loop
