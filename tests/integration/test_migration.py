"""docs/how-to/migrate-from-time-slicing-to-mig.md, played on SIMULATED nodes with the real scheduler and controllers.
What is proven, from watches of all nodes and pods, event by event: open nodes always have as many free places of a resource name as pods wait for that name, and the budget of the pods is kept. So a pod whose node is drained waits only for its controller, the scheduler and its start, and never for a change of a node. The events of both watches are put in order by resourceVersion, which in one etcd is one counter for all kinds."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.cluster.toolchain import control_plane_programs
from hack.launch import PYTHONPATH
from tests.chart.scraping import RunningPrometheus, scraping
from tests.docs.commands import Shell, page
from tests.docs.pages import MIGRATION
from tests.integration.product import GPUNODES, H100, NODES, POLICIES, SECONDS, Pool, Product
from tests.integration.test_metered_hour import ask_cost
from tests.integration.workloads import PDBS, PODS, pod_spec

from kubectl_gpusharing.shell.troubles import CHANGES, DONE

APP, REPLICAS, GUARDED = "notebooks", 7, 5
"""The Deployment of the page, its pods, and how many its budget keeps."""
NAMES = ("gpu-21", "gpu-22", "gpu-23")
DEPLOYMENT = f"/apis/apps/v1/namespaces/default/deployments/{APP}"
GPU, SMALL = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
PATIENCE = 3 * SECONDS
"""With a block of the page, which waits for two nodes at most, one after the other."""
NEVER = {"maxUnavailable": 0, "maxSurge": 3}
STEPS: list[tuple[str, dict[str, int], bool]] = [
    ("gsp/notebooks --for", {"notebooks": 12}, False),
    ("label node gpu-23 ", {"notebooks": 8, "notebooks-mig": 7}, False),
    ("delete gsp notebooks\n", {"notebooks-mig": 21}, False),
    ("name: notebooks-mixed", {"notebooks-mig": 7, "notebooks-mixed": 12}, False),
    ("rollout status", {"notebooks-mig": 7, "notebooks-mixed": 12}, True),
    ("delete gsp notebooks-mig", {"notebooks-mixed": 18}, True),
]  # fmt: skip
"""A text of the last block of each step, the places of each policy after it, and whether the pods have the new name."""
PLAYED = [block for block in page(MIGRATION) if block.where == "migration"]


# --- whether every pod that waits has a place, at every instant ----------------------------------------------


@dataclass
class Places:
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


# --- the page ------------------------------------------------------------------------------------------------


def manifest() -> Object:
    spec = pod_spec("", GPU) | {"nodeSelector": {"example.com/tenant": APP}}
    template = {"metadata": {"labels": {"app": APP}}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": APP},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": APP}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": NEVER},
            "template": template,
        },
    }


@pytest.fixture
def pool(product: Product) -> Iterator[Pool]:
    with product.operator("migration"), product.pool(name=APP, empty=True) as found:
        labels: Any = {"example.com/tenant": APP}
        for name in NAMES:
            found.add_node(name, H100, gpus=1, **labels)
        try:
            yield found
        finally:
            for path in (f"{POLICIES}/{APP}-{kind}" for kind in ("mig", "mixed")):
                product.remove(path)
                found.wait(lambda path=path: not product.exists(path), f"{path} to be gone", dict)


def begin(pool: Pool) -> None:
    pool.create("/apis/apps/v1/namespaces/default/deployments", manifest())
    spec = {"minAvailable": GUARDED, "selector": {"matchLabels": {"app": APP}}}
    pool.create(PDBS, {"metadata": {"name": APP}, "spec": spec})


def shell(product: Product, folder: Path) -> Shell:
    programs = folder / "bin"
    programs.mkdir()
    plugin = programs / "kubectl-gpusharing"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -m kubectl_gpusharing "$@"\n')
    plugin.chmod(0o755)
    path = f"{programs}:{control_plane_programs().kubectl.parent}:{os.environ['PATH']}"
    more = {"PATH": path, "HOME": str(folder), "PYTHONPATH": PYTHONPATH, "PYTHONUTF8": "1"}
    return Shell({**os.environ, **more, "KUBECONFIG": str(product.plane.kubeconfig)}, folder)


def test_every_block_of_the_page_has_its_place_in_the_steps() -> None:
    at = [next(i for i, block in enumerate(PLAYED) if text in f"{block.text}\n") for text, _, _ in STEPS]
    assert at == sorted(set(at))
    assert at[-1] == len(PLAYED) - 1


def test_no_pod_loses_its_place_on_the_way_from_time_slicing_to_mig(
    product: Product, pool: Pool, tmp_path: Path
) -> None:
    typed, left = shell(product, tmp_path), list(STEPS)
    (tmp_path / "prometheus").mkdir()
    with scraping(tmp_path / "prometheus", [product.scraped(NAMES)]) as prometheus:
        typed.run(PLAYED[0], PATIENCE)
        begin(pool)
        after(product, *left.pop(0))
        with watched(product.plane, tmp_path) as seen:
            for block in PLAYED[1:]:
                typed.run(block, PATIENCE)
                if left[0][0] in f"{block.text}\n":
                    after(product, *left.pop(0))
                    if len(left) == len(STEPS) - 2:
                        measured(prometheus)
            seen.catch_up(f"{NODES}/{NAMES[0]}", f"{PODS}/{a_pod(product)}")
            check(seen)
    assert left == []


def a_pod(product: Product) -> str:
    return str(product.api.list(PODS, labelSelector=f"app={APP}")[0]["metadata"]["name"])


def after(product: Product, block: str, places: dict[str, int], moved: bool) -> None:
    """After a step all pods run, nobody waits, and USED and PENDING of each policy say so of its own nodes."""

    def shown() -> dict[str, tuple[str, int]]:
        summaries = {
            policy: product.api.get(f"{POLICIES}/{policy}").get("status", {}).get("summary") or {} for policy in places
        }
        return {
            policy: (str(one.get("used", "0/0")), int(one.get("pendingPods", 0))) for policy, one in summaries.items()
        }

    def expected() -> dict[str, tuple[str, int]]:
        held = Counter(policy_of(product, pod["spec"]["nodeName"]) for pod in running(product))
        return {policy: (f"{held[policy]}/{all_}", 0) for policy, all_ in places.items()}

    try:
        wait_until(lambda: shown() == expected(), SECONDS, f"the numbers after {block!r}")
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {shown()} and not {expected()}") from None
    # The numbers above are of readings a moment apart: they may agree while a pod is still on its way.
    asked = {SMALL if moved else GPU: REPLICAS}
    wait_until(lambda: limits(product) == asked, SECONDS, f"the pods after {block!r} to run")


def policy_of(product: Product, node: str) -> str:
    transition = product.api.get(f"{GPUNODES}/{node}").get("status", {}).get("transition") or {}
    return str(transition.get("policy", ""))


def running(product: Product) -> list[Object]:
    pods = product.api.list(PODS, labelSelector=f"app={APP}")
    return [pod for pod in pods if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]


def limits(product: Product) -> Counter[str]:
    return Counter(name for pod in running(product) for name in pod["spec"]["containers"][0]["resources"]["limits"])


def measured(prometheus: RunningPrometheus) -> None:
    """Wait until `cost` tells both halves of the pool apart: all pods hold shares of the old one, the new one is idle.

    What pods held of the node that moved, before they left it, may be too short for any scrape.
    """

    def told() -> set[tuple[str, str]]:
        typed = ("--prometheus", prometheus.address, "--by", "policy", "--window", "10m", "-o", "json")
        done = ask_cost(*typed)
        rows = json.loads(done.stdout)["rows"] if done.returncode in (DONE, CHANGES) else []
        return {(row["name"], row["part"]) for row in rows if row["gpuHours"] > 0}

    both = {(APP, "held"), (f"{APP}-mig", "idle")}
    wait_until(lambda: both <= told(), SECONDS, "the bill of both")


def check(seen: Watched) -> None:
    looked = waited = 0
    for version, now in seen.instants(NAMES, APP):
        looked, waited = looked + 1, waited + bool(now.waiting())
        assert not now.lacking(), (version, now.lacking(), now.waiting(), now.free())
        assert now.ready() >= GUARDED, version
    assert looked > 100
    assert waited, "pods were moved"


def test_a_pod_without_a_place_is_noticed() -> None:
    node = {"metadata": {"name": "n"}, "spec": {}, "status": {"allocatable": {GPU: "2", "cpu": "8"}}}
    limits = {"limits": {GPU: "1"}}

    def pod(uid: str, **spec: object) -> Object:
        containers = [{"name": "main", "resources": limits}]
        return {"metadata": {"uid": uid}, "spec": {"containers": containers, **spec}, "status": {}}

    stand = Places()
    stand.take("Node", node, gone=False)
    stand.take("Pod", pod("1", nodeName="n"), gone=False)
    stand.take("Pod", pod("2"), gone=False)
    assert (stand.lacking(), stand.ready()) == ({}, 0)
    stand.take("Pod", pod("3"), gone=False)
    assert stand.lacking() == {GPU: 1}
    stand.take("Pod", pod("3"), gone=True)
    stand.take("Node", {**node, "spec": {"unschedulable": True}}, gone=False)
    assert stand.lacking() == {GPU: 1}
    stand.take("Node", {**node, "status": {"allocatable": {SMALL: "9"}}}, gone=False)
    assert stand.lacking() == {GPU: 1}
