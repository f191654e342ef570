"""The bundle for OLM and the file beside it: together they are the chart, and OLM's own validator accepts the bundle.
No OLM runs here (docs/reference/not-tried.md)."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster import toolchain
from hack.manifests import install_manifest
from hack.olm import BUNDLED, METADATA, OPENSHIFT, BundleError, build, main, validate
from hack.release.chart import ICON
from pydantic import TypeAdapter
from tests.chart.charts import ROOT, Manifest
from tests.yamlfiles import LOADER

from gpusharing.api.gpunode import GPUNodeSpec
from gpusharing.api.policy import GPUSharingPolicySpec

pytestmark = pytest.mark.tools
REPOSITORY = "registry.test/team/gpu-sharing-operator"
DIGEST = "sha256:" + "a" * 64
SOURCE = "https://example.test/team/x"
CARRIED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterServiceVersion",
    "ConfigMap",
    "CustomResourceDefinition",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PodMonitor",
    "PriorityClass",
    "PrometheusRule",
    "Role",
    "RoleBinding",
    "Secret",
    "Service",
    "ServiceAccount",
    "ServiceMonitor",
}
"""The kinds that operator-registry v1.64.0 lets a bundle have (pkg/lib/bundle/supported_resources.go), without those of consoles and autoscalers."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the bundle, which the validator has accepted, and the file beside it."""
    toolchain.program("helm")
    target = tmp_path_factory.mktemp("olm") / "x"
    beside = build(REPOSITORY, DIGEST, SOURCE, target)
    return target / "bundle", beside


def manifests(bundle: Path) -> list[Manifest]:
    found = [yaml.load(path.read_text(), LOADER) for path in sorted((bundle / "manifests").iterdir())]
    return sorted(found, key=lambda one: one["kind"] != "ClusterServiceVersion")


def in_file(beside: Path) -> list[Manifest]:
    return list(yaml.load_all(beside.read_text(), LOADER))


def installed_by(csv: Manifest) -> dict[str, Any]:
    install = csv["spec"]["install"]
    assert install["strategy"] == "deployment"
    assert set(install["spec"]) == {"deployments"}, "no rights: OLM would grant them without our admission policies"
    (deployment,) = install["spec"]["deployments"]
    return dict(deployment)


def test_bundle_and_file_have_each_object_of_the_chart_once(built: tuple[Path, Path]) -> None:
    rendered = install_manifest(REPOSITORY, DIGEST, "-f", str(OPENSHIFT))
    chart = [one for one in yaml.load_all(rendered, LOADER) if one]
    (csv, *bundled), others = manifests(built[0]), in_file(built[1])
    made = installed_by(csv)
    deployments = [one for one in chart if one["kind"] == "Deployment"]
    assert [(one["metadata"]["name"], one["metadata"]["labels"], one["spec"]) for one in deployments] == [
        (made["name"], made["label"], made["spec"])
    ]
    rest = [one for one in chart if one not in deployments]
    assert [one for one in (*bundled, *others) if one not in rest] == []
    assert [one for one in rest if [*bundled, *others].count(one) != 1] == []


def test_the_bundle_has_only_kinds_that_olm_carries_and_the_file_has_what_it_does_not(built: tuple[Path, Path]) -> None:
    kinds = {one["kind"] for one in manifests(built[0])}
    assert kinds == {*BUNDLED, "ClusterServiceVersion"}
    assert kinds <= CARRIED
    needed = {"DaemonSet", "Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert needed <= {one["kind"] for one in in_file(built[1])} - CARRIED


def test_without_the_file_no_pod_of_the_operator_starts_and_nobody_has_its_rights(built: tuple[Path, Path]) -> None:
    csv, *bundled = manifests(built[0])
    account = installed_by(csv)["spec"]["template"]["spec"]["serviceAccountName"]
    accounts = [one["metadata"]["name"] for one in in_file(built[1]) if one["kind"] == "ServiceAccount"]
    assert account in accounts
    granted = {one["roleRef"]["name"] for one in in_file(built[1]) if "roleRef" in one}
    assert granted
    assert not granted & {one["metadata"]["name"] for one in bundled}


def test_the_description_says_what_is_in_the_file_and_where_it_is(built: tuple[Path, Path]) -> None:
    csv = manifests(built[0])[0]
    text = csv["spec"]["description"]
    assert (
        f"kubectl apply --server-side -f {SOURCE}/releases/download/v{csv['spec']['version']}/{built[1].name}" in text
    )
    assert [one["kind"] for one in in_file(built[1]) if one["kind"] not in text] == []


def test_its_icon_image_and_examples_are_the_products(built: tuple[Path, Path]) -> None:
    csv = manifests(built[0])[0]
    (icon,) = csv["spec"]["icon"]
    assert base64.b64decode(icon["base64data"]) == (ROOT / ICON).read_bytes()
    assert csv["spec"]["relatedImages"] == [{"name": "operator", "image": f"{REPOSITORY}@{DIGEST}"}]
    *policies, gpunode = json.loads(csv["metadata"]["annotations"]["alm-examples"])
    assert [GPUSharingPolicySpec.model_validate(policy["spec"]).mode for policy in policies]
    assert TypeAdapter(GPUNodeSpec).validate_python(gpunode["spec"]).request.id == "1"
    hidden = csv["metadata"]["annotations"]["operators.operatorframework.io/internal-objects"]
    assert json.loads(hidden) == ["gpunodes.gpusharing.dev"], "nobody creates a GPUNode by hand"


def test_its_image_has_the_labels_of_its_annotations(built: tuple[Path, Path]) -> None:
    annotations = yaml.safe_load((built[0] / "metadata" / "annotations.yaml").read_text())["annotations"]
    lines = (built[0] / "bundle.Dockerfile").read_text().splitlines()
    assert [f"LABEL {key}={value}" in lines for key, value in annotations.items()] == [True] * len(METADATA)


def without_a_crd(bundle: Path) -> None:
    (bundle / "manifests" / "gpunodes.gpusharing.dev.customresourcedefinition.yaml").unlink()


def in_the_csv(change: Callable[[Manifest], object]) -> Callable[[Path], None]:
    """Return what makes a change in the ClusterServiceVersion of a bundle."""

    def spoil(bundle: Path) -> None:
        (path,) = (bundle / "manifests").glob("*.clusterserviceversion.yaml")
        csv = yaml.safe_load(path.read_text())
        change(csv)
        path.write_text(yaml.safe_dump(csv))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_a_crd, "owned CRD .*GPUNode.* not found in bundle"),
        (in_the_csv(lambda csv: csv["spec"].pop("installModes")), "install modes not found"),
        (in_the_csv(lambda csv: csv["spec"]["icon"][0].update(mediatype="image/x")), "valid mediatype"),
        (
            in_the_csv(lambda csv: csv["metadata"]["annotations"].update(categories="GPU")),
            "not in the set of standard categories",
        ),
        (in_the_csv(lambda csv: csv["spec"].pop("minKubeVersion")), "minKubeVersion is not informed"),
        (in_the_csv(lambda csv: csv.update(kind="Other")), "unable to find a csv"),
    ],
    ids=["no CRD", "no install mode", "no picture", "no such category", "a warning", "no version"],
)
def test_the_validator_refuses_a_spoiled_bundle(
    built: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    bundle = shutil.copytree(built[0], tmp_path / "bundle")
    spoil(bundle)
    with pytest.raises(
        BundleError, match=rf"operator-verify refuses .*/bundle:\n(.*\n)*.*{reason}.*\n(.*\n)*Correct hack/olm"
    ):
        validate(bundle)


def test_of_its_target_only_the_bundle_and_the_file_of_this_version_are_replaced(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "thesis" / "chapter-1"
    old = tmp_path / "bundle" / "manifests" / "old.yaml"
    for path in (kept, old, tmp_path / built[1].name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    assert main([REPOSITORY, DIGEST, "--source", SOURCE, "--target", str(tmp_path)]) == 0
    assert kept.read_text() == "before"
    assert not old.exists()
    assert in_file(tmp_path / built[1].name) == in_file(built[1])


def test_a_program_that_cannot_be_built_is_a_sentence_and_the_target_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPUSHARING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bundle").mkdir()
    assert main([REPOSITORY, "--target", str(tmp_path)]) == 1
    assert "there is no `go` on PATH: install Go" in capsys.readouterr().err
    assert (tmp_path / "bundle").is_dir()
