"""The API server answers 429: what it refused waits, and everything else goes on. Virtual time."""

import functools
import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hack.sim.fakefaults import EVER
from structlog.testing import capture_logs
from tests.embedded.scene import HOUR, MIXED, Scene, at_once, gpu_pod, nodes, open_scene
from tests.embedded.test_sick import is_done
from tests.fakes.busy import BusyClient
from tests.fakes.virtualtime import run_virtually, virtual_now, virtually

from gpusharing.kube.client import EVENTS, GPUNODES, NODES, PODS, POLICIES, ApiRequest, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Throttled

BUSY = Throttled("too many requests", 30.0)
SLOWER = 1.5
"""Times as long as a roll takes on a server that refuses nothing."""


@dataclass(frozen=True)
class Roll:
    seconds: float
    """Until every node was done."""
    events: Counter[str]
    """By reason."""
    complaints: list[str]


def begin(scene: Scene, count: int) -> None:
    for name in names_of(count):
        scene.e.cluster.add(PODS, gpu_pod(f"job-{name}", name))
    drain = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
    scene.apply(MIXED, rollout=at_once("100%"), drain=drain)


def names_of(count: int) -> list[str]:
    return [f"gpu-{number + 1}" for number in range(count)]


async def finished(scene: Scene, count: int) -> None:
    await scene.e.until(lambda: all(is_done(scene, name) for name in names_of(count)), "all nodes", HOUR)


@functools.cache
def quiet(count: int) -> float:
    """Return how many seconds a roll takes on a server that refuses nothing."""
    return refusing(count, ()).seconds


Refusal = tuple[str, Resource, str, int]
"""A verb, a kind, its subresource, and how many objects are refused."""


def refusing(count: int, refusals: tuple[Refusal, ...]) -> Roll:
    """Return what comes of a roll while these calls are refused for ever."""

    async def roll() -> Roll:
        with capture_logs() as lines:
            async with open_scene(*nodes(count)) as scene:
                for verb, resource, subresource, many in refusals:
                    for name in names_of(many) if many else [None]:
                        scene.e.cluster.faults.fail(
                            verb, resource, BUSY, times=EVER, identity="operator", name=name, subresource=subresource
                        )
                begun = virtual_now()
                begin(scene, count)
                await finished(scene, count)
                seconds, events = (virtual_now() - begun).total_seconds(), scene.events()
        warnings = [str(line) for line in lines if line["log_level"] == "warning"]
        return Roll(seconds, events, warnings)

    random.seed(1)
    return run_virtually(roll())


STATUS = ("patch", GPUNODES, "status")
PUBLISHED: dict[str, tuple[int, tuple[Refusal, ...]]] = {
    "the status of every GPUNode": (20, ((*STATUS, 20),)),
    "the status of eight GPUNodes of forty": (40, ((*STATUS, 8),)),
    "all statuses and Events": (20, ((*STATUS, 20), ("patch", POLICIES, "status", 0), ("create", EVENTS, "", 0))),
}


@pytest.mark.parametrize(("count", "refusals"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_refusal_of_what_is_only_published_slows_no_node_down_and_is_logged(
    count: int, refusals: tuple[Refusal, ...]
) -> None:
    roll = refusing(count, refusals)
    assert roll.seconds <= SLOWER * quiet(count)
    assert roll.events["ChangeGivenUp"] == 0
    told = [line for line in roll.complaints if "the status cannot be written" in line and "too many requests" in line]
    assert any("node/gpu-1'" in line for line in told), roll.complaints


@virtually
async def test_a_server_that_refuses_every_fifth_call_makes_nobody_give_up() -> None:
    drawn = random.Random(1)

    def refuses(request: ApiRequest) -> bool:
        return drawn.random() < 0.2

    async with open_scene(*nodes(20), start=False) as scene:
        scene.e.start_operator(BusyClient(scene.e.cluster.client("operator"), refuses))
        begun = loop_time()
        begin(scene, 20)
        await finished(scene, 20)
        assert scene.events()["ChangeGivenUp"] == 0
        assert loop_time() - begun <= 900.0


@virtually
async def test_a_proof_that_waits_for_its_write_is_kept_and_not_made_again_and_again() -> None:
    """The agent closes NVML for each proof, so that it is asked once a minute at most."""
    async with open_scene(*nodes(1), start=False) as scene:
        refused: list[float] = []

        def refuses(request: ApiRequest) -> bool:
            proven = scene.fence("gpu-1") is not None and (request.verb, request.resource) == ("patch", NODES)
            if proven and (not refused or loop_time() < refused[0] + 40.0):
                refused.append(loop_time())
                return True
            return False

        scene.e.start_operator(BusyClient(scene.e.cluster.client("operator"), refuses, 45.0))
        begin(scene, 1)
        await scene.fenced("gpu-1", "actuating")
        assert len(refused) == 1
        assert loop_time() - refused[0] <= 46.0, "the proof is fresh when the write may be sent"
        asked = [write for write in scene.writes(plural="gpunodes") if "quiet" in str(write.call.body)]
        assert len(asked) <= 3
