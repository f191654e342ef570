"""The chart as it is published: nobody has to name its image, and what it tells Artifact Hub are the facts.
The keys are those of https://artifacthub.io/docs/topics/annotations/helm. `artifacthub.io/signKey` is not among ours: it is for keys of PGP, and a release is signed without a key (Sigstore), which Artifact Hub finds by itself."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hack.generate_picture import SCREENSHOT_PATH, TIMES, screenshot, without_times
from hack.images.debian import ARCHITECTURES
from hack.release.chart import ICON, PLATFORMS, write_chart
from hack.release.notes import changes, read_notes
from hack.release.prepare import Prepared, pack_chart
from tests.chart.charts import CHART, NAMESPACE, ROOT, Helm
from tests.chart.cluster import Installed, refusal

from gpusharing.api.policy import GPUSharingPolicySpec

PREFIX = "artifacthub.io/"
KNOWN = {
    "alternativeName",
    "category",
    "changes",
    "containsSecurityUpdates",
    "crds",
    "crdsExamples",
    "images",
    "license",
    "links",
    "maintainers",
    "operator",
    "operatorCapabilities",
    "prerelease",
    "recommendations",
    "screenshots",
    "signKey",
}
DIGEST = "sha256:" + "a" * 64
SOURCE = "https://example.test/team/x"


def annotations(chart: Path = CHART) -> dict[str, Any]:
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    return {key.removeprefix(PREFIX): yaml.safe_load(text) for key, text in about["annotations"].items()}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    changes = [{"kind": "added", "description": "a"}]
    return write_chart(tmp_path / CHART.name, "registry.test/x", DIGEST, changes, SOURCE)


def test_every_annotation_is_one_that_artifact_hub_reads(published: Path) -> None:
    found = set(annotations(published))
    assert found <= KNOWN
    assert found >= KNOWN - {"alternativeName", "containsSecurityUpdates", "maintainers", "recommendations", "signKey"}


def test_the_crds_are_those_in_the_chart() -> None:
    shipped = [yaml.safe_load(_plain(path)) for path in sorted((CHART / "templates" / "crds").glob("*.yaml"))]
    wanted = {
        (crd["metadata"]["name"], crd["spec"]["names"]["kind"], version["name"])
        for crd in shipped
        for version in crd["spec"]["versions"]
        if version["served"]
    }
    listed = annotations()["crds"]
    assert {(one["name"], one["kind"], one["version"]) for one in listed} == wanted
    assert all(one["displayName"] and one["description"] for one in listed)


def _plain(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if "{{" not in line)


def test_every_example_is_a_policy_that_may_be_applied() -> None:
    examples = annotations()["crdsExamples"]
    assert examples
    for example in examples:
        assert (example["apiVersion"], example["kind"]) == ("gpusharing.dev/v1alpha1", "GPUSharingPolicy")
        assert GPUSharingPolicySpec.model_validate(example["spec"])


@pytest.mark.cluster
def test_the_api_server_takes_every_example(installed: Installed) -> None:
    examples = [
        {**example, "metadata": {"name": f"example-{number}"}}
        for number, example in enumerate(annotations()["crdsExamples"])
    ]
    assert [said for example in examples if (said := refusal(installed.admin, example))] == []


def test_the_packaged_chart_needs_no_value_and_runs_the_image_by_digest(
    helm: Helm, published: Path, tmp_path: Path
) -> None:
    helm.must("package", str(published), "-d", str(tmp_path))
    (archive,) = tmp_path.glob("*.tgz")
    text = helm.must("template", "gpusharing", str(archive), "-n", NAMESPACE)
    pods = [
        one["spec"] if one["kind"] == "Pod" else one["spec"].get("template", {}).get("spec")
        for one in yaml.safe_load_all(text)
        if one and one["kind"] in ("Pod", "Deployment", "DaemonSet")
    ]
    run = {container["image"] for pod in pods for container in pod["containers"]}
    told = annotations(published)["images"]
    assert {one["image"] for one in told} == run == {f"registry.test/x@{DIGEST}"}
    assert told[0]["platforms"] == list(PLATFORMS) == [f"linux/{name}" for name in sorted(ARCHITECTURES)]


def test_a_chart_that_is_prepared_again_has_the_same_bytes_whenever_its_files_were_written(
    helm: Helm, tmp_path: Path
) -> None:
    packed = []
    for written in (1_700_000_000, 1_763_000_000):
        chart = write_chart(tmp_path / str(written) / "gpu-sharing-operator", "registry.test/team/x", DIGEST)
        for path in (chart, *chart.rglob("*")):
            os.utime(path, (written, written))
        pack_chart(chart, chart.parent, 1_763_676_000)
        (archive,) = chart.parent.glob("*.tgz")
        packed.append(archive.read_bytes())
    assert packed[0] == packed[1]


def test_a_chart_that_is_prepared_without_a_registry_passes_helm_lint(helm: Helm, tmp_path: Path) -> None:
    prepared = Prepared("0.1.0", "", SOURCE, DIGEST)
    chart = write_chart(tmp_path / "gpu-sharing-operator", prepared.image, DIGEST)
    helm.must("lint", "--strict", str(chart))


def test_it_says_what_changed_and_where_it_comes_from(helm: Helm, tmp_path: Path) -> None:
    log = """# Changelog
## Unreleased
### Added
- not yet
## 0.1.0 - 2026-11-20
Introduction.
### Changed
- **Breaking**: a `field`, "quoted",
  goes on: here. This is more about it.

A group of its own:

- another
### Fixed
- a fault
## 0.0.9
### Added
- old
"""
    entries = changes(read_notes(log, "0.1.0"))
    chart = write_chart(tmp_path / "gpu-sharing-operator", "registry.test/x", DIGEST, entries, SOURCE)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    told = annotations(chart)
    assert told["changes"] == [
        {"kind": "changed", "description": '**Breaking**: a `field`, "quoted", goes on: here.'},
        {"kind": "changed", "description": "another"},
        {"kind": "fixed", "description": "a fault"},
    ]
    assert {"name": "source", "url": SOURCE} in told["links"]
    assert (about["home"], about["sources"]) == (SOURCE, [SOURCE])
    helm.must("lint", "--strict", str(chart))


def test_licence_and_stage_are_the_projects() -> None:
    told, project = annotations(), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["license"] == project["license"]
    assert told["prerelease"] is project["version"].startswith("0.")
    assert told["operator"] is True
    assert told["operatorCapabilities"] in (
        "Basic Install",
        "Seamless Upgrades",
        "Full Lifecycle",
        "Deep Insights",
        "Auto Pilot",
    )


def test_links_and_screenshot_are_of_the_tag_that_is_released(published: Path) -> None:
    told, version = annotations(published), yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    for link in told["links"]:
        assert link["url"].startswith(SOURCE)
    (shown,) = told["screenshots"]
    assert "SIMULATED" in shown["title"]
    assert shown["url"] == f"{SOURCE}/raw/v{version}/{SCREENSHOT_PATH}"
    assert (ROOT / SCREENSHOT_PATH).is_file()


def test_the_screenshot_shows_the_golden_output_without_times() -> None:
    text = screenshot()[SCREENSHOT_PATH]
    for word in ("pool-b", "2x3g.40gb", "AlreadyCordoned", "kubectl get gpunodes", "SIMULATED"):
        assert word in text
    assert all(f"{name}<" not in text and f" {name} " not in text for name in TIMES)
    table = ["NAME   SINCE   PODS   AGE", "a      since          age", "b              2"]
    assert without_times(table) == ["NAME   PODS", "a", "b      2"]


def test_the_icon_is_the_repositorys_at_the_tag_and_helm_lint_recommends_nothing(helm: Helm, published: Path) -> None:
    about = yaml.safe_load((published / "Chart.yaml").read_text())
    assert about["icon"] == f"{SOURCE}/raw/v{about['version']}/{ICON}"
    assert "[INFO]" not in helm.must("lint", "--strict", str(published))


def test_the_icon_is_a_square_drawing_that_loads_nothing() -> None:
    text = (ROOT / ICON).read_text()
    drawing = ElementTree.fromstring(text)
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    left, top, width, height = map(float, drawing.attrib["viewBox"].split())
    assert (left, top) == (0, 0)
    assert width == height
    assert not re.search(r"href|url\(|<script|<image", text)


def test_the_repository_names_its_owners_to_artifact_hub() -> None:
    """By https://artifacthub.io/docs/topics/repositories: each owner has a name and the address of an account."""
    told = yaml.safe_load((ROOT / "artifacthub-repo.yml").read_text())
    assert set(told) <= {"repositoryID", "owners", "ignore"}
    assert told["owners"]
    assert all(set(owner) == {"name", "email"} for owner in told["owners"])
