"""A change that is held up in its middle, so that something can happen to it, and what must be true in the end."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hack.cluster.api import ApiError, Object
from hack.realnode.images import PAUSE_IMAGE
from tests.e2e.pool import (
    DEPLOYMENTS,
    GPU,
    NODES,
    PODS,
    POLICY,
    REPLICAS,
    SELECTOR,
    PoolMode,
    Walk,
    deployment,
    holding,
    policy_of,
)

from gpusharing.api import names
from hack import launch

KEEPER = f"{DEPLOYMENTS}/keeper"
KEEPER_PROGRAM = """
import signal, sys, time
told = []
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
while not told:
    time.sleep(1)
"""
"""It ends a moment after it was told, so that who tells it has an answer."""
TELL_KEEPER = "import os, signal; os.kill(1, signal.SIGUSR1)"
OPERATOR_PODS = f"/api/v1/namespaces/{launch.NAMESPACE}/pods"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{launch.NAMESPACE}/leases/gpusharing-operator"


@dataclass
class Incident:
    """One test: a change of the pool, and something that happens to it."""

    walk: Walk
    began: int
    bystanders: dict[str, Object] = field(default_factory=dict)
    """A pod without a GPU on each node, as it was before."""

    def begin(self, stop: PoolMode, at_once: int = 1) -> str:
        """Ask for a mode and wait until a drain waits for the keeper to end; the node on which it does."""
        self.walk.site.api.apply(POLICY, policy_of(stop, at_once))
        self.walk.wait(lambda: bool(self._leaving()), "the keeper to be evicted")
        node = self._leaving()[0]
        assert self.fence(node)["stage"] == "fenced"
        return node

    def let_go(self) -> None:
        with contextlib.suppress(ApiError):  # let go before
            self.walk.site.api.delete(KEEPER, {"propagationPolicy": "Foreground"})
        self.walk.wait(self._keeper_is_gone, "the keeper to be gone")

    def wait_led_by_another(self, before: str) -> None:
        """Until an operator leads that is not the one before."""
        self.walk.wait(lambda: self.leader() not in ("", before), "another operator to lead")

    def ends_well(self, restarted: tuple[str, ...] = ()) -> None:
        """The change ends in Synced, all pods run, and nobody was disturbed who need not be.

        `restarted`: nodes whose pods were started anew by what happened.
        """
        self.let_go()
        walk = self.walk
        walk.wait(walk.is_ready, "the policy to be Ready")
        walk.wait(lambda: len(walk.running()) == REPLICAS, "the Deployment's pods to run")
        for node in walk.site.api.list("/api/v1/nodes"):
            assert not node["spec"].get("unschedulable"), node["metadata"]["name"]
            assert names.ANNOTATION_FENCE not in node["metadata"].get("annotations", {})
        evicted = walk.evicted(self.began)
        assert evicted, "the change evicts"
        assert len(set(evicted)) == len(evicted), f"a pod was evicted twice: {evicted}"
        assert all(name.startswith(("holder-", "keeper-")) for name in evicted), f"without a GPU: {evicted}"
        for name, before in self.bystanders.items():
            now = walk.site.api.get(f"{PODS}/{name}")
            assert now["metadata"]["uid"] == before["metadata"]["uid"], name
            if before["spec"]["nodeName"] not in restarted:
                assert container_ids(now) == container_ids(before), f"{name} was started anew"

    def waits_for_a_place(self, node: str) -> bool:
        """Whether the node waits so that the operator's pod has a place."""
        return "the operator's own pod" in self.walk.site.kubectl("get", "gpun", node, "-o", "yaml")

    def fence(self, node: str) -> Object:
        """What is written on the node while it is in a change."""
        annotations = self.walk.site.api.get(f"/api/v1/nodes/{node}")["metadata"].get("annotations", {})
        found: Object = json.loads(annotations.get(names.ANNOTATION_FENCE, "{}"))
        return found

    def operator_pods(self, phase: str = "") -> list[Object]:
        """Those that are not on their way out; only those in this phase when given."""
        found = self.walk.site.api.list(OPERATOR_PODS, labelSelector=SELECTOR)
        stay = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return [pod for pod in stay if phase in ("", pod["status"]["phase"])]

    def leading_pod(self) -> Object:
        name = self.leader().rpartition("-")[0]
        pod: Object = self.walk.site.api.get(f"{OPERATOR_PODS}/{name}")
        return pod

    def pods_on(self, node: str) -> set[str]:
        found = self.walk.site.api.list("/api/v1/pods", fieldSelector=f"spec.nodeName={node}")
        return {pod["metadata"]["name"] for pod in found}

    def leader(self) -> str:
        return str(self.walk.site.api.get(LEASE)["spec"].get("holderIdentity") or "")

    def _keepers(self) -> list[Object]:
        return self.walk.site.api.list(PODS, labelSelector="app=keeper")

    def _leaving(self) -> list[str]:
        return [pod["spec"]["nodeName"] for pod in self._keepers() if "deletionTimestamp" in pod["metadata"]]

    def _keeper_is_gone(self) -> bool:
        """It is told again and again: a pod of it may come until its ReplicaSet is gone."""
        site, found = self.walk.site, self._keepers()
        for pod in found:
            with contextlib.suppress(AssertionError):  # it does not run yet, or no more
                site.kubectl("exec", pod["metadata"]["name"], "--", "python3", "-c", TELL_KEEPER)
        return not found and "keeper" not in {one["metadata"]["name"] for one in site.api.list(DEPLOYMENTS)}


@contextlib.contextmanager
def incident(walk: Walk) -> Iterator[Incident]:
    """A pool at rest, with a pod on each node that holds no GPU; afterwards what held the change up is taken away."""
    walk.wait(walk.is_ready, "the pool to be at rest")
    made = Incident(walk, walk.mark())
    walk.site.api.create(DEPLOYMENTS, keeper(walk.site.image.reference))
    walk.wait(lambda: len(walk.running("keeper")) == 1, "the keeper to run")
    there = {pod["metadata"]["name"] for pod in walk.site.api.list(PODS)}
    for node in NODES:
        if f"bystander-{node}" not in there:
            walk.site.api.create(PODS, bystander(node))
    for node in NODES:
        walk.wait(partial(_runs, walk, f"bystander-{node}"), f"a pod without a GPU on {node}")
        made.bystanders[f"bystander-{node}"] = walk.site.api.get(f"{PODS}/bystander-{node}")
    try:
        yield made
    finally:
        made.let_go()


@contextlib.contextmanager
def watched_nodes(walk: Walk, file: Path) -> Iterator[None]:
    """Write every version of every Node to a file, from the one that is there now."""
    command = [str(walk.site.plane.kubectl_program), "get", "nodes", "--watch", "-o", "json"]
    with file.open("wb") as output:
        watch = subprocess.Popen(command, env=walk.site.plane.environment(), stdout=output)
    try:
        walk.wait(lambda: len(versions(file)) >= len(NODES), "the watch to begin")
        yield
    finally:
        watch.kill()
        watch.wait()


def versions(file: Path) -> list[Object]:
    """The objects in a file of JSON texts, one after the other; the last may be half there."""
    text, at, found, decoder = file.read_text(), 0, list[Object](), json.JSONDecoder()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            break
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def container_ids(pod: Object) -> list[str]:
    return [one["containerID"] for one in pod["status"]["containerStatuses"]]


def keeper(image: str) -> Object:
    """A Deployment of one pod that holds a GPU and does not end when it is told to: so its node stays in the drain."""
    pod = holding(GPU)
    pod["containers"][0] |= {"image": image, "command": ["python3", "-c", KEEPER_PROGRAM]}
    return deployment("keeper", 1, {**pod, "terminationGracePeriodSeconds": 3600})


def bystander(node: str) -> Object:
    container = {"name": "main", "image": PAUSE_IMAGE}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container]}
    return {"metadata": {"name": f"bystander-{node}"}, "spec": spec}


def _runs(walk: Walk, name: str) -> bool:
    return bool(walk.site.api.get(f"{PODS}/{name}")["status"].get("phase") == "Running")
