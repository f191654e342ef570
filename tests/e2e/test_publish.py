"""What a registry already has is never replaced by a release. No node is needed: only crane's registry on loopback."""

import shutil
from pathlib import Path

import pytest
import yaml
from hack.cluster import toolchain
from hack.realnode.registry import Registry
from hack.release.chart import CHART
from hack.release.publish import Publisher, PublishError
from tests.chart.charts import Helm

pytestmark = pytest.mark.e2e


def packed(folder: Path, description: str) -> Path:
    """The chart as an archive in the new folder; charts with other descriptions are other charts."""
    copy = shutil.copytree(CHART, folder / CHART.name)
    about = yaml.safe_load((copy / "Chart.yaml").read_text())
    (copy / "Chart.yaml").write_text(yaml.safe_dump({**about, "description": description}))
    Helm(toolchain.program("helm"), folder).must("package", str(copy), "--destination", str(folder))
    (archive,) = folder.glob("*.tgz")
    return archive


def test_a_chart_that_is_published_is_found_again_and_another_one_of_its_version_is_refused(tmp_path: Path) -> None:
    first, other = packed(tmp_path / "a", "one"), packed(tmp_path / "b", "two")
    publisher = Publisher(plain_http=True)
    with Registry() as registry:
        charts = f"{registry.host}/team/charts"
        version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
        tag = f"{charts}/{CHART.name}:{version}"
        assert publisher.find_chart(first, tag) == ""
        digest = publisher.push_chart(first, charts)
        assert publisher.find_chart(first, tag) == digest
        with pytest.raises(
            PublishError, match="another chart: a released tag is never moved: raise the version in pyproject"
        ):
            publisher.find_chart(other, tag)
