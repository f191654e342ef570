"""Packing folders as layers and layers as an image. Equal content gives equal bytes, no matter when and where it is
packed."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MODES = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700}
COMPRESSION = 9

JSON = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    name: str
    data: bytes
    diff_id: str
    """The sha256:... of the uncompressed tar."""
    size: int
    """The size of the uncompressed tar in bytes."""

    @property
    def digest(self) -> str:
        """The sha256:... of the compressed layer, which is the form that is transferred."""
        return sha256(self.data)


def sha256(data: bytes) -> str:
    """Return the digest of data as OCI writes it, `sha256:...`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def pack(name: str, tree: Path, epoch: int) -> Layer:
    raw = pack_tar(tree, walk(tree), epoch)
    return Layer(name, compress(raw), sha256(raw), len(raw))


def compress(raw: bytes) -> bytes:
    return gzip.compress(raw, COMPRESSION, mtime=0)


def walk(tree: Path) -> list[Path]:
    """Return all paths below a folder, parents first, in a fixed order."""
    return sorted(tree.rglob("*"), key=lambda path: path.relative_to(tree).parts)


def pack_tar(tree: Path, paths: Iterable[Path], epoch: int) -> bytes:
    """Return a reproducible tar of a folder: modes of MODES or 0755 for folders, and no effect of the umask."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            name = str(path.relative_to(tree))
            entry = tarfile.TarInfo(name)
            entry.mtime = epoch
            if path.is_symlink():
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
                tar.addfile(entry)
            elif path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, MODES.get(name, 0o755)
                tar.addfile(entry)
            else:
                data = path.read_bytes()
                entry.size, entry.mode = len(data), 0o755 if path.stat().st_mode & 0o100 else 0o644
                tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def configuration(
    architecture: str, layers: Sequence[Layer], run: JSON, labels: Mapping[str, str], created: str
) -> JSON:
    return {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {**run, "Labels": dict(sorted(labels.items()))},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": f"make images: {layer.name}"} for layer in layers],
    }


def archive(
    reference: str, config: JSON, layers: Sequence[Layer], annotations: Mapping[str, str], epoch: int
) -> tuple[bytes, str]:
    """Return a tar that is an OCI layout, and a docker-archive for `docker load`, and its manifest's digest."""
    settings = dump(config)
    manifest = dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, settings),
            "layers": [descriptor(LAYER, layer.data) for layer in layers],
            "annotations": dict(sorted(annotations.items())),
        }
    )
    named = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference.rsplit(":")[-1]}
    platform = {"architecture": config["architecture"], "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [descriptor(MANIFEST, manifest) | {"platform": platform, "annotations": named}],
    }
    blobs = {blob_name(data): data for data in (settings, manifest, *(layer.data for layer in layers))}
    docker = {
        "Config": blob_name(settings),
        "RepoTags": [reference],
        "Layers": [blob_name(layer.data) for layer in layers],
    }
    files = {
        "oci-layout": dump({"imageLayoutVersion": "1.0.0"}),
        "index.json": dump(index),
        "manifest.json": dump([docker]),
        **dict(sorted(blobs.items())),
    }
    return b"".join(_plain_tar(files, epoch)), sha256(manifest)


def descriptor(media_type: str, data: bytes) -> JSON:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def blob_name(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def dump(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _plain_tar(files: Mapping[str, bytes], epoch: int) -> Iterator[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(data), epoch, 0o644
            tar.addfile(entry, io.BytesIO(data))
    yield out.getvalue()
