"""Make .venv as requirements-dev.lock says; nothing to do when it is there already.

Run by the system's Python, so that nothing but Python is needed: this file keeps to syntax that an old one can
read, and tells them what is missing.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
INPUTS = ("requirements-dev.lock", "pyproject.toml", "hack/setup.py")


def main() -> int:
    """The exit status is 0 when .venv is as the lock says."""
    if sys.version_info[:2] < OLDEST:
        return refuse(
            "Python >= {}.{} is needed; {} is {}.".format(*OLDEST, sys.executable, sys.version.split()[0]),
            "Name a newer one: make PYTHON=python3.12 <verb>",
        )
    (ROOT / "build").mkdir(exist_ok=True)
    stamp, wanted = VENV / "set-up.sha256", fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted and runs(VENV / "bin" / "python"):
        return 0
    begin = time.monotonic()
    if not runs(VENV / "bin" / "python"):
        say(f"making .venv with Python {sys.version.split()[0]}")
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]) != 0:
            return refuse(
                "python3 -m venv failed.",
                "On Debian and Ubuntu it is a separate package: apt install python3-venv",
            )
    stamp.unlink(missing_ok=True)
    say("installing requirements-dev.lock, every file checked against its hash")
    locked = ("--require-hashes", "--requirement", str(ROOT / "requirements-dev.lock"))
    # The build backend is in the lock: nothing is fetched unchecked.
    ours = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if pip(*locked) != 0 or pip(*ours) != 0:
        return refuse(
            "pip could not install what is locked (above).",
            "It needs a package index: check the network, PIP_INDEX_URL and the proxy, then: make setup",
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
    """Whether it is an interpreter of our own version (a moved checkout leaves a dead link)."""
    ask = "import sys; print(sys.version)"
    try:
        told = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return told.stdout.strip() == sys.version.strip()


def pip(*arguments: str) -> int:
    """Run .venv's pip install; the exit status."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    # The variable would let `pip install --editable` of our own project ask for a hash.
    environ = {key: value for key, value in os.environ.items() if key != "PIP_REQUIRE_HASHES"}
    # stdout belongs to the verb: `eval "$(make -s cluster)"` reads it.
    return subprocess.call(command, env=environ, stdout=sys.stderr)


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def refuse(why: str, remedy: str) -> int:
    """Say what is wrong and what helps."""
    say(f"{why}\n{remedy}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
