"""Calls go wrong, at every single write of a rollout: the end is the same, without a restart."""

import functools
from collections.abc import Callable

import pytest
from hack.sim.mortal import Disturbance, MortalClient
from tests.embedded.crashes import Prepare, Run, differences, play
from tests.embedded.goldens import GOLDEN
from tests.embedded.scene import Scene

from gpusharing.kube.client import CONFIG_MAPS, LEASES, PODS, Resource
from gpusharing.kube.errors import Conflict, KubeError, NotFound, Throttled, Unavailable

IDLE = GOLDEN["a policy on an idle node"]
PODFUL = GOLDEN["a policy on nodes with pods that may and pods that may not be evicted"]
NAMESPACES = {CONFIG_MAPS: "gpu-operator", LEASES: "gpusharing", PODS: "default"}


@functools.cache
def undisturbed() -> Run:
    """The rollout on an idle node when nothing goes wrong."""
    return play(IDLE)


def answered(error: KubeError, when: str = "before") -> Callable[[int], Prepare]:
    """The k-th write is answered with an error: instead of being carried out, or (`after`) though it was."""

    def at(write: int) -> Prepare:
        def fail(resource: Resource, name: str) -> None:
            raise error

        def prepare(stage: Scene, client: MortalClient) -> None:
            client.disturb(write, "before" if when == "before" else "after", fail)

        return prepare

    return at


def competing(write: int) -> Prepare:
    """Somebody else changes the very object in the moment before."""

    def prepare(stage: Scene, client: MortalClient) -> None:
        def compete(resource: Resource, name: str) -> None:
            body = {"metadata": {"annotations": {"example.com/competitor": str(write)}}}
            try:
                stage.e.cluster.patch(resource, name, body, NAMESPACES.get(resource, ""))
            except NotFound:
                return  # it is being created

        client.disturb(write, "before", compete)

    return prepare


def arranged(arrange: Callable[[Scene, MortalClient], object]) -> Callable[[int], Prepare]:
    """Something happens right after the k-th write."""

    def at(write: int) -> Prepare:
        def prepare(stage: Scene, client: MortalClient) -> None:
            def happen(resource: Resource, name: str) -> None:
                arrange(stage, client)

            disturbance: Disturbance = happen
            client.disturb(write, "after", disturbance)

        return prepare

    return at


def lose_events(stage: Scene, client: MortalClient) -> None:
    """The next events are kept from all watches of the operator; only a later event or list heals that."""
    client.lose_events = 3


FAULTS: dict[str, Callable[[int], Prepare]] = {
    "somebody else changes the object in the same moment": competing,
    "409 out of the blue": answered(Conflict("the object has been modified")),
    "429 from priority and fairness": answered(Throttled("too many requests", 1.0)),
    "500": answered(Unavailable("etcd has no leader")),
    "the answer is lost": answered(Unavailable("connection reset"), "after"),
    "410 on every watch": arranged(lambda stage, client: stage.e.cluster.expire()),
    "every watch is closed": arranged(lambda stage, client: stage.e.cluster.close_watches()),
    "three events are lost": arranged(lose_events),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_rollout_ends_the_same_whatever_goes_wrong_at_any_one_write(
    fault: Callable[[int], Prepare],
) -> None:
    base = undisturbed()
    found: list[str] = []
    for write in range(1, base.sent + 1):
        run = play(IDLE, fault(write))
        assert run.operators == 1
        found += [f"write {write}: {line}" for line in differences(base.end, run.end)]
    assert not found, "\n".join(found)


def every_third(fault: Callable[[int], Prepare]) -> Prepare:
    """Faults all along: at every third write of the first hundred."""

    def prepare(stage: Scene, client: MortalClient) -> None:
        for write in range(3, 100, 3):
            fault(write)(stage, client)

    return prepare


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_drain_ends_the_same_with_trouble_at_every_third_write(fault: Callable[[int], Prepare]) -> None:
    base, run = play(PODFUL), play(PODFUL, every_third(fault))
    assert not list(differences(base.end, run.end))
    assert len(set(run.evicted)) == len(run.evicted) == len(base.evicted)
