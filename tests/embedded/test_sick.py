"""One object fails for ever: its node alone waits, named, and nothing unsafe happens (the guard of every scene).
Each kind of call about a node meets every answer of the server, each at a node of its own beside five healthy ones, so that all answers cost one scene. Calls about shared objects meet one answer of each class in `shared_calls`. Virtual time."""

import asyncio
import functools
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hack.sim.fakefaults import EVER, SILENCE, CallFault, Silence
from structlog.testing import capture_logs
from tests.embedded.scene import HOUR, MIXED, Scene, at_once, gpu_pod, node, nodes, open_scene
from tests.fakes.virtualtime import run_virtually, virtual_now

from gpusharing.api.times import parse_duration
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
    ApiRequest,
    Resource,
)
from gpusharing.kube.errors import KubeError
from gpusharing.kube.wire import error_of

HEALTHY = tuple(f"gpu-{number}" for number in range(1, 6))
SHORT = 250.0
"""Seconds for which a rollout is watched that may never end."""
DRAIN_TIMEOUT = "5m"
WORDS = "the webhook example.com says no"


@dataclass(frozen=True)
class FailingCall:
    """A kind of call, and the object whose calls fail. `{node}` and `{mig_manager}` stand for the names of a sick node and of its mig-manager pod."""

    verb: str
    resource: Resource
    name: str | None = None
    subresource: str | None = None
    selector: str | None = None

    def of(self, **named: str) -> "FailingCall":
        name = None if self.name is None else self.name.format(**named)
        return replace(self, name=name, selector=self.selector and self.selector.format(**named))

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
    "the LIST of its pods": FailingCall("list", PODS, selector="spec.nodeName={node}"),
    "the eviction of its pod": FailingCall("evict", PODS, "job-{node}"),
    "writes to the Node": FailingCall("patch", NODES, "{node}", ""),
    "writes to the GPUNode": FailingCall("patch", GPUNODES, "{node}", ""),
    "the creation of the GPUNode": FailingCall("create", GPUNODES, "{node}"),
    "its status": FailingCall("patch", GPUNODES, "{node}", "status"),
    "the ResourceClaim of its pod": FailingCall("get", RESOURCE_CLAIMS, "claim-{node}"),
}
CURES: Mapping[str, tuple[str, FailingCall, str]] = {
    "the deletion of its mig-manager pod": ("wedge-paused", FailingCall("delete", PODS, "{mig_manager}"), ""),
    "the log of its mig-manager pod": ("failed", FailingCall("log", PODS, "{mig_manager}"), ""),
    "the record of another attempt": ("wedge-paused", FailingCall("patch", NODES, "{node}", ""), "actuating"),
}
"""What goes wrong on a sick node, the call that would help, and from which stage of its fence on that fails."""
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
CODES: Mapping[str, int] = {"500": 500, "503": 503, "504": 504, "409": 409, "403": 403, "429": 429, "no answer": 0}
"""The server's answers as test names have them, and their HTTP status; 0: it does not answer."""


UNAVAILABLE = ("500", "503", "504")
"""Answers that are one class, `Unavailable`, to every call but an eviction."""


def shared_calls() -> list[tuple[str, str]]:
    """Return pairs of a shared call and an answer: every call with every class of answers, and every answer."""
    others = [answer for answer in CODES if answer not in UNAVAILABLE]
    return [
        (door, answer)
        for number, door in enumerate(SHARED)
        for answer in (UNAVAILABLE[number % len(UNAVAILABLE)], *others)
    ]


def sick_node(answer: str) -> str:
    return f"gpu-{CODES[answer]}"


def pod_of(node_name: str, *, claims: bool) -> JSON:
    """Return a pod without a controller that holds a GPU and, if it `claims`, a device that is not a GPU."""
    names = {"resourceClaims": [{"name": "c", "resourceClaimName": f"claim-{node_name}"}]}
    return gpu_pod(f"job-{node_name}", node_name, spec=names if claims else {})


def apply(scene: Scene, spec: JSON, limit: int | str) -> None:
    drain = {"unmanagedPods": "Evict", "strandedPods": "Allow", "timeout": DRAIN_TIMEOUT}
    timeouts = {"actuation": "5m", "verification": "5m"}
    scene.apply(spec, rollout=at_once(limit, timeouts=timeouts, maxFailures=10), drain=drain)


def is_done(scene: Scene, name: str) -> bool:
    """The node itself says so; its GPUNode may be what is sick."""
    fence = scene.fence(name)
    return fence is None and not scene.cordoned(name) and "mig" in scene.labels(name).get("gpusharing.dev/mode", "")


@dataclass
class Illness:
    transition: JSON
    done: bool
    hits: int


@dataclass
class Course:
    seconds: float
    """Until every healthy node was done; infinite if they were not in time."""
    status: JSON
    log: list[str]
    writes: int
    """Node writes by the operator."""
    events: Counter[str]
    """By reason."""
    hits: int
    nodes: dict[str, Illness]
    """The sick nodes, by the answer that they got."""
    recovery: float = float("inf")
    """Seconds from the end of the failures until the policy was Ready; infinite if they did not end."""


@dataclass(frozen=True)
class Sickness:
    call: FailingCall | None = None
    """Fails for ever; None: nothing does."""
    answers: tuple[str, ...] = ()
    """What the server answers: one answer to each sick node, or a single one to calls about a shared object."""
    limit: int | str = "100%"
    linger: float = 60.0
    """Seconds for which it is watched after the healthy nodes are done."""
    since: str = ""
    """The stage of its fence from which on a node is sick; empty: from the beginning."""
    wedge: str = ""
    """What also goes wrong with the software of the sick nodes."""
    ends: bool = False
    """Whether the calls succeed again at the end, and the run lasts until the policy is Ready."""


class Ward:
    def __init__(self, scene: Scene, sickness: Sickness) -> None:
        self.scene, self.sickness = scene, sickness
        self.faults: dict[str, CallFault] = {}
        for name in HEALTHY:
            scene.e.cluster.add(PODS, pod_of(name, claims=False))
        for name in map(sick_node, sickness.answers):
            scene.e.cluster.add(PODS, pod_of(name, claims=True))
            claim = {"metadata": {"namespace": "default", "name": f"claim-{name}"}, "spec": {}}
            allocated: JSON = {"status": {"allocation": {"devices": {"results": []}}}}
            scene.e.cluster.add(RESOURCE_CLAIMS, claim | allocated)

    async def break_software(self) -> None:
        names = [sick_node(answer) for answer in self.sickness.answers]
        await self.scene.e.until(lambda: all(map(self.mig_manager, names)), "their software", SHORT)
        for name in names:
            self.scene.e.software.inject(name, self.sickness.wedge)

    def mig_manager(self, node_name: str) -> str:
        pods = self.scene.e.cluster.objects(PODS, label_selector="app=nvidia-mig-manager")
        return next((pod["metadata"]["name"] for pod in pods if pod["spec"]["nodeName"] == node_name), "")

    async def fall_ill(self) -> None:
        """From now on, or from a stage of their fences on, let the calls fail."""
        for answer in self.sickness.answers:
            if self.sickness.since:
                await self.scene.fenced(sick_node(answer), self.sickness.since)
            self._fail(answer)

    def _fail(self, answer: str) -> None:
        assert self.sickness.call is not None
        name = sick_node(answer)
        call = self.sickness.call.of(node=name, mig_manager=self.mig_manager(name))
        self.faults[answer] = self.scene.e.cluster.faults.fail(
            call.verb,
            call.resource,
            call.error(CODES[answer]),
            times=EVER,
            identity="operator",
            name=call.name,
            subresource=call.subresource,
            selector=call.selector,
        )

    async def recover(self) -> float:
        """Let the calls succeed again; return how many seconds later the policy was Ready."""
        for fault in self.faults.values():
            fault.lift()
        healed = virtual_now()
        await self.scene.ready(seconds=HOUR)
        return (virtual_now() - healed).total_seconds()

    def course(self, seconds: float) -> Course:
        scene = self.scene
        nodes_of = {answer: sick_node(answer) for answer in self.sickness.answers}
        return Course(
            seconds,
            scene.e.policy("pool-b").get("status") or {},
            [],
            scene.node_writes().total(),
            scene.events(),
            sum(fault.hits for fault in self.faults.values()),
            {
                answer: Illness(scene.transition(name), is_done(scene, name), self.faults[answer].hits)
                for answer, name in nodes_of.items()
            },
        )


async def _course(sickness: Sickness) -> Course:
    shared = sickness.call in SHARED.values()
    sick = [node(sick_node(answer)) for answer in sickness.answers]
    with capture_logs() as lines:
        async with open_scene(*nodes(len(HEALTHY)), *sick) as scene:
            ward = Ward(scene, sickness)
            if sickness.wedge:
                await ward.break_software()
            if not sickness.since:
                await ward.fall_ill()
            begun = virtual_now()
            apply(scene, MIXED, sickness.limit)
            if sickness.since:
                await ward.fall_ill()
            try:
                await scene.e.until(
                    lambda: all(is_done(scene, name) for name in HEALTHY), "five nodes", SHORT if shared else HOUR
                )
                seconds = (virtual_now() - begun).total_seconds()
            except AssertionError:
                if not shared:
                    raise
                seconds = float("inf")
            await asyncio.sleep(sickness.linger)
            found = ward.course(seconds)
            if sickness.ends:
                found = replace(found, recovery=await ward.recover())
    return replace(found, log=[str(line) for line in lines])


@functools.cache
def alone(limit: int | str = "100%") -> float:
    """Return how many seconds the five healthy nodes take without a sick one."""
    random.seed(1)
    return run_virtually(_course(Sickness(limit=limit, linger=0.0))).seconds


def course(sickness: Sickness) -> Course:
    random.seed(1)
    return run_virtually(_course(sickness))


SLOWER = 1.25
"""Times as long as the five healthy nodes take alone."""
RECOVERY = 900.0
"""Seconds within which the sick nodes are done, too, when their calls succeed again; a back-off is part of that."""
ANSWERS = tuple(CODES)
ALL = 5 + len(ANSWERS)
UNSEEN = {"its status", "the creation of the GPUNode"}
"""Where the GPUNode cannot say what is wrong, the policy or the log does."""
NAMED = {"ListFailed", "EvictionError", "Forbidden", "Throttled", "CallFailed", "DRAClaim"}


def words(answer: str) -> set[str]:
    return {"no answer" if answer == "no answer" else WORDS, "cannot be read", "each of 3 attempts"}


@pytest.mark.parametrize("door", OF_ONE_NODE.keys())
def test_the_healthy_nodes_are_as_fast_as_without_it_status_tells_the_truth_and_a_cured_node_goes_on(door: str) -> None:
    run = course(Sickness(OF_ONE_NODE[door], ANSWERS, ends=True))
    assert run.seconds <= SLOWER * alone()
    assert run.recovery <= RECOVERY
    done = door == "its status"
    assert run.status["summary"]["nodes"] == (f"{ALL}/{ALL}" if done else f"5/{ALL}")
    for answer, ill in run.nodes.items():
        assert 0 < ill.hits <= 40, "it is asked more and more seldom"
        assert ill.done is done
        if done:
            assert any(f"node/{sick_node(answer)}" in line for line in run.log)
        elif door not in UNSEEN:
            assert ill.transition["reason"] in NAMED
            assert any(text in ill.transition["message"] for text in words(answer)), ill.transition
    if not done:
        message = run.status["summary"]["message"]
        (named,) = [answer for answer in ANSWERS if message.startswith(f"{sick_node(answer)}: ")]
        assert any(text in message for text in words(named)), message


@pytest.mark.parametrize("door", ["the LIST of its pods", "writes to the Node", "the creation of the GPUNode"])
def test_nodes_that_cannot_start_leave_the_only_slot_to_the_others(door: str) -> None:
    run = course(Sickness(OF_ONE_NODE[door], ("503", "409", "no answer"), limit=1))
    assert run.seconds <= SLOWER * alone(1)


@pytest.mark.parametrize("answer", ["403", "no answer"])
def test_with_two_slots_a_drain_whose_evictions_fail_takes_one_of_them_once(answer: str) -> None:
    run = course(Sickness(OF_ONE_NODE["the eviction of its pod"], (answer,), limit=2))
    timeout = parse_duration(DRAIN_TIMEOUT).total_seconds()
    assert run.seconds <= alone(2) + timeout / 2 + 15.0


@pytest.mark.parametrize("answer", ["500", "429"])
def test_a_drain_whose_evictions_fail_holds_the_only_slot_until_drain_timeout_and_no_longer(answer: str) -> None:
    """Not 1.25 times, but later by drain.timeout at most: docs/adr/0027-a-failing-eviction-keeps-its-slot.md."""
    run = course(Sickness(OF_ONE_NODE["the eviction of its pod"], (answer,), limit=1, linger=1800.0))
    timeout = parse_duration(DRAIN_TIMEOUT).total_seconds()
    assert run.seconds <= alone(1) + timeout + 15.0
    assert 1 <= run.events["ChangeGivenUp"] <= 3
    assert not run.nodes[answer].done


@pytest.mark.parametrize("since", ["fenced", "actuating"])
def test_a_node_that_falls_ill_on_its_way_stays_fenced_and_is_named(since: str) -> None:
    run = course(Sickness(OF_ONE_NODE["writes to the Node"], ANSWERS, since=since, linger=120.0))
    assert run.seconds <= SLOWER * alone()
    assert run.status["summary"]["nodes"] == f"5/{ALL}"
    for ill in run.nodes.values():
        assert ill.hits > 0
        assert not ill.done
        assert ill.transition["reason"] == "CallFailed"
        assert ill.transition["cordonedBy"] == "Operator"


@pytest.mark.parametrize("cure", CURES.keys())
def test_a_node_that_cannot_be_cured_is_failed_once_its_time_is_up_and_names_the_call(cure: str) -> None:
    wedge, call, since = CURES[cure]
    run = course(Sickness(call, ANSWERS, since=since, wedge=wedge, linger=900.0))
    assert run.seconds <= SLOWER * alone()
    assert run.events["NodeFailed"] == len(ANSWERS), "and not in turns with something else"
    assert run.status["summary"]["nodes"] == f"5/{ALL}"
    for answer, ill in run.nodes.items():
        assert not ill.done
        assert (ill.transition["phase"], ill.transition["cordonedBy"]) == ("Failed", "Operator")
        assert 0 < ill.hits <= 100, "once a minute at most, a conflict three times"
        if cure.startswith("the log"):
            assert ill.transition["reason"] == "ActuatorFailed"
            assert "see the log of its pod" in ill.transition["message"]
            assert ill.hits <= 8, "it is asked for more and more seldom"
            continue
        action = "RestartOperand" if cure.startswith("the deletion") else "UpdateFence"
        assert ill.transition["reason"] == "CallFailed"
        assert f"{action} failed: " in ill.transition["message"]
        assert any(text in ill.transition["message"] for text in words(answer)), ill.transition


GOES_ON = {"our ConfigMap", "the status of the policy", "Events", "the list of Warnings"}
"""What only tells or explains keeps nobody, nor does a write of entries that these nodes do not need."""
OBJECTS = {
    "our ConfigMap": "gpusharing-mig-parted",
    "the creation of our ConfigMap": "gpusharing-mig-parted",
    "the policy": "pool-b",
    "the status of the policy": "policy/pool-b",
    "the list of policies": "policies cannot be listed",
    "the list of budgets": "PodDisruptionBudgets cannot be listed",
    "Events": "Events cannot be posted; trying again",
    "the list of Warnings": "Warning events about the agent's pods cannot be read; trying again",
    "the Lease": "lease",
}


@pytest.mark.parametrize(("door", "answer"), shared_calls())
def test_a_shared_object_that_fails_does_nothing_unsafe_and_is_named(door: str, answer: str) -> None:
    run = course(Sickness(SHARED[door], (answer,)))
    assert run.hits > 0
    assert OBJECTS[door] in json.dumps(run.status) + "".join(run.log)
    if door in GOES_ON:
        assert run.seconds <= SLOWER * alone()
    else:
        assert run.seconds == float("inf")
        assert run.writes == 0, "no node is touched before what it needs is there"
    repeated = max(run.log.count(line) for line in set(run.log))
    assert repeated <= 2, "nothing is said every two seconds"
