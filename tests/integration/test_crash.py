"""kill -9 after each API write of the golden scenarios: the restart reaches the same end state (issue point 10).
`make test-crash` plays every point of SCENARIOS, and `.ci/run` those of the scenarios and parts IN_CI. The whole matrix is played on rung 1 (tests/embedded/test_crash.py), and `make test-crash FULL=1` plays it here as well (MORE)."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hack.cluster.nodes import create_nodes
from hack.faultproxy import FaultProxy
from tests.fakes.tls import Identity
from tests.integration.crash import Kills, Scenario, Theatre, complaints
from tests.integration.crashscenarios import ELSEWHERE, MORE, SCENARIOS, plain_node
from tests.integration.nursery import Nursery
from tests.integration.product import NODES, Product
from tests.integration.stages import OTHERS

FULL = os.environ.get("CRASH") == "full"
PLAYED = (*SCENARIOS, *MORE) if FULL else SCENARIOS
PARTS = 8
"""One test kills at every eighth write of a scenario: what fails is heard of within half a minute."""
IN_CI: tuple[str | int, ...] = ("idle", "pods", "policy-deleted", "dra", 3)
"""The scenarios and parts that `.ci/run` plays; the others are marked `thorough`."""

pytestmark = pytest.mark.crash


@contextmanager
def theatre_on(product: Product, directory: Path, more: Mapping[str, str] | None = None) -> Iterator[Theatre]:
    """No other operator may run: there is one Lease. `more`: further settings of the operator."""
    identity, api = Identity(directory / "tls"), product.api
    with FaultProxy(api.url, api.ca_pem, tls=identity.context()) as proxy, Nursery() as nursery:
        create_nodes(product.api, [plain_node(ELSEWHERE)])
        theatre = Theatre(product, proxy, nursery, identity.authority, directory, more or {})
        theatre.clear()
        yield theatre
        theatre.clear()
        product.remove(f"{NODES}/{ELSEWHERE}")


@pytest.fixture(scope="module")
def usual_kills(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    with theatre_on(product, tmp_path_factory.mktemp("crash")) as theatre:
        yield Kills(theatre)


def own_kills(name: str, directory: Path) -> Iterator[Kills]:
    stage = OTHERS[name]
    with stage.open(directory) as product, theatre_on(product, directory, stage.settings) as theatre:
        yield Kills(theatre)


@pytest.fixture(scope="module")
def plain_kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    yield from own_kills("plain", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def dra_kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    yield from own_kills("dra", tmp_path_factory.mktemp("dra"))


@pytest.fixture(scope="module")
def repairing_kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kills]:
    yield from own_kills("repairing", tmp_path_factory.mktemp("repair"))


@pytest.fixture
def kills(request: pytest.FixtureRequest, scenario: Scenario) -> Kills:
    """On the control plane with the installation of NVIDIA's software that the scenario is about."""
    found: Kills = request.getfixturevalue(f"{scenario.stage}_kills")
    return found


def marks(one: str | int) -> tuple[pytest.MarkDecorator, ...]:
    return () if one in IN_CI else (pytest.mark.thorough,)


SCENES = [pytest.param(one, id=one.name, marks=marks(one.name)) for one in PLAYED]


@pytest.mark.parametrize("scenario", SCENES)
def test_without_a_kill_two_runs_end_alike(kills: Kills, scenario: Scenario) -> None:
    assert len(kills.undisturbed(scenario)) == 2


@pytest.mark.parametrize("part", [pytest.param(part, marks=marks(part)) for part in range(PARTS)])
@pytest.mark.parametrize("scenario", SCENES)
def test_a_kill_after_any_write_changes_nothing_in_the_end(kills: Kills, scenario: Scenario, part: int) -> None:
    began = time.monotonic()
    report = kills.kill(scenario, part, PARTS)
    seconds = time.monotonic() - began
    print(
        f"\ncrash {scenario.name} {part + 1}/{PARTS}: {report.points} points, {seconds:.0f} s,"
        f" undisturbed {[len(one.applied) for one in report.undisturbed]} writes"
    )
    assert report.points, "a scenario worth killing has more writes than parts"
    assert not report.complaints, "\n".join(report.complaints)


def test_a_kill_before_a_node_write_leaves_is_as_harmless(usual_kills: Kills) -> None:
    scenario, kills = SCENARIOS[0], usual_kills
    undisturbed = kills.undisturbed(scenario)
    points = [write.number for write in undisturbed[0].log if "/nodes/" in write.path]
    assert len(points) == 3, "fence, PNR, release"
    failures = []
    for number in points:
        outcome = kills.theatre.run(scenario, kill_at=number, before=True)
        failures += [f"before write {number}: {text}" for text in complaints(scenario, undisturbed, outcome)]
    assert not failures, "\n".join(failures)
