"""Everything that a release publishes, under build/release: NOTES, and release.json for the steps that follow.

image/ is an OCI layout of all architectures, chart/ names that image by digest, olm/ has OLM's bundle, and files/ is
what is attached: chart, bundle, wheel, sdist, krew's archives, images, bills of materials and SHA256SUMS.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hack import krew, olm
from hack.images import local
from hack.images.contents import DIRTY, Origin, read_origin
from hack.images.debian import ARCHITECTURES
from hack.launch import helm
from hack.release import notes, package
from hack.release.chart import CHART, write_chart
from hack.release.index import ArchivedImage, LayoutError, read_archive, write_layout
from hack.release.package import ROOT, UNKNOWN_SOURCE, version

OUT = ROOT / "build" / "release"
SUMS = "SHA256SUMS"
WRITTEN = frozenset({"NOTES", "image", "chart", "olm", "files", "source", "release.json"})
"""What `prepare` writes. NOTES is written first and removed last, so it marks a release, also an unfinished one."""
UNKNOWN_REGISTRY = "registry.invalid"
"""In place of a registry that was not named. The chart's schema accepts it, and no host has such a name (RFC 2606)."""


class PrepareError(Exception):
    """The release cannot be prepared or is not prepared; the message says why and what to do."""


@dataclass(frozen=True)
class Prepared:
    version: str
    registry: str
    """The registry and team in front of the names of image and chart, or empty if none was named."""
    source: str
    digest: str
    """The sha256:... of the image's index."""

    @property
    def image(self) -> str:
        return f"{self.registry or UNKNOWN_REGISTRY}/{CHART.name}"


def prepare(
    wanted: str,
    registry: str = "",
    source: str = UNKNOWN_SOURCE,
    platforms: Sequence[str] = krew.PLATFORMS,
    out: Path = OUT,
) -> Prepared:
    """Write what a release publishes to `out`. An earlier release there is replaced, anything else never."""
    if wanted != version():
        raise PrepareError(
            f'pyproject.toml says version = "{version()}" and not {wanted}: change it there, and run make gen'
        )
    if flaw := notes.find_flaw(changelog := notes.CHANGELOG.read_text(), wanted):
        raise PrepareError(flaw)
    make_empty(out)
    text = notes.read_notes(changelog, wanted)
    if source != UNKNOWN_SOURCE:
        text = package.with_absolute_links(text, source, f"v{wanted}")
    (out / "NOTES").write_text(text + "\n")
    (files := out / "files").mkdir()
    origin = read_origin({**os.environ, "IMAGE_SOURCE": "" if source == UNKNOWN_SOURCE else source})
    digest = write_layout([_find_image(each, origin, files) for each in ARCHITECTURES], out / "image")
    prepared = Prepared(wanted, registry, source, digest)
    chart = write_chart(out / "chart" / CHART.name, prepared.image, digest, notes.changes(text), origin.source)
    _helm("lint", "--strict", str(chart))
    pack_chart(chart, files, origin.epoch)
    shutil.copy(olm.build(prepared.image, digest, source, out / "olm"), files)
    folder = out / "olm" / "bundle"
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    packed = krew.tarball({name: (path.read_bytes(), 0o644) for name, path in paths.items()})
    (files / f"{CHART.name}-{wanted}-olm-bundle.tar.gz").write_bytes(packed)
    package.build(package.write_source(out / "source", origin.source), files, origin.epoch)
    krew.build(source, platforms, files)
    (files / SUMS).write_text(sums(files))
    (out / "release.json").write_text(json.dumps(asdict(prepared), indent=1) + "\n")
    return prepared


def make_empty(out: Path) -> None:
    """Make the folder `out`, or empty it if it holds an earlier release, also an unfinished one."""
    if out.exists() and not out.is_dir():
        raise PrepareError(f"{out} is not a folder: name another one with --out, for example --out {OUT}")
    out.mkdir(parents=True, exist_ok=True)
    entries = sorted(out.iterdir(), key=lambda path: path.name == "NOTES")  # removed last: see WRITTEN
    names = {path.name for path in entries}
    if names and ("NOTES" not in names or names - WRITTEN):
        foreign = min(names - WRITTEN, default="no NOTES")
        raise PrepareError(
            f"{out} would be emptied, and is not a prepared release (it has {foreign}):"
            f" name an empty or a new folder with --out, for example --out {OUT}"
        )
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _find_image(architecture: str, origin: Origin, files: Path) -> ArchivedImage:
    path = local.OUT / f"{origin.name}-{origin.version}-{architecture}.tar"
    if (image := read_usable(path, origin)) is None:
        print(f"building the image for {architecture}: {path} is missing or of another checkout", flush=True)
        image = read_archive(local.build(architecture, origin=origin).archive)
    shutil.copy(path, files)
    shutil.copy(path.with_suffix(".spdx.json"), files)
    return image


def read_usable(path: Path, origin: Origin) -> ArchivedImage | None:
    """Return the image in an archive if it was built from `origin` and has its bill of materials."""
    try:
        image = read_archive(path)
    except LayoutError:
        return None
    same = (image.label("revision"), image.label("source")) == (origin.revision, origin.source)
    usable = same and path.with_suffix(".spdx.json").is_file() and not origin.revision.endswith(DIRTY)
    return image if usable else None


def pack_chart(chart: Path, files: Path, epoch: int) -> None:
    """Pack the chart, with times of `epoch`, so that equal charts give equal bytes."""
    for path in (chart, *chart.rglob("*")):
        os.utime(path, (epoch, epoch))
    _helm("package", str(chart), "--destination", str(files))


def _helm(*arguments: str) -> None:
    done = helm(os.environ, *arguments)
    if done.returncode:
        raise PrepareError(f"helm {arguments[0]} failed: {done.stdout}{done.stderr}".strip())


def sums(folder: Path) -> str:
    """Return the sha256 of each file in a folder, in the format of sha256sum, sorted by file name."""
    paths = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)


def read_prepared(out: Path) -> Prepared:
    try:
        prepared = Prepared(**json.loads((out / "release.json").read_text()))
        listed = (out / "files" / SUMS).read_text()
    except (OSError, ValueError, TypeError) as error:
        raise PrepareError(f"nothing is prepared in {out} ({error}): make release VERSION={version()}") from error
    if sums(out / "files") != listed:
        raise PrepareError(
            f"the files in {out / 'files'} are not those in {SUMS}: make release VERSION={prepared.version}"
        )
    return prepared
