"""Where the development tools keep what they build and run: in the user's cache, never in the checkout."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

APP = "gpu-sharing-operator"


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for built programs: `$GPUSHARING_CACHE`, else `$XDG_CACHE_HOME`, else `~/.cache`."""
    chosen = environ.get("GPUSHARING_CACHE") or environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen).expanduser() / APP
    return Path(environ.get("HOME") or Path.home()) / ".cache" / APP


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for running control planes: `$GPUSHARING_STATE`, else `$XDG_RUNTIME_DIR`, else the cache.

    Keys and tokens of the control planes lie below it, so it is made readable by its owner only.
    """
    if chosen := environ.get("GPUSHARING_STATE"):
        return Path(chosen).expanduser()
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / APP
    return cache_root(environ) / "run"


def private_directory(path: Path) -> Path:
    """Create `path` with mode 0700 (parents as needed) and return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, data: str | bytes) -> Path:
    """Write `data` to `path` with mode 0600, in one step: a reader sees the old file or the new one."""
    raw = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "wb") as file:
        file.write(raw)
    Path(temporary).replace(path)
    return path
