"""Nodes with NVIDIA's real node software, beside a real control plane.

Real, per node: nvidia-mig-manager with nvidia-mig-parted, nvidia-device-plugin, gpu-feature-discovery,
mps-control-daemon and the config-manager of each, all unmodified, and the shipped agent on nvidia-ml-py with a token
bound to its pod. SIMULATED: the GPUs (libnvidia-ml.so.1 of hack/nvmlsim), the kubelet (kwok runs pods; `kubelet.py`
with the registration stub does devices, ConfigMaps and logs), Node Feature Discovery, and of the GPU Operator its
DaemonSets and the labels it writes once. The DaemonSet controller is the real one: a paused
gpu.deploy label removes a pod, and with it its processes.

    with real_nodes(plane.kubeconfig, {"gpu-1": ["h100-80gb"] * 2}, folder) as nodes:
        nodes["gpu-1"].simulator.inject("nvmlDeviceCreateGpuInstance", "UNKNOWN")
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gpusharing.api import names
from hack.cluster.api import Api, ApiError, Object
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from hack.cluster.kubeconfig import open_api
from hack.cluster.nodes import node_manifest, wait_nodes_ready
from hack.nvidia import operands
from hack.nvidia.kubelet import DeviceManager, LabelFeeder, LogServer, Mount
from hack.nvidia.operands import PodPrograms
from hack.nvidia.sandbox import Sandbox
from hack.nvidia.tasks import PodProcesses
from hack.nvmlsim.models import find_model
from hack.nvmlsim.simulator import Simulator

LOOK_SECONDS = 0.25
MOUNT_SECONDS = 1.0
"""How often mounted ConfigMaps are brought up to date; a kubelet takes up to two minutes."""
PLUGIN_MAP, MIG_MAP = "gpusharing-device-plugin", "gpusharing-mig-parted"
"""What the operands mount where no ClusterPolicy names anything."""


class RealNode:
    """One node. `start` and `stop`; in between everything follows from the API server."""

    def __init__(self, kubeconfig: Path, name: str, models: Sequence[str], folder: Path) -> None:
        """`folder`: of the node alone, with a short path (a Unix socket lies deep in it)."""
        self.name, self.models, self.folder = name, models, folder
        self.simulator = Simulator.create(folder / "nvml.state", models, seed=name)
        self.sandbox = Sandbox(self.simulator, folder / "box")
        self.error: Exception | None = None
        self._api: Api = open_api(kubeconfig)
        self._plugin_configs, self._mig_config = Mount(folder / "plugin"), Mount(folder / "mig")
        self._devices = DeviceManager(self._api, name, self.sandbox)
        self.programs = PodPrograms(
            self._api, name, kubeconfig, self.sandbox, self._plugin_configs, self._mig_config, self._devices.socket
        )  # fmt: skip
        self._logs = LogServer(folder / "tls", self.programs.log_of)
        self._labels = LabelFeeder(self._api, name, self.programs.labels)
        self._pods: dict[str, PodProcesses] = {}
        self._ended = threading.Event()
        # Two, as in a kubelet: however long a pod takes to start or end, mounted ConfigMaps are brought up to date.
        self._threads = [
            threading.Thread(target=self._run, args=(self._look, LOOK_SECONDS), name=name),
            threading.Thread(target=self._run, args=(self._mount, MOUNT_SECONDS), name=f"{name}-mounts"),
        ]

    def start(self) -> None:
        """Begin to follow the API server."""
        self._api.merge_patch(f"/api/v1/nodes/{self.name}/status", {"status": self._logs.status()})
        self._logs.start()
        self._devices.stub.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every program. What went wrong meanwhile is raised."""
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for processes in self._pods.values():
            processes.stop()
        self._devices.stub.stop()
        self._logs.stop()
        self._api.close()
        if self.error is not None:
            raise self.error

    def kill(self, app: str) -> None:
        """The main program of a pod dies; `app` as in operands.SELECTORS."""
        for pod in self._list_pods():
            if _app(pod) == app and (found := self._pods.get(pod["metadata"]["uid"])):
                found.kill()

    def manifest(self) -> Object:
        """The Node as the GPU Operator leaves a fresh one; GFD's labels and GPU resources come from the programs."""
        product = find_model(self.models[0]).products[0]
        manifest = node_manifest(self.name, product=product, gpus=len(self.models), pool="real")
        kept = (names.LABEL_GPU_PRESENT, names.LABEL_MIG_CONFIG, names.LABEL_DEPLOY_PREFIX)
        labels = manifest["metadata"]["labels"]
        manifest["metadata"]["labels"] = {
            key: value for key, value in labels.items() if not key.startswith("nvidia.com/") or key.startswith(kept)
        }  # fmt: skip
        manifest["metadata"]["labels"].pop(names.LABEL_MIG_STATE, None)
        for kind in ("capacity", "allocatable"):
            manifest["status"][kind].pop(names.RESOURCE_GPU)
        return manifest

    # --- inside ------------------------------------------------------------------------------------------

    def _run(self, step: Callable[[], None], seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                step()
            except (
                ApiError,
                OSError,
            ) as error:  # the API server is away, or somebody deleted the object meanwhile
                with (self.folder / "node.log").open("a") as log:
                    log.write(f"{time.strftime('%X')} {error!r}\n")
            except Exception as error:  # noqa: BLE001 -- stop() raises it: a thread has nobody to raise it to
                self.error = error
                return

    def _look(self) -> None:
        pods = self._list_pods()
        self._follow(pods)
        self._devices.look(pods)
        self._labels.look()

    def _list_pods(self) -> list[Object]:
        return self._api.list("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}")

    def _mount(self) -> None:
        maps = self._api.list(f"/api/v1/namespaces/{GPU_OPERATOR_NAMESPACE}/configmaps")
        found = {one["metadata"]["name"]: one.get("data") or {} for one in maps}
        plugin, mig = self._named()
        for name, mount in ((plugin, self._plugin_configs), (mig, self._mig_config)):
            if name in found:
                mount.take(found[name])

    def _named(self) -> tuple[str, str]:
        """The ConfigMaps that ClusterPolicy names, as the GPU Operator puts them into its DaemonSets."""
        listed = self._api.list("/apis/nvidia.com/v1/clusterpolicies")
        spec = listed[0].get("spec", {}) if listed else {}
        blocks = (spec.get(block, {}) for block in ("devicePlugin", "migManager"))
        plugin, mig = (block.get("config", {}).get("name", "") for block in blocks)
        return plugin or PLUGIN_MAP, mig or MIG_MAP

    def _follow(self, pods: Sequence[Object]) -> None:
        """Processes of pods that go end first, then the pods do; then new pods start."""
        present = {pod["metadata"]["uid"]: pod for pod in pods}
        for uid in list(self._pods):
            if uid not in present or "deletionTimestamp" in present[uid]["metadata"]:
                self._pods.pop(uid).stop()
        for uid, pod in present.items():
            if "deletionTimestamp" in pod["metadata"]:
                self._remove(pod)
            elif pod.get("status", {}).get("phase") == "Running":
                self._keep_running(uid, pod)

    def _keep_running(self, uid: str, pod: Object) -> None:
        """Start what a running pod runs, and start again what has ended."""
        if uid not in self._pods and (processes := self.programs.of(pod)):
            self._pods[uid] = processes
        if uid in self._pods:
            self._pods[uid].look()

    def _remove(self, pod: Object) -> None:
        """The kubelet's last word about a pod whose containers have ended."""
        metadata = pod["metadata"]
        if (metadata.get("annotations") or {}).items() >= operands.HOLD.items():
            with contextlib.suppress(ApiError):
                path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
                self._api.delete(path, {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}})


def _app(pod: Object) -> str:
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("app") or labels.get("app.kubernetes.io/name") or "")


@contextlib.contextmanager
def real_nodes(
    kubeconfig: Path, machines: Mapping[str, Sequence[str]], folder: Path
) -> Iterator[dict[str, RealNode]]:
    """Nodes by name, with the models of their GPUs, on the control plane; their programs end with the context."""
    with contextlib.ExitStack() as stack, open_api(kubeconfig) as api:
        operands.install(api)
        made: dict[str, RealNode] = {}
        for name, models in machines.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            made[name] = RealNode(kubeconfig, name, models, folder / name)
            api.create("/api/v1/nodes", made[name].manifest())
        wait_nodes_ready(api, list(made))
        for node in made.values():
            stack.callback(node.stop)
            node.start()
        yield made
