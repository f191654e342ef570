"""One control plane for all tests of this folder: audit log on, chart installed, SIMULATED node software running."""

from collections.abc import Iterator

import pytest
from hack.cluster.controlplane import Options
from hack.cluster.process import free_ports
from hack.sidebyside import LOOK_BACK, unit
from tests.integration.nodelog import audit_policy
from tests.integration.product import AGENT_ACCOUNT, Product
from tests.integration.stages import own_product

from hack import launch

SELDOM_COLLECTED = {"GOGC": "400"}
"""Go's programs let their heap grow to five times what is in use, instead of twice (https://go.dev/doc/gc-guide): that takes CPU off the API server, which is what most tests here wait for, and a few hundred MB of memory."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is rung 2; what is looked back at comes last, and at the very end who looks back."""
    here = [item for item in items if item.path.parent.name == "integration"]
    for item in here:
        item.add_marker("cluster")
    items.sort(key=lambda item: (unit(item.nodeid) == LOOK_BACK, item.nodeid.startswith(LOOK_BACK)))


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """No operator runs yet: each module starts its own. In the end nothing was refused to operator or agents."""
    directory = tmp_path_factory.mktemp("product")
    bodies_too = f"--audit-policy-file={audit_policy(directory)}"
    flags = (bodies_too, "--audit-log-maxsize=4096")  # MB; offsets into the log must not lose their meaning
    options = Options(audit=True, apiserver_flags=flags, environment=SELDOM_COLLECTED)
    (port,) = free_ports(1)
    waits = ("--agent-interval", "1", "--agent-hung-after", "2", "--agent-port", str(port), "--meter-lag", "2")
    with own_product(directory, "", *waits, *AGENT_ACCOUNT, options=options, agent_port=port) as product:
        yield product
        assert product.refused() == []


@pytest.fixture(scope="module")
def operator(product: Product, request: pytest.FixtureRequest) -> Iterator[launch.LaunchedProcess]:
    """The operator of one module, as a process under the shipped rights, with the settings of the module's mark."""
    mark = request.node.get_closest_marker("operator")
    with product.operator(request.path.stem, **(mark.kwargs if mark else {})) as process:
        yield process
        assert process.exit_status is None, process.log.read_text()[-3000:]
