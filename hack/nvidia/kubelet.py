"""SIMULATED: what the kubelet of a node does about devices, around the real device plugin.

It puts what the plugin streams into the Node's status, gives devices to pods, serves them as podresources, and lets
a process compute on each of them while the pod runs. Pods themselves are run by kwok.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusharing.kube.convert_pods import pod_view
from hack.cluster.api import Api, Object
from hack.nvidia.sandbox import KUBELET_PLUGINS, Sandbox
from hack.nvidia.tasks import SandboxTask
from hack.nvmlsim.simulator import Simulator

FIRST_PID = 5_000_000
"""Above every real process id (2^22)."""


class DeviceManager:
    """Device plugins of one node, and who holds what they offer."""

    def __init__(self, api: Api, node: str, sandbox: Sandbox) -> None:
        self._api, self._node, self._simulator = api, node, sandbox.simulator
        self.socket = sandbox.folder / "podresources.sock"
        self._file = sandbox.folder / "podresources.json"
        self._log = sandbox.folder / "kubelet.log"
        self._file.write_text("[]")
        self._log.write_text("")
        self.stub = SandboxTask(
            sandbox, "kubeletstub", str(KUBELET_PLUGINS), str(self.socket), str(self._file), log=self._log
        )
        self._read = 0
        self._devices: dict[str, list[str]] = {}
        self._gone: set[str] = set()
        self._held: dict[str, tuple[Object, dict[str, list[str]]]] = {}
        self._computing: dict[str, list[int]] = {}
        self._next_pid = FIRST_PID

    def look(self, pods: Sequence[Object]) -> None:
        """Take over what the plugins have streamed, and the pods of the node as they are now."""
        if self._take_lines():
            self._write_status()
        self._take_pods({str(pod["metadata"]["uid"]): pod for pod in pods})

    # --- devices -----------------------------------------------------------------------------------------

    def _take_lines(self) -> bool:
        with self._log.open() as log:
            log.seek(self._read)
            text = log.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole.encode())
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        for line in lines:
            self._devices[line["resource"]] = line["healthy"]
            (self._gone.add if line.get("gone") else self._gone.discard)(line["resource"])
        return bool(lines)

    def _write_status(self) -> None:
        """Names that nobody offers any more stay, at 0; capacity outlives the plugin for a while
        (docs/design/nvidia.md#b7)."""
        counts = {name: str(len(ids)) for name, ids in self._devices.items()}
        capacity = {name: count for name, count in counts.items() if name not in self._gone}
        self._api.merge_patch(
            f"/api/v1/nodes/{self._node}/status", {"status": {"allocatable": counts, "capacity": capacity}}
        )

    # --- pods --------------------------------------------------------------------------------------------

    def _take_pods(self, pods: Mapping[str, Object]) -> None:
        before = len(self._held)
        for uid in [uid for uid in self._held if not _runs(pods.get(uid))]:
            self._end_processes(uid)
            if uid not in pods or _ended(pods[uid]):
                del self._held[uid]
        changed = len(self._held) != before
        for uid, pod in pods.items():
            asked = dict(pod_view(pod, {}).resources)
            if asked and uid not in self._held and _runs(pod):
                self._held[uid] = (pod, {name: self._free(name, count) for name, count in asked.items()})
                self._start_processes(uid)
                changed = True
        if changed:
            self._write_holdings()

    def _free(self, resource: str, count: int) -> list[str]:
        taken = {device for _, held in self._held.values() for device in held.get(resource, ())}
        return [device for device in self._devices.get(resource, ()) if device not in taken][:count]

    def _write_holdings(self) -> None:
        rows = [
            {"namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"], "resource": name, "ids": ids}
            for pod, held in self._held.values()
            for name, ids in held.items()
        ]  # fmt: skip
        swap = self._file.with_suffix(".new")
        swap.write_text(json.dumps(rows))
        swap.rename(self._file)

    def _start_processes(self, uid: str) -> None:
        pod, held = self._held[uid]
        places = find_devices(self._simulator)
        for device in (device for ids in held.values() for device in ids):
            self._next_pid += 1
            place, name = places[_uuid(device)], f"SIMULATED-{pod['metadata']['name']}"
            self._simulator.add_process(
                place.gpu,
                self._next_pid,
                name,
                gpu_instance=place.gpu_instance,
                compute_instance=place.compute_instance,
            )
            self._computing.setdefault(uid, []).append(self._next_pid)

    def _end_processes(self, uid: str) -> None:
        for pid in self._computing.pop(uid, ()):
            self._simulator.remove_process(pid)


@dataclass(frozen=True)
class DevicePlace:
    """Where a device is; instance ids are -1 without MIG."""

    gpu: int
    gpu_instance: int = -1
    compute_instance: int = -1


def find_devices(simulator: Simulator) -> dict[str, DevicePlace]:
    """Where each device is, by its UUID."""
    found: dict[str, DevicePlace] = {}
    for gpu in simulator.show()["gpus"]:
        found[gpu["uuid"]] = DevicePlace(gpu["index"])
        for instance in gpu["instances"]:
            for compute in instance["compute"]:
                found[compute["uuid"]] = DevicePlace(gpu["index"], instance["id"], compute["id"])
    return found


def _uuid(device: str) -> str:
    """A shared device is called `UUID::replica`."""
    return device.partition("::")[0]


def _runs(pod: Object | None) -> bool:
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    return bool(pod.get("status", {}).get("phase") == "Running")


def _ended(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def gfd_labels_in(file: Path) -> dict[str, str]:
    """Labels that GPU feature discovery has written; none where there is no file.

    It removes its file when it ends and when it is told to start anew, also between a look whether there is one and
    the reading of it; it moves a whole one into place (internal/lm/output.go, k8s-device-plugin v0.19.3).
    """
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    rows = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in rows if name}


class LabelFeeder:
    """SIMULATED: Node Feature Discovery, as far as it copies GFD's labels to the Node."""

    def __init__(self, api: Api, node: str, file: Path) -> None:
        self._api, self._node, self.file = api, node, file
        self._labels: dict[str, str] = {}

    def look(self) -> None:
        """Copy what is new. While GFD does not run its labels stay, as with the NodeFeature API."""
        labels = gfd_labels_in(self.file)
        if not labels or labels == self._labels:
            return
        gone: dict[str, Any] = dict.fromkeys(self._labels.keys() - labels.keys())
        self._api.merge_patch(f"/api/v1/nodes/{self._node}", {"metadata": {"labels": {**gone, **labels}}})
        self._labels = labels
