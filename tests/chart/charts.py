"""Running helm on our chart."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hack.release.package import version
from tests.yamlfiles import LOADER

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy" / "helm" / "gpu-sharing-operator"
VALUE_SETS = sorted((CHART / "ci").glob("*-values.yaml"))
PLATFORMS = sorted((CHART / "platforms").glob("*.yaml"))
NAMESPACE = "gpusharing"
VERSION = version()
_MAJOR, _MINOR, _ = VERSION.split(".")
NEXT = f"{_MAJOR}.{int(_MINOR) + 1}.0"
IMAGE = ("--set", "image.repository=example.test/gpu-sharing-operator")
HOOK = "helm.sh/hook"
LOOK_UP = 'lookup "v1" "Namespace" "" "kube-system"'

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Helm:
    """The helm program, with folders of its own: nothing of the user's helm is read or written."""

    program: Path
    home: Path

    @property
    def own(self) -> dict[str, str]:
        return {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm and return what it said; it may have failed."""
        # Without this `helm template` would ask the cluster of a kubeconfig that happens to be set.
        base = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
        return subprocess.run(
            [str(self.program), *arguments],
            env={**base, **self.own, **(environ or {})},
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Run helm, which must succeed, and return what it printed."""
        done = self.run(*arguments, environ=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def template(self, *arguments: str) -> list[Manifest]:
        """Render the chart for other programs, and return its objects in helm's order; the caller may change them.

        Raises: AssertionError: helm refused; the text is what it said.
        """
        objects: list[Manifest] = json.loads(_rendered(self, CHART, arguments))
        return objects

    def applied(self, *arguments: str) -> list[Manifest]:
        """Render what helm itself applies, without a server to ask: the objects of `template`, and the hooks."""
        objects: list[Manifest] = json.loads(_rendered(self, _with_hooks(self.home), arguments))
        return objects

    def hooks(self, *arguments: str) -> list[Manifest]:
        return [one for one in self.applied(*arguments) if HOOK in one["metadata"].get("annotations", {})]

    def refusal(self, *arguments: str) -> str:
        done = self.run("template", "gpusharing", str(CHART), "-n", NAMESPACE, *IMAGE, *arguments)
        assert done.returncode != 0, "helm rendered it"
        return done.stderr


@cache
def _with_hooks(folder: Path) -> Path:
    """Copy the chart to where its look-up that tells helm from other programs is always answered."""
    chart = shutil.copytree(CHART, folder / CHART.name)
    helpers = chart / "templates" / "_helpers.tpl"
    before, found, after = helpers.read_text().partition(LOOK_UP)
    assert found, f"{LOOK_UP} is not in {helpers.name}"
    helpers.write_text(f"{before}true{after}")
    return chart


@cache
def _rendered(helm: Helm, chart: Path, arguments: tuple[str, ...]) -> str:
    """Return the chart's objects as JSON. Helm is asked once for each set of values in a run."""
    text = helm.must("template", "gpusharing", str(chart), "-n", NAMESPACE, *IMAGE, *arguments)
    return json.dumps([document for document in yaml.load_all(text, LOADER) if document])


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind} {name}"
    return found[0]
