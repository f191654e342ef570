"""Create .venv as requirements-dev.lock says. Does nothing if it is up to date.

The system's Python runs this file, so that nothing else is needed. Even an old Python must be able to parse the file,
because it is then told what is missing.
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
    """Create or update .venv if it is not as its stamp says."""
    if sys.version_info[:2] < OLDEST:
        need = "Python >= {}.{} is needed, and {} is {}".format(*OLDEST, sys.executable, sys.version.split()[0])
        return refuse(need, "name a newer one: make PYTHON=python3.12 <verb>")
    (ROOT / "build").mkdir(exist_ok=True)
    # With the path, because the .venv of a copied checkout would run the code of the other one.
    content = b"".join([sys.version.encode(), bytes(ROOT), *((ROOT / name).read_bytes() for name in INPUTS)])
    stamp, wanted = VENV / "set-up.sha256", hashlib.sha256(content).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and runs(VENV / "bin" / "python"):
        return 0
    begin = time.monotonic()
    if not runs(VENV / "bin" / "python"):
        say(f"making .venv with Python {sys.version.split()[0]}")
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]) != 0:
            return refuse("python3 -m venv failed", "apt-get install python3-venv, then: make setup")
    stamp.unlink(missing_ok=True)
    say("installing requirements-dev.lock; every file is checked against its hash")
    locked = ("--require-hashes", "--requirement", str(ROOT / "requirements-dev.lock"))
    # The build backend is in the lock, so that nothing is downloaded unchecked.
    ours = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if why := pip(*locked) or pip(*ours):
        return refuse(
            f"pip could not install requirements-dev.lock ({why}; the full output is in {LOG.relative_to(ROOT)})",
            "check the network, PIP_INDEX_URL and the proxy, then: make setup",
        )
    stamp.write_text(wanted)
    say(f".venv was set up in {time.monotonic() - begin:.0f} s")
    return 0


def runs(python: Path) -> bool:
    """Whether .venv works: it has a dead link in a moved checkout, and no pip after an interrupted set-up."""
    ask = "import sys, pip; print(sys.version)"
    try:
        done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.strip() == sys.version.strip()


def pip(*arguments: str) -> str:
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    # With this variable, `pip install --editable` of our own project would require a hash.
    environ = {key: value for key, value in os.environ.items() if key != "PIP_REQUIRE_HASHES"}
    # stdout belongs to the verb, such as `eval "$(make -s cluster)"`, which reads it.
    with LOG.open("w") as log:
        status = subprocess.call(command, env=environ, stdout=sys.stderr, stderr=log)
    output = LOG.read_text().strip()
    causes = re.findall("connection broken by '(.*)'", output) or output.splitlines() or [f"exit status {status}"]
    return causes[-1] if status else ""


def say(text: str) -> None:
    """Print a line of progress to stderr, because stdout belongs to the verb."""
    print(text, file=sys.stderr, flush=True)


def refuse(why: str, remedy: str) -> int:
    say(f"{why}: {remedy}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
