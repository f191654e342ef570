"""The image that runs on the real kubelets: what comes beside it."""

import json
import tarfile
from typing import Any

import pytest
from hack.images.debian import locked
from hack.images.wheels import download
from hack.realnode.site import Site
from tests.images.spdx import problems

pytestmark = pytest.mark.e2e


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
    """The sha256 of a package's file, where it has one."""
    return [one["checksumValue"] for one in package.get("checksums", [])]


def test_its_bill_of_materials_names_the_digest_that_the_archive_has(site: Site) -> None:
    with tarfile.open(site.image.archive) as tar:
        file = tar.extractfile("index.json")
        assert file is not None
        (manifest,) = json.load(file)["manifests"]
    (described,) = json.loads(site.image.sbom.read_text())["packages"][0]["checksums"]
    assert f"sha256:{described['checksumValue']}" == manifest["digest"]
