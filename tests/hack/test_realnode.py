"""hack/realnode: what needs no kubelet, and what containers and pods get of the GPUs; tests/e2e has the rest."""

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
from hack.cluster.api import Object
from hack.cluster.process import ComponentError
from hack.cluster.toolchain import controlplane_recipe, kubelet_recipe
from hack.nvidia import kubelet
from hack.nvidia.kubelet import LogServer
from hack.nvmlsim.simulator import MachineDevice, machine_devices
from hack.realnode import needs
from hack.realnode.dra import DRIVER_ROOT, write_driver
from hack.realnode.grants import Grant, GrantRefused, find_grant, find_injected
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


SHOWN: Object = {
    "gpus": [
        {"index": 0, "uuid": "GPU-a", "instances": []},
        {"index": 1, "uuid": "GPU-b", "instances": [{"id": 2, "compute": [{"id": 0, "uuid": "MIG-c"}]}]},
    ]
}
ACCESS = ("gpu1/mig/gi2/access", "gpu1/mig/gi2/ci0/access")
DEVICES = machine_devices(SHOWN)


def container(privileged: bool = False, **environ: str) -> Object:
    held = ["CAP_CHOWN", "CAP_SYS_ADMIN"] if privileged else ["CAP_CHOWN"]
    env = [f"NVIDIA_{name.upper()}={value}" for name, value in environ.items()]
    return {"process": {"env": ["PATH=/bin", *env], "capabilities": {"bounding": held}}}


CASES = [
    pytest.param(container(), None, id="a container that names no devices gets no driver"),
    pytest.param(container(visible_devices="void"), None, id="void is no driver, too"),
    pytest.param(container(visible_devices="none"), Grant(True, (), (), ()), id="none is the library without a GPU"),
    pytest.param(
        container(visible_devices="all"), Grant(True, (0, 1), ACCESS, ()), id="all is every GPU and MIG device"
    ),
    pytest.param(
        container(visible_devices="1", driver_capabilities="compute"),
        Grant(False, (1,), (), (MachineDevice(1, "GPU-b"),)),
        id="without utility there is no NVML",
    ),
    pytest.param(
        container(visible_devices="GPU-a,MIG-c"),
        Grant(True, (0, 1), ACCESS, (MachineDevice(0, "GPU-a"), MachineDevice(1, "MIG-c", (2, 0)))),
        id="named devices are those it computes on",
    ),
    pytest.param(
        container(True, visible_devices="none", mig_config_devices="all", mig_monitor_devices="all"),
        Grant(True, (), ("mig/config", "mig/monitor"), ()),
        id="a privileged container gets the rights over MIG that it asks for",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), CASES)
def test_a_container_gets_what_its_variables_name(spec: Object, expected: Grant | None) -> None:
    assert find_grant(spec, DEVICES) == expected


def test_rights_over_mig_are_refused_to_a_container_that_is_not_privileged() -> None:
    with pytest.raises(GrantRefused, match="cannot set MIG_MONITOR_DEVICES in non privileged container"):
        find_grant(container(visible_devices="all", mig_monitor_devices="all"), DEVICES)


def test_a_device_that_is_gone_is_refused_by_name() -> None:
    with pytest.raises(GrantRefused, match="unknown device MIG-gone: this machine has GPU-a, GPU-b, MIG-c"):
        find_grant(container(visible_devices="MIG-gone"), DEVICES)


def injected(*files: str) -> Object:
    return {"linux": {"devices": [{"path": path} for path in files]}}


INJECTED = [
    pytest.param(injected("/dev/null", "/dev/nvidiactl"), (), id="files of no device"),
    pytest.param(injected("/dev/nvidia0"), (DEVICES[0],), id="a whole GPU by its own file"),
    pytest.param(
        injected("/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap156", "/dev/nvidia-caps/nvidia-cap157"),
        (DEVICES[2],),
        id="a MIG device by the files of both of its instances, and not its GPU",
    ),
    pytest.param(
        injected("/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap156"),
        (),
        id="one of two files is no MIG device, and no whole GPU",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), INJECTED)
def test_a_container_uses_the_devices_whose_files_a_cdi_specification_adds(
    spec: Object, expected: tuple[MachineDevice, ...]
) -> None:
    assert find_injected(spec, DEVICES) == expected


HALF = "nvidia.com/mig-3g.40gb"


class Api:
    def __init__(self) -> None:
        self.patches: dict[str, dict[str, Any]] = {}

    def merge_patch(self, path: str, patch: dict[str, Any]) -> None:
        self.patches[path] = patch


def pod(name: str, count: int) -> dict[str, Any]:
    container = {"name": "main", "resources": {"limits": {HALF: str(count)}}}
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}"},
        "spec": {"containers": [container]},
        "status": {"phase": "Running"},
    }


def test_a_pod_for_which_too_few_devices_are_free_is_refused_and_holds_none(tmp_path: Path) -> None:
    instances = [{"id": number, "compute": [{"id": 0, "uuid": f"MIG-{number}"}]} for number in range(2)]
    shown = {"gpus": [{"index": 0, "uuid": "GPU-0", "instances": instances}]}
    simulator = SimpleNamespace(show=lambda: shown, add_process=lambda *_, **__: None)
    sandbox: Any = SimpleNamespace(simulator=simulator, folder=tmp_path, proc=None)
    api: Any = Api()
    manager = kubelet.DeviceManager(api, "gpu-1", sandbox)
    (tmp_path / "kubelet.log").write_text(json.dumps({"resource": HALF, "healthy": ["MIG-0", "MIG-1"]}) + "\n")
    served = pod("served", 1)  # by a DRA driver
    served["status"]["extendedResourceClaimStatus"] = {"requestMappings": [{"resourceName": HALF}]}
    manager.look([pod("first", 1), pod("large", 2), pod("second", 1), pod("third", 1), served])
    held = {row["name"]: row["ids"] for row in json.loads((tmp_path / "podresources.json").read_text())}
    assert {name: ids for name, ids in held.items() if ids} == {"first": ["MIG-0"], "second": ["MIG-1"]}
    refused = {path.split("/")[-2]: patch["status"] for path, patch in api.patches.items() if "/pods/" in path}
    assert {name: status["reason"] for name, status in refused.items()} == {
        "large": "UnexpectedAdmissionError",
        "third": "UnexpectedAdmissionError",
    }
    assert f"unavailable for {HALF}. Requested: 2, Available: 1" in refused["large"]["message"]
