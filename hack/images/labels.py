"""What the image says of itself: OCI labels and annotations, from the checkout alone."""

import os
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from hack.generate import ROOT

PREFIX = "org.opencontainers.image"
"""https://specs.opencontainers.org/image-spec/annotations/"""


@dataclass(frozen=True)
class Origin:
    """The commit that an image is built of."""

    name: str
    version: str
    """The project's version, from pyproject.toml."""
    description: str
    licenses: str
    """An SPDX expression."""
    revision: str
    """The commit; ends with `-dirty` when the checkout has changes."""
    epoch: int
    """The commit's time, seconds since 1970: the image's time, so that two builds are alike."""
    source: str = ""
    """Where the sources are; empty when not given ($IMAGE_SOURCE)."""

    @property
    def created(self) -> str:
        """RFC 3339."""
        return f"{datetime.fromtimestamp(self.epoch, UTC):%Y-%m-%dT%H:%M:%SZ}"


def read_origin(environ: Mapping[str, str] = os.environ) -> Origin:
    """The origin of this checkout; $SOURCE_DATE_EPOCH and $IMAGE_REVISION win where there is no git."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    revision = environ.get("IMAGE_REVISION") or _git("rev-parse", "HEAD")
    if (
        revision
        and not environ.get("IMAGE_REVISION")
        and _git("status", "--porcelain", "--untracked-files=no")
    ):
        revision += "-dirty"
    epoch = environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or "0"
    if not epoch.isdecimal():
        raise ValueError(f"SOURCE_DATE_EPOCH={epoch}: seconds since 1970 are needed, as 1763676000")
    return Origin(
        project["name"],
        project["version"],
        project["description"],
        project["license"],
        revision or "unknown",
        int(epoch),
        environ.get("IMAGE_SOURCE", ""),
    )


def labels(origin: Origin, base: str) -> dict[str, str]:
    """Labels of the configuration, which are the manifest's annotations too; `base`: name of what it stands on."""
    found = {
        "title": origin.name,
        "description": origin.description,
        "version": origin.version,
        "revision": origin.revision,
        "created": origin.created,
        "licenses": origin.licenses,
        "source": origin.source,
        "base.name": base,
    }
    return {f"{PREFIX}.{name}": value for name, value in found.items() if value}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
