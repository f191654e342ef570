"""A node with a real kubelet and a real containerd, beside a control plane of hack/cluster.

with bridge() as network, ControlPlane(options=options(network, ["gpu-1"])) as plane:
    with KubeletNode(plane, network, "gpu-1", 0) as node:
        node.load(pause_image())
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import yaml

from hack.cache import cache_root, private_directory
from hack.cluster import toolchain
from hack.cluster.api import ApiError
from hack.cluster.certs import SERVICE_ADDRESS
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.nodes import wait_nodes_ready
from hack.cluster.process import Component, ComponentError, pid_exists, tail, wait_until
from hack.nvidia.sandbox import mig_minors, write_devices
from hack.nvmlsim.simulator import Simulator, cap_minors
from hack.realnode import cgroups, images, runtime
from hack.realnode.images import OneLayerImage
from hack.realnode.machine import Machine
from hack.realnode.needs import cni_folder
from hack.realnode.network import Bridge, service_route

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
RUNTIME_CLASS = "nvidia"


class NodeFiles:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.containerd_config = folder / "containerd.toml"
        self.cni = folder / "cni"
        self.kubelet_config = folder / "kubelet.yaml"
        self.ca = folder / "ca.crt"
        """The authority that signs the certificates of the kubelet's clients."""
        self.kubeconfig = folder / "kubeconfig"
        self.registries = folder / "registries"
        """The folder in which containerd looks for a folder with the settings of a registry."""
        self.images = folder / "images"
        """The folder for archives while containerd imports them."""


def containerd_settings(files: NodeFiles, cni_plugins: Path, pause_image: str, runtimes: Mapping[str, Path]) -> str:
    quoted = json.dumps  # TOML's basic strings are JSON's
    cri = '[plugins."io.containerd.cri.v1.'
    runtime = f'{cri}runtime"'
    handlers = [
        f"{runtime}.containerd.runtimes.{name}]\n"
        'runtime_type = "io.containerd.runc.v2"\n'
        f"{runtime}.containerd.runtimes.{name}.options]\n"
        f"BinaryName = {quoted(str(program))}\n"
        for name, program in {"runc": "", **runtimes}.items()
    ]
    return "\n".join(
        (
            "version = 3",
            f"root = {quoted(str(files.folder / 'containerd'))}",
            'state = "/run/containerd"',
            f"[grpc]\naddress = {quoted(CONTAINERD_SOCKET)}",
            f'{cri}images".pinned_images]\nsandbox = {quoted(pause_image)}',
            f'{cri}images".registry]\nconfig_path = {quoted(str(files.registries))}',
            f"{runtime}]",
            # In a user namespace, the kernel refuses an OOM score below our own.
            "restrict_oom_score_adj = true",
            "disable_apparmor = true",
            # DRA drivers write CDI specifications to one of the default folders, /var/run/cdi.
            "enable_cdi = true",
            f"{runtime}.cni]\nbin_dirs = [{quoted(str(cni_plugins))}]\nconf_dir = {quoted(str(files.cni))}",
            *handlers,
        )
    )


def cni_settings(files: NodeFiles, number: int) -> str:
    """Return the configuration file of the pods' network: a bridge inside the node."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.244.{number}.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(files.folder / "cni-addresses"),
        },
    }
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}, indent=2)


def kubelet_settings(address: str, ca: Path, cgroup: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(ca)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            # The disk is the computer's, so that a full one must neither evict pods nor delete images.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            # A released image is the imported one under another name. Once it was pulled, the kubelet would insist on
            # pulling it under its imported name too, which no registry has.
            "imagePullCredentialsVerificationPolicy": "NeverVerify",
            "resolvConf": "",
            "syncFrequency": "2s",
        }
    )


class NodeGpus:
    """A simulated machine with GPUs, whose driver checks rights against a node's namespaces."""

    def __init__(self, folder: Path, node: str, models: Sequence[str]) -> None:
        self.simulator = Simulator.create(runtime.state_file(folder), models, seed=node)
        self.simulator.path.chmod(0o666)  # every user of the library writes to it
        gpus = self.simulator.show()["gpus"]
        write_devices(folder / "shown" / "pci", gpus)
        _write_driver_entries(folder / "shown" / "driver", len(gpus))
        self.runtime = runtime.write_runtime(folder)

    def enter(self, machine: Machine) -> None:
        """Make the simulated driver check rights as on this machine."""
        self.simulator.set_machine(
            pid_namespace=machine.namespace("pid"), capabilities=runtime.CAPABILITIES, devices=runtime.DEV
        )


def _write_driver_entries(folder: Path, gpus: int) -> None:
    """Write what /proc/driver has about MIG. SIMULATED: a real driver has the files of existing instances only. Rights
    are checked at runtime.CAPABILITIES."""
    (folder / "nvidia-caps").mkdir(parents=True)
    (folder / "nvidia-caps" / "mig-minors").write_text(mig_minors(gpus))
    for name, minor in cap_minors(gpus).items():
        file = folder / "nvidia" / "capabilities" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")


CONTAINERD_SECONDS = 120.0
NODE_SECONDS = 180.0


def options(network: Bridge, nodes: Sequence[str], *, audit: bool = False) -> Options:
    """Return the options of a control plane without kwok, all of whose nodes have real kubelets."""
    return Options(kwok=False, audit=audit, address=network.address, kubelets=tuple(nodes))


REPORT_POLL = 0.5
"""Seconds between two reads of a kubelet's heartbeat, and at least between two starts of one that ends at once."""


class KubeletNode:
    def __init__(
        self,
        plane: ControlPlane,
        network: Bridge,
        name: str,
        number: int,
        *,
        labels: Mapping[str, str] | None = None,
        models: Sequence[str] = (),
    ) -> None:
        self.plane, self.name, self.number = plane, name, number
        self._labels = dict(labels or {})
        cgroups.sweep()
        root = sweep()
        self.folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{os.getpid()}-{name}-"))
        self.files = NodeFiles(self.folder)
        self.machine = Machine(name, self.folder, network, number)
        self.gpus = NodeGpus(self.folder / "gpus", name, models) if models else None
        self._programs: dict[str, Component] = {}
        self._heartbeat = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.boot()
        self.load(images.pause_image())
        self.start_kubelet()
        self.wait_ready()

    def boot(self) -> None:
        """Start the machine, write the files of `_write_files`, and start containerd, but no kubelet."""
        self.machine.start()
        if self.gpus is not None:
            self.gpus.enter(self.machine)
        self._write_files()
        server = urlsplit(self.plane.url).netloc
        for command in service_route(SERVICE_ADDRESS, server):
            self.machine.run(*command)
        self.start_containerd()

    def stop(self) -> None:
        """Kill everything that runs on the node and remove its files."""
        self.machine.stop()
        for program in self._programs.values():
            program.stop(kill=True)
        self._programs.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def power_off(self) -> None:
        """End everything on the node at once, as if it lost power: /run is lost, and the disk stays."""
        self.machine.stop()
        for program in self._programs.values():
            program.stop(kill=True)
        self._programs.clear()
        if self.gpus is not None:
            self.gpus.simulator.reboot()

    def load(self, image: OneLayerImage) -> None:
        self.files.images.mkdir(exist_ok=True)
        archive = self.files.images / "image.tar"
        images.write_archive(image, archive)
        self.load_archive(archive)
        archive.unlink()

    def load_archive(self, archive: Path) -> str:
        """Import an archive that `docker save` or buildah wrote, and return ctr's output."""
        try:
            return self.ctr("images", "import", str(archive.resolve()))
        except subprocess.CalledProcessError as error:
            raise ComponentError(f"containerd of {self.name} refused {archive}: {error.stderr.strip()}") from None

    def ctr(self, *arguments: str) -> str:
        """Run `ctr`, containerd's own client, in containerd's namespace for the kubelet, and return its output."""
        ctr = str(toolchain.ensure("containerd") / "ctr")
        return self.machine.run(ctr, "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", *arguments)

    def start_containerd(self) -> None:
        programs = toolchain.ensure("containerd")
        command = [str(programs / "containerd"), "--config", str(self.files.containerd_config)]
        # It looks for its shim on PATH first, where the machine may have another version.
        path = {"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        self._programs["containerd"] = component = self.machine.spawn("containerd", command, path)
        self._await(self._containerd_answers, CONTAINERD_SECONDS, component)

    def start_kubelet(self) -> None:
        """Start the kubelet, once the second of the last heartbeat is over."""
        self._heartbeat = self._read_heartbeat()
        # Heartbeats have whole seconds: the first one of the new kubelet must differ from the last of the old one.
        wait_until(lambda: _now() > self._heartbeat, NODE_SECONDS, "the next second")
        self._spawn_kubelet()

    def _spawn_kubelet(self) -> None:
        command = [
            str(toolchain.program("kubelet")),
            f"--config={self.files.kubelet_config}",
            f"--kubeconfig={self.files.kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.machine.address}",
            f"--node-labels={','.join(f'{key}={value}' for key, value in self._labels.items())}",
            "--v=2",
        ]
        self._programs["kubelet"] = self.machine.spawn("kubelet", command)

    def kill_program(self, name: str) -> None:
        """Kill `kubelet` or `containerd`, like a crash; the pods keep running."""
        self._programs.pop(name).stop(kill=True)

    def wait_ready(self) -> None:
        """Wait for a new heartbeat, because conditions of an earlier kubelet stay on the Node, and then until it is
        Ready."""
        if "kubelet" not in self._programs:
            raise ComponentError(f"the kubelet of {self.name} is not started: call start_kubelet first")

        def reported() -> bool:
            # containerd answers before its CRI plugin has loaded its state, and a kubelet that starts then ends.
            if not self._programs["kubelet"].alive():
                self._spawn_kubelet()
            return self._read_heartbeat() != self._heartbeat

        try:
            wait_until(reported, NODE_SECONDS, f"kubelet of {self.name}", poll=REPORT_POLL)
        except TimeoutError as error:
            raise ComponentError(f"{error}; its last lines:\n{tail(self.log('kubelet'))}") from None
        wait_nodes_ready(self.plane.api, [self.name], NODE_SECONDS)

    def log(self, program: str) -> Path:
        return self.folder / f"{program}.log"

    def _write_files(self) -> None:
        plugins = cni_folder()
        if plugins is None:
            raise ComponentError("CNI plugins are missing: apt-get install --yes containernetworking-plugins")
        self.files.cni.mkdir(exist_ok=True)
        (self.files.cni / "10-pods.conflist").write_text(cni_settings(self.files, self.number))
        runtimes = {RUNTIME_CLASS: self.gpus.runtime} if self.gpus else {}
        text = containerd_settings(self.files, plugins, images.PAUSE_IMAGE, runtimes)
        self.files.containerd_config.write_text(text)
        # Copies are used, because the control plane's folder may be below /run, which is another folder in the node.
        shutil.copy(self.plane.ca, self.files.ca)
        shutil.copy(self.plane.kubelet_kubeconfig(self.name), self.files.kubeconfig)
        text = kubelet_settings(self.machine.address, self.files.ca, self.machine.cgroup)
        self.files.kubelet_config.write_text(text)

    def _read_heartbeat(self) -> str:
        try:
            node = self.plane.api.get(f"/api/v1/nodes/{self.name}")
        except ApiError as error:
            if error.status != 404:
                raise
            return ""
        conditions = node["status"].get("conditions", ())
        return next((str(row["lastHeartbeatTime"]) for row in conditions if row["type"] == "Ready"), "")

    def _containerd_answers(self) -> bool:
        try:
            self.ctr("version")
        except subprocess.CalledProcessError:
            return False
        return True

    def _await(self, condition: Callable[[], bool], seconds: float, component: Component) -> None:
        try:
            wait_until(condition, seconds, f"{component.name} of {self.name}", component.check)
        except TimeoutError as error:
            raise ComponentError(f"{error}; its last lines:\n{tail(component.log)}") from None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sweep() -> Path:
    """Remove the folders of nodes whose owners were killed, because their machines ended with them."""
    root = private_directory(cache_root() / "nodes")
    for folder in root.iterdir():
        owner = folder.name.partition("-")[0]
        if owner.isdigit() and not pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    return root
