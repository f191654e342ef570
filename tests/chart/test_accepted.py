"""Every value set rendered and taken by a real API server: each object by a dry run with strict fields.
Of kinds that other projects bring, the server has stand-ins (SIMULATED)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hack.cluster import install
from hack.cluster.api import APPLY_PATCH
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, NEXT, PLATFORMS, VALUE_SETS, VERSION, Helm, Manifest
from tests.chart.cluster import SECONDS, Installed

pytestmark = pytest.mark.cluster

SPACES = "/api/v1/namespaces"
MADE_BY_OTHERS = ("gpu-agents", "nvidia", "nvidia-gpu-operator", "nvidia-device-plugin")
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpunodes.gpusharing.dev"


KINDS = {
    "monitoring.coreos.com": ("PodMonitor", "ServiceMonitor", "PrometheusRule"),
    "security.openshift.io": ("SecurityContextConstraints",),
}
"""By group kinds of other projects, in v1."""


def crds() -> list[Manifest]:
    """Stand-ins that take any content: what they prove is names, scopes and what the chart asks of helm."""
    return [crd(group, kind) for group, kinds in KINDS.items() for kind in kinds]


def crd(group: str, kind: str) -> Manifest:
    singular = kind.lower()
    plural = singular if singular.endswith("s") else f"{singular}s"
    names = {"kind": kind, "plural": plural, "singular": singular}
    scope = "Cluster" if group == "security.openshift.io" else "Namespaced"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [{"name": "v1", "served": True, "storage": True, "schema": schema}]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": scope, "names": names, "versions": versions},
    }


@pytest.fixture(scope="module", autouse=True)
def neighbors(installed: Installed) -> Iterator[None]:
    admin = installed.admin
    install.apply_documents(admin, crds())
    spaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in MADE_BY_OTHERS]
    install.apply_documents(admin, spaces)
    yield
    for one in (*crds(), *spaces):
        admin.delete(install.object_path(admin, one))


@pytest.mark.parametrize("values", [*VALUE_SETS, *PLATFORMS], ids=lambda path: path.stem)
def test_the_api_server_takes_every_object(installed: Installed, helm: Helm, values: Path) -> None:
    admin = installed.admin
    objects = helm.applied("-f", str(values))
    assert objects
    for one in objects:
        wait_until(lambda o=one: _served(installed, o), SECONDS, f"{one['kind']} to be served")  # type: ignore[misc]  # a default holds the loop's value
        if one["kind"] == "Pod":
            one["spec"]["serviceAccountName"] = "default"  # a dry run has created none of its own
        path = install.object_path(admin, one)
        query = {"dryRun": "All", "force": "true", "fieldManager": "test", "fieldValidation": "Strict"}
        admin.request("PATCH", path, one, APPLY_PATCH, **query)


def _served(installed: Installed, manifest: dict[str, object]) -> bool:
    try:
        return bool(install.object_path(installed.admin, manifest))
    except LookupError:
        return False


@pytest.mark.parametrize(
    ("version", "refused"),
    [(NEXT, True), (f"{NEXT}-rc.1", True), (VERSION, False), (f"{VERSION}-rc.1", False), ("0.0.9", False)],
)
def test_crds_of_a_newer_version_are_not_replaced(installed: Installed, version: str, refused: bool) -> None:
    admin = installed.admin
    before = admin.get(CRD)
    mine = before["metadata"]["labels"]["app.kubernetes.io/version"]
    try:
        admin.merge_patch(CRD, {"metadata": {"labels": {"app.kubernetes.io/version": version}}})
        done = installed.run_helm("upgrade", str(CHART), "--dry-run=server")
        told = f"CRD gpunodes.gpusharing.dev has a newer version (from chart {version}) than this chart ({mine})"
        assert (done.returncode != 0, told in done.stderr) == (refused, refused), done.stderr
        assert admin.get(CRD)["spec"] == before["spec"]
        if version == NEXT:
            left = installed.run_helm("upgrade", str(CHART), "--dry-run=server", "--set", "crds.enabled=false")
            assert left.returncode == 0, left.stderr
    finally:
        admin.merge_patch(CRD, {"metadata": {"labels": {"app.kubernetes.io/version": mine}}})
