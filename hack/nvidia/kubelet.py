"""SIMULATED: the work of a node's kubelet around NVIDIA's real programs. kwok runs the pods themselves.

Devices and podresources, mounted ConfigMaps, and `pods/log`, for which the API server connects to the address in the
Node's status without checking the certificate (no --kubelet-certificate-authority here).
"""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gpusharing.kube.pods import pod_view
from hack.cluster.api import Api, Object
from hack.cluster.certs import create_pki
from hack.nvidia.sandbox import KUBELET_PLUGINS, Sandbox
from hack.nvidia.tasks import SandboxTask
from hack.nvmlsim.simulator import machine_devices

FIRST_PID = 5_000_000
"""A pid above every real one (2^22)."""


class DeviceManager:
    """The device plugins of one node, and the assignment of their devices to the node's pods."""

    def __init__(self, api: Api, node: str, sandbox: Sandbox) -> None:
        self._api, self._node, self._simulator = api, node, sandbox.simulator
        self.socket = sandbox.folder / "podresources.sock"
        self.pod_logs = sandbox.folder / "pod-logs"
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
        self._assigned: dict[str, tuple[Object, dict[str, list[str]]]] = {}
        self._computing: dict[str, list[int]] = {}
        self._next_pid = FIRST_PID

    def look(self, pods: Sequence[Object]) -> None:
        """Read what the plugins stream, write the Node's status, and assign devices to `pods`, all pods of the node."""
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
        """Write the Node's allocatable and capacity. A resource without a plugin keeps its capacity; the kubelet
        removes it later (docs/design/nvidia.md#b7)."""
        counts = {name: str(len(ids)) for name, ids in self._devices.items()}
        capacity = {name: count for name, count in counts.items() if name not in self._gone}
        self._api.merge_patch(
            f"/api/v1/nodes/{self._node}/status", {"status": {"allocatable": counts, "capacity": capacity}}
        )

    # --- pods --------------------------------------------------------------------------------------------

    def _take_pods(self, pods: Mapping[str, Object]) -> None:
        """Free the devices of pods that have ended, and assign some to new ones. A terminating pod keeps its own."""
        before = len(self._assigned)
        for uid in [uid for uid in self._assigned if not _runs(pods.get(uid))]:
            self._end_processes(uid)
            if uid not in pods or pods[uid].get("status", {}).get("phase") in ("Succeeded", "Failed"):
                self._logs_of(uid).rmdir()
                del self._assigned[uid]
        changed = len(self._assigned) != before
        for uid, pod in pods.items():
            request = dict(pod_view(pod, {}).resources)
            if request and uid not in self._assigned and _runs(pod):
                devices = {name: self._free(name, count) for name, count in request.items()}
                # The device manager allocates nothing of what the scheduler gave from a DRA driver.
                by_dra = pod.get("status", {}).get("extendedResourceClaimStatus", {}).get("requestMappings", ())
                own = request.keys() - {row["resourceName"] for row in by_dra}
                if short := [name for name in sorted(own) if len(devices[name]) < request[name]]:
                    self._refuse(
                        pod, f"{short[0]}. Requested: {request[short[0]]}, Available: {len(devices[short[0]])}"
                    )
                    continue
                self._assigned[uid] = pod, devices
                self._logs_of(uid).mkdir(parents=True)
                self._start_processes(uid)
                changed = True
        if changed:
            self._write_holdings()

    def _refuse(self, pod: Object, lack: str) -> None:
        """End a pod as the kubelet does that has too few devices for it (v1.36.3 pkg/kubelet/cm/devicemanager/manager.go,
        devicesToAllocate)."""
        message = f"Allocate failed due to requested number of devices unavailable for {lack}, which is unexpected"
        status = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": message}
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self._api.merge_patch(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})

    def _logs_of(self, uid: str) -> Path:
        metadata = self._assigned[uid][0]["metadata"]
        return self.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{uid}"

    def _free(self, resource: str, count: int) -> list[str]:
        in_use = {device for _, assigned in self._assigned.values() for device in assigned.get(resource, ())}
        return [device for device in self._devices.get(resource, ()) if device not in in_use][:count]

    def _write_holdings(self) -> None:
        rows = [
            {"namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"], "resource": name, "ids": ids}
            for pod, assigned in self._assigned.values()
            for name, ids in assigned.items()
        ]  # fmt: skip
        swap = self._file.with_suffix(".new")
        swap.write_text(json.dumps(rows))
        swap.rename(self._file)

    def _start_processes(self, uid: str) -> None:
        pod, assigned = self._assigned[uid]
        places = {place.uuid: place for place in machine_devices(self._simulator.show())}
        for device in (device for ids in assigned.values() for device in ids):
            self._next_pid += 1
            place, name = places[_uuid(device)], f"SIMULATED-{pod['metadata']['name']}"
            gpu_instance, compute_instance = place.instance or (-1, -1)
            self._simulator.add_process(
                place.gpu, self._next_pid, name, gpu_instance=gpu_instance, compute_instance=compute_instance
            )
            self._computing.setdefault(uid, []).append(self._next_pid)

    def _end_processes(self, uid: str) -> None:
        for pid in self._computing.pop(uid, ()):
            self._simulator.remove_process(pid)


def _uuid(device: str) -> str:
    return device.partition("::")[0]


def _runs(pod: Object | None) -> bool:
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    return bool(pod.get("status", {}).get("phase") == "Running")


def gfd_labels_in(file: Path) -> dict[str, str]:
    """Return the labels in GFD's file; empty if it is missing. GFD replaces the file as a whole and removes it when it
    ends (internal/lm/output.go, k8s-device-plugin v0.19.3)."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    rows = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in rows if name}


class LabelFeeder:
    """SIMULATED: the part of Node Feature Discovery that copies GFD's labels to the Node."""

    def __init__(self, api: Api, node: str, file: Path) -> None:
        self._api, self._node, self.file = api, node, file
        self._labels: dict[str, str] = {}

    def look(self) -> None:
        """Copy changed labels to the Node, which keeps them while the file is missing, as with NodeFeature."""
        labels = gfd_labels_in(self.file)
        if not labels or labels == self._labels:
            return
        gone: dict[str, Any] = dict.fromkeys(self._labels.keys() - labels.keys())
        self._api.merge_patch(f"/api/v1/nodes/{self._node}", {"metadata": {"labels": {**gone, **labels}}})
        self._labels = labels


class Mount:
    """A mounted ConfigMap, with the links and folders of the kubelet's atomic writer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._data: dict[str, str] = {}
        self._version = 0

    @property
    def exists(self) -> bool:
        """Whether the ConfigMap has been mounted. Before that the kubelet starts no pod that mounts it."""
        return self._version > 0

    def take(self, data: Mapping[str, str]) -> bool:
        """Write the ConfigMap's content to the folder if it has changed, all keys at once."""
        if self.exists and data == self._data:
            return False
        old, new = (self.folder / f"..{self._version + number}" for number in (0, 1))
        new.mkdir()
        for key, text in data.items():
            (new / key).write_text(text)
        swap = self.folder / "..data_tmp"
        swap.symlink_to(new.name)
        swap.rename(self.folder / "..data")
        for key in data.keys() - self._data.keys():
            (self.folder / key).symlink_to(f"..data/{key}")
        for key in self._data.keys() - data.keys():
            (self.folder / key).unlink()
        shutil.rmtree(old, ignore_errors=True)
        self._data, self._version = dict(data), self._version + 1
        return True


HOST = "127.0.0.1"


class _Server(ThreadingHTTPServer):
    """An HTTPS server that does not report broken connections, because the demo shows standard error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore OSErrors, such as those of clients that hang up before the answer; print other errors."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class LogServer:
    """A server for `/containerLogs/NAMESPACE/POD/CONTAINER`."""

    def __init__(self, folder: Path, find: Callable[[str], Path | None]) -> None:
        context = create_pki(folder).server_context()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _answer(self, find)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = _Server((HOST, 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))

    def status(self) -> dict[str, Any]:
        """Return the part of the Node's status that leads the API server to this server: address and port."""
        port = self._server.server_address[1]
        addresses = [{"type": "InternalIP", "address": HOST}]
        return {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _answer(request: BaseHTTPRequestHandler, find: Callable[[str], Path | None]) -> None:
    """Answer a GET of /containerLogs/NAMESPACE/POD/CONTAINER, with `tailLines` as the only option."""
    parts = urlsplit(request.path)
    folders = parts.path.strip("/").split("/")
    file = find(folders[2]) if folders[0] == "containerLogs" and len(folders) == 4 else None
    if file is None or not file.exists():
        request.send_error(HTTPStatus.NOT_FOUND)
        return
    lines = file.read_bytes().splitlines(keepends=True)
    tail = parse_qs(parts.query).get("tailLines")
    body = b"".join(lines[max(0, len(lines) - int(tail[0])) :] if tail else lines)
    request.send_response(HTTPStatus.OK)
    request.send_header("Content-Type", "text/plain")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
