"""SIMULATED: the work of a node's kubelet around NVIDIA's real programs. kwok runs the pods themselves.

It writes the devices that the plugins stream into the Node's status, assigns devices to pods, reports them as
podresources, and lets a process compute on each of them while the pod runs. It mounts ConfigMaps as folders whose
files change all at once, by swapping one link. It answers `pods/log`: the API server connects to the address and port
in the Node's status, by TLS without a check of the certificate (no --kubelet-certificate-authority here).
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
        """Prepare a manager that knows no devices and no pods. The file of assignments (podresources.json) and the log
        of the stub (kubelet.log), both in the sandbox's folder, are emptied. `stub` is the program that the device
        plugins register with; it logs what they stream, and the caller starts and stops it. `socket` is the path at
        which it serves podresources."""
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
        self._assigned: dict[str, tuple[Object, dict[str, list[str]]]] = {}
        self._computing: dict[str, list[int]] = {}
        self._next_pid = FIRST_PID

    def look(self, pods: Sequence[Object]) -> None:
        """Read what the plugins have streamed since the last call and, if that was anything, write the Node's status.
        Then assign, free and occupy devices as the node's pods require. `pods` are the pods that the node has now.
        Raises ApiError if the Node's status cannot be written; the pods are then ignored in this call, and the status
        is written only after the plugins stream again. Raises KeyError if the machine no longer has a device that is
        assigned to a new pod."""
        if self._take_lines():
            self._write_status()
        self._take_pods({str(pod["metadata"]["uid"]): pod for pod in pods})

    # --- devices -----------------------------------------------------------------------------------------

    def _take_lines(self) -> bool:
        """Read the new complete lines of the stub's log. Of each resource, record the healthy devices that its last
        line names, and whether that line says that its plugin is gone. Lines that do not begin with a brace are
        skipped, and an incomplete last line is left for the next call. Returns whether any other line was read. Raises
        ValueError if a line that begins with a brace is not JSON."""
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
        """Write the Node's allocatable and capacity: for each resource that a plugin has ever advertised, the number of
        its healthy devices. A resource that is no longer advertised by any plugin stays, with an allocatable of 0. Its
        capacity is not changed, because the kubelet removes it later (docs/design/nvidia.md#b7). Raises ApiError if the
        write fails."""
        counts = {name: str(len(ids)) for name, ids in self._devices.items()}
        capacity = {name: count for name, count in counts.items() if name not in self._gone}
        self._api.merge_patch(
            f"/api/v1/nodes/{self._node}/status", {"status": {"allocatable": counts, "capacity": capacity}}
        )

    # --- pods --------------------------------------------------------------------------------------------

    def _take_pods(self, pods: Mapping[str, Object]) -> None:
        """End the processes of pods that are gone, terminating or not Running, and free the devices of those that are
        gone, Succeeded or Failed. Then assign devices, in the order of `pods`, to each pod that is Running, requests
        GPU resources and has no assignment, and start its processes. If too few devices are free, the pod gets those,
        and never more later. A terminating pod keeps its devices. `pods` are all pods of the node, by UID. Write the
        assignments to the stub's file if any was added or freed. Raises KeyError if the machine no longer has an
        assigned device."""
        before = len(self._assigned)
        for uid in [uid for uid in self._assigned if not _runs(pods.get(uid))]:
            self._end_processes(uid)
            if uid not in pods or pods[uid].get("status", {}).get("phase") in ("Succeeded", "Failed"):
                del self._assigned[uid]
        changed = len(self._assigned) != before
        for uid, pod in pods.items():
            request = dict(pod_view(pod, {}).resources)
            if request and uid not in self._assigned and _runs(pod):
                devices = {name: self._free(name, count) for name, count in request.items()}
                self._assigned[uid] = pod, devices
                self._start_processes(uid)
                changed = True
        if changed:
            self._write_holdings()

    def _free(self, resource: str, count: int) -> list[str]:
        """Return the first `count` devices of a resource that are assigned to no pod, in the plugin's order, or all of
        these if there are fewer. Empty for an unknown resource."""
        in_use = {device for _, assigned in self._assigned.values() for device in assigned.get(resource, ())}
        return [device for device in self._devices.get(resource, ()) if device not in in_use][:count]

    def _write_holdings(self) -> None:
        """Write the assigned devices to the file that the stub reads: one row for each pod and resource, with the pod's
        namespace and name, the resource and the device ids. The file is replaced atomically."""
        rows = [
            {"namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"], "resource": name, "ids": ids}
            for pod, assigned in self._assigned.values()
            for name, ids in assigned.items()
        ]  # fmt: skip
        swap = self._file.with_suffix(".new")
        swap.write_text(json.dumps(rows))
        swap.rename(self._file)

    def _start_processes(self, uid: str) -> None:
        """Register a simulated process on each device of a pod, on the MIG instance or the whole GPU that the device
        is. Its name is `SIMULATED-` and the pod's name, and its pid is the next one above FIRST_PID. Raises KeyError if
        the machine no longer has one of the devices."""
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
        """Remove the simulated processes of a pod, given its UID. Does nothing if it has none."""
        for pid in self._computing.pop(uid, ()):
            self._simulator.remove_process(pid)


def _uuid(device: str) -> str:
    """Return the UUID in a device id, which is `UUID::replica` for a shared device and the UUID alone for any other."""
    return device.partition("::")[0]


def _runs(pod: Object | None) -> bool:
    """Whether the pod exists, has the phase Running and is not terminating."""
    if pod is None or "deletionTimestamp" in pod["metadata"]:
        return False
    return bool(pod.get("status", {}).get("phase") == "Running")


def gfd_labels_in(file: Path) -> dict[str, str]:
    """Return the labels in the file that GPU feature discovery writes, one `NAME=VALUE` in each line; empty if the file
    does not exist. A line without `=` is a label with an empty value, and lines without a name are skipped.

    GFD removes the file when it ends or restarts, possibly between a check that the file exists and the reading. It
    replaces the file as a whole (internal/lm/output.go, k8s-device-plugin v0.19.3)."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return {}
    rows = (line.partition("=") for line in text.splitlines())
    return {name: value for name, _, value in rows if name}


class LabelFeeder:
    """SIMULATED: the part of Node Feature Discovery that copies GFD's labels to the Node."""

    def __init__(self, api: Api, node: str, file: Path) -> None:
        """Prepare to copy the labels in `file` to the Node `node`; nothing is copied yet."""
        self._api, self._node, self.file = api, node, file
        self._labels: dict[str, str] = {}

    def look(self) -> None:
        """Copy GFD's labels to the Node if they have changed since the last call that succeeded, and remove the labels
        that GFD has dropped since then. While GFD's file is missing or empty, the Node keeps its labels, as with the
        NodeFeature API. Raises ApiError if the Node cannot be written; the next call tries again."""
        labels = gfd_labels_in(self.file)
        if not labels or labels == self._labels:
            return
        gone: dict[str, Any] = dict.fromkeys(self._labels.keys() - labels.keys())
        self._api.merge_patch(f"/api/v1/nodes/{self._node}", {"metadata": {"labels": {**gone, **labels}}})
        self._labels = labels


class Mount:
    """A folder with a mounted ConfigMap: `folder/KEY -> ..data/KEY`, `..data -> ..N`, as the kubelet's atomic writer
    creates it."""

    def __init__(self, folder: Path) -> None:
        """Create the folder with its parents, without a ConfigMap. Raises FileExistsError if the folder exists."""
        folder.mkdir(parents=True)
        self.folder = folder
        self._data: dict[str, str] = {}
        self._version = 0

    @property
    def exists(self) -> bool:
        """Whether the ConfigMap has been mounted. Before that the kubelet starts no pod that mounts it."""
        return self._version > 0

    def take(self, data: Mapping[str, str]) -> bool:
        """Write the content of the ConfigMap to the folder if it has changed, replacing all keys at once; keys that it
        no longer has are removed. Returns whether it had changed; True for the first call, even without keys."""
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
    """A server for `/containerLogs/NAMESPACE/POD/CONTAINER`. `find` gets the name of a pod and returns the path of its
    log file, or None if the pod has none."""

    def __init__(self, folder: Path, find: Callable[[str], Path | None]) -> None:
        """Create the server, with a certificate of its own in `folder`. It listens at once, on a free port of HOST, but
        answers only after `start`. `find` is called in the server's threads."""
        context = create_pki(folder).server_context()

        class Handler(BaseHTTPRequestHandler):
            """Answers requests for the logs of pods."""

            def do_GET(self) -> None:
                """Answer a GET request with the log of the pod that its path names, or with 404 (`_answer`);
                http.server calls this name."""
                _answer(self, find)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Log nothing: the API server's audit log has the calls."""

        self._server = _Server((HOST, 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))

    def status(self) -> dict[str, Any]:
        """Return the part of the Node's status that leads the API server to this server: address and port."""
        port = self._server.server_address[1]
        addresses = [{"type": "InternalIP", "address": HOST}]
        return {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}

    def start(self) -> None:
        """Begin to answer requests, in a thread of its own. May be called only once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, wait for the thread, and close the port. May also be called before `start`."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _answer(request: BaseHTTPRequestHandler, find: Callable[[str], Path | None]) -> None:
    """Answer a GET request with the whole log of a pod or, if the query has `tailLines`, with that many of its last
    lines, which may be none. `find` gets the name of the pod, the third part of the path; namespace, container and all
    other options are ignored. Answers 404 if the pod has no log or the log's file does not exist, and for any path that
    is not `/containerLogs/` with three parts. Raises ValueError if `tailLines` is no number."""
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
