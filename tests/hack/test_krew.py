"""What krew installs (hack/krew.py): validated by krew itself, and started through kubectl."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from hack.cluster import toolchain
from hack.generate import ROOT
from hack.krew import (
    COMPLETER,
    MACHINES,
    PATH,
    PLATFORMS,
    PROGRAM,
    PROJECT,
    PYTHONS,
    archive,
    krew,
    locked,
    manifest,
    needed,
    pack,
)
from packaging.utils import canonicalize_name
from tests.wording import lacks

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def copy(name: str, target: Path) -> None:
    """The files of a distribution that is installed here; ours is the checkout itself."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # of another platform
        return
    for file in found.files or ():
        if ".." not in file.parts and file.suffix not in (".pth", ".pyc") and not file.name.startswith("_editable"):
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(found.locate_file(file)), place)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An archive for this machine and this Python, from what is installed here, and its hash: no network is needed."""
    folder = tmp_path_factory.mktemp("krew")
    for name in sorted({*needed(), PROJECT}):
        copy(name, folder / "lib")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "operator", folder / "lib", ignore=ignored, dirs_exist_ok=True)
    path = folder / archive("linux/amd64")
    return path, pack({HERE: folder / "lib"}, path)


# --- pure ------------------------------------------------------------------------------------------------------


def test_the_manifest_has_an_archive_for_each_platform_with_its_hash() -> None:
    hashes = {platform: f"{number:064x}" for number, platform in enumerate(PLATFORMS)}
    spec = yaml.safe_load(manifest("https://example.com/team/name", hashes))["spec"]
    assert [one["sha256"] for one in spec["platforms"]] == list(hashes.values())
    for platform, one in zip(PLATFORMS, spec["platforms"], strict=True):
        assert "/".join(one["selector"]["matchLabels"].values()) == platform
        assert one["uri"] == f"https://example.com/team/name/releases/download/{spec['version']}/{archive(platform)}"
    assert set(MACHINES) == set(PLATFORMS)


def test_what_is_committed_names_no_host_and_no_archive_yet() -> None:
    text = krew()[PATH]
    assert "https://HOST/TEAM/" in text
    assert set(re.findall(r'sha256: "(\w+)"', text)) == {"0" * 64}


def test_all_that_the_plugin_imports_is_locked_with_hashes() -> None:
    names = needed()
    assert {"aiohttp", "kubernetes", "pydantic-core", "rich", "pyyaml"} < names
    assert not {"pytest", "ruff", PROJECT} & names
    pins = locked(names)
    assert {canonicalize_name(one) for one in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)} == names
    assert all("--hash=sha256:" in one for one in re.split(r"^(?=\S)", pins, flags=re.MULTILINE) if one)


def test_the_pythons_are_those_that_the_package_supports() -> None:
    assert PYTHONS[0] == re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[0]


def test_what_is_the_same_for_every_python_is_there_once_and_a_package_is_never_divided(tmp_path: Path) -> None:
    libraries = {}
    for python in ("3.11", "3.12"):
        folder = libraries[python] = tmp_path / python
        (folder / "pure").mkdir(parents=True)
        (folder / "pure" / "a.py").write_text("same")
        (folder / "fast").mkdir()
        (folder / "fast" / "a.py").write_text("same")
        (folder / "fast" / "b.so").write_text(python)
    first = pack(libraries, tmp_path / "one.tar.gz")
    with tarfile.open(tmp_path / "one.tar.gz") as tar:
        names = {name for name in tar.getnames() if name.startswith("lib/")}
    assert names == {
        "lib/any/pure/a.py",
        *(f"lib/{python}/fast/{name}" for python in libraries for name in ("a.py", "b.so")),
    }
    assert pack(libraries, tmp_path / "two.tar.gz") == first, "equal modules give equal bytes"


def unpack(packed: tuple[Path, str], target: Path) -> Path:
    with tarfile.open(packed[0]) as tar:
        tar.extractall(target, filter="data")
    return target


def test_the_archive_holds_a_licence_and_no_path_of_the_machine_that_made_it(packed: tuple[Path, str]) -> None:
    with tarfile.open(packed[0]) as tar:
        assert {"LICENSE", PROGRAM, COMPLETER, "run.py"} <= set(tar.getnames())
        assert {(one.uid, one.mtime) for one in tar} == {(0, 0)}
        ours = [one for one in tar if "/gpu_sharing_operator-" in one.name]
        texts = [file.read() for one in ours if (file := tar.extractfile(one)) is not None]
    assert ours
    assert not any(str(ROOT).encode() in text for text in texts)


def test_without_a_python_that_is_new_enough_one_sentence_says_so(packed: tuple[Path, str], tmp_path: Path) -> None:
    here = unpack(packed, tmp_path / "here")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("dirname", "readlink"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").write_text("#!/bin/sh\necho 3.9\n")
    (tools / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(here / PROGRAM), "--help"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert not lacks(done.stderr, f"Python {HERE}", "PATH", "GPUSHARING_PYTHON")


# --- by krew and kubectl ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def krewtools() -> Path:
    return toolchain.ensure("krewtools")


def validated(krewtools: Path, path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(krewtools / "validate-krew-manifest"), "-skip-install", "-manifest", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.cluster
def test_krews_validator_accepts_the_manifest_and_refuses_one_without_a_program(
    krewtools: Path, tmp_path: Path
) -> None:
    done = validated(krewtools, ROOT / PATH)
    assert done.returncode == 0, done.stderr
    broken = tmp_path / "gpusharing.yaml"
    broken.write_text(re.sub(r"    bin: .*\n", "", (ROOT / PATH).read_text()))
    assert validated(krewtools, broken).returncode != 0


@pytest.mark.cluster
def test_krew_installs_the_archive_and_kubectl_runs_what_is_in_it(
    krewtools: Path, packed: tuple[Path, str], tmp_path: Path
) -> None:
    """Python starts with an environment that has nothing of ours: all comes from the archive."""
    path, value = packed
    told = tmp_path / "gpusharing.yaml"
    told.write_text(manifest("https://example.com/x", {"linux/amd64": value}))
    kubectl = toolchain.control_plane_programs().kubectl
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").symlink_to(sys._base_executable)  # type: ignore[attr-defined]  # not the one of .venv
    home = {"HOME": str(tmp_path), "KREW_ROOT": str(tmp_path / "krew"), "KREW_OS": "linux", "KREW_ARCH": "amd64"}
    env = {**home, "PATH": os.pathsep.join([str(tmp_path / "krew" / "bin"), str(tools), "/usr/bin", "/bin"])}
    command = [str(krewtools / "krew"), "install", f"--manifest={told}", f"--archive={path}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "It needs Python 3.11 or newer" in done.stderr + done.stdout

    def said(*arguments: str) -> str:
        started = subprocess.run(
            [str(kubectl), "gpusharing", *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stderr
        return started.stdout

    assert said("--help").startswith("usage: kubectl gpusharing")
    assert "8 layouts with 1x3g.40gb" in said("layouts", "h100-80gb", "--fits", "3g.40gb")
    without = subprocess.run(
        [str(kubectl), "gpusharing", "status"], env=env, capture_output=True, text=True, check=False
    )
    assert (without.returncode, without.stderr.count("\n")) == (1, 1), without.stderr
    assert "there is no kubeconfig" in without.stderr
