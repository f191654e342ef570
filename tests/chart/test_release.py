"""The chart as it is published: nobody has to name its image."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hack.release import CHANGELOG, main, read_changes, write_chart
from tests.chart.charts import CHART, NAMESPACE, ROOT, Helm
from tests.fakes.registry import running

WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"
DIGEST = "sha256:" + "a" * 64


def test_the_packaged_chart_needs_no_value_and_runs_the_image_by_digest(helm: Helm, tmp_path: Path) -> None:
    chart = write_chart(tmp_path / "gpu-sharing-operator", "registry.test/team/x", DIGEST)
    packed = helm.run("package", str(chart), "-d", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tgz")
    done = helm.run("template", "gpusharing", str(archive), "-n", NAMESPACE)
    assert done.returncode == 0, done.stderr
    assert f"image: registry.test/team/x@{DIGEST}" in done.stdout
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (image,) = yaml.safe_load(about["annotations"]["artifacthub.io/images"])
    assert image["image"] == f"registry.test/team/x@{DIGEST}"
    assert "artifacthub.io/crds" in about["annotations"]


def test_it_says_what_changed_and_where_it_comes_from(helm: Helm, tmp_path: Path) -> None:
    log = """# Changelog
## Unreleased
### Added
- not yet
## 0.1.0 - 2026-11-20
Introduction.
### Changed
- **Breaking**: a `field`, "quoted",
  goes on: here

A group of its own:

- another
### Fixed
- a fault
## 0.0.9
### Added
- old
"""
    changes = read_changes(log, "0.1.0")
    source = "https://example.test/team/x"
    chart = write_chart(tmp_path / "gpu-sharing-operator", "registry.test/x", DIGEST, changes, source)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert yaml.safe_load(about["annotations"]["artifacthub.io/changes"]) == [
        {"kind": "changed", "description": '**Breaking**: a `field`, "quoted", goes on: here'},
        {"kind": "changed", "description": "another"},
        {"kind": "fixed", "description": "a fault"},
    ]
    assert {"name": "source", "url": source} in yaml.safe_load(about["annotations"]["artifacthub.io/links"])
    assert (about["home"], about["sources"]) == (source, [source])
    done = helm.run("lint", "--strict", str(chart))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kinds_of_our_changelog_are_those_that_artifact_hub_knows() -> None:
    known = {"added", "changed", "deprecated", "removed", "fixed", "security"}
    assert {one["kind"] for one in read_changes(CHANGELOG.read_text(), "Unreleased")} <= known
    assert read_changes(CHANGELOG.read_text(), "7.7.7") == []


def test_it_is_pushed_to_a_registry_and_installed_from_there_by_the_digest_that_the_workflow_signs(
    helm: Helm, tmp_path: Path
) -> None:
    chart = write_chart(tmp_path / "gpu-sharing-operator", "registry.test/team/x", DIGEST)
    assert helm.run("package", str(chart), "-d", str(tmp_path)).returncode == 0
    (archive,) = tmp_path.glob("*.tgz")
    with running() as registry:
        where = f"oci://{registry.address}/charts"
        pushed = helm.run("push", str(archive), where, "--plain-http")
        assert pushed.returncode == 0, pushed.stderr
        digest = signed_by_the_workflow(pushed.stdout + pushed.stderr)
        assert set(registry.manifests) == {
            "charts/gpu-sharing-operator:0.1.0",
            f"charts/gpu-sharing-operator@{digest}",
        }
        name = f"{where}/gpu-sharing-operator@{digest}"
        done = helm.run("template", "gpusharing", name, "-n", NAMESPACE, "--plain-http")
    assert done.returncode == 0, done.stderr
    assert f"image: registry.test/team/x@{DIGEST}" in done.stdout


def signed_by_the_workflow(said: str) -> str:
    """The digest that its `sed` takes from what `helm push` says."""
    found = re.search(r"sed -n '([^']+)' build/push\.log", WORKFLOW.read_text())
    assert found is not None
    command = ["sed", "-n", found[1]]
    told = subprocess.run(command, input=said, capture_output=True, text=True, check=True).stdout
    assert told.startswith("digest=sha256:")
    assert told.count("\n") == 1
    return told.strip().partition("=")[2]


def released(folder: Path, heading: str) -> Path:
    """Our changelog as it is when what is unreleased has become a version."""
    log = folder / CHANGELOG.name
    log.write_text(CHANGELOG.read_text().replace("## Unreleased", heading, 1))
    return log


def run_of(name: str) -> str:
    """What a step of the workflow runs."""
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["release"]["steps"]
    (script,) = [str(step["run"]) for step in steps if step.get("name", "").startswith(name)]
    return script


def test_the_workflows_own_command_writes_the_chart_of_the_version_that_the_changelog_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = [line for line in run_of("Chart").splitlines() if "hack.release" in line]
    given = {"REGISTRY": "registry.test/team", "DIGEST": DIGEST, "SOURCE": "https://example.test/team/x"}
    _, _, _, *arguments = [
        re.sub(r"\$(\w+)", lambda found: given[found[1]], one) for one in shlex.split(line)
    ]
    target, log = tmp_path / "chart", released(tmp_path, "## 0.1.0 - 2026-11-30")
    assert main([*arguments, "--target", str(target), "--changelog", str(log)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    values = yaml.safe_load((target / "values.yaml").read_text())
    assert values["image"]["repository"] == "registry.test/team/gpu-sharing-operator"
    assert values["image"]["digest"] == DIGEST
    changes = yaml.safe_load((target / "Chart.yaml").read_text())["annotations"]["artifacthub.io/changes"]
    assert len(yaml.safe_load(changes)) > 10


def test_a_version_of_which_the_changelog_says_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, log = tmp_path / "chart", released(tmp_path, "## Unreleased")
    assert main(["registry.test/x", DIGEST, "--target", str(target), "--changelog", str(log)]) == 1
    assert "add a section ## 0.1.0 with a line per change" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    ("tag", "heading", "goes_on"),
    [
        ("v0.1.0", "## 0.1.0", True),
        ("v0.1.0", "## [0.1.0] - 2026-11-30", True),
        ("v0.1.0", "## Unreleased", False),
        ("v0.2.0", "## 0.2.0", False),
    ],
    ids=[
        "chart and changelog agree",
        "with a date",
        "no section in the changelog",
        "not the chart's version",
    ],
)
def test_the_workflow_begins_with_a_tag_that_chart_and_changelog_know(
    tmp_path: Path, tag: str, heading: str, goes_on: bool
) -> None:
    chart = tmp_path / CHART.relative_to(ROOT)
    chart.mkdir(parents=True)
    shutil.copy(CHART / "Chart.yaml", chart)
    released(tmp_path, heading)
    # As the hosted runner does it: bash that ends at the first failure.
    done = subprocess.run(
        ["bash", "-e", "-c", run_of("The tag is")],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_REF_NAME": tag},
        check=False,
    )
    assert (done.returncode == 0) is goes_on


def test_what_is_no_digest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry.test/x", "latest"]) == 2
    assert "latest is not a digest; write one like sha256:" in capsys.readouterr().err
