"""Keeps builds and downloads in the user's cache, never in the checkout.

Each of them is made once, and appears in the cache only when it is complete. Running control planes keep their files,
keys and tokens in folders that only their owner can read.
"""

import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

PATIENCE = 3600.0
"""Seconds that we wait for a lock. The longest build on a slow machine takes a third of that."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errno values for a full disk or an exhausted quota. Such an error may not name a file."""
POLL = 0.2
"""Seconds between two attempts to get a lock."""


class UnavailableError(Exception):
    """Something that is needed here is missing and cannot be made. The message says why, and what to do."""


def make_once(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return `directory`, filled by `make` if it is not there; concurrent processes fill it once. Its name must begin
    with `name` and a hyphen: `_sweep` relies on it."""
    if directory.is_dir():
        return directory
    root = directory.parent
    with writable(root), alone(root / f".{directory.name}.lock", f"building {name}") as lock:
        if not directory.is_dir():
            _sweep(root, lock)
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-build-") as scratch:
                out = Path(scratch) / "out"
                out.mkdir()
                make(out)
                out.rename(directory)
    return directory


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn an OSError about a path below `root`, or about a full disk, into an UnavailableError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(root, error) from error
    try:
        yield
    except OSError as error:
        is_inside = isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(root)
        if is_inside or error.errno in FULL:
            raise _not_writable(root, error) from error
        raise


def _not_writable(root: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"Nothing can be kept in the cache {root} ({error.strerror}): make room there or make it writable, "
        "or name another folder: export GPUSHARING_CACHE=FOLDER"
    )


@contextmanager
def alone(lock: Path, doing: str, patience: float = PATIENCE) -> Iterator[Path]:
    """Hold an exclusive lock between processes, which the system releases when the holder ends."""
    with lock.open("a+") as file:
        _wait(file, doing, patience)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield lock
        finally:
            file.truncate(0)


def _wait(file: TextIO, doing: str, patience: float) -> None:
    begin, waits = time.monotonic(), False
    while not _try_lock(file):
        file.seek(0)
        pid = file.read().strip()
        holder = f"process {pid}" if pid else "another process"
        if not waits:
            waits = True
            say(f"waiting for {holder}, which is {doing}; giving up after {patience / 60:.0f} minutes ...")
        if time.monotonic() - begin > patience:
            remedy = f"end it (kill {pid})" if pid else f"find it (lslocks | grep {Path(file.name).name})"
            raise UnavailableError(
                f"{holder.capitalize()} has been {doing} for more than {patience / 60:.0f} minutes and holds "
                f"{file.name}: {remedy}, then try again."
            )
        time.sleep(POLL)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(root: Path, own: Path) -> None:
    """Remove unfinished folders that killed builders have left, except those whose `name` another process has locked.
    The folders are listed before the locks are tried, so their builder either still holds its lock or is dead."""
    for left in sorted(root.glob(".*-build-*")):
        with ExitStack() as opened:
            locks = set(root.glob(f"{left.name.partition('-build-')[0]}-*.lock")) - {own}
            if all(_try_lock(opened.enter_context(lock.open("a+"))) for lock in locks):
                shutil.rmtree(left, ignore_errors=True)


def say(text: str) -> None:
    """Print a line of progress to stderr, because stdout is for the output of the program that calls us."""
    print(text, file=sys.stderr, flush=True)


APP = "gpu-sharing-operator"


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return our folder in $GPUSHARING_CACHE, $XDG_CACHE_HOME or ~/.cache."""
    chosen = environ.get("GPUSHARING_CACHE") or environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen).expanduser() / APP
    return Path(environ.get("HOME") or Path.home()) / ".cache" / APP


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what must survive a run. It holds keys, so only its owner may read it."""
    if chosen := environ.get("GPUSHARING_STATE"):
        return Path(chosen).expanduser()
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / APP
    return cache_root(environ) / "run"


def private_directory(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "wb") as file:
        file.write(raw)
    Path(temporary).replace(path)
    return path
