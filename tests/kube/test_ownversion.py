"""The version that the plugin prints and that operator and agent export."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from gpusharing.kube.ownversion import own_version

ROOT = Path(__file__).parents[2]
PRINTED = "from gpusharing.kube.ownversion import own_version; print(repr(own_version()))"


def test_the_version_is_that_of_the_installed_package() -> None:
    assert own_version() == version("gpu-sharing-operator")


def test_a_source_folder_that_is_not_installed_has_none() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    command = [sys.executable, "-S", "-c", PRINTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "''\n"
