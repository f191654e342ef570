"""The image of a release: one index of the archives that `make images` wrote for all architectures. Nothing is built or
compressed anew, so a released layer has the digest of the layer that was tested."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.images.contents import PREFIX
from hack.images.layers import INDEX, JSON, blob_name, descriptor, dump


class LayoutError(ValueError):
    """A file is not an archive that `make images` wrote; the message names the file."""


@dataclass(frozen=True)
class ArchivedImage:
    manifest: JSON
    labels: Mapping[str, str]
    blobs: Mapping[str, bytes]
    """The content of each blob, by its path inside an OCI layout."""
    sha256: str = ""
    """The sha256 of the archive in hexadecimal, or empty if the image comes from no archive."""

    @property
    def architecture(self) -> str:
        return str(self.manifest["platform"]["architecture"])

    def label(self, name: str) -> str:
        """Return the value of the label org.opencontainers.image.`name`, or an empty string if it is missing."""
        return self.labels.get(f"{PREFIX}.{name}", "")


def read_archive(path: Path) -> ArchivedImage:
    try:
        with tarfile.open(path) as tar:
            files = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
        (manifest,) = json.loads(files["index.json"])["manifests"]
        blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
        config = json.loads(blobs[_path(json.loads(blobs[_path(manifest)])["config"])])
        plain = {key: manifest[key] for key in ("mediaType", "digest", "size", "platform")}
        _ = plain["platform"]["architecture"]  # ArchivedImage relies on it
        labels = config["config"].get("Labels", {})
    except KeyError as error:
        raise LayoutError(f"{path} is no image that `make images` wrote: it lacks {error}: run make images") from error
    except (OSError, tarfile.TarError, ValueError, TypeError, AttributeError) as error:
        raise LayoutError(f"{path} is no image that `make images` wrote: {error}: run make images") from error
    return ArchivedImage(plain, labels, blobs, hashlib.sha256(path.read_bytes()).hexdigest())


def write_layout(images: Sequence[ArchivedImage], target: Path) -> str:
    """Write the images as an OCI layout with one index, and return the digest of the index."""
    shutil.rmtree(target, ignore_errors=True)
    first = images[0].labels
    shared = {key: first[key] for key in sorted(first) if all(each.labels.get(key) == first[key] for each in images)}
    index = dump(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [each.manifest for each in sorted(images, key=lambda each: each.architecture)],
            "annotations": shared,
        }
    )
    described = descriptor(INDEX, index)
    top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]}
    files = {"oci-layout": dump({"imageLayoutVersion": "1.0.0"}), "index.json": dump(top), blob_name(index): index}
    for each in images:
        files |= each.blobs
    for name, data in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(described["digest"])


def _path(described: JSON) -> str:
    return f"blobs/{described['digest'].replace(':', '/')}"
