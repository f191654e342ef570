"""The chart as it is published: nobody has to name its image."""

from pathlib import Path

import pytest
import yaml
from hack.release import main, write_chart
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


def test_what_is_no_digest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry.test/x", "latest"]) == 2
    assert "latest is no digest; for example sha256:" in capsys.readouterr().err
