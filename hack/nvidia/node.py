"""Nodes with NVIDIA's real node software and the shipped agent, beside a real control plane (hack/nvidia/README.md).

SIMULATED: the GPUs, the kubelet, Node Feature Discovery, and of the GPU Operator its DaemonSets and the labels that it
writes once. The DaemonSet controller is real: a paused gpu.deploy label removes a pod, and its processes end with it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from gpusharing.api import names
from hack.cluster.api import Api, ApiError, Object
from hack.cluster.kubeconfig import open_api, write_token_kubeconfig
from hack.cluster.nodes import node_manifest, wait_nodes_ready
from hack.nvidia import operands
from hack.nvidia.installations import GPU_OPERATOR, Installation
from hack.nvidia.kubelet import DeviceManager, LabelFeeder, LogServer, Mount
from hack.nvidia.operands import PodPrograms
from hack.nvidia.sandbox import Sandbox
from hack.nvidia.tasks import PodProcesses
from hack.nvmlsim.models import find_model
from hack.nvmlsim.simulator import Simulator

LOOK_SECONDS = 0.25
MOUNT_SECONDS = 1.0
"""Seconds between updates of mounted ConfigMaps; a kubelet takes up to two minutes."""
PLUGIN_MAP, MIG_MAP = "gpusharing-device-plugin", "gpusharing-mig-parted"
"""The ConfigMaps that the operands mount if no ClusterPolicy names others."""


class RealNode:
    def __init__(
        self,
        kubeconfig: Path,
        name: str,
        models: Sequence[str],
        folder: Path,
        installation: Installation = GPU_OPERATOR,
    ) -> None:
        """The path of `folder` must be short: a Unix socket lies deep inside it."""
        self.name, self.models, self.folder, self.installation = name, models, folder, installation
        self.simulator = Simulator.create(folder / "nvml.state", models, seed=name)
        self.sandbox = Sandbox(self.simulator, folder / "box")
        self.error: Exception | None = None
        self._api: Api = open_api(kubeconfig)
        self._plugin_configs, self._mig_config = Mount(folder / "plugin"), Mount(folder / "mig")
        self._devices = DeviceManager(self._api, name, self.sandbox)
        as_account = partial(self._as_account, kubeconfig)
        self.programs = PodPrograms(
            self._api, name, as_account("config-manager"), self.sandbox, self._plugin_configs, self._mig_config,
            self._devices.socket, self._devices.pod_logs,
        )  # fmt: skip
        self.programs.mig_manager.kubeconfig = as_account("nvidia-mig-manager")
        self.programs.mig_manager.clients_namespace = installation.namespace
        self._logs = LogServer(folder / "tls", self.programs.log_of)
        self._labels = LabelFeeder(self._api, name, self.programs.labels)
        self._pods: dict[str, PodProcesses] = {}
        self._ended = threading.Event()
        # Two threads, as in a kubelet: mounted ConfigMaps are updated even while a pod takes long to start or end.
        self._threads = [
            threading.Thread(target=self._run, args=(self._look, LOOK_SECONDS), name=name),
            threading.Thread(target=self._run, args=(self._mount, MOUNT_SECONDS), name=f"{name}-mounts"),
        ]

    def start(self) -> None:
        self._api.merge_patch(f"/api/v1/nodes/{self.name}/status", {"status": self._logs.status()})
        self._logs.start()
        self._devices.stub.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop both threads, then every program, the registration stub and the log server."""
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
        """Kill the main program of each pod of this operand on this node; it is restarted later, as a kubelet does."""
        for pod in self._list_pods():
            if _app(pod) == app and (processes := self._pods.get(pod["metadata"]["uid"])):
                processes.kill()

    def manifest(self) -> Object:
        """Return a new Node with those labels of NVIDIA that the installation keeps, and its own."""
        product = find_model(self.models[0]).products[0]
        manifest = node_manifest(self.name, product=product, gpus=len(self.models), pool="real")
        labels, kept = manifest["metadata"]["labels"], self.installation.kept
        own = {
            key: value for key, value in labels.items() if not key.startswith("nvidia.com/") or key.startswith(kept)
        }  # fmt: skip
        own.pop(names.LABEL_MIG_STATE, None)
        manifest["metadata"]["labels"] = {**own, **self.installation.labels}
        for kind in ("capacity", "allocatable"):
            manifest["status"][kind].pop(names.RESOURCE_GPU)
        return manifest

    # --- inside ------------------------------------------------------------------------------------------

    def _as_account(self, admin: Path, program: str) -> Path:
        account = self.installation.accounts.get(program)
        if account is None:
            return admin
        path = self.folder / f"{account}.kubeconfig"
        return write_token_kubeconfig(self._api, path, self.installation.namespace, account)

    def _run(self, step: Callable[[], None], seconds: float) -> None:
        """Call `step` every `seconds` until the node stops; ApiErrors and OSErrors are logged and tried again."""
        while not self._ended.wait(seconds):
            try:
                step()
            except (ApiError, OSError) as error:  # the API is unavailable, or the object was deleted meanwhile
                with (self.folder / "node.log").open("a") as log:
                    log.write(f"{time.strftime('%X')} {error!r}\n")
            except Exception as error:  # noqa: BLE001 -- stop() raises it, because an error of a thread would be lost
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
        maps = self._api.list(f"/api/v1/namespaces/{self.installation.namespace}/configmaps")
        data = {row["metadata"]["name"]: row.get("data") or {} for row in maps}
        plugin, mig = self._named()
        for name, mount in ((plugin, self._plugin_configs), (mig, self._mig_config)):
            if name in data:
                mount.take(data[name])

    def _named(self) -> tuple[str, str]:
        """Return the names of the ConfigMaps that the GPU Operator mounts: the device plugin's and mig-manager's."""
        spec = operands.read_cluster_policy(self._api) or {}
        blocks = (spec.get(block, {}) for block in ("devicePlugin", "migManager"))
        plugin, mig = (block.get("config", {}).get("name", "") for block in blocks)
        return plugin or PLUGIN_MAP, mig or MIG_MAP

    def _follow(self, pods: Sequence[Object]) -> None:
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
        if uid not in self._pods and (processes := self.programs.of(pod)):
            self._pods[uid] = processes
        if uid in self._pods:
            self._pods[uid].look()

    def _remove(self, pod: Object) -> None:
        """Delete a pod that has the HOLD annotation, as the kubelet does once its processes have ended."""
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
    kubeconfig: Path, machines: Mapping[str, Sequence[str]], folder: Path, installation: Installation = GPU_OPERATOR
) -> Iterator[dict[str, RealNode]]:
    """Yield nodes in a cluster in which NVIDIA's DaemonSets are installed, while their programs run."""
    with contextlib.ExitStack() as stack, open_api(kubeconfig) as api:
        nodes: dict[str, RealNode] = {}
        for name, models in machines.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            nodes[name] = RealNode(kubeconfig, name, models, folder / name, installation)
            api.create("/api/v1/nodes", nodes[name].manifest())
        wait_nodes_ready(api, list(nodes))
        for node in nodes.values():
            stack.callback(node.stop)
            node.start()
        yield nodes
