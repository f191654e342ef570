"""Helm, and a control plane on which the chart is installed."""

import os
from collections.abc import Iterator

import pytest
from hack.cluster import toolchain
from hack.cluster.api import Api
from hack.cluster.controlplane import ControlPlane, Options
from tests.chart.charts import Helm
from tests.chart.cluster import Installed, set_up


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The pinned helm (with HELM=helm3 the other major)."""
    return Helm(toolchain.program(os.environ.get("HELM") or "helm"), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def installed(helm: Helm) -> Iterator[Installed]:
    with ControlPlane(options=Options(audit=True)) as plane:
        yield set_up(plane, helm)


@pytest.fixture(scope="module")
def operator(installed: Installed) -> Iterator[Api]:
    with installed.operator() as api:
        yield api
