"""The chart as it is published: nobody has to name its image."""

import os
from pathlib import Path

import yaml
from hack.release.chart import write_chart
from hack.release.notes import changes, read_notes
from hack.release.prepare import Prepared, pack_chart
from tests.chart.charts import NAMESPACE, Helm

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
    prepared = Prepared("0.1.0", "", "https://example.test/team/x", DIGEST)
    chart = write_chart(tmp_path / "gpu-sharing-operator", prepared.image, DIGEST)
    done = helm.run("lint", "--strict", str(chart))
    assert done.returncode == 0, done.stdout + done.stderr


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
    source = "https://example.test/team/x"
    chart = write_chart(tmp_path / "gpu-sharing-operator", "registry.test/x", DIGEST, entries, source)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert yaml.safe_load(about["annotations"]["artifacthub.io/changes"]) == [
        {"kind": "changed", "description": '**Breaking**: a `field`, "quoted", goes on: here.'},
        {"kind": "changed", "description": "another"},
        {"kind": "fixed", "description": "a fault"},
    ]
    assert {"name": "source", "url": source} in yaml.safe_load(about["annotations"]["artifacthub.io/links"])
    assert (about["home"], about["sources"]) == (source, [source])
    done = helm.run("lint", "--strict", str(chart))
    assert done.returncode == 0, done.stdout + done.stderr
