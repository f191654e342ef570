"""Calls go wrong, at every single write of a rollout: the end is the same, without a restart."""

import functools
from collections.abc import Callable

import pytest
from hack.sim.mortal import Disturbance, MortalClient, When
from tests.embedded.crashes import CrashRun, Happening, Prepare, Writes, differences, play, play_all
from tests.embedded.goldens import GOLDEN, Golden
from tests.embedded.scene import Scene

from gpusharing.kube.client import CONFIG_MAPS, DAEMON_SETS, LEASES, PODS, Resource
from gpusharing.kube.errors import Conflict, KubeError, NotFound, Throttled, Unavailable

IDLE = GOLDEN["a policy on an idle node"]
PODFUL = GOLDEN["a policy on nodes with pods that may and pods that may not be evicted"]
REPAIRED = GOLDEN["the MPS DaemonSet is repaired and overwritten"]
NAMESPACES = {CONFIG_MAPS: "gpu-operator", DAEMON_SETS: "gpu-operator", LEASES: "gpusharing", PODS: "default"}


def competing(scene: Scene, client: MortalClient) -> Disturbance:
    """Somebody else changes the very object in the moment before."""

    def compete(resource: Resource, name: str) -> None:
        body = {"metadata": {"annotations": {"example.com/competitor": str(client.writes)}}}
        try:
            scene.e.cluster.patch(resource, name, body, NAMESPACES.get(resource, ""))
        except NotFound:
            return  # it is being created

    return compete


def arranged(arrange: Callable[[Scene, MortalClient], object]) -> Happening:
    """Something else happens."""

    def prepare(scene: Scene, client: MortalClient) -> Disturbance:
        def happen(resource: Resource, name: str) -> None:
            arrange(scene, client)

        return happen

    return prepare


def answered(error: KubeError) -> Happening:
    """The write is answered with an error: instead of being carried out, or afterwards though it was."""

    def fail(scene: Scene, client: MortalClient) -> None:
        raise error

    return arranged(fail)


def lose_events(scene: Scene, client: MortalClient) -> None:
    """The next events are kept from all watches of the operator; only a later event or list heals that."""
    client.lose_events = 3


FAULTS: dict[str, tuple[When, Happening]] = {
    "somebody else changes the object in the same moment": ("before", competing),
    "409 out of the blue": ("before", answered(Conflict("the object has been modified"))),
    "429 from priority and fairness": ("before", answered(Throttled("too many requests", 1.0))),
    "500": ("before", answered(Unavailable("etcd has no leader"))),
    "the answer is lost": ("after", answered(Unavailable("connection reset"))),
    "410 on every watch": ("after", arranged(lambda scene, client: scene.e.cluster.expire())),
    "every watch is closed": ("after", arranged(lambda scene, client: scene.e.cluster.close_watches())),
    "three events are lost": ("after", arranged(lose_events)),
}


def wrong_after_one_fault(golden: Golden, writes: Writes, fault: Happening) -> list[str]:
    """Where the runs with the fault at one of these writes end otherwise; every one of them was played."""
    base, runs = play_all(golden, writes, fault)
    assert list(runs) == list(range(writes.first, base.sent + 1, writes.step))
    found: list[str] = []
    for write, run in runs.items():
        assert isinstance(run, CrashRun), run
        assert run.operators == 1
        found += [f"write {write}: {line}" for line in differences(base.end, run.end)]
    return found


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(("when", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_a_rollout_ends_the_same_whatever_goes_wrong_at_any_one_write(when: When, fault: Happening, first: int) -> None:
    found = wrong_after_one_fault(IDLE, Writes(when, first, 2), fault)
    assert not found, "\n".join(found)


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_a_repair_of_the_mps_daemonset_bears_it_as_well(fault: str) -> None:
    when, happening = FAULTS[fault]
    found = wrong_after_one_fault(REPAIRED, Writes(when, list(FAULTS).index(fault) + 1, len(FAULTS)), happening)
    assert not found, "\n".join(found)


def every_third(when: When, fault: Happening) -> Prepare:
    def prepare(scene: Scene, client: MortalClient) -> None:
        for write in range(3, 100, 3):
            client.disturb(write, when, fault(scene, client))

    return prepare


@functools.cache
def undisturbed() -> CrashRun:
    return play(PODFUL)


@pytest.mark.parametrize("happens", FAULTS)
def test_a_drain_ends_the_same_with_trouble_at_every_third_write(happens: str) -> None:
    when, fault = FAULTS[happens]
    base, run = undisturbed(), play(PODFUL, every_third(when, fault))
    assert not list(differences(base.end, run.end))
    # Each drain evicts each pod once. Where two answers of the agent in a row are withheld, the drain is not proven in
    # time; then it is given up, the node is restored, and there is another one.
    assert len(set(run.evicted)) == len(run.evicted) == len(base.evicted) * (1 + run.given_up)
    assert (base.given_up, run.given_up <= (happens == "three events are lost")) == (0, True)
