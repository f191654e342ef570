"""What an operator under test may import is what the one in the image may."""

import subprocess
import sys

from hack.bench.image import locked_names
from hack.inpod import ABSENT
from hack.launch import PYTHONPATH, ROOT, own_environment

ASKED = """
import json, sys
from hack import inpod
inpod.hide()
import gpusharing.controller.leading, gpusharing.controller.main
there = {name for name, module in sys.modules.items() if module is not None}
print(json.dumps(sorted(there & set(inpod.ABSENT))))
try:
    import kubernetes
except ModuleNotFoundError as error:
    print(error.name)
"""


def test_the_operator_is_loaded_without_what_its_image_lacks() -> None:
    run = subprocess.run(
        [sys.executable, "-c", ASKED],
        cwd=ROOT,
        env={**own_environment(), "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == ["[]", "kubernetes"]


def test_nothing_that_the_image_has_is_hidden() -> None:
    assert not set(ABSENT) & set(locked_names((ROOT / "requirements.lock").read_text()))
