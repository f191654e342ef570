"""Packing: equal content gives equal bytes, and what is packed can be read by whoever imports it."""

import io
import json
import os
import tarfile
from pathlib import Path

from hack.images.layers import Layer, archive, blob_name, configuration, dump, pack, sha256

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
