"""kill -9 after each API write of the golden scenarios: the restart reaches the same end state (issue point 10).

Taking, renewing and releasing the Lease are no writes here. CI, and `make test-crash`, run every point of SCENARIOS;
else it is every point of `idle` and `pods` and every third one of the others. `make test-crash FULL=1` plays all that
rung 1 plays (tests/embedded/goldens.py): MORE as well, every point of it.
"""

import os
import time
from collections.abc import Iterator

import pytest
from hack.cluster.nodes import create_nodes
from hack.faultproxy import FaultProxy
from tests.fakes.tls import Identity
from tests.integration.crash import Scenario, Theatre
from tests.integration.crashcomplaints import complaints, judge
from tests.integration.crashscenarios import ELSEWHERE, MORE, SCENARIOS, plain_node
from tests.integration.nursery import Nursery
from tests.integration.product import NODES, Product

FULL = os.environ.get("CRASH") == "full"
ALL = FULL or os.environ.get("CRASH") == "all" or "CI" in os.environ
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


@pytest.mark.parametrize("scenario", PLAYED, ids=lambda scenario: scenario.name)
def test_a_kill_after_any_write_changes_nothing_in_the_end(theatre: Theatre, scenario: Scenario) -> None:
    began = time.monotonic()
    every = ALL or scenario.name in EVERY_POINT
    step = 1 if every else 3
    verdict = judge(theatre, scenario, step)
    seconds = time.monotonic() - began
    print(
        f"\ncrash {scenario.name}: {verdict.points} points, step {step}, {seconds:.0f} s,"
        f" undisturbed {[len(one.applied) for one in verdict.undisturbed]} writes"
    )
    assert not verdict.complaints, "\n".join(verdict.complaints)


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
