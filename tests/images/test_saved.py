"""Reading back what Docker or buildah has saved: the same report as of an image that we build ourselves."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hack.images.contents import DEBIAN, PYPI, PYTHON_ITSELF
from hack.images.registry import ArchiveError, read
from tests.images.spdx import problems
from tests.images.test_sbom import ORIGIN

STATUS = (
    "Package: libc6\nStatus: install ok installed\nSource: glibc\nVersion: 2.41-12\nArchitecture: amd64\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n"
)
FILES = {
    "var/lib/dpkg/status": STATUS,
    "opt/venv/lib/python3.13/site-packages/h2-4.4.1.dist-info/METADATA": "Name: h2\nVersion: 4.4.1\nLicense: MIT\n",
    "opt/venv/lib/python3.13/site-packages/h2/__pycache__/a.cpython-313.pyc": "x",
    "opt/venv/pyvenv.cfg": "home = /usr/local/bin\nversion = 3.13.14\n",
    "usr/share/doc/METADATA": "no distribution's",
}
CONFIG = {"architecture": "arm64", "config": {"User": "65532:65532"}}


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def save(path: Path, *layers: bytes) -> Path:
    """An archive as `docker save` writes it."""
    config = json.dumps(CONFIG).encode()
    named = {f"{number}/layer.tar": layer for number, layer in enumerate(layers)}
    manifest = [{"Config": "config.json", "RepoTags": ["localhost/x:1"], "Layers": list(named)}]
    path.write_bytes(tarred({"manifest.json": json.dumps(manifest).encode(), "config.json": config, **named}))
    return path


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_parts_size_and_settings_are_read_from_the_archive(
    tmp_path: Path, prefix: str, pack: type[bytes]
) -> None:
    layer = pack(tarred({f"{prefix}{name}": text.encode() for name, text in FILES.items()}))
    image = read(save(tmp_path / "x.tar", layer))
    assert [(part.ecosystem, part.name, part.version) for part in image.parts] == [
        (DEBIAN, "libc6", "2.41-12"),
        (PYPI, "h2", "4.4.1"),
        (PYTHON_ITSELF, "python", "3.13.14"),
    ]
    assert (image.reference, image.architecture, image.compiled) == ("localhost/x:1", "arm64", 1)
    assert image.config == {"User": "65532:65532"}
    assert image.digest == f"sha256:{hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()}"
    assert 0 < image.size < 2000, "compressed, whatever the archive does"


def test_the_bill_of_materials_beside_it_is_one_that_spdx_accepts(tmp_path: Path) -> None:
    layer = tarred({name: text.encode() for name, text in FILES.items()})
    image = read(save(tmp_path / "x.tar", layer))
    image.write_sbom(ORIGIN)
    written = json.loads((tmp_path / "x.spdx.json").read_text())
    assert problems(written) == []
    assert [one["name"] for one in written["packages"]] == ["gpu-sharing-operator", "libc6", "h2", "python"]


def test_a_python_of_debian_is_no_part_besides_its_packages(tmp_path: Path) -> None:
    files = FILES | {"opt/venv/pyvenv.cfg": "home = /usr/bin\nversion = 3.13.5\n"}
    image = read(save(tmp_path / "x.tar", tarred({name: text.encode() for name, text in files.items()})))
    assert PYTHON_ITSELF not in {part.ecosystem for part in image.parts}


def test_another_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tarred({"index.json": b"{}"}))
    with pytest.raises(ArchiveError, match="not an archive of one image, as `docker save` writes it"):
        read(tmp_path / "x.tar")
