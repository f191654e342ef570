"""A desk to type at, and a Prometheus to ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.desk import GPUNODES, POLICIES, Desk, desk_at
from tests.cli.fakeprometheus import FakePrometheus, PrometheusServer
from tests.cli.objects import fleet


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
