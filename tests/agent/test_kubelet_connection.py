"""One connection to the kubelet stays open; whatever happens to it, the turn in which that shows has its answer."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hack.sim.kubeletsocket import allocatable, framed, listed
from tests.agent.test_kubelet import Kubelet, serving
from tests.fakes.virtualtime import virtually

from gpusharing.agent.kubelet import KubeletPodResources
from gpusharing.agent.podresources import PodDevices, PodResourcesUnavailable

PATIENCE = 60.0


def holding(*pods: str) -> bytes:
    return framed(listed(PodDevices("default", pod, "nvidia.com/gpu", (f"GPU-{pod}",)) for pod in pods))


def offering(*devices: str) -> bytes:
    return framed(allocatable(("nvidia.com/gpu", device) for device in devices))


class Node:
    def __init__(self, folder: Path) -> None:
        self.socket = folder / "kubelet.sock"
        self.client = KubeletPodResources(self.socket, timeout=PATIENCE, allocatable_timeout=PATIENCE)
        self.pods: Sequence[str] = ("a",)
        self.devices: Sequence[str] = ("GPU-a", "GPU-b")
        self.kubelet = self._new()
        self._server: asyncio.Server | None = None

    def _new(self) -> Kubelet:
        return Kubelet(lambda: holding(*self.pods), allocatable=lambda: offering(*self.devices))

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.kubelet = self._new()
        self._server = await asyncio.start_unix_server(self.kubelet.serve, self.socket)

    async def end(self) -> None:
        """A kubelet that ends closes what is open, and leaves its socket behind."""
        self.kubelet.hang_up()
        await asyncio.gather(*self.kubelet.connections)
        self.forsake()

    def forsake(self) -> None:
        assert self._server is not None
        self._server.close()

    async def told(self) -> tuple[list[str], int]:
        found = await self.client.read()
        return [held.pod for held in found.by_pod], len(found.allocatable or ())

    @property
    def connections(self) -> int:
        return len(self.kubelet.connections)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Node]:
    node = Node(folder)
    await node.start()
    with closing(node.client):
        yield node
    await node.end()


async def test_all_calls_go_over_one_connection_and_a_change_is_seen_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert await node.told() == (["a"], 2)
        node.pods = ("a", "b")
        assert await node.told() == (["a", "b"], 2)
        node.devices = ("GPU-a",)  # the other one is unhealthy
        assert await node.told() == (["a", "b"], 1)
        node.pods = ()
        assert await node.told() == ([], 1)
        assert node.connections == 1
        assert len(node.kubelet.requests) == 8


async def test_what_stays_the_same_is_the_same_object(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        node.pods = ("a", "b")
        first = await node.client.read()
        node.pods, node.devices = ("b", "a"), ("GPU-b", "GPU-a")
        assert await node.client.read() is first, "the order is the kubelet's whim"


async def test_a_kubelet_that_was_restarted_between_two_turns_answers_the_next_one(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert await node.told() == (["a"], 2)
        await node.end()
        node.pods = ("b",)
        await node.start()
        assert await node.told() == (["b"], 2)


async def test_a_socket_that_was_replaced_is_followed_although_the_old_one_still_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert await node.told() == (["a"], 2)
        old = node.kubelet
        node.forsake()
        await node.start()
        assert await node.told() == (["a"], 2)
        assert (node.connections, len(old.requests), len(node.kubelet.requests)) == (1, 2, 2)
        await asyncio.gather(*old.connections)


async def test_a_socket_that_vanished_is_missed_although_the_old_one_still_answers(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert await node.told() == (["a"], 2)
        node.socket.unlink()
        with pytest.raises(PodResourcesUnavailable, match=r"kubelet socket .* does not exist"):
            await node.told()
        old = node.kubelet
        node.forsake()
        await node.start()
        assert await node.told() == (["a"], 2)
        await asyncio.gather(*old.connections)


async def test_a_kubelet_that_is_away_is_named_and_asked_anew_when_it_is_back(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert await node.told() == (["a"], 2)
        await node.end()
        with pytest.raises(PodResourcesUnavailable, match=r"cannot reach the kubelet|kubelet socket .* does not exist"):
            await node.told()
        await node.start()
        assert await node.told() == (["a"], 2)


PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)


class Talkative(Kubelet):
    agent: asyncio.StreamWriter

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.agent = writer
        await super().serve(reader, writer)


@virtually
async def test_a_ping_between_two_turns_is_answered_over_the_connection_that_stays_open(tmp_path: Path) -> None:
    kubelet = Talkative(holding("a"), allocatable=offering("GPU-a"))
    async with serving(tmp_path, kubelet) as client:
        first = await client.read()
        kubelet.agent.write(PING)
        await asyncio.sleep(1)
        assert await client.read() is first
    assert len(kubelet.connections) == 1


async def test_after_a_thousand_turns_the_next_one_has_a_connection_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        for _ in range(1000):
            await node.told()
        assert node.connections == 1
        assert await node.told() == (["a"], 2)
        assert node.connections == 2


LAST_OF_A_CALL = b"\x00\x00\x05\x00\x01"
"""A frame of type DATA with five bytes and END_STREAM: the empty message."""


class Fickle(Kubelet):
    """Ends its first connection in the way it is told, when it is asked a second time over it."""

    def __init__(self, last_words: bytes) -> None:
        super().__init__(holding("a"), allocatable=offering("GPU-a"))
        self.last_words = last_words

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections:
            await super().serve(reader, writer)
            return
        inner = asyncio.StreamReader()
        serving = asyncio.create_task(super().serve(inner, writer))
        calls = 0
        while data := await reader.read(65536):
            calls += data.count(LAST_OF_A_CALL)
            if calls > 2:  # the second turn's
                break
            inner.feed_data(data)
        writer.write(self.last_words)
        inner.feed_eof()
        await serving


@pytest.mark.parametrize(
    "last_words",
    [
        b"",
        b"not HTTP/2 any more",
        b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8),
        b"\x00\x00\x04\x03\x00\x00\x00\x00\x05\x00\x00\x00\x07\x00\x00\x04\x03\x00\x00\x00\x00\x07\x00\x00\x00\x07",
    ],
    ids=["it hangs up", "it babbles", "it goes away (GOAWAY)", "it refuses both streams (RST_STREAM)"],
)
async def test_who_is_let_down_in_the_middle_of_a_call_asks_anew_in_the_same_turn(
    tmp_path: Path, last_words: bytes
) -> None:
    kubelet = Fickle(last_words)
    async with serving(tmp_path, kubelet) as client:
        first = await client.read()
        assert await client.read() is first
    assert len(kubelet.connections) == 2


async def test_after_a_turn_that_was_given_up_the_next_one_begins_anew(tmp_path: Path) -> None:
    kubelet = Kubelet(holding("a"), instead=b"")
    async with serving(tmp_path, kubelet, allocatable_timeout=0.01) as client:
        for _ in range(2):
            assert (await client.read()).allocatable is None
    assert len(kubelet.connections) == 2


async def test_hundreds_of_turns_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await turns(node, 50)
        tracemalloc.start()
        try:
            await turns(node, 50)
            before = _held_by_agent()
            await turns(node, 200)
            grown = _held_by_agent() - before
        finally:
            tracemalloc.stop()
        assert node.connections == 1
    assert grown < 4096, "not 21 bytes a turn, less than any object"


async def turns(node: Node, count: int) -> None:
    for number in range(count):
        node.pods = [f"pod-{number % 50}", f"pod-{number % 7}x"]
        node.devices = [f"GPU-{number % 30}"]
        assert await node.told() == (sorted(node.pods), 1)
    node.kubelet.requests.clear()


def _held_by_agent() -> int:
    """Bytes that the agent's own modules and hpack hold; the stand-in's h2 remembers its streams."""
    gc.collect()
    kept = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(True, "*/gpusharing/agent/*"), tracemalloc.Filter(True, "*/hpack/*")]
    )
    return sum(statistic.size for statistic in kept.statistics("filename"))
