"""kill -9 after each API write of the golden scenarios: the restart reaches the same end state (issue point 10).

Taking, renewing and releasing the Lease are no writes here. CI, and `make test-crash`, run every point of SCENARIOS;
else it is every point of `idle` and `pods` and every third one of the others. `make test-crash FULL=1` plays all that
rung 1 plays (tests/embedded/goldens.py): MORE as well, every point of it.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hack.cluster.nodes import create_nodes
from hack.faultproxy import FaultProxy
from tests.fakes.tls import Identity
from tests.integration.crash import Outcome, Scenario, Theatre
from tests.integration.crashscenarios import ELSEWHERE, MORE, SCENARIOS, plain_node
from tests.integration.nursery import Nursery
from tests.integration.product import NODES, Product

FULL = os.environ.get("CRASH") == "full"
ALL = FULL or os.environ.get("CRASH") == "all" or "CI" in os.environ
EXTRA_WRITES = 2
"""More than in the undisturbed run that a crash may cost."""
TELLING = ("/status", " events")
MOST_TOLD = 8
"""As on rung 1: statuses and Events follow the pace of a run, and nothing is decided from them."""
ASKING = "PATCH gpunodes"
MOST_ASKED = 8
"""On a busy machine a reading is soon too old to prove anything, and the agent is asked anew. Rung 1 counts these
requests among the writes that act: in virtual time a reading is as old as the operator lets it become."""
LIMIT = 80
"""No scenario has that many writes; a run that goes on for ever must end."""


EVERY_POINT = {"idle", "pods"}
PLAYED = (*SCENARIOS, *MORE) if FULL else SCENARIOS


@pytest.fixture(scope="module")
def theatre(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """No other operator may run: there is one Lease."""
    directory = tmp_path_factory.mktemp("crash")
    identity, api = Identity(directory / "tls"), product.api
    with FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy, Nursery() as nursery:
        create_nodes(product.api, [plain_node(ELSEWHERE)])
        theatre = Theatre(product, proxy, nursery, identity.authority, directory)
        theatre.clear()
        yield theatre
        theatre.clear()
        product.remove(f"{NODES}/{ELSEWHERE}")


def complaints(scenario: Scenario, reference: list[Outcome], outcome: Outcome) -> Iterator[str]:
    """What a run did that it must not."""
    if outcome.restarts != 1:
        yield f"{outcome.restarts} restarts"
    if outcome.state != reference[0].state:
        yield f"another end: {difference(reference[0].state, outcome.state)}"
    twice = [uid for uid, count in outcome.evicted.items() if count > 1]
    if twice:
        yield f"evicted twice: {twice}"
    if sum(outcome.evicted.values()) != sum(reference[0].evicted.values()):
        yield f"{sum(outcome.evicted.values())} evictions"
    yield from too_many(scenario, reference, outcome)


def too_many(scenario: Scenario, reference: list[Outcome], outcome: Outcome) -> Iterator[str]:
    """What a crash costs. With quick publishing, how many moments a status shows depends on the pace of a run."""

    def acting(one: Outcome) -> Counter[str]:
        return Counter(write for write in one.applied if not write.endswith((*TELLING, ASKING)))

    most = max(map(acting, reference), key=Counter.total)
    if (now := acting(outcome)).total() > most.total() + EXTRA_WRITES:
        yield f"{now.total()} writes that act, undisturbed {most.total()}; more: {dict(now - most)}"
    asked = max(one.applied.count(ASKING) for one in reference)
    if outcome.applied.count(ASKING) > asked + MOST_ASKED:
        yield f"the agent was asked {outcome.applied.count(ASKING)} times, undisturbed {asked}"
    told = max(len(one.applied) for one in reference)
    if scenario.publish_period > 1 and len(outcome.applied) > told + MOST_TOLD:
        yield f"{len(outcome.applied)} writes, undisturbed {told}"


def difference(wanted: object, found: object, path: str = "") -> str:
    """The places where two JSON trees differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted({*wanted, *found})
        parts = (difference(wanted.get(key), found.get(key), f"{path}.{key}") for key in keys)
        return "; ".join(part for part in parts if part)
    return "" if wanted == found else f"{path}: {json.dumps(wanted)} -> {json.dumps(found)}"


@pytest.mark.parametrize("scenario", PLAYED, ids=lambda scenario: scenario.name)
def test_a_kill_after_any_write_changes_nothing_in_the_end(theatre: Theatre, scenario: Scenario) -> None:
    began = time.monotonic()
    reference = [theatre.run(scenario), theatre.run(scenario)]
    assert reference[0].state == reference[1].state, difference(reference[0].state, reference[1].state)
    every = ALL or scenario.name in EVERY_POINT
    step = 1 if every else 3
    failures, points = [], 0
    for number in range(1, LIMIT, step):
        outcome = theatre.run(scenario, kill_at=number)
        if outcome.restarts == 0:
            break
        points += 1
        at = next((write.what for write in outcome.log if write.number == number), "?")
        for complaint in complaints(scenario, reference, outcome):
            failures.append(f"after write {number} ({at}): {complaint}")
    seconds = time.monotonic() - began
    print(
        f"\ncrash {scenario.name}: {points} points, step {step}, {seconds:.0f} s,"
        f" undisturbed {[len(one.applied) for one in reference]} writes"
    )
    assert not failures, "\n".join(failures)


def test_a_kill_before_a_node_write_leaves_is_as_harmless(theatre: Theatre) -> None:
    scenario = SCENARIOS[0]
    reference = theatre.run(scenario)
    points = [write.number for write in reference.log if "/nodes/" in write.path]
    assert len(points) == 3, "fence, PNR, release"
    failures = []
    for number in points:
        outcome = theatre.run(scenario, kill_at=number, before=True)
        failures += [f"before write {number}: {text}" for text in complaints(scenario, [reference], outcome)]
    assert not failures, "\n".join(failures)
