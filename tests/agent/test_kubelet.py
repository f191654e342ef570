"""The podresources client against a server that speaks HTTP/2 and gRPC on a unix socket, and which pod holds which GPU."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hack.sim import kubeletsocket
from hack.sim.kubeletsocket import allocatable, field, framed, listed, varint
from tests.fakes.virtualtime import virtually

from gpusharing.agent.kubelet import ALLOCATABLE, LIST, KubeletPodResources
from gpusharing.agent.library import GPU, Instance
from gpusharing.agent.podresources import Holdings, HoldingsDecoder, PodDevices, PodResourcesUnavailable, find_holders
from gpusharing.agent.processes import pod_uids
from gpusharing.api.gpunode import MAX_HOLDERS
from gpusharing.planning.gpus.texts import read_holders, write_holders


def pod(name: str, *devices: tuple[str, Iterable[str]]) -> bytes:
    """PodResources of one pod with one container; with a CPU id and a topology, which are to be skipped."""
    held = b"".join(
        field(2, field(1, resource) + b"".join(field(2, i) for i in ids) + field(3, field(1, varint(8) + b"\x01")))
        for resource, ids in devices
    )
    container = field(1, "main") + held + b"\x18\x07"  # cpu_ids: a varint field
    return field(1, field(1, name) + field(2, "default") + field(3, container))


RESPONSE = b"".join(
    [
        pod("train", ("nvidia.com/mig-3g.40gb", ["MIG-1", "MIG-2"])),
        pod("shared", ("nvidia.com/gpu", ["GPU-1::0"]), ("example.com/nic", ["eth1"])),
        pod("web", ("example.com/nic", ["eth2"])),
        pod("finished"),  # as kubelets before 1.34 list it: without the devices that it held
        pod("shared-2", ("nvidia.com/gpu", ["GPU-1::1"])),
    ]
)
HELD = Holdings(
    {"nvidia.com/gpu": 2, "nvidia.com/mig-3g.40gb": 2},
    3,
    (
        PodDevices("default", "shared", "nvidia.com/gpu", ("GPU-1::0",)),
        PodDevices("default", "shared-2", "nvidia.com/gpu", ("GPU-1::1",)),
        PodDevices("default", "train", "nvidia.com/mig-3g.40gb", ("MIG-1", "MIG-2")),
    ),
)
OFFERED = b"".join(
    field(1, field(1, resource) + b"".join(field(2, i) for i in ids))
    for resource, ids in (("nvidia.com/gpu", ["GPU-1::0", "GPU-1::1", "GPU-1::2"]), ("example.com/nic", ["eth1"]))
)


class Kubelet(kubeletsocket.Kubelet):
    def __init__(
        self,
        body: kubeletsocket.Body,
        trailers: kubeletsocket.Headers = kubeletsocket.OK,
        allocatable: kubeletsocket.Body | None = None,
        instead: bytes | None = None,
    ) -> None:
        super().__init__(body, trailers, allocatable, instead)
        self.requests: list[Mapping[str, str]] = []
        self.connections: list[asyncio.Task[object]] = []

    def heard(self, request: Mapping[str, str]) -> None:
        self.requests.append(request)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.append(task)
        await super().serve(reader, writer)


@asynccontextmanager
async def serving(
    tmp_path: Path, kubelet: Kubelet, allocatable_timeout: float = 60.0
) -> AsyncIterator[KubeletPodResources]:
    path = tmp_path / "kubelet.sock"
    async with await asyncio.start_unix_server(kubelet.serve, path):
        client = KubeletPodResources(path, timeout=60.0, allocatable_timeout=allocatable_timeout)
        with closing(client):
            yield client
        await asyncio.gather(*kubelet.connections)


async def test_devices_and_pods_are_counted(tmp_path: Path) -> None:
    kubelet = Kubelet(framed(RESPONSE))
    async with serving(tmp_path, kubelet) as client:
        assert await client.read() == HELD
        assert await client.read() == HELD
    assert [request[":path"] for request in kubelet.requests] == 2 * [LIST, ALLOCATABLE]
    assert {request["content-type"] for request in kubelet.requests} == {"application/grpc"}


async def test_what_there_is_to_hold_is_told_device_by_device(tmp_path: Path) -> None:
    async with serving(tmp_path, Kubelet(framed(RESPONSE), allocatable=framed(OFFERED))) as client:
        offered = (await client.read()).allocatable
    assert offered == tuple(("nvidia.com/gpu", f"GPU-1::{number}") for number in range(3))


@pytest.mark.parametrize(
    ("kubelet", "allocatable_timeout"),
    [
        (Kubelet(framed(RESPONSE), instead=b""), 0.5),
        (Kubelet(framed(RESPONSE), allocatable=framed(b"\x0b")), 60.0),
        (Kubelet(framed(RESPONSE), allocatable=b"\x00"), 60.0),
    ],
    ids=["never comes", "is no protobuf", "is cut short"],
)
async def test_who_holds_what_is_known_also_where_the_answer_on_what_there_is(
    tmp_path: Path, kubelet: Kubelet, allocatable_timeout: float
) -> None:
    async with serving(tmp_path, kubelet, allocatable_timeout) as client:
        assert await client.read() == HELD


async def test_a_connection_that_breaks_off_into_something_else_proves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, Kubelet(framed(RESPONSE), instead=bytes(9))) as client:
        with pytest.raises(PodResourcesUnavailable, match="cannot parse"):
            await client.read()


async def test_the_stand_in_is_asked_from_a_thread_as_a_kubelet_is(tmp_path: Path) -> None:
    held = (PodDevices("a", "train", "nvidia.com/gpu", ("GPU-1", "GPU-2")), PodDevices("a", "web", "", ()))
    offered = tuple(("nvidia.com/gpu", f"GPU-{number}") for number in range(3))
    with kubeletsocket.serving(tmp_path / "kubelet.sock", held, offered):
        client = KubeletPodResources(tmp_path / "kubelet.sock", timeout=60, allocatable_timeout=60)
        with closing(client):
            told = await client.read()
            assert await client.read() is told, "in another order it says the same"
    assert told == Holdings({"nvidia.com/gpu": 2}, 1, held[:1], offered)
    assert HoldingsDecoder().decode(listed(held), allocatable(offered)) == told


def test_a_stand_in_without_a_place_for_its_socket_says_so(tmp_path: Path) -> None:
    socket = tmp_path / "nowhere" / "kubelet.sock"
    with pytest.raises(OSError, match="No such file"), kubeletsocket.serving(socket, (), ()):
        pass


async def test_an_answer_larger_than_the_flow_control_window_arrives_whole(tmp_path: Path) -> None:
    many = b"".join(pod(f"pod-{n}", ("nvidia.com/gpu", [f"GPU-{n}-{'x' * 500}"])) for n in range(1000))
    assert len(many) > 500_000
    async with serving(tmp_path, Kubelet(framed(many))) as client:
        told = await client.read()
    assert (told.allocated, told.pods, len(told.by_pod)) == ({"nvidia.com/gpu": 1000}, 1000, 1000)


async def test_no_pods_hold_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, Kubelet(framed(b""))) as client:
        assert await client.read() == Holdings({}, 0)


async def test_a_refusal_names_the_grpc_status_and_message(tmp_path: Path) -> None:
    refused = [("grpc-status", "8"), ("grpc-message", "rejected by rate limit%21")]
    async with serving(tmp_path, Kubelet(b"", refused)) as client:
        with pytest.raises(PodResourcesUnavailable, match="gRPC status 8, rejected by rate limit!"):
            await client.read()


async def test_an_absent_socket_says_what_to_mount(tmp_path: Path) -> None:
    with pytest.raises(PodResourcesUnavailable, match=r"kubelet socket .* does not exist; mount its directory"):
        await KubeletPodResources(tmp_path / "kubelet.sock").read()


@virtually
async def test_a_turn_waits_two_seconds_for_what_there_is_to_hold_and_five_for_who_holds_what(tmp_path: Path) -> None:
    kubelet, path = Kubelet(framed(RESPONSE), instead=b""), tmp_path / "kubelet.sock"
    clock = asyncio.get_running_loop().time
    async with await asyncio.start_unix_server(kubelet.serve, path):
        begun = clock()
        assert await KubeletPodResources(path).read() == HELD
        assert clock() - begun == pytest.approx(2.0)
        kubelet.hang_up()
        await asyncio.gather(*kubelet.connections)
    path.unlink(missing_ok=True)
    hold = asyncio.Event()

    async def stay_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()
        writer.close()

    async with await asyncio.start_unix_server(stay_silent, path):
        begun = clock()
        with pytest.raises(PodResourcesUnavailable, match="did not respond"):
            await KubeletPodResources(path).read()
        assert clock() - begun == pytest.approx(5.0)
        hold.set()


RESET = b"\x00\x00\x04\x03\x00\x00\x00\x00"
"""A frame of type RST_STREAM, but for the last byte of its stream and its error."""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ": invalid HTTP/2"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", "cannot parse"),
        (RESET + b"\x01\x00\x00\x00\x07" + RESET + b"\x03\x00\x00\x00\x07", ": the call ended without a gRPC status"),
        (b"", "cannot reach the kubelet .* closed the connection before it responded"),
    ],
    ids=["an HTTP/1 server", "a DATA frame outside of any stream", "it refuses both streams", "it hangs up"],
)
async def test_a_server_that_speaks_something_else_is_no_kubelet(tmp_path: Path, answer: bytes, reason: str) -> None:
    path = tmp_path / "kubelet.sock"

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(speak, path):
        with pytest.raises(PodResourcesUnavailable, match=reason):
            await KubeletPodResources(path).read()


@pytest.mark.parametrize(
    "broken",
    [RESPONSE[:-1], b"\x0a", b"\x0b", b"\xff" * 11, b"\x08" + b"\xff" * 10 + b"\x01"],
    ids=[
        "cut short",
        "length missing",
        "a group, which proto3 does not have",
        "an endless varint",
        "a varint of more than 64 bits",
    ],
)
def test_a_malformed_answer_is_an_error_and_not_a_count(broken: bytes) -> None:
    with pytest.raises(ValueError, match="protobuf"):
        HoldingsDecoder().decode(broken)


HALF = "nvidia.com/mig-3g.40gb"
UIDS = {("team-a", "llm-0"): "uid-0", ("team-a", "llm-1"): "uid-1"}


def gpu(index: int) -> GPU:
    instances = tuple(Instance("3g.40gb", 4 * slot, 4, slot, f"MIG-{index}-{slot}") for slot in range(2))
    return GPU(index, f"GPU-{index}", "NVIDIA H100 80GB HBM3", "Enabled", "Enabled", "Default", instances, ())


def holders(*rows: PodDevices) -> list[tuple[str, str, tuple[int, ...]]]:
    found = find_holders(Holdings(by_pod=rows), [gpu(0), gpu(1)], UIDS)
    assert found is not None
    return sorted(one[:3] for one in read_holders(found))


def row(pod: str, *devices: str, resource: str = HALF) -> PodDevices:
    return PodDevices("team-a", pod, resource, devices)


def test_a_pod_is_reported_with_its_uid_and_the_gpus_of_all_its_devices() -> None:
    assert holders(row("llm-0", "MIG-0-1"), row("llm-1", "MIG-0-0", "MIG-1-1")) == [
        ("team-a/llm-0", "uid-0", (0,)),
        ("team-a/llm-1", "uid-1", (0, 1)),
    ]


@pytest.mark.parametrize(
    ("case", "rows"),
    [
        ("a device that NVML does not show", [row("llm-0", "MIG-0-1", "MIG-gone")]),
        ("two pods of one name, of which one was deleted by force", [row("llm-0", "MIG-0-0"), row("llm-0", "MIG-1-0")]),
    ],
)
def test_what_cannot_be_told_for_certain_has_no_gpus(case: str, rows: list[PodDevices]) -> None:
    assert holders(*rows) == [("team-a/llm-0", "uid-0", ())], case


def test_devices_that_are_no_gpus_do_not_count() -> None:
    rows = (row("llm-0", "MIG-0-1"), row("llm-0", "0000:3b:00.2", resource="nvidia.com/hostdev"))
    assert holders(*rows) == [("team-a/llm-0", "uid-0", (0,))]
    assert holders(row("net", "0000:3b:00.2", resource="nvidia.com/hostdev")) == []


def test_other_devices_give_another_digest_and_another_order_does_not() -> None:
    digests = [
        next(read_holders(found))[3]
        for ids in (("MIG-0-0", "MIG-0-1"), ("MIG-0-1", "MIG-0-0"), ("MIG-0-0", "MIG-1-1"))
        if (found := find_holders(Holdings(by_pod=(row("llm-0", *ids),)), [gpu(0), gpu(1)], UIDS))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_too_many_pods_share_devices_to_be_reported() -> None:
    rows = tuple(row(f"llm-{number}", "MIG-0-0") for number in range(MAX_HOLDERS + 1))
    assert find_holders(Holdings(by_pod=rows), [gpu(0)], UIDS) is None


def test_the_uid_of_a_pod_is_known_only_while_one_folder_has_its_name(tmp_path: Path) -> None:
    for folder in ("team-a_llm-0_u0", "team-a_llm-1_u1", "team-a_llm-1_u2", "no-pod", "a_b_c_d"):
        (tmp_path / folder).mkdir()
    assert pod_uids(tmp_path) == {("team-a", "llm-0"): "u0"}
    assert pod_uids(tmp_path / "missing") == {}


@pytest.mark.parametrize("gpus", [(), (0,), (0, 1, 2, 5)])
@pytest.mark.parametrize("uid", ["", "5f0c2a4e"])
def test_a_line_is_read_as_it_was_written(gpus: tuple[int, ...], uid: str) -> None:
    rows = [(f"team-a/llm-{number}", uid, gpus, "0123456789ab") for number in range(3)]
    assert list(read_holders(write_holders(rows))) == rows


def test_a_line_of_another_form_tells_no_gpu() -> None:
    assert list(read_holders("nonsense")) == [("nonsense", "", (), "")]


def test_a_line_with_other_blanks_is_read_as_it_stands() -> None:
    assert list(read_holders("3 a\tb/c uid 0123456789ab")) == [("a\tb/c", "uid", (3,), "0123456789ab")]
