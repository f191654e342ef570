"""The agent's client against grpc-go, in which a kubelet serves its podresources."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hack.cluster.process import wait_until
from hack.nvidia import build

from gpusharing.agent.kubelet import KubeletPodResources
from gpusharing.agent.podresources import PodResourcesUnavailable

pytestmark = pytest.mark.nvidia
SECONDS = 60.0


class Stub:
    """`kubeletstub`: podresources List of what a file says; it does not implement GetAllocatableResources."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket, self._file = folder, folder / "podresources.sock", folder / "held.json"
        self._process: subprocess.Popen[bytes] | None = None

    def tell(self, devices: Sequence[str]) -> None:
        row = {"namespace": "a", "name": "train", "resource": "nvidia.com/gpu", "ids": list(devices)}
        swap = self._file.with_suffix(".new")
        swap.write_text(json.dumps([row]))
        swap.rename(self._file)

    @contextmanager
    def running(self) -> Iterator[None]:
        """From its start to its death by SIGKILL, which leaves the socket behind; a kubelet that begins removes it."""
        for path in (self.socket, self.folder / "kubelet.sock"):
            path.unlink(missing_ok=True)
        command = [build.program("kubeletstub"), self.folder, self.socket, self._file]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as self._process:
            try:
                wait_until(self._listens, SECONDS, "kubeletstub to listen")
                yield
            finally:
                self._process.kill()

    def _listens(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(self.socket))
            return True
        return False

    @property
    def files(self) -> int:
        assert self._process is not None
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


async def test_grpc_go_is_asked_turn_after_turn_and_again_when_it_is_back(
    nvidia_programs: None, tmp_path: Path
) -> None:
    stub = Stub(tmp_path)
    with closing(KubeletPodResources(stub.socket, timeout=SECONDS, allocatable_timeout=SECONDS)) as client:

        async def told(devices: Sequence[str]) -> bool:
            stub.tell(devices)
            holdings = await client.read()
            assert holdings.allocatable is None, "it says that it does not implement that"
            return [held.devices for held in holdings.by_pod] == [tuple(sorted(devices))]

        with stub.running():
            assert await told(["GPU-0"])
            files = stub.files
            for number in range(300):
                assert await told([f"GPU-{number}"])
            assert await told([f"GPU-{number}-{'x' * 500}" for number in range(4000)]), "2 MB, in many frames"
            assert stub.files <= files, "and none is left behind"
        with pytest.raises(PodResourcesUnavailable, match="cannot reach the kubelet"):
            await client.read()
        with stub.running():
            assert await told(["GPU-1"])
        with stub.running():
            assert await told(["GPU-2"]), "nobody asked while it was away"
