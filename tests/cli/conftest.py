"""A desk to type at, a Prometheus to ask, and a browser to look with."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.cli.desk import GPUNODES, POLICIES, Desk, desk_at
from tests.cli.fakeprometheus import USED, USED_RANGES, FakePrometheus, PrometheusServer
from tests.cli.objects import fleet
from tests.cli.window import Window, window

from hack import browser as browsers


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """With the fleet of `objects.py` behind it."""
    with desk_at(tmp_path) as found:
        policies, nodes = fleet()
        found.server.lists = {POLICIES: policies, GPUNODES: nodes}
        yield found


@pytest.fixture(scope="module")
def prometheus_server() -> Iterator[PrometheusServer]:
    """The one that all tests of a module ask, one after the other."""
    server = PrometheusServer()
    with server.running():
        yield server


@pytest.fixture
def fake(prometheus_server: PrometheusServer) -> FakePrometheus:
    """What answers there in this test: a GPU for a day; SIMULATED."""
    return prometheus_server.renew()


@pytest.fixture
def used(fake: FakePrometheus) -> FakePrometheus:
    """The same: a GPU that a pod takes 6 GiB of, and whose Node has a label."""
    fake.answers, fake.ranges = dict(USED), dict(USED_RANGES)
    return fake


@pytest.fixture
async def browser() -> AsyncIterator[Window]:
    """The machine's own, or Debian's, which is fetched once (100 MB)."""
    async with window(browsers.ensure()) as shown:
        yield shown
