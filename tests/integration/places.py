"""Whether every pod that waits has a place, at every instant: from watches of all nodes and pods, event by event.
The events of both watches are put in order by resourceVersion, which in one etcd is one counter for all kinds."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.cluster.toolchain import control_plane_programs

NODES, PODS = "/api/v1/nodes", "/api/v1/namespaces/default/pods"
SECONDS = 60.0


@dataclass
class Places:
    """Nodes and pods at an instant."""

    pods: dict[str, Object] = field(default_factory=dict)
    """By uid."""
    nodes: dict[str, Object] = field(default_factory=dict)

    def take(self, kind: str, obj: Object, gone: bool) -> None:
        """What has become of a `Node` or a `Pod`."""
        known, key = (self.nodes, obj["metadata"]["name"]) if kind == "Node" else (self.pods, obj["metadata"]["uid"])
        if gone:
            known.pop(key, None)
        else:
            known[key] = obj

    def waiting(self) -> Counter[str]:
        """Pods without a node, by the resource that they ask for."""
        return Counter(
            asked_of(pod)
            for pod in self.pods.values()
            if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]
        )

    def free(self) -> Counter[str]:
        """Places on open nodes, by resource. A pod holds its own until it is gone."""
        found: Counter[str] = Counter()
        for name, node in self.nodes.items():
            if node["spec"].get("unschedulable"):
                continue
            taken = Counter(
                asked_of(pod) for pod in self.pods.values() if pod["spec"].get("nodeName") == name and holds(pod)
            )
            for resource, count in node["status"]["allocatable"].items():
                if resource.startswith("nvidia.com/"):
                    found[resource] += int(count) - taken[resource]
        return found

    def ready(self) -> int:
        return sum(
            1
            for pod in self.pods.values()
            if "deletionTimestamp" not in pod["metadata"]
            and any(
                row["type"] == "Ready" and row["status"] == "True"
                for row in pod.get("status", {}).get("conditions") or ()
            )
        )

    def lacking(self) -> dict[str, int]:
        """By resource, how many pods wait for which there is no place."""
        free = self.free()
        return {name: count - free[name] for name, count in self.waiting().items() if count > free[name]}


def asked_of(pod: Object) -> str:
    """The GPU resource that a pod asks for one of; empty: none."""
    limits: Object = pod["spec"]["containers"][0].get("resources", {}).get("limits") or {}
    return next((name for name in limits if name.startswith("nvidia.com/")), "")


def holds(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


@dataclass
class WatchFile:
    """One that goes on, and what it has written so far."""

    path: str
    version: str
    first: Sequence[Object]
    file: Path

    def events(self) -> list[dict[str, Any]]:
        lines = self.file.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def reached(self, version: str) -> bool:
        """Whether it has told of this version, or of a later one."""
        return any(int(one["object"]["metadata"]["resourceVersion"]) >= int(version) for one in self.events())


@dataclass
class Watched:
    """Both watches."""

    plane: ControlPlane
    watches: tuple[WatchFile, ...]

    def catch_up(self, *marked: str) -> None:
        """Until both have told of a change that is made now, to these objects."""
        for watch, path in zip(self.watches, marked, strict=True):
            written = self.plane.api.merge_patch(path, {"metadata": {"annotations": {"example.com/last": "x"}}})
            version = written["metadata"]["resourceVersion"]
            wait_until(partial(watch.reached, version), SECONDS, "the watch")

    def instants(self, names: Sequence[str], app: str) -> Iterator[tuple[int, Places]]:
        """Version, and how things stood then, from the later list to the end: these nodes, the pods of this app."""
        stand, events = Places(), []
        for watch in self.watches:
            kind = "Node" if watch.path == NODES else "Pod"
            for obj in watch.first:
                stand.take(kind, obj, gone=False)
            events += [(int(one["object"]["metadata"]["resourceVersion"]), kind, one) for one in watch.events()]
        begin = max(int(watch.version) for watch in self.watches)
        stand.nodes = {name: node for name, node in stand.nodes.items() if name in names}
        stand.pods = {uid: pod for uid, pod in stand.pods.items() if is_of(pod, app)}
        for version, kind, one in sorted(events, key=lambda event: event[0]):
            obj = one["object"]
            if obj["metadata"]["name"] in names if kind == "Node" else is_of(obj, app):
                stand.take(kind, obj, one["type"] == "DELETED")
                if version >= begin:
                    yield version, stand


def is_of(pod: Object, app: str) -> bool:
    return bool((pod["metadata"].get("labels") or {}).get("app") == app)


@contextmanager
def watched(plane: ControlPlane, folder: Path) -> Iterator[Watched]:
    """Watch all nodes, and all pods of the namespace default."""
    kubectl, running, watches = control_plane_programs().kubectl, [], []
    try:
        for path in (NODES, PODS):
            listed = plane.api.get(path)
            version = listed["metadata"]["resourceVersion"]
            watch = WatchFile(path, version, listed["items"], folder / path.rpartition("/")[2])
            query = f"{path}?watch=true&timeoutSeconds=3000&resourceVersion={version}"
            with watch.file.open("w") as output:
                command = [str(kubectl), f"--kubeconfig={plane.kubeconfig}", "get", "--raw", query]
                running.append(subprocess.Popen(command, stdout=output))
            watches.append(watch)
        yield Watched(plane, tuple(watches))
    finally:
        for process in running:
            process.terminate()
            process.wait()
