"""Make .venv as requirements-dev.lock says; nothing to do when it is there already.

Run by the system's Python, so that nothing but Python is needed: this file keeps to syntax that an old one can
read, and tells them what is missing.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = ROOT / "build" / "setup.log"
INPUTS = ("requirements-dev.lock", "pyproject.toml", "hack/setup.py")


def main() -> int:
    """The exit status is 0 when .venv is as the lock says."""
    if sys.version_info[:2] < OLDEST:
        need = "Python >= {}.{} is needed, and {} is {}".format(
            *OLDEST, sys.executable, sys.version.split()[0]
        )
        return refuse(need, "name a newer one: make PYTHON=python3.12 <verb>")
    (ROOT / "build").mkdir(exist_ok=True)
    stamp, wanted = VENV / "set-up.sha256", fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted and runs(VENV / "bin" / "python"):
        return 0
    begin = time.monotonic()
    if not runs(VENV / "bin" / "python"):
        say(f"making .venv with Python {sys.version.split()[0]}")
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]) != 0:
            return refuse("python3 -m venv failed", "apt-get install python3-venv, then: make setup")
    stamp.unlink(missing_ok=True)
    say("installing requirements-dev.lock, every file checked against its hash")
    locked = ("--require-hashes", "--requirement", str(ROOT / "requirements-dev.lock"))
    # The build backend is in the lock: nothing is fetched unchecked.
    ours = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if why := pip(*locked) or pip(*ours):
        return refuse(
            f"pip could not install what is locked ({why}; all of it: {LOG.relative_to(ROOT)})",
            "check the network, PIP_INDEX_URL and the proxy, then: make setup",
        )
    stamp.write_text(wanted)
    say(f"set up in {time.monotonic() - begin:.0f} s")
    return 0


def fingerprint() -> str:
    """What .venv depends on, as one word."""
    digest = hashlib.sha256(sys.version.encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def runs(python: Path) -> bool:
    """Whether it is an interpreter of our own version with pip. A moved checkout leaves a dead link, and a set-up that
    was killed an interpreter without pip."""
    ask = "import sys, pip; print(sys.version)"
    try:
        told = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return told.stdout.strip() == sys.version.strip()


def pip(*arguments: str) -> str:
    """Run .venv's pip install. Return why it failed (the broken connection or the last line), else an empty string."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    # The variable would let `pip install --editable` of our own project ask for a hash.
    environ = {key: value for key, value in os.environ.items() if key != "PIP_REQUIRE_HASHES"}
    # stdout belongs to the verb: `eval "$(make -s cluster)"` reads it.
    with LOG.open("w") as log:
        status = subprocess.call(command, env=environ, stdout=sys.stderr, stderr=log)
    said = LOG.read_text().strip()
    told = re.findall("connection broken by '(.*)'", said) or said.splitlines() or [f"exit status {status}"]
    return told[-1] if status else ""


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def refuse(why: str, remedy: str) -> int:
    """Say what is wrong and what helps, in one sentence."""
    say(f"{why}: {remedy}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
