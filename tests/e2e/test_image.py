"""The image that runs on the real kubelets: how big it is, what is in it and comes beside it, how soon it is Ready.
What asks for no `site` needs no kubelet: `make e2e ARGS="tests/e2e/test_image.py -k 'not materials'"`."""

import io
import json
import os
import re
import tarfile
from pathlib import PurePosixPath
from typing import Any

import pytest
from hack.images import local, start
from hack.images.contents import Image
from hack.images.debian import ARCHITECTURES, PYTHON, locked
from hack.images.local import too_big
from hack.images.wheels import LOCK, STDLIB, download
from hack.realnode.site import Site
from hack.required import require
from tests.images.test_sbom import problems

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=ARCHITECTURES)
def each_image(request: pytest.FixtureRequest, image: Image) -> Image:
    return image if request.param == image.architecture else local.build(request.param)


def files(image: Image) -> set[str]:
    """Every file, links apart, in the layers of the archive as it is imported."""
    found: set[str] = set()
    with tarfile.open(image.archive) as archive:
        for layer in image.layers:
            blob = archive.extractfile(f"blobs/{layer.digest.replace(':', '/')}")
            assert blob is not None
            with tarfile.open(fileobj=io.BytesIO(blob.read())) as tar:
                found |= {member.name for member in tar if member.isfile()}
    return found


def name_of(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_it_is_small_enough(each_image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{each_image.architecture}: {each_image.size / 1e6:.1f} MB compressed")
    assert too_big(each_image.size) == ""


def test_the_standard_library_is_in_it_compiled(each_image: Image) -> None:
    there = files(each_image)
    modules = [PurePosixPath(path) for path in there if path.startswith(STDLIB) and path.endswith(".py")]
    assert len(modules) > 300
    tag = f"cpython-{PYTHON.replace('.', '')}"
    compiled = {module: str(module.parent / "__pycache__" / f"{module.stem}.{tag}.pyc") for module in modules}
    assert [str(module) for module, path in compiled.items() if path not in there] == []


def test_the_plugin_is_not_in_it(each_image: Image) -> None:
    ours = {path for path in files(each_image) if "gpusharing" in path}
    assert "usr/local/bin/gpusharing-operator" in ours
    assert [path for path in ours if "kubectl" in path] == []


def test_every_pin_of_the_lock_has_a_wheel(each_image: Image) -> None:
    pins = re.findall(r"^([A-Za-z0-9][\w.-]*)==", LOCK.read_text(), re.MULTILINE)
    wheels = [file.name.split("-")[0] for file in download(each_image.architecture)]
    assert sorted(map(name_of, wheels)) == sorted(map(name_of, pins))
    assert set(map(name_of, pins)) <= {name_of(part.name) for part in each_image.parts}


def test_the_operator_is_ready_soon_enough_after_its_start(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    require("rung4", "chroot needs root: sudo make e2e" if os.geteuid() else None)
    starts = start.measure_starts(image)
    with capsys.disabled():
        print(f"\n{start.summary(starts)}")
    assert start.is_soon(starts), "by its CPU time: neighbors on the machine do not count"


def test_spdx_accepts_its_bill_of_materials_and_everything_locked_stands_in_it(site: Site) -> None:
    document = json.loads(site.image.sbom.read_text())
    assert problems(document) == []
    packages, _ = locked(site.image.architecture)
    listed = {(one["name"], *sums(one)) for one in document["packages"]}
    assert {(package.name, package.sha256) for package in packages} <= listed
    image, ours = 1, 1
    wheels = download(site.image.architecture)
    assert len(document["packages"]) == image + len(packages) + len(wheels) + ours


def sums(package: dict[str, Any]) -> list[str]:
    return [one["checksumValue"] for one in package.get("checksums", [])]


def test_its_bill_of_materials_names_the_digest_that_the_archive_has(site: Site) -> None:
    with tarfile.open(site.image.archive) as tar:
        file = tar.extractfile("index.json")
        assert file is not None
        (manifest,) = json.load(file)["manifests"]
    (described,) = json.loads(site.image.sbom.read_text())["packages"][0]["checksums"]
    assert f"sha256:{described['checksumValue']}" == manifest["digest"]
