"""A release from end to end, in a registry on this machine: prepared, pushed, signed, verified, pulled and installed.

It publishes the archives that the other tests of this rung run. Not played: a public registry with TLS and passwords,
and signing without a key (docs/reference/not-tried.md).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from hack.cluster import toolchain
from hack.cluster.process import wait_until
from hack.images.contents import Image, read_origin
from hack.images.debian import ARCHITECTURES
from hack.launch import AGENT_NAMESPACE, NAMESPACE
from hack.realnode.registry import Registry
from hack.realnode.site import Site
from hack.release import package, publish
from hack.release.chart import CHART
from hack.release.prepare import Prepared, prepare, read_prepared
from hack.release.publish import Published, Publisher, PublishError, read_platforms
from tests.e2e.conftest import NODES
from tests.e2e.pool import FASTER

pytestmark = pytest.mark.e2e
PLATFORM = "linux/amd64"
HTTP = ("--allow-http-registry", "--insecure-ignore-tlog")


@dataclass(frozen=True)
class Release:
    """What was prepared and published, and the keys that signed it."""

    prepared: Prepared
    published: Published
    publisher: Publisher
    out: Path
    keys: Path

    @property
    def files(self) -> Path:
        """The folder of what is attached to the release."""
        return self.out / "files"

    def file(self, pattern: str) -> Path:
        """The only attached file that matches this pattern."""
        (path,) = self.files.glob(pattern)
        return path


@pytest.fixture(scope="module")
def release(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The project's version, published in a registry that the nodes know, and signed with a new key."""
    out, keys = tmp_path_factory.mktemp("release"), tmp_path_factory.mktemp("keys")
    source = read_origin().source or package.UNKNOWN_SOURCE
    with Registry(site.plane.options.address) as registry, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COSIGN_PASSWORD", "only for this test")
        run(keys, "cosign", "generate-key-pair")
        for node in site.nodes.values():
            registry.admit(node)
        prepared = prepare(package.version(), f"{registry.host}/team", source, [PLATFORM], out)
        publisher = Publisher(str(keys / "cosign.key"), plain_http=True)
        yield Release(prepared, publisher.publish(prepared, out), publisher, out, keys)


def run(folder: Path, name: str, *arguments: str) -> str:
    """What one of the release's programs prints, started in this folder; it must succeed."""
    done = attempt(folder, name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(folder: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """One of the release's programs, started in this folder, at its end."""
    command = [str(publish.program(name)), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_published_image_is_the_archive_that_the_nodes_of_this_rung_run(
    release: Release, site: Site, image: Image
) -> None:
    platforms = dict(read_platforms(release.out / "image", release.prepared.digest))
    assert list(platforms) == sorted(ARCHITECTURES)
    assert platforms[image.architecture] == image.digest
    assert read_prepared(release.out) == release.prepared


def test_both_tags_name_it_and_neither_is_ever_moved(release: Release) -> None:
    name, version = release.prepared.image, release.prepared.version
    tags = {tag: release.publisher.find_digest(f"{name}:{tag}") for tag in (version, f"v{version}", "v7")}
    assert tags == {version: release.published.image, f"v{version}": release.published.image, "v7": ""}
    other = replace(release.prepared, digest=f"sha256:{'0' * 64}")
    with pytest.raises(PublishError, match="a released tag is never moved: raise the version in pyproject"):
        release.publisher.publish(other, release.out)


def test_a_chart_that_names_an_image_which_the_registry_lacks_is_not_published(release: Release) -> None:
    chart = release.file("*.tgz")
    release.publisher.check_rendered(chart, release.prepared)
    other = replace(release.prepared, digest=f"sha256:{'0' * 64}")
    with pytest.raises(PublishError, match=f"and not {other.digest}"):
        release.publisher.check_rendered(chart, other)


def test_image_and_chart_are_verified_by_the_key_that_signed_them_and_by_no_other(release: Release) -> None:
    prepared, published = release.prepared, release.published
    image = f"{prepared.image}:v{prepared.version}"
    chart = f"{prepared.registry}/charts/{CHART.name}:{prepared.version}"
    verify = partial(run, release.keys, "cosign", "verify", "--key", "cosign.pub", *HTTP)
    assert published.image in verify(image)
    assert published.chart in verify(chart)
    run(release.keys, "cosign", "generate-key-pair", "--output-key-prefix", "other")
    refused = attempt(release.keys, "cosign", "verify", "--key", "other.pub", *HTTP, image)
    assert refused.returncode != 0
    assert "failed to verify signature" in refused.stderr


def test_each_platform_has_its_bill_of_materials_in_the_registry(release: Release) -> None:
    for _, digest in read_platforms(release.out / "image", release.prepared.digest):
        kind = ("--type", "spdxjson", "--key", "cosign.pub", *HTTP)
        name = f"{release.prepared.image}@{digest}"
        assert "payload" in run(release.keys, "cosign", "verify-attestation", *kind, name)


def test_the_chart_is_installed_from_the_registry_and_real_nodes_pull_the_image_by_digest(
    release: Release, site: Site, notes: str
) -> None:
    prepared = release.prepared
    chart = f"oci://{prepared.registry}/charts/{CHART.name}"
    options = ("--version", prepared.version, "--plain-http", "--wait", "--timeout", "300s")
    site.helm("upgrade", "--install", "gpusharing", chart, *options, "--reset-values", "--force-conflicts")
    try:
        name = f"{prepared.image}@{prepared.digest}"
        namespaces = [f"/api/v1/namespaces/{each}" for each in (NAMESPACE, AGENT_NAMESPACE)]

        def images() -> set[str]:
            """The images of the pods that run or will run. Pods that are being deleted, or whose node was restarted
            by another test (phase Failed), still have the previous one."""
            pods = [pod for each in namespaces for pod in site.api.list(f"{each}/pods")]
            left = [
                pod
                for pod in pods
                if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] not in ("Succeeded", "Failed")
            ]
            return {container["image"] for pod in left for container in pod["spec"]["containers"]}

        wait_until(lambda: images() == {name}, 60.0, f"every pod to have the image {name}")
        events = [one for each in namespaces for one in site.api.list(f"{each}/events", fieldSelector="reason=Pulled")]
        pulled = [one for one in events if f'Successfully pulled image "{name}"' in one["message"]]
        assert {one["source"]["host"] for one in pulled} == set(NODES), "nobody imported it there"
    finally:
        site.helm_install("--set", FASTER, "--force-conflicts")  # under its imported name again, for other tests


def test_krew_installs_the_attached_archive_and_the_plugin_asks_the_cluster(
    release: Release, site: Site, notes: str, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]  # not the one of .venv
    home = {"HOME": str(tmp_path), "KREW_ROOT": str(tmp_path), "KREW_OS": "linux", "KREW_ARCH": "amd64"}
    path = os.pathsep.join([str(tmp_path / "bin"), str(tools), "/usr/bin", "/bin"])
    environ = {**home, "PATH": path, "KUBECONFIG": str(site.plane.kubeconfig)}
    krew = [str(toolchain.ensure("krewtools") / "krew"), "install"]
    manifest = [
        f"--manifest={release.file('gpusharing.yaml')}",
        f"--archive={release.file('kubectl-*.tar.gz')}",
    ]
    subprocess.run([*krew, *manifest], env=environ, check=True, capture_output=True)
    kubectl = str(toolchain.control_plane_programs().kubectl)
    command = [kubectl, "gpusharing", "doctor", "-o", "json"]
    done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
    assert json.loads(done.stdout)["installed"], done.stderr


def test_the_wheel_with_the_extra_cli_runs_in_an_empty_environment(release: Release, tmp_path: Path) -> None:
    uv = [sys.executable, "-m", "uv", "--no-config"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, "venv"], cwd=tmp_path, check=True)
    pins = ("--constraint", str(package.ROOT / "requirements-dev.lock"))
    wheel = f"{release.file('*.whl')}[cli]"
    install = [*uv, "pip", "install", "--quiet", "--python", "venv/bin/python", *pins, wheel]
    subprocess.run(install, cwd=tmp_path, check=True)
    kubectl = str(toolchain.control_plane_programs().kubectl)
    path = os.pathsep.join([str(tmp_path / "venv/bin"), "/usr/bin", "/bin"])
    done = subprocess.run(
        [kubectl, "gpusharing", "--help"], env={"PATH": path}, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("usage: kubectl gpusharing")
