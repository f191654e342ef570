"""The chart as it is published: a copy that names its image by digest, so that nobody has to.

python -m hack.release REPOSITORY sha256:...   writes build/chart/gpu-sharing-operator, for `helm package`
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "gpu-sharing-operator"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when the copy is written; prints its path."""
    parser = argparse.ArgumentParser(prog="python -m hack.release", description=__doc__.splitlines()[0])
    parser.add_argument("repository", help="where the image is, for example REGISTRY/gpu-sharing-operator")
    parser.add_argument("digest", help="of the image's index, for example sha256:0123...")
    options = parser.parse_args(arguments)
    if not DIGEST.fullmatch(options.digest):
        print(f"{options.digest} is no digest; for example sha256:{'0' * 64}", file=sys.stderr)
        return 2
    print(write_chart(ROOT / "build" / "chart" / CHART.name, options.repository, options.digest))
    return 0


def write_chart(target: Path, repository: str, digest: str) -> Path:
    """Copy the chart to `target`, with this image among its defaults and in Artifact Hub's annotation."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(CHART, target)
    values = target / "values.yaml"
    text = _put(values.read_text(), '  repository: ""', f"  repository: {repository}")
    values.write_text(_put(text, '  digest: ""', f"  digest: {digest}"))
    about = target / "Chart.yaml"
    image = f"    - {{name: gpu-sharing-operator, image: {repository}@{digest}}}"
    images = f"annotations:\n  artifacthub.io/images: |\n{image}"
    about.write_text(_put(about.read_text(), "annotations:", images))
    return target


def _put(text: str, old: str, new: str) -> str:
    """Replace a line that stands there once.

    Raises:
        ValueError: it does not; the chart was changed, and this program must follow.
    """
    if text.count(f"\n{old}\n") != 1:
        raise ValueError(f"the line {old!r} does not stand there once")
    return text.replace(f"\n{old}\n", f"\n{new}\n")


if __name__ == "__main__":
    sys.exit(main())
