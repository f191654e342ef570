"""The rehearsal of a release, on this machine alone: prepared, pushed, signed, verified, installed, upgraded, rolled back.
The first version is the checkout's, with the archives that the other tests of this rung run. The next one is made as CONTRIBUTING.md says, and published by the command line from a clean clone of its tag. Not played: a public registry with TLS and passwords, and signing without a key (docs/reference/not-tried.md)."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import yaml
from hack.cluster import toolchain
from hack.cluster.process import wait_until
from hack.images.contents import Image, read_origin
from hack.images.debian import ARCHITECTURES
from hack.launch import AGENT_NAMESPACE, NAMESPACE, ROOT
from hack.realnode.registry import Registry
from hack.realnode.site import Site
from hack.release import package, publish
from hack.release.chart import CHART
from hack.release.prepare import Prepared, prepare, read_prepared
from hack.release.publish import Published, Publisher, PublishError, read_platforms
from tests.chart.charts import NEXT, VERSION, Helm
from tests.e2e.pool import NODES, Walk
from tests.fakes.web import WebServer
from tests.images.test_advisories import advisory

pytestmark = pytest.mark.e2e
PLATFORM = "linux/amd64"
SOME = {"introduced": "0"}
NAMESPACES = [f"/api/v1/namespaces/{each}" for each in (NAMESPACE, AGENT_NAMESPACE)]
PATIENCE = ("--wait", "--timeout", "300s")
HTTP = ("--allow-http-registry", "--insecure-ignore-tlog")


@dataclass(frozen=True)
class Release:
    prepared: Prepared
    published: Published
    publisher: Publisher
    out: Path
    keys: Path

    @property
    def files(self) -> Path:
        return self.out / "files"

    def file(self, pattern: str) -> Path:
        (path,) = self.files.glob(pattern)
        return path


@dataclass(frozen=True)
class Website:
    """A folder, and the address on loopback under which it is served."""

    folder: Path
    address: str

    def attach(self, release: Release) -> None:
        """Serve the release's files as the forge does, and its wheel in an index of Python packages."""
        downloads = self.folder / "releases" / "download" / f"v{release.prepared.version}"
        index = self.folder / "simple" / "gpu-sharing-operator"
        for folder in (downloads.parent, index):
            folder.mkdir(parents=True, exist_ok=True)
        downloads.symlink_to(release.files)
        wheel = release.file("*.whl")
        (index / wheel.name).symlink_to(wheel)


@pytest.fixture(scope="module")
def website(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Website]:
    folder = tmp_path_factory.mktemp("website")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = WebServer(("127.0.0.1", 0), handler)
    with server.running():
        yield Website(folder, f"http://127.0.0.1:{server.server_port}")


@pytest.fixture(scope="module")
def release(site: Site, website: Website, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
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
        made = Release(prepared, publisher.publish(prepared, out), publisher, out, keys)
        website.attach(made)
        yield made


@pytest.fixture(scope="module")
def successor(release: Release, website: Website, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The next version, published beside the first one from a clean clone of its tag."""
    work, clone = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("clone")
    git(work, "clone", "--quiet", str(ROOT), ".")
    raise_version(work, NEXT)
    git(work, "tag", f"v{NEXT}")
    git(clone, "clone", "--quiet", "--branch", f"v{NEXT}", str(work), ".")
    where = ("--registry", release.prepared.registry, "--source", website.address, "--platform", PLATFORM)
    python(clone, "-m", "hack.release", "prepare", f"v{NEXT}", *where)
    python(clone, "hack/ci.py", "--passed")  # as the workflow records that its jobs have passed
    advisories = clone / "build" / "osv.json"
    today = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    made_up = [advisory(ecosystem, "made-up", SOME, modified=today) for ecosystem in ("PyPI", "Debian:13")]
    advisories.write_text(json.dumps(made_up))
    how = ("--advisories", str(advisories), "--key", release.publisher.key, "--plain-http")
    printed = python(clone, "-m", "hack.release", "publish", *how)
    image, chart = re.findall(r"^(?:image|chart)=(.*)$", printed, re.MULTILINE)
    out = clone / "build" / "release"
    made = Release(read_prepared(out), Published(image, chart), release.publisher, out, release.keys)
    website.attach(made)
    return made


def raise_version(folder: Path, version: str) -> None:
    """Commit what CONTRIBUTING.md asks of a release: version, generated files and notes."""
    project, changelog = folder / "pyproject.toml", folder / "CHANGELOG.md"
    project.write_text(re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), flags=re.MULTILINE))
    section = f"## Unreleased\n\n## {version}\n\n### Added\n\n- What the [rehearsal](README.md) upgrades to.\n\n"
    text = re.sub(r"^## Unreleased\n.*?(?=^## )", section, changelog.read_text(), flags=re.MULTILINE | re.DOTALL)
    changelog.write_text(text)
    python(folder, "-m", "hack.generate")
    git(folder, "commit", "--quiet", "--all", "--message", f"Release {version}")


def python(folder: Path, *arguments: str) -> str:
    environ = {**os.environ, "PYTHONPATH": f"{folder / 'operator'}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=rehearsal", "-c", "user.email=rehearsal@example.test", "-c", "advice.detachedHead=false")
    subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, check=True)


def run(folder: Path, name: str, *arguments: str) -> str:
    done = attempt(folder, name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(folder: Path, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
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


@pytest.fixture(scope="module")
def installed(release: Release, site: Site, walk: Walk) -> Iterator[None]:
    """The first release, installed from the registry; at the end its revision of before is in force, for other tests."""
    before = revision(site)
    helm_from_registry(site, release, "--reset-values", "--force-conflicts")
    yield
    site.helm("rollback", "gpusharing", before, *PATIENCE, "--force-conflicts")


def helm_from_registry(site: Site, release: Release, *options: str) -> None:
    chart = f"oci://{release.prepared.registry}/charts/{CHART.name}"
    version = ("--version", release.prepared.version, "--plain-http")
    site.helm("upgrade", "gpusharing", chart, *version, *PATIENCE, *options)


def revision(site: Site) -> str:
    (one,) = json.loads(site.helm("list", "--output", "json"))
    return str(one["revision"])


def wait_runs(site: Site, release: Release) -> None:
    """Wait until each pod of ours that runs or will run has the image of this release by its digest. Pods that are being deleted, or whose node was restarted by another test (phase Failed), still have the previous one."""
    name = f"{release.prepared.image}@{release.prepared.digest}"

    def images() -> set[str]:
        pods = [pod for each in NAMESPACES for pod in site.api.list(f"{each}/pods")]
        left = [
            pod
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] not in ("Succeeded", "Failed")
        ]
        return {container["image"] for pod in left for container in pod["spec"]["containers"]}

    wait_until(lambda: images() == {name}, 60.0, f"every pod to have the image {name}")


def pulled_by(site: Site, release: Release) -> set[str]:
    said = f'Successfully pulled image "{release.prepared.image}@{release.prepared.digest}"'
    events = [one for each in NAMESPACES for one in site.api.list(f"{each}/events", fieldSelector="reason=Pulled")]
    return {one["source"]["host"] for one in events if said in one["message"]}


def test_the_chart_is_installed_from_the_registry_and_real_nodes_pull_the_image_by_digest(
    release: Release, site: Site, installed: None
) -> None:
    wait_runs(site, release)
    assert pulled_by(site, release) == set(NODES), "nobody imported it there"


def test_the_notes_of_a_release_link_to_its_tag(successor: Release, website: Website) -> None:
    link = f"[rehearsal]({website.address}/blob/v{NEXT}/README.md)"
    assert link in (successor.out / "NOTES").read_text()


def test_the_next_version_replaces_nothing_in_the_registry(release: Release, successor: Release) -> None:
    for one in (release, successor):
        prepared = one.prepared
        assert release.publisher.find_digest(f"{prepared.image}:{prepared.version}") == one.published.image
        chart = f"{prepared.registry}/charts/{CHART.name}:{prepared.version}"
        assert release.publisher.find_digest(chart) == one.published.chart
    assert (release.prepared.version, successor.prepared.version) == (VERSION, NEXT)
    assert successor.published.image != release.published.image


def test_an_upgrade_from_the_registry_and_its_rollback_leave_a_proven_pool_as_it_is(
    release: Release, successor: Release, site: Site, walk: Walk, installed: None
) -> None:
    walk.wait(walk.is_ready, "the pool to be Ready")
    holders, since, first = walk.running(), walk.mark(), revision(site)
    helm_from_registry(site, successor, "--reset-then-reuse-values")
    wait_runs(site, successor)
    assert pulled_by(site, successor) == set(NODES)
    walk.wait(walk.is_ready, "the pool to be Ready after the upgrade")
    site.helm("rollback", "gpusharing", first, *PATIENCE)
    wait_runs(site, release)
    walk.wait(walk.is_ready, "the pool to be Ready after the rollback")
    assert (walk.running(), walk.evictions(since)) == (holders, [])


def test_krew_installs_and_upgrades_the_plugin_from_an_index_and_it_asks_the_cluster(
    release: Release, successor: Release, website: Website, site: Site, notes: str, tmp_path: Path
) -> None:
    index, tools = tmp_path / "index", tmp_path / "tools"
    (index / "plugins").mkdir(parents=True)
    git(index, "init", "--quiet")
    tools.mkdir()
    (tools / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]  # not the one of .venv
    home = {"HOME": str(tmp_path), "KREW_ROOT": str(tmp_path / "krew"), "KREW_OS": "linux", "KREW_ARCH": "amd64"}
    path = os.pathsep.join([str(tmp_path / "krew" / "bin"), str(tools), "/usr/bin", "/bin"])
    environ = {**home, "PATH": path, "KUBECONFIG": str(site.plane.kubeconfig), "KREW_DEFAULT_INDEX_URI": str(index)}
    kubectl = str(toolchain.control_plane_programs().kubectl)

    def ask(*command: str) -> str:
        done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for one, verb in ((release, "install"), (successor, "upgrade")):
        manifest = one.file("gpusharing.yaml").read_text().replace(one.prepared.source, website.address)
        (index / "plugins" / "gpusharing.yaml").write_text(manifest)
        git(index, "add", ".")
        git(index, "commit", "--quiet", "--message", one.prepared.version)
        krew = str(toolchain.ensure("krewtools") / "krew")
        ask(krew, "update")
        ask(krew, verb, "gpusharing")
        assert ask(kubectl, "gpusharing", "--version").strip() == f"kubectl gpusharing {one.prepared.version}"
    doctor = [kubectl, "gpusharing", "doctor", "-o", "json"]
    done = subprocess.run(doctor, env=environ, check=False, capture_output=True, text=True)
    assert json.loads(done.stdout)["installed"], done.stderr


def test_the_package_with_the_extra_cli_is_installed_and_upgraded_from_an_index(
    release: Release, successor: Release, website: Website, tmp_path: Path
) -> None:
    uv = [sys.executable, "-m", "uv", "--no-config"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, "venv"], cwd=tmp_path, check=True)
    pins = ("--constraint", str(ROOT / "requirements-dev.lock"), "--index", f"{website.address}/simple")
    install = [*uv, "pip", "install", "--quiet", "--python", "venv/bin/python", *pins]
    kubectl = str(toolchain.control_plane_programs().kubectl)
    environ = {"PATH": os.pathsep.join([str(tmp_path / "venv/bin"), "/usr/bin", "/bin"])}
    first, following = release.prepared.version, successor.prepared.version
    for version, wanted in ((first, f"=={first}"), (following, "")):
        subprocess.run([*install, "--upgrade", f"gpu-sharing-operator[cli]{wanted}"], cwd=tmp_path, check=True)
        command = [kubectl, "gpusharing", "--version"]
        done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == f"kubectl gpusharing {version}"


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
