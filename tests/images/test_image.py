"""What the image says of itself, how big it may be, how it starts, what it links, and how it is packed: equal content gives equal bytes, which whoever imports them can read."""

import io
import json
import os
import py_compile
import struct
import sys
import tarfile
from pathlib import Path

import pytest
from hack.images import local
from hack.images.__main__ import FOUND, TOO_BIG, overall
from hack.images.contents import Origin, labels, read_origin
from hack.images.debian import PYTHON
from hack.images.layers import Layer, archive, blob_name, configuration, dump, pack, sha256
from hack.images.local import LIMIT, missing, needed, too_big
from hack.images.wheels import UNCHECKED, WheelError, compile_all, entry_points, scripts, target

ORIGIN = Origin("gpu-sharing-operator", "0.1.0", "Shares.", "Apache-2.0", "a" * 40, 1_763_676_000)


def test_labels_name_version_revision_time_and_licence() -> None:
    assert labels(ORIGIN, "debian-13") == {
        "org.opencontainers.image.title": "gpu-sharing-operator",
        "org.opencontainers.image.description": "Shares.",
        "org.opencontainers.image.version": "0.1.0",
        "org.opencontainers.image.revision": "a" * 40,
        "org.opencontainers.image.created": "2025-11-20T22:00:00Z",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.base.name": "debian-13",
    }


def test_time_revision_and_source_can_be_given_where_there_is_no_git() -> None:
    given = {"SOURCE_DATE_EPOCH": "1763676000", "IMAGE_REVISION": "v1", "IMAGE_SOURCE": "https://example.org/x"}
    origin = read_origin(given)
    assert (origin.created, origin.revision) == ("2025-11-20T22:00:00Z", "v1")
    assert labels(origin, "x")["org.opencontainers.image.source"] == "https://example.org/x"


def test_a_time_that_is_none_is_named_with_a_valid_one() -> None:
    with pytest.raises(
        ValueError, match="SOURCE_DATE_EPOCH=today is not a number of seconds since 1970, such as 1763676000"
    ):
        read_origin({"SOURCE_DATE_EPOCH": "today"})


def test_a_container_starts_one_of_our_programs_as_a_user_without_rights() -> None:
    assert local.RUN["Cmd"][0] in scripts()
    assert local.RUN["User"] == "65532:65532"


# --- size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "status"), [((0, 0), 0), ((0, FOUND), FOUND), ((TOO_BIG, FOUND), TOO_BIG), ((FOUND, TOO_BIG), 1)]
)
def test_an_advisory_about_one_image_does_not_hide_that_another_is_too_big(
    statuses: tuple[int, ...], status: int
) -> None:
    assert overall(statuses) == status


def test_an_image_that_is_too_big_is_refused() -> None:
    assert too_big(LIMIT) == ""
    assert (
        too_big(LIMIT + 100_000)
        == "70.1 MB compressed are more than the limit of 70 MB: the list shows which layer grew"
    )


# --- what is linked ---------------------------------------------------------------------------------------


def elf(*libraries: str) -> bytes:
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in libraries)
    at, entries = 1, []
    for name in libraries:
        entries.append((1, at))
        at += len(name) + 1
    dynamic_at = 64 + 2 * 56
    dynamic_size = 16 * (len(entries) + 2)
    strings_at = dynamic_at + dynamic_size
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in [*entries, (5, 0x1000 + strings_at), (0, 0)])
    end = strings_at + len(strings)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x1000, 0x1000, end, end, 0x1000)
    table = struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, 0x1000 + dynamic_at, 0, dynamic_size, dynamic_size, 8)
    return header + load + table + dynamic + strings


def test_the_libraries_that_a_program_names_are_read() -> None:
    assert needed(elf("libc.so.6", "libm.so.6")) == ["libc.so.6", "libm.so.6"]
    assert needed(elf()) == []
    assert needed(b"#!/usr/bin/python3\n") == []


def test_a_library_that_nobody_brought_is_named_with_who_needs_it(tmp_path: Path) -> None:
    (tmp_path / "libc.so.6").write_bytes(elf())
    (tmp_path / "x.so").write_bytes(elf("libc.so.6", "libstdc++.so.6"))
    assert missing([tmp_path]) == ["x.so needs libstdc++.so.6"]


# --- layers -----------------------------------------------------------------------------------------------

EPOCH = 1_763_676_000


def tree(folder: Path, *, late: bool = False) -> Path:
    """A small root file system; `late`: the same, made in another order and at another time."""
    names = ["usr/bin/tool", "etc/passwd", "tmp/.keep"]
    for name in reversed(names) if late else names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        if late:
            os.utime(path, (1, 1))
    (folder / "usr/bin/tool").chmod(0o4755)
    (folder / "bin").symlink_to("usr/bin")
    return folder


def read(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry))}


def image(layer: Layer, reference: str = "localhost/x:1") -> tuple[bytes, str]:
    config = configuration("arm64", [layer], {"User": "65532:65532"}, {"b": "2", "a": "1"}, "2025-11-20T22:00:00Z")
    return archive(reference, config, [layer], {"a": "1"}, EPOCH)


def test_a_folder_gives_the_same_layer_whoever_made_it_and_when(tmp_path: Path) -> None:
    first = pack("x", tree(tmp_path / "a"), EPOCH)
    second = pack("x", tree(tmp_path / "b", late=True), EPOCH)
    assert (first.digest, first.diff_id) == (second.digest, second.diff_id)
    assert image(first) == image(second)


def test_everything_belongs_to_root_and_nothing_may_change_its_user(tmp_path: Path) -> None:
    layer = pack("x", tree(tmp_path), EPOCH)
    with tarfile.open(fileobj=io.BytesIO(layer.data)) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, EPOCH)}
    assert entries["usr/bin/tool"].mode == 0o755, "the bit for another user is gone"
    assert entries["tmp"].mode == 0o1777
    assert entries["bin"].linkname == "usr/bin"


def test_the_archive_is_read_as_an_oci_layout_and_by_docker_load(tmp_path: Path) -> None:
    layer = pack("x", tree(tmp_path), EPOCH)
    data, digest = image(layer)
    files = read(data)
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert blob_name(content) == name
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == digest
    assert entry["platform"] == {"architecture": "arm64", "os": "linux"}
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    manifest = json.loads(files[f"blobs/{digest.replace(':', '/')}"])
    config = json.loads(files[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert config["rootfs"]["diff_ids"] == [layer.diff_id]
    (docker,) = json.loads(files["manifest.json"])
    assert docker["RepoTags"] == ["localhost/x:1"]
    assert sha256(files[docker["Config"]]) == manifest["config"]["digest"]
    assert [sha256(files[name]) for name in docker["Layers"]] == [layer.digest]


def test_json_is_written_in_one_way_only() -> None:
    assert dump({"b": 1, "a": [2]}) == b'{"a":[2],"b":1}'


# --- wheels -----------------------------------------------------------------------------------------------


def modules(folder: Path, moment: int) -> Path:
    """Two modules written at a time; one was imported already, which left bytecode with that time behind."""
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.py").write_text(f"NAME = '{name}'\n")
        os.utime(folder / f"{name}.py", (moment, moment))
    py_compile.compile(str(folder / "a.py"), doraise=True)
    return folder


def compiled(folder: Path) -> dict[str, bytes]:
    assert compile_all([sys.executable], dict(os.environ), folder, "usr/lib/x") == 2
    return {path.name: path.read_bytes() for path in folder.rglob("*.pyc")}


def test_bytecode_holds_no_time_and_no_path_of_this_machine_whatever_was_there_before(tmp_path: Path) -> None:
    first, second = compiled(modules(tmp_path / "x", 1)), compiled(modules(tmp_path / "y", 2))
    assert first == second
    assert all(data[4:8] == UNCHECKED for data in first.values())
    assert all(b"/usr/lib/x" in data and bytes(tmp_path) not in data for data in first.values())


def test_a_module_that_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def\n")
    with pytest.raises(WheelError, match=r"broken\.py"):
        compile_all([sys.executable], dict(os.environ), tmp_path, "usr/lib/x")


def test_our_programs_are_started_by_the_trees_python(tmp_path: Path) -> None:
    entry_points(tmp_path)
    folder = tmp_path / "usr/local/bin"
    paths = {path.name: path for path in folder.iterdir()}
    assert paths.keys() == set(scripts()) == {"gpusharing-operator", "gpusharing-agent", "gpusharing-checks"}
    for path in paths.values():
        assert path.read_text().startswith(f"#!/usr/bin/python{PYTHON}\n")
        assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("architecture", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_wheels_are_asked_for_another_machine(architecture: str, machine: str) -> None:
    options = target(architecture)
    assert f"--platform=manylinux_2_28_{machine}" in options
    assert "--only-binary=:all:" in options
