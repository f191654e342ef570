"""The static install.yaml, compared with what helm renders and with what `helm install` creates."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hack.cluster.api import Api, Object
from hack.cluster.install import object_path
from hack.manifests import FIRST, RELEASE_NAMESPACE, install_manifest, main
from tests.chart.charts import CHART, IMAGE, ROOT, Helm
from tests.chart.cluster import Installed, is_there
from tests.yamlfiles import LOADER

from hack import olm

REPOSITORY = IMAGE[1].partition("=")[2]
DIGEST = "sha256:" + "a" * 64
TAKE_OVER = {"3": ("--take-ownership",), "4": ("--take-ownership", "--force-conflicts")}
"""The flags with which each major of helm takes over what kubectl applied. Helm 4 applies on the server, where kubectl owns the fields."""
OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
"""Fields of an object's metadata that the API server sets."""
OF_OTHERS = ("meta.helm.sh/", "deployment.kubernetes.io/", "deprecated.daemonset.template.generation")
"""Prefixes of annotations that helm, the Deployment controller and the API server add."""


def test_it_has_the_objects_that_helm_renders_and_the_namespace(helm: Helm) -> None:
    objects = parsed(install_manifest(REPOSITORY))
    wanted = helm.template()
    assert [one for one in objects if one not in wanted] == [yaml.safe_load(RELEASE_NAMESPACE)]
    assert [one for one in wanted if one not in objects] == []


def test_namespaces_and_then_crds_are_its_first_objects(helm: Helm) -> None:
    kinds = [one["kind"] for one in parsed(install_manifest(REPOSITORY))]
    needed = [kind for kind in kinds if kind in FIRST]
    assert kinds[: len(needed)] == sorted(needed, key=FIRST.index)
    assert set(needed) == set(FIRST)


def test_the_command_writes_the_file_with_the_image_at_its_digest(
    helm: Helm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a" / "install.yaml"
    assert main([REPOSITORY, DIGEST, "--target", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_text().count(f"image: {REPOSITORY}@{DIGEST}\n") == 2


BOTH = pytest.mark.parametrize("command", [main, olm.main], ids=["install.yaml", "bundle"])


@BOTH
def test_each_command_says_why_helm_refuses_an_image_and_writes_nothing(
    helm: Helm, command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    assert command(["NOT AN IMAGE", "--target", str(target)]) == 1
    assert "/image/repository" in capsys.readouterr().err
    assert not target.exists()


@BOTH
def test_each_command_says_why_helm_cannot_be_built_and_writes_nothing(
    command: Callable[[list[str]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache, target = tmp_path / "cache", tmp_path / "target"
    cache.write_text("no folder")
    monkeypatch.setenv("GPUSHARING_CACHE", str(cache))
    assert command([REPOSITORY, "--target", str(target)]) == 1
    assert capsys.readouterr().err.startswith(f"Nothing can be kept in the cache {cache}")
    assert not target.exists()


@pytest.mark.cluster
def test_kubectl_apply_of_it_creates_the_objects_of_helm_install_and_helm_takes_them_over(installed: Installed) -> None:
    """The CRDs outlive `helm uninstall`, with the policies, so the file is applied to existing CRDs."""
    text = install_manifest(REPOSITORY)
    api = installed.admin
    again = installed.run_helm("upgrade", str(CHART))  # with default values, whatever other tests have set
    assert again.returncode == 0, again.stderr
    paths = {object_path(api, one): one["kind"] for one in parsed(text)}
    by_helm = {path: stored(api, path) for path in paths}
    uninstall(installed)
    left = {path for path in paths if is_there(api, path)}
    try:
        assert {paths[path] for path in left} == {"Namespace", "CustomResourceDefinition"}
        installed.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
        for path, kind in paths.items():
            assert stored(api, path) == by_helm[path], f"{kind} {path}"
    finally:
        installed.must("install", str(CHART), *TAKE_OVER[major(installed)])
        # The other tests need an installation of helm alone, without kubectl as an owner of fields.
        uninstall(installed)
        for path in left:
            disown(api, path)
        installed.must("install", str(CHART))
        installed.wait_enforced()


def uninstall(installed: Installed) -> None:
    """Uninstall the release without its hooks, whose pods never end under kwok, and wait until its objects are gone."""
    installed.must("uninstall", "--wait", "--no-hooks")


def disown(api: Api, path: str) -> None:
    managers = api.get(path)["metadata"]["managedFields"]
    others = [row for row in managers if not row["manager"].startswith("kubectl")]
    api.merge_patch(path, {"metadata": {"managedFields": others}})


def test_the_page_and_the_refusal_give_the_flags_that_take_the_objects_over() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text()
    refusal = (CHART / "templates" / "validations.yaml").read_text()
    for text in (page, refusal):
        assert " ".join(TAKE_OVER["4"]) in text


def major(installed: Installed) -> str:
    return installed.helm.run("version", "--short").stdout.removeprefix("v").partition(".")[0]


def parsed(text: str) -> list[Object]:
    """Return the objects of a YAML text in their order, without empty documents."""
    return [one for one in yaml.load_all(text, LOADER) if one]


def stored(api: Api, path: str) -> Object:
    """Return an object without its status and without what the server, helm and controllers add to its metadata."""
    found = api.get(path)
    found.pop("status", None)
    metadata = {key: value for key, value in found["metadata"].items() if key not in OF_THE_SERVER}
    annotations = metadata.pop("annotations", {})
    own = {key: value for key, value in annotations.items() if not key.startswith(OF_OTHERS)}
    return {**found, "metadata": {**metadata, "annotations": own}}
