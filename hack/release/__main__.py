"""The steps of a release: `python -m hack.release --help`. See hack/release/__init__.py."""

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from gpusharing.planning.vocabulary.lengths import counted
from hack import krew, olm
from hack.cache import UnavailableError
from hack.ci import PASSED
from hack.images.advisories import AdvisoryError
from hack.images.contents import OriginError, read_origin
from hack.images.debian import ARCHITECTURES, LockError
from hack.images.local import TreeError
from hack.manifests import RenderError
from hack.release import gate, notes
from hack.release.index import LayoutError, read_archive
from hack.release.package import ROOT, UNKNOWN_SOURCE, PackageError
from hack.release.prepare import OUT, Prepared, PrepareError, prepare, read_prepared
from hack.release.publish import Publisher, PublishError, log_in

EXPECTED = (
    AdvisoryError,
    LayoutError,
    LockError,
    OriginError,
    PackageError,
    PrepareError,
    PublishError,
    TreeError,
    UnavailableError,
    krew.KrewError,
    olm.BundleError,
    RenderError,
)
"""The errors whose message is all that a person needs."""


def main(arguments: list[str] | None = None) -> int:
    """Prepare, check or publish a release; `publish` checks first, and stops at an obstacle."""
    options = parser().parse_args(arguments)
    try:
        if options.step == "prepare":
            return run_prepare(options)
        if options.step == "login":
            log_in(os.environ)
            return 0
        prepared = read_prepared(options.out)
        if obstacles := find_obstacles(prepared, options.out, options.advisories):
            print(*obstacles, sep="\n", file=sys.stderr)
            print(f"{counted(len(obstacles), 'reason')} not to publish {prepared.version}", file=sys.stderr)
            return 1
        print(f"nothing forbids publishing {prepared.version}", file=sys.stderr, flush=True)
        if options.step == "publish":
            published = Publisher(options.key, options.plain_http).publish(prepared, options.out)
            # In the format of $GITHUB_OUTPUT.
            print(f"image={published.image}", f"chart={published.chart}", sep="\n")
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m hack.release", description="Prepare, check and publish a release.")
    steps = top.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare", help="write everything that is published to build/release")
    first.add_argument("version", help="for example 0.1.0, or its tag v0.1.0")
    first.add_argument("--registry", default="", help="where image and chart go, for example registry.example/team")
    first.add_argument(
        "--source", default=UNKNOWN_SOURCE, help="address of the repository, for example https://HOST/TEAM/NAME"
    )
    first.add_argument(
        "--platform",
        action="append",
        choices=krew.PLATFORMS,
        help="build krew's archive only for this platform; may be repeated; default: all",
    )
    steps.add_parser("login", help="log in to $REGISTRY as $REGISTRY_USER with $REGISTRY_PASSWORD")
    check = steps.add_parser("check", help="say what forbids the release")
    publish = steps.add_parser("publish", help="check, and then push and sign image and chart")
    for step in (check, publish):
        step.add_argument(
            "--advisories",
            type=Path,
            action="append",
            default=[],
            help=f"a file of advisories in OSV's format or a zip of such files; repeat it: {gate.OSV}/PyPI/all.zip",
        )
    publish.add_argument("--key", default="", help="cosign's private key; default: sign without a key")
    publish.add_argument("--plain-http", action="store_true", help="the registry has no TLS")
    first.add_argument(
        "--out",
        type=Path,
        default=OUT,
        help="default: build/release; an earlier release in it is removed, and a folder with other files is refused",
    )
    for step in (check, publish):
        step.add_argument("--out", type=Path, default=OUT, help="default: build/release")
    return top


def run_prepare(options: argparse.Namespace) -> int:
    """Prepare the release, print the image's name and digest and the size and path of each file, and return 0."""
    wanted = options.version.removeprefix("v")
    left = notes.find_unreleased(notes.CHANGELOG.read_text(), wanted)
    for problem in filter(None, (gate.describe_wrong_commit(read_origin().revision), left)):
        print(f"this release can be tried, but not published: {problem}", file=sys.stderr, flush=True)
    platforms = options.platform or krew.PLATFORMS
    prepared = prepare(wanted, options.registry, options.source, platforms, options.out)
    print(f"{prepared.image}@{prepared.digest}")
    for path in sorted((options.out / "files").iterdir()):
        print(f"  {path.stat().st_size / 1e6:6.1f} MB  {path}")
    return 0


def find_obstacles(prepared: Prepared, out: Path, files: list[Path]) -> list[str]:
    """Return a sentence for each reason not to publish the release prepared in `out`."""
    origin = read_origin()
    stem = f"{origin.name}-{prepared.version}"
    archives = [out / "files" / f"{stem}-{architecture}.tar" for architecture in ARCHITECTURES]
    passed = ROOT / PASSED
    candidate = gate.Candidate(
        prepared.version,
        origin.revision,
        passed.read_text().split() if passed.is_file() else [],
        notes.CHANGELOG.read_text(),
        prepared.registry,
        prepared.source,
        [read_archive(path) for path in archives],
    )
    bills = [path.with_suffix(".spdx.json") for path in archives]
    accepted = gate.read_accepted(gate.ACCEPTED.read_text())
    return [*gate.find_obstacles(candidate), *gate.scan(bills, files, accepted, datetime.now(UTC))]


if __name__ == "__main__":
    sys.exit(main())
