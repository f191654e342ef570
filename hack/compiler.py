"""Runs the machine's C compiler and `go build`. Its errors say what is missing or why a build failed, and what to
do."""

import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hack.cache import UnavailableError, say

INSTALL = "apt-get install --yes gcc libc6-dev"


def find_compiler() -> str | None:
    """Return the path of `cc`, or of `gcc` if there is no `cc`, or None if neither is on PATH."""
    return shutil.which("cc") or shutil.which("gcc")


def need_compiler(what: str) -> str:
    """Return the path of the C compiler: `cc` or, if there is none on PATH, `gcc`."""
    program = find_compiler()
    if program is None:
        raise UnavailableError(
            f"{what} must be built with a C compiler, and there is no `cc` or `gcc` on PATH: {INSTALL}"
        )
    return program


def compile_c(what: str, *arguments: str) -> None:
    program = need_compiler(what)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if absent := re.search(r"\S+\.h: No such file or directory|cannot find -l\w+", done.stderr):
        raise UnavailableError(f"{what} cannot be built, because {program} says {absent[0]!r}: {INSTALL}")
    raise UnavailableError(f"{what} cannot be built, because {program} refuses it:\n{done.stderr.strip()}")


OLDEST_GO = (1, 21)
"""The first version of Go that automatically fetches the toolchain that a go.mod requires."""
CAUSES = (
    (
        r"no space left on device|disk quota exceeded",
        "make room in our cache, in the temporary folder, and in those that `go env GOCACHE GOMODCACHE` names",
    ),
    (
        r'dial tcp[^"\n]*|lookup .*: no such host|proxyconnect.*|i/o timeout|TLS handshake.*|Client\.Timeout.*'
        r"|reading https?://\S+: [45]\d\d.*|module lookup disabled.*",
        "a first build fetches Go modules, so check the network and `go env GOPROXY`",
    ),
    (
        r"requires go >= [^;]*running go.*",
        "let Go fetch the toolchain that the module asks for (export GOTOOLCHAIN=auto), or install that one",
    ),
    (
        r"\S+: (?:read-only file system|permission denied)",
        "make the folders that `go env GOCACHE GOMODCACHE` names writable, or name others",
    ),
)
"""Patterns for the last lines of Go's output, each with its remedy. The first pattern that matches counts."""
TAIL = 12
"""How many lines of Go's output are shown if none of the causes matches."""


def find_go(what: str) -> str:
    need = f"{what} must be built with Go >= {OLDEST_GO[0]}.{OLDEST_GO[1]}"
    remedy = "install Go from https://go.dev/dl and put it first on PATH."
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(f"{need}, and there is no `go` on PATH: {remedy}")
    done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    version = done.stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_GO:
        raise UnavailableError(f"{need}, but {go} is {version or 'of unknown version'}: {remedy}")
    return go


def run_go(
    what: str, command: Sequence[str], cwd: Path, environ: Mapping[str, str], *, minutes: int, again: str
) -> None:
    """Build with Go, and say on stderr how long it takes. The message of a failure names the command `again`."""
    go = find_go(what)
    say(f"building {what} once, about {minutes} min on 2 cores ...")
    begin = time.monotonic()
    done = subprocess.run([go, *command], cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise failure(f"{what} cannot be built", done.stderr, again)
    say(f"built {what} in {time.monotonic() - begin:.0f} s")


def failure(what: str, output: str, again: str) -> UnavailableError:
    lines = [line for line in output.splitlines() if line and not line.startswith("go: downloading")][-TAIL:]
    for pattern, remedy in CAUSES:
        if found := re.search(pattern, "\n".join(lines)):
            return UnavailableError(f"{what}: {found[0]}; {remedy}, then run: {again}")
    return UnavailableError("\n  ".join([f"{what}: correct what Go reports below, then run: {again}", *lines]))
