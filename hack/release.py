"""The chart as it is published: a copy that names its image by digest and lists the changes.

python -m hack.release REPOSITORY sha256:... writes build/chart/gpu-sharing-operator, for `helm package`

CHANGELOG.md must have a section for the chart's version, such as `## 0.1.0`.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.krew import ROOT, version

CHART = ROOT / "deploy" / "helm" / "gpu-sharing-operator"
CHANGELOG = ROOT / "CHANGELOG.md"
TARGET = ROOT / "build" / "chart" / CHART.name
PLATFORMS = ("linux/amd64", "linux/arm64")
"""The platforms for which the release builds the image."""
SCREENSHOT = "docs/images/kubectl-get.svg"
SCREENSHOT_TITLE = "kubectl get gpusharingpolicies and gpunodes (SIMULATED GPUs)"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def main(arguments: list[str] | None = None) -> int:
    """Write the copy of the chart and print its path. Returns the exit status: 2 if the digest is invalid, 1 if the
    changelog has no changes for the version, otherwise 0. Raises ValueError as `write_chart` does."""
    parser = argparse.ArgumentParser(prog="python -m hack.release", description=__doc__.splitlines()[0])
    parser.add_argument("repository", help="where the image is, for example REGISTRY/gpu-sharing-operator")
    parser.add_argument("digest", help="of the image's index, for example sha256:0123...")
    parser.add_argument(
        "--source", default="", help="address of the repository, for example https://HOST/TEAM/NAME"
    )
    parser.add_argument("--changelog", type=Path, default=CHANGELOG, help="default: CHANGELOG.md")
    parser.add_argument(
        "--target", type=Path, default=TARGET, help="default: build/chart/gpu-sharing-operator"
    )
    options = parser.parse_args(arguments)
    if not DIGEST.fullmatch(options.digest):
        print(f"{options.digest} is not a digest; write one like sha256:{'0' * 64}", file=sys.stderr)
        return 2
    released = version()
    changes = read_changes(options.changelog.read_text(), released)
    if not changes:
        remedy = f"add a section ## {released} with a line per change"
        print(f"{options.changelog.name} has no changes for {released}: {remedy}", file=sys.stderr)
        return 1
    print(write_chart(options.target, options.repository, options.digest, changes, options.source))
    return 0


def read_changes(text: str, version: str) -> list[dict[str, str]]:
    """Return the entries in a changelog's section about a version, each with `kind`, the heading above it in lower
    case, and `description`, as in Artifact Hub's annotation. `text` is the content of the changelog. Empty if there
    is no such section, or nothing below a heading in it."""
    section = re.search(
        rf"^## \[?{re.escape(version)}\]?.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    changes: list[dict[str, str]] = []
    for kind, body in re.findall(
        r"^### (\w+)\n(.*?)(?=^### |\Z)", section[1] if section else "", re.MULTILINE | re.DOTALL
    ):
        # An entry ends at an empty line, since the heading of the next group may follow.
        entries = [entry.split("\n\n")[0] for entry in re.split(r"^- ", body, flags=re.MULTILINE)[1:]]
        changes += [{"kind": kind.lower(), "description": " ".join(entry.split())} for entry in entries]
    return changes


def write_chart(
    target: Path, repository: str, digest: str, changes: Sequence[dict[str, str]] = (), source: str = ""
) -> Path:
    """Copy the chart to `target`, with this image as its default and in Artifact Hub's annotations, and return
    `target`. An existing `target` is replaced. `changes` come from `read_changes`; `source` is the URL of the
    repository, or empty if it has none. Raises ValueError if a line to be replaced does not occur exactly once in
    the chart; the copy then stays."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(CHART, target)
    values = target / "values.yaml"
    text = _put(values.read_text(), '  repository: ""', f"  repository: {repository}")
    values.write_text(_put(text, '  digest: ""', f"  digest: {digest}"))
    about = target / "Chart.yaml"
    image = f"name: gpu-sharing-operator, image: {repository}@{digest}, platforms: {json.dumps(PLATFORMS)}"
    rows = ["annotations:", "  artifacthub.io/images: |", f"    - {{{image}}}"]
    if changes:
        # JSON is YAML, so that every character of a sentence is quoted correctly.
        rows += ["  artifacthub.io/changes: |", *(f"    - {json.dumps(change)}" for change in changes)]
    if source:
        rows = [f"home: {source}", f"sources: [{source}]", *rows, *_addresses(source)]
    about.write_text(_put(about.read_text(), "annotations:", "\n".join(rows)))
    return target


def _addresses(source: str) -> list[str]:
    """Return the annotations with the links and the picture, as lines of Chart.yaml. `source` is the URL of the
    repository; the documentation and the picture are linked at the released tag."""
    tag = f"v{version()}"
    links = [
        {"name": "source", "url": source},
        {"name": "documentation", "url": f"{source}/tree/{tag}/docs"},
        {"name": "support", "url": f"{source}/issues"},
    ]
    shown = [{"title": SCREENSHOT_TITLE, "url": f"{source}/raw/{tag}/{SCREENSHOT}"}]
    return [
        f"  artifacthub.io/links: '{json.dumps(links)}'",
        f"  artifacthub.io/screenshots: '{json.dumps(shown)}'",
    ]


def _put(text: str, old: str, new: str) -> str:
    """Return `text` with the line `old` replaced by `new`. Raises ValueError if the line does not occur exactly once,
    because the chart has then been changed and this program must be adapted."""
    if text.count(f"\n{old}\n") != 1:
        raise ValueError(f"the line {old!r} does not occur exactly once")
    return text.replace(f"\n{old}\n", f"\n{new}\n")


if __name__ == "__main__":
    sys.exit(main())
