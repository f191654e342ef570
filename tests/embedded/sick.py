"""Six nodes with a pod each, and one object that fails for ever: how long the healthy ones take, and what is said."""

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hack.sim.fakefaults import EVER, SILENCE, CallFault, Silence
from structlog.testing import capture_logs
from tests.embedded.scene import HOUR, MIXED, Scene, at_once, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import run_virtually, virtual_now

from gpusharing.kube.answers import ApiRequest, error_of
from gpusharing.kube.client import (
    CONFIG_MAPS,
    EVENTS,
    GPUNODES,
    JSON,
    LEASES,
    NODES,
    PDBS,
    PODS,
    POLICIES,
    RESOURCE_CLAIMS,
    Resource,
)
from gpusharing.kube.errors import KubeError

SICK = "gpu-6"
HEALTHY = tuple(f"gpu-{number}" for number in range(1, 6))
SHORT = 600.0
"""Seconds for which a rollout is watched that may never end."""
DRAIN_TIMEOUT = "5m"
WORDS = "the webhook example.com says no"


@dataclass(frozen=True)
class FailingCall:
    """A kind of call, and the one object whose calls fail."""

    verb: str
    resource: Resource
    name: str | None = None
    subresource: str | None = None
    selector: str | None = None

    def error(self, code: int) -> KubeError | Silence:
        """What the real client makes of this HTTP status; 0: no answer."""
        if code == 0:
            return SILENCE
        request = ApiRequest(self.verb, self.resource, self.subresource)
        if self.verb == "evict":
            request = ApiRequest("create", PODS, "eviction")
        reason = {409: "Conflict", 403: "Forbidden", 429: "TooManyRequests"}.get(code, "")
        return error_of(request, code, {"message": WORDS, "reason": reason})


OF_ONE_NODE: Mapping[str, FailingCall] = {
    "the LIST of its pods": FailingCall("list", PODS, selector=f"spec.nodeName={SICK}"),
    "the eviction of its pod": FailingCall("evict", PODS, f"job-{SICK}"),
    "writes to the Node": FailingCall("patch", NODES, SICK, ""),
    "writes to the GPUNode": FailingCall("patch", GPUNODES, SICK, ""),
    "the creation of the GPUNode": FailingCall("create", GPUNODES, SICK),
    "its status": FailingCall("patch", GPUNODES, SICK, "status"),
    "the ResourceClaim of its pod": FailingCall("get", RESOURCE_CLAIMS, "claim"),
}
CURES: Mapping[str, tuple[str, FailingCall, str]] = {
    "the deletion of its mig-manager pod": ("wedge-paused", FailingCall("delete", PODS), ""),
    "the log of its mig-manager pod": ("failed", FailingCall("log", PODS), ""),
    "the record of another attempt": ("wedge-paused", FailingCall("patch", NODES, SICK, ""), "actuating"),
}
"""What goes wrong on the sick node, the call that would help, and from which stage of its fence on that fails."""
SHARED: Mapping[str, FailingCall] = {
    "our ConfigMap": FailingCall("patch", CONFIG_MAPS, "gpusharing-mig-parted"),
    "the creation of our ConfigMap": FailingCall("create", CONFIG_MAPS, "gpusharing-mig-parted"),
    "the policy": FailingCall("patch", POLICIES, "pool-b", ""),
    "the status of the policy": FailingCall("patch", POLICIES, "pool-b", "status"),
    "the list of policies": FailingCall("list", POLICIES),
    "the list of budgets": FailingCall("list", PDBS),
    "Events": FailingCall("create", EVENTS),
    "the list of Warnings": FailingCall("list", EVENTS),
    "the Lease": FailingCall("get", LEASES, "gpusharing-operator"),
}
CODES: Mapping[str, int] = {
    "500": 500,
    "503": 503,
    "504": 504,
    "409": 409,
    "403": 403,
    "429": 429,
    "no answer": 0,
}


def pod_of(node: str) -> JSON:
    """A pod without a controller that holds a GPU; the sick node's one also has a claim that is none of a GPU."""
    more: dict[str, Any] = {}
    if node == SICK:
        claims = {"resourceClaims": [{"name": "c", "resourceClaimName": "claim"}]}
        more = {"spec": claims}
    return gpu_pod(f"job-{node}", node, **more)


def apply(scene: Scene, spec: JSON, limit: int | str) -> None:
    """Change all nodes, their pods included."""
    drain = {"unmanagedPods": "Evict", "strandedPods": "Allow", "timeout": DRAIN_TIMEOUT}
    timeouts = {"actuation": "5m", "verification": "5m"}
    scene.apply(spec, rollout=at_once(limit, timeouts=timeouts, maxFailures=10), drain=drain)


def is_done(scene: Scene, name: str) -> bool:
    """The node itself says so; its GPUNode may be what is sick."""
    fence = scene.fence(name)
    return (
        fence is None
        and not scene.cordoned(name)
        and "mig" in scene.labels(name).get("gpusharing.dev/mode", "")
    )


@dataclass
class Course:
    """What came of a run."""

    seconds: float
    """Until every healthy node was done."""
    transition: JSON
    status: JSON
    said: list[str]
    """Lines of the log."""
    done: bool
    """The sick node got through, too."""
    hits: int
    """Calls that failed."""
    writes: int
    """Of Nodes, by the operator."""
    events: Counter[str]
    """By reason."""


def _fall_ill(scene: Scene, door: FailingCall, code: int) -> CallFault:
    """From now on, and for ever, the operator's calls through this door fail."""
    return scene.e.cluster.faults.fail(
        door.verb,
        door.resource,
        door.error(code),
        times=EVER,
        identity="operator",
        name=door.name,
        subresource=door.subresource,
        selector=door.selector,
    )


async def _course(
    door: FailingCall | None,
    code: int,
    count: int,
    limit: int | str,
    linger: float,
    since: str = "",
    wedge: str = "",
) -> Course:
    patience = SHORT if door in SHARED.values() else HOUR
    with capture_logs() as lines:
        async with open_scene(*nodes(count)) as scene:
            claim = {"metadata": {"namespace": "default", "name": "claim"}, "spec": {}, "status": {}}
            for name in [f"gpu-{number + 1}" for number in range(count)]:
                scene.e.cluster.add(PODS, pod_of(name))
            scene.e.cluster.add(
                RESOURCE_CLAIMS, claim | {"status": {"allocation": {"devices": {"results": []}}}}
            )
            fault = _fall_ill(scene, door, code) if door is not None and not since else None
            if wedge:
                await scene.e.until(lambda: SICK in scene.e.software.nodes, "its software", SHORT)
                scene.e.software.inject(SICK, wedge)
            begun = virtual_now()
            apply(scene, MIXED, limit)
            if door is not None and since:
                await scene.fenced(SICK, since)
                fault = _fall_ill(scene, door, code)
            try:
                await scene.e.until(
                    lambda: all(is_done(scene, name) for name in HEALTHY), "five nodes", patience
                )
                seconds = (virtual_now() - begun).total_seconds()
            except AssertionError:
                if door in OF_ONE_NODE.values() or door is None:
                    raise
                seconds = float("inf")
            await asyncio.sleep(linger)
            done = count > len(HEALTHY) and is_done(scene, SICK)
            status = scene.e.policy("pool-b").get("status") or {}
            return Course(
                seconds,
                scene.transition(SICK),
                status,
                [str(line) for line in lines],
                done,
                fault.hits if fault else 0,
                scene.node_writes().total(),
                scene.events(),
            )


@functools.cache
def alone(limit: int | str = "100%") -> float:
    """How long the five healthy nodes take without the sick one."""
    random.seed(1)
    return run_virtually(_course(None, 0, len(HEALTHY), limit, 0.0)).seconds


def course(
    door: FailingCall,
    code: int,
    *,
    limit: int | str = "100%",
    linger: float = 60.0,
    since: str = "",
    wedge: str = "",
) -> Course:
    """One run with one sick object, from the beginning or from a stage of the sick node's fence.

    `wedge`: what also goes wrong with the software of the sick node.
    """
    random.seed(1)
    return run_virtually(_course(door, code, len(HEALTHY) + 1, limit, linger, since, wedge))
