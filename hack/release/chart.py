"""The chart as it is published: a copy that names its image by digest and lists the changes."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from hack.release.package import ROOT, version

PATH = "deploy/helm/gpu-sharing-operator"
CHART = ROOT / PATH
PLATFORMS = ("linux/amd64", "linux/arm64")
SCREENSHOT = "docs/images/kubectl-get.svg"
SCREENSHOT_TITLE = "kubectl get gpusharingpolicies and gpunodes (SIMULATED GPUs)"
ICON = "docs/images/icon.svg"


def chart_version() -> Mapping[str, str]:
    """Return Chart.yaml with the project's version as chart version and appVersion, by its path."""
    text = (CHART / "Chart.yaml").read_text()
    text = re.sub(r"^version: .*$", f"version: {version()}", text, flags=re.MULTILINE)
    text = re.sub(r"^appVersion: .*$", f'appVersion: "{version()}"', text, flags=re.MULTILINE)
    return {f"{PATH}/Chart.yaml": text}


def write_chart(
    target: Path, repository: str, digest: str, changes: Sequence[dict[str, str]] = (), source: str = ""
) -> Path:
    """Copy the chart to `target`, with this image as its default and in Artifact Hub's annotations."""
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
        about_source = [f"home: {source}", f"sources: [{source}]", f"icon: {raw_url(source, ICON)}"]
        shown = [{"title": SCREENSHOT_TITLE, "url": raw_url(source, SCREENSHOT)}]
        rows = [*about_source, *rows, f"  artifacthub.io/links: '{json.dumps(links(source))}'"]
        rows.append(f"  artifacthub.io/screenshots: '{json.dumps(shown)}'")
    about.write_text(_put(about.read_text(), "annotations:", "\n".join(rows)))
    return target


def raw_url(source: str, path: str) -> str:
    """Return the URL of a file itself, not of a page that shows it, at the version's tag."""
    return f"{source}/raw/v{version()}/{path}"


def links(source: str) -> list[dict[str, str]]:
    """Return the name and URL of each link that stores show beside the product."""
    return [
        {"name": "source", "url": source},
        {"name": "documentation", "url": f"{source}/tree/v{version()}/docs"},
        {"name": "support", "url": f"{source}/issues"},
    ]


def _put(text: str, old: str, new: str) -> str:
    if text.count(f"\n{old}\n") != 1:
        raise ValueError(f"the line {old!r} does not occur exactly once")
    return text.replace(f"\n{old}\n", f"\n{new}\n")
