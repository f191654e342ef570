"""hack/realnode: what needs no kubelet; tests/e2e has the rest."""

import json
import ssl
import tarfile
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from hack.cluster import process
from hack.cluster.process import ComponentError
from hack.cluster.toolchain import controlplane_recipe, kubelet_recipe
from hack.nvidia.kubelet import LogServer
from hack.realnode import needs
from hack.realnode.dra import DRIVER_ROOT, write_driver
from hack.realnode.images import ImageFile, OneLayerImage, write_archive
from hack.realnode.machine import wait_entered
from hack.realnode.node import KubeletNode, NodeFiles, containerd_settings, kubelet_settings
from tests.wording import lacks

FILES = NodeFiles(Path("/node"))
IMAGE = OneLayerImage(
    "localhost/tool:1", {"bin/tool": ImageFile(b"program"), "bin/also": ImageFile(link="tool")}, ["/bin/tool"]
)


def test_the_kubelet_is_of_the_version_of_the_control_plane() -> None:
    assert kubelet_recipe().version == controlplane_recipe().version


def test_containerd_takes_the_wrapper_for_the_runtime_class_and_runc_for_the_rest() -> None:
    text = containerd_settings(FILES, Path("/cni"), "localhost/pause:1", {"nvidia": Path("/node/bin/nvidia")})
    told = tomllib.loads(text)["plugins"]
    cri = told["io.containerd.cri.v1.runtime"]
    runtimes = {name: one["options"]["BinaryName"] for name, one in cri["containerd"]["runtimes"].items()}
    assert runtimes == {"runc": "", "nvidia": "/node/bin/nvidia"}
    assert told["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == "localhost/pause:1"


def test_the_kubelet_asks_the_api_server_who_may_call_it() -> None:
    told = yaml.safe_load(kubelet_settings("10.213.0.10", Path("/node/ca.crt"), "/gso-1/gpu-1"))
    assert told["authentication"]["anonymous"] == {"enabled": False}
    assert told["authorization"] == {"mode": "Webhook"}
    assert told["cgroupRoot"] == "/gso-1/gpu-1"


def test_equal_images_give_equal_archives_with_all_their_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    for path in (first, second):
        write_archive(IMAGE, path)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        manifest = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
        layer = archive.extractfile(manifest[0]["Layers"][0])
        with tarfile.open(fileobj=layer) as inner:
            assert {one.name: one.linkname for one in inner if not one.isdir()} == {"bin/also": "tool", "bin/tool": ""}
    assert manifest[0]["RepoTags"] == ["localhost/tool:1"]


def test_a_machine_whose_first_process_ends_at_once_is_told_with_its_last_lines(tmp_path: Path) -> None:
    entered = tmp_path / "entered"
    script = f": > {entered}; echo no overlay; exit 3"  # only builtins: it has no child
    keeper = process.start("machine gpu-1", ["sh", "-c", script], tmp_path / "log")
    with pytest.raises(ComponentError, match=r"machine gpu-1 ended with status 3(.|\n)*no overlay"):
        wait_entered(keeper, entered)
    keeper.stop()


def test_a_kubelet_that_was_killed_is_not_awaited() -> None:
    node: Any = SimpleNamespace(name="gpu-1", _programs={})
    with pytest.raises(ComponentError, match="the kubelet of gpu-1 is not started: call start_kubelet first"):
        KubeletNode.wait_ready(node)


def test_the_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs.missing_packages()[:3] == ["runc", "iptables", "iproute2"]


def test_a_machine_without_the_programs_of_a_real_node_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LEAVE_OUT", "rung3")
    assert needs.main(["--install"]) == 1, "no apt-get is on that PATH"
    said = capsys.readouterr()
    assert said.err.startswith("Rung 4 cannot run: ")
    assert len(said.err.splitlines()) == 1
    monkeypatch.setenv("LEAVE_OUT", "rung4")
    assert needs.main(["--install"]) == 0
    assert not lacks(capsys.readouterr().err, "Rung 4", "LEAVE_OUT=rung4")


@pytest.mark.parametrize(
    ("query", "log"), [("", b"a\nb\n"), ("?tailLines=0", b""), ("?tailLines=1", b"b\n"), ("?tailLines=3", b"a\nb\n")]
)
def test_the_end_of_a_log_has_as_many_lines_as_are_asked_for(tmp_path: Path, query: str, log: bytes) -> None:
    (tmp_path / "log").write_bytes(b"a\nb\n")
    server = LogServer(tmp_path / "pki", lambda name: tmp_path / "log" if name == "llm-1" else None)
    server.start()
    try:
        port = server.status()["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        trust = ssl.create_default_context(cafile=str(tmp_path / "pki/ca.crt"))
        url = f"https://127.0.0.1:{port}/containerLogs/team-a/llm-1/main{query}"
        with urlopen(url, context=trust) as answer:
            assert answer.read() == log
    finally:
        server.stop()


def test_the_driver_of_a_node_can_be_written_again(tmp_path: Path) -> None:
    """The device files are there from the beginning, because only root can make them."""
    root = tmp_path / DRIVER_ROOT.lstrip("/")
    (root / "dev").mkdir(parents=True)
    for name in ("nvidiactl", "nvidia0"):
        (root / "dev" / name).touch()
    shown = {"driver": "580.95.05", "gpus": [{"index": 0}]}
    node: Any = SimpleNamespace(
        gpus=SimpleNamespace(simulator=SimpleNamespace(show=lambda: shown)),
        machine=SimpleNamespace(path=lambda inside: tmp_path / inside.lstrip("/")),
    )
    for _ in range(2):
        write_driver(node)
        library = root / "usr/lib64/libnvidia-ml.so.1"
        assert library.resolve().name == "libnvidia-ml.so.580.95.05"
        assert (root / "usr/bin/nvidia-smi").stat().st_size > 0
