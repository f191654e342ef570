"""The manifests that let Argo CD and Flux install the chart."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.charts import CHART, NAMESPACE, ROOT, Helm, find
from tests.chart.cluster import RELEASE

FOLDER = ROOT / "deploy" / "gitops"
ARGO = "argocd-application.yaml"
FLUX = "flux-release.yaml"
REGISTRY = "REGISTRY/charts"


def manifests(name: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / name).read_text())}


def values(name: str) -> dict[str, Any]:
    objects = manifests(name)
    found: dict[str, Any] = (
        objects["Application"]["spec"]["source"]["helm"]["valuesObject"]
        if name == ARGO
        else objects["HelmRelease"]["spec"]["values"]
    )
    return found


@pytest.mark.parametrize("name", [ARGO, FLUX])
def test_helm_renders_the_chart_with_the_values_of_the_file(helm: Helm, tmp_path: Path, name: str) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps(values(name)))
    objects = helm.template("-f", str(path))
    assert find(objects, "Deployment", "gpusharing-operator")


def test_both_name_this_chart_at_its_version_and_the_release_of_the_pages() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    application = manifests(ARGO)["Application"]["spec"]
    source, release = application["source"], manifests(FLUX)["HelmRelease"]["spec"]
    repository = manifests(FLUX)["OCIRepository"]
    assert (source["repoURL"], source["chart"]) == (REGISTRY, chart["name"])
    assert repository["spec"]["url"] == f"oci://{REGISTRY}/{chart['name']}"
    assert source["targetRevision"] == repository["spec"]["ref"]["tag"] == chart["version"]
    assert source["helm"]["releaseName"] == release["releaseName"] == RELEASE
    assert application["destination"]["namespace"] == release["targetNamespace"] == NAMESPACE
    assert release["chartRef"]["name"] == repository["metadata"]["name"]
    assert release["storageNamespace"] == NAMESPACE


def test_neither_takes_over_the_objects_of_another_installation() -> None:
    options = manifests(ARGO)["Application"]["spec"]["syncPolicy"]["syncOptions"]
    assert {"ServerSideApply=true", "FailOnSharedResource=true"} <= set(options)
    release = manifests(FLUX)["HelmRelease"]["spec"]
    assert [release[verb]["disableTakeOwnership"] for verb in ("install", "upgrade")] == [True, True]
