"""Makes each build and download once and keeps it in the user's cache, where nobody ever sees a half-finished one."""

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

PATIENCE = 3600.0
"""Seconds that we wait for another process with the same lock. A slow machine builds for a third of that."""
POLL = 0.2
"""Seconds between two attempts to get a lock."""


class UnavailableError(Exception):
    """Something that is needed here is missing and cannot be made. The text says why, and what to do."""


def make_once(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return `directory`, made first if it is not there; several processes may ask at once.

    `make` fills an empty folder, which becomes `directory` only when `make` returns. `directory` is called after
    `name`, as in `helm-v4.3.1-e342a155371d`.

    Raises:
        UnavailableError: the cache cannot be written, or its lock is not to be had. What `make` raises passes through.
    """
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
    """Create the folder `root`, and turn an OSError of what is done inside into an UnavailableError about `root`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UnavailableError(
            f"Nothing can be kept in the cache {root} ({error.strerror}): make room there or make it writable, "
            "or name another folder: export GPUSHARING_CACHE=FOLDER"
        ) from error


@contextmanager
def alone(lock: Path, doing: str, patience: float = PATIENCE) -> Iterator[Path]:
    """Hold the lock file `lock` while `doing` something that one process at a time may do. The system releases the
    lock of a process that ends, however it ends.

    Raises:
        UnavailableError: another process has held it for `patience` seconds.
    """
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
    """Get the lock. The file names its holder, unless that one got it a moment ago."""
    begin, waits = time.monotonic(), False
    while not _got(file):
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


def _got(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(root: Path, own: Path) -> None:
    """Remove what builders have left below `root` that were killed. One that is alive holds a lock of the same name.

    `own`: the lock that we hold ourselves. The folders are listed before the locks are tried, so the builder of a
    listed folder either has its lock still, or is dead.
    """
    for left in sorted(root.glob(".*-build-*")):
        with ExitStack() as held:
            locks = set(root.glob(f"{left.name.partition('-build-')[0]}-*.lock")) - {own}
            if all(_got(held.enter_context(lock.open("a+"))) for lock in locks):
                shutil.rmtree(left, ignore_errors=True)


def say(text: str) -> None:
    """Print progress on stderr: stdout belongs to the caller."""
    print(text, file=sys.stderr, flush=True)
