"""Helm 3 and Helm 4 alike: the same objects from every value set, and a release that changes hands.
Helm 4 applies on the server what Helm 3 sent as a patch of three sides. Elsewhere the tests run with one of them, which HELM chooses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.cluster.controlplane import ControlPlane, Options
from tests.chart.charts import CHART, NAMESPACE, PLATFORMS, VALUE_SETS, Helm
from tests.chart.cluster import AGENT_NAMESPACE, Installed, set_up

pytestmark = pytest.mark.tools

DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"
AGENT = f"/apis/apps/v1/namespaces/{AGENT_NAMESPACE}/daemonsets/gpusharing-agent"
MAJORS = {"helm3": "v3.", "helm": "v4."}


@pytest.fixture(scope="module")
def majors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Helm]:
    return {name: Helm(toolchain.program(name), tmp_path_factory.mktemp(name)) for name in MAJORS}


def test_they_are_the_majors_that_they_are_called(majors: dict[str, Helm]) -> None:
    for name, version in MAJORS.items():
        assert majors[name].run("version", "--short").stdout.startswith(version)


@pytest.mark.parametrize("values", [*VALUE_SETS, *PLATFORMS], ids=lambda path: path.stem)
def test_both_render_the_same_objects(majors: dict[str, Helm], values: Path) -> None:
    three, four = (majors[name].applied("-f", str(values)) for name in MAJORS)
    assert three
    assert three == four


@pytest.fixture(scope="module")
def released(majors: dict[str, Helm]) -> Iterator[Installed]:
    with ControlPlane(options=Options(audit=True)) as plane:
        yield set_up(plane, majors["helm3"])


@pytest.mark.cluster
def test_what_helm_3_installed_helm_4_upgrades_and_rolls_back_and_helm_3_takes_over_again(
    released: Installed, majors: dict[str, Helm]
) -> None:
    four = replace(released, helm=majors["helm"])
    four.must("upgrade", str(CHART), "--set", "operator.maxInFlight=7,agent.interval=31s", "--set-json", EXTRA)
    assert told(released) == {"operator": "7", "agent": "31s", "proxy": "http://proxy.test"}
    four.must("rollback", "1")
    assert told(released) == {"operator": "100", "agent": "30s", "proxy": None}
    released.must("upgrade", str(CHART), "--set", "operator.maxInFlight=8")
    assert told(released) == {"operator": "8", "agent": "30s", "proxy": None}
    four.must("uninstall", "--wait")


EXTRA = 'operator.extraEnv=[{"name":"HTTPS_PROXY","value":"http://proxy.test"}]'


def told(installed: Installed) -> dict[str, str | None]:
    environ: dict[str, dict[str, str | None]] = {}
    for path in (DEPLOYMENT, AGENT):
        (container,) = installed.admin.get(path)["spec"]["template"]["spec"]["containers"]
        names = [one["name"] for one in container["env"]]
        assert len(names) == len(set(names)), "a variable that stands twice"
        environ[path] = {one["name"]: one.get("value") for one in container["env"]}
    return {
        "operator": environ[DEPLOYMENT]["GPUSHARING_MAX_IN_FLIGHT"],
        "agent": environ[AGENT]["INTERVAL"],
        "proxy": environ[DEPLOYMENT].get("HTTPS_PROXY"),
    }
