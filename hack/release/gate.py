"""What must hold before a release is published: one commit, a passed CI of it, and no known vulnerability.

The comparison with advisories reads the bills of materials that are published beside the image. The file of advisories
must be recent, and must cover both Debian and PyPI, because an old or partial file finds nothing.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gpusharing.planning.vocabulary.lengths import counted
from hack.images import advisories
from hack.images.advisories import Advisory, AdvisoryError
from hack.images.contents import DEBIAN, DIRTY, PYPI, ImagePart, read_parts
from hack.release import notes
from hack.release.index import ArchivedImage
from hack.release.package import ROOT, UNKNOWN_SOURCE

ACCEPTED = ROOT / "deploy" / "accepted-advisories.txt"
"""The file of advisories that may match: an id and a reason on each line, or a comment that begins with #."""
OLDEST = timedelta(days=7)
"""How long before a release the newest advisory may have been modified."""
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
OSV = "https://osv-vulnerabilities.storage.googleapis.com"


@dataclass(frozen=True)
class Candidate:
    version: str
    commit: str
    """The commit of the checkout, with `-dirty` at its end if a tracked file has been changed."""
    passed: Sequence[str]
    """What the last run of CI left (hack/ci.py, PASSED): commit, and sha256 of each image."""
    changelog: str
    registry: str
    source: str
    images: Sequence[ArchivedImage]


def find_obstacles(candidate: Candidate) -> Iterator[str]:
    """Yield a sentence for each reason not to publish, except for those of advisories (`scan`)."""
    if not candidate.registry:
        yield "the chart names no registry: prepare it with REGISTRY=, for example REGISTRY=registry.example/team"
    if candidate.source == UNKNOWN_SOURCE:
        yield "the package names no repository: prepare it with SOURCE=, for example SOURCE=https://HOST/TEAM/NAME"
    if problem := describe_wrong_commit(candidate.commit):
        yield problem
    if candidate.commit not in candidate.passed[:1]:
        last = f"the last run that passed was at {candidate.passed[0]}" if candidate.passed else "no run passed"
        yield f"CI has not passed at {candidate.commit} ({last}): run .ci/run"
    for find in (notes.find_flaw, notes.find_unreleased):
        if problem := find(candidate.changelog, candidate.version):
            yield problem
    for image in candidate.images:
        built = (image.label("version"), image.label("revision"))
        if built != (candidate.version, candidate.commit):
            name, at = f"the image for {image.architecture}", " at commit ".join(built)
            yield f"{name} is {at}, and not {candidate.version} at commit {candidate.commit}: make images"
        elif candidate.passed and image.sha256 not in candidate.passed[1:]:
            remedy = f"run IMAGE_SOURCE={candidate.source} .ci/run, and prepare again"
            yield f"the image for {image.architecture} is not the one that CI ran: {remedy}"


def describe_wrong_commit(commit: str) -> str:
    """Return a sentence unless the commit is 40 hexadecimal digits, otherwise an empty string."""
    if re.fullmatch(r"[0-9a-f]{40}", commit):
        return ""
    if commit.endswith(DIRTY):
        return f"the checkout at {commit.removesuffix(DIRTY)} has uncommitted changes: commit or undo them"
    remedy = "commit it with git, and unset IMAGE_REVISION"
    return f"the checkout's commit is {commit}, and not 40 hexadecimal digits: {remedy}"


# --- advisories -------------------------------------------------------------------------------------------


def scan(documents: Sequence[Path], files: Sequence[Path], accepted: Mapping[str, str], now: datetime) -> list[str]:
    """Return what advisories say of the images, except accepted ones, or why they cannot be compared."""
    if not files:
        return [f"no file of advisories: name those of {PYPI} and {DEBIAN}, for example from {OSV}/{PYPI}/all.zip"]
    try:
        known = [entry for path in files for entry in advisories.read(path)]
    except AdvisoryError as error:
        return [str(error)]
    if problems := list(_find_gaps(known, now)):
        return problems
    parts = {part for path in documents for part in read_parts_of(path)}
    hits = advisories.find(sorted(parts), known)
    sentences = []
    for hit in (hit for hit in hits if hit.advisory not in accepted):
        what = f"{hit.name} {hit.version} is affected by {hit.advisory} ({hit.summary})"
        update = f"update it to {hit.fixed}" if hit.fixed else "no fixed version is named"
        sentences.append(f"{what}: {update}, or accept it with a reason in {ACCEPTED.relative_to(ROOT)}")
    return sentences


def read_parts_of(path: Path) -> tuple[ImagePart, ...]:
    return read_parts(json.loads(path.read_text()))


def _find_gaps(known: Sequence[Advisory], now: datetime) -> Iterator[str]:
    """Yield a sentence for each ecosystem whose advisories are missing or older than OLDEST."""
    for ecosystem in (DEBIAN, PYPI):
        about = [
            str(entry.get("modified"))
            for entry in known
            for row in entry.get("affected", [])
            if str(row.get("package", {}).get("ecosystem", "")).partition(":")[0] == ecosystem
        ]
        times = filter(RFC3339.match, about)
        newest = max(times, default="")
        if not newest:
            yield f"the advisories have none about {ecosystem}: add {OSV}/{ecosystem}/all.zip"
        elif datetime.fromisoformat(newest) < now - OLDEST:
            days = counted(OLDEST.days, "day")
            yield f"the newest advisory about {ecosystem} is of {newest[:10]}, more than {days} ago: fetch them anew"


def read_accepted(text: str) -> dict[str, str]:
    """Return the reason for each accepted advisory by its id."""
    accepted = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        advisory, _, reason = line.partition(" ")
        if not reason.strip():
            raise AdvisoryError(
                f"{ACCEPTED.name}: {advisory} has no reason; a valid line: CVE-2026-1 the image has no shell"
            )
        accepted[advisory] = reason.strip()
    return accepted
