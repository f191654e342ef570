"""The chart as its users' own tools see it: helm-unittest (tests/ of the chart) and chart-testing (its ci/)."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hack.cluster import toolchain
from tests.chart.charts import CHART, ROOT, VALUE_SETS, Helm

pytestmark = pytest.mark.tools

SUITES = sorted((CHART / "tests").glob("*_test.yaml"))
CONFIG = CHART.parent / "ct.yaml"


@pytest.fixture(scope="module")
def tools() -> Path:
    return toolchain.ensure("charttools")


def judge_suites(tools: Path, chart: Path, suites: str = "tests/*_test.yaml") -> tuple[int, str]:
    command = [str(tools / "helm-unittest"), "--strict", "--color=false", "--file", suites, str(chart)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_helm_unittest_passes_every_suite(tools: Path) -> None:
    status, said = judge_suites(tools, CHART)
    assert status == 0, said
    assert f"{len(SUITES)} passed, {len(SUITES)} total" in said


def test_helm_unittest_sees_a_chart_that_does_something_else(tools: Path, tmp_path: Path) -> None:
    chart = tmp_path / CHART.name
    shutil.copytree(CHART, chart)
    agent = chart / "templates" / "agent.yaml"
    agent.write_text(agent.read_text().replace("hostPID: true", "hostPID: false"))
    status, said = judge_suites(tools, chart, "tests/agent_test.yaml")
    assert status == 1, said
    assert "is privileged, reads the host's processes" in said
    assert said.count("asserts[") == 1


def lint(tools: Path, helm: Helm, root: Path, folder: Path) -> tuple[int, str]:
    folder.mkdir()
    (folder / "helm").symlink_to(helm.program)
    done = subprocess.run(
        [str(tools / "ct"), "lint", "--config", str(root / CONFIG.relative_to(ROOT))],
        cwd=root,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **helm.own},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_chart_testing_lints_the_chart_with_every_value_set(tools: Path, helm: Helm, tmp_path: Path) -> None:
    status, said = lint(tools, helm, ROOT, tmp_path / "bin")
    assert status == 0, said
    linted = [path.name for path in VALUE_SETS if f'/ci/{path.name}"...' in said]
    assert linted == [path.name for path in VALUE_SETS]


def test_chart_testing_sees_a_value_set_with_a_value_that_does_not_exist(
    tools: Path, helm: Helm, tmp_path: Path
) -> None:
    shutil.copytree(CHART.parent, tmp_path / "root" / CHART.parent.relative_to(ROOT))
    chart = tmp_path / "root" / CHART.relative_to(ROOT)
    (chart / "ci" / "wrong-values.yaml").write_text("operator: {replica: 1}\n")
    status, said = lint(tools, helm, tmp_path / "root", tmp_path / "bin")
    assert status == 1, said
    # Not why: chart-testing 3 waits for helm's end, not for its last words (pkg/exec/exec.go, RunProcess).
    tried = [line for line in said.splitlines() if line.startswith("Linting chart with values file")]
    assert "/ci/wrong-values.yaml" in tried[-1]
    assert len(tried) == len(VALUE_SETS) + 1


def test_what_only_judges_the_chart_is_not_in_its_package_and_helm_test_is(helm: Helm, tmp_path: Path) -> None:
    helm.must("package", str(CHART), "-d", str(tmp_path))
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as packed:
        paths = [Path(name).relative_to(CHART.name) for name in packed.getnames()]
    assert SUITES
    assert [path for path in paths if path.parts[0] in ("ci", "tests")] == []
    assert Path("templates/tests/checks.yaml") in paths
    assert Path("platforms/openshift.yaml") in paths
