"""SIMULATED: what the kubelet of a node does around NVIDIA's real programs. Pods themselves are run by kwok.

It puts what the device plugin streams into the Node's status, gives devices to pods, serves them as podresources, and
lets a process compute on each of them while the pod runs. It mounts ConfigMaps as folders whose files change all at
once, by swapping one link. It answers `pods/log`: the API server asks the address and the port in the Node's status,
over TLS whose certificate it does not check (no --kubelet-certificate-authority here).
"""

import json
import shutil
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gpusharing.kube.convert_pods import pod_view
from hack.cluster.api import Api, Object
from hack.cluster.certs import create_pki
from hack.nvidia.sandbox import KUBELET_PLUGINS, Sandbox
from hack.nvidia.tasks import SandboxTask
from hack.nvmlsim.simulator import machine_devices

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
            if uid not in pods or pods[uid].get("status", {}).get("phase") in ("Succeeded", "Failed"):
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
        places = {one.uuid: one for one in machine_devices(self._simulator.show())}
        for device in (device for ids in held.values() for device in ids):
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
    """A shared device is called `UUID::replica`."""
    return device.partition("::")[0]


def _runs(pod: Object | None) -> bool:
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    return bool(pod.get("status", {}).get("phase") == "Running")


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


class Mount:
    """`folder/KEY -> ..data/KEY`, `..data -> ..N`, as the kubelet's atomic writer does it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._data: dict[str, str] = {}
        self._version = 0

    @property
    def exists(self) -> bool:
        """Whether the ConfigMap was there; before that the kubelet starts no pod that mounts it."""
        return self._version > 0

    def take(self, data: Mapping[str, str]) -> bool:
        """The ConfigMap holds this now; whether the folder changed."""
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
    """The demo shows our standard error."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of who hangs up before the answer is there."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class LogServer:
    """Serves `/containerLogs/NAMESPACE/POD/CONTAINER`. `find` gives the file of a pod by name, or None."""

    def __init__(self, folder: Path, find: Callable[[str], Path | None]) -> None:
        """`folder` is for a certificate of its own."""
        pki = create_pki(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.cert("serving"), pki.key("serving"))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                _answer(self, find)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing: the API server's audit log has it."""

        self._server = _Server((HOST, 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))

    def status(self) -> dict[str, Any]:
        """What the Node's status must say."""
        port = self._server.server_address[1]
        addresses = [{"type": "InternalIP", "address": HOST}]
        return {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End, also before it was started."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _answer(request: BaseHTTPRequestHandler, find: Callable[[str], Path | None]) -> None:
    parts = urlsplit(request.path)
    folders = parts.path.strip("/").split("/")
    file = find(folders[2]) if folders[0] == "containerLogs" and len(folders) == 4 else None
    if file is None or not file.exists():
        request.send_error(HTTPStatus.NOT_FOUND)
        return
    lines = file.read_bytes().splitlines(keepends=True)
    asked = parse_qs(parts.query).get("tailLines")
    body = b"".join(lines[-int(asked[0]) :] if asked else lines)
    request.send_response(HTTPStatus.OK)
    request.send_header("Content-Type", "text/plain")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
