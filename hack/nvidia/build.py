"""NVIDIA's own programs, built once from their pinned Go modules into the user's cache.

`python -m hack.nvidia.build` builds what is missing and prints the folders. The programs are unmodified; each
release is a module of its own, so that it is linked with exactly the versions its release names.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.paths import cache_root

HERE = Path(__file__).resolve().parent


class GoBuildError(Exception):
    """NVIDIA's programs cannot be built. The text says what is missing and what to do."""


@dataclass(frozen=True)
class UpstreamRelease:
    """One repository of NVIDIA's at one version, and the programs we take from it."""

    folder: str
    module: str
    programs: tuple[str, ...]
    ours: tuple[str, ...] = ()
    """Programs of ours in the same Go module, because they share its protocol definitions."""

    @property
    def source(self) -> Path:
        """The folder with our go.mod."""
        return HERE / self.folder

    @property
    def version(self) -> str:
        """The version that our go.mod pins, as `v0.19.3`."""
        found = re.search(rf"{re.escape(self.module)} (v\S+)", (self.source / "go.mod").read_text())
        if found is None:
            raise GoBuildError(f"{self.source / 'go.mod'} does not require {self.module}")
        return found[1]

    def command(self, out: str) -> list[str]:
        """The build. NVML is looked up at run time only: `-z lazy` leaves its symbols open until they are called."""
        stamp = f"-X {self.module}/internal/info.version={self.version}"
        packages = [f"{self.module}/cmd/{name}" for name in self.programs]
        packages += [f"./{name}" for name in self.ours]
        flags = f"-s -w {stamp} -extldflags=-Wl,-z,lazy"
        return ["go", "build", "-trimpath", "-mod=readonly", f"-ldflags={flags}", "-o", out, *packages]

    def directory(self) -> Path:
        """The folder of the finished build."""
        inputs = [path.read_bytes() for path in sorted(self.source.rglob("*")) if path.is_file()]
        inputs.append("\0".join((*self.command(""), platform.system(), platform.machine())).encode())
        return (
            cache_root()
            / f"{self.folder}-{self.version}-{hashlib.sha256(b'|'.join(inputs)).hexdigest()[:12]}"
        )


DEVICE_PLUGIN = UpstreamRelease(
    "device-plugin",
    "github.com/NVIDIA/k8s-device-plugin",
    ("nvidia-device-plugin", "gpu-feature-discovery", "config-manager", "mps-control-daemon"),
    ("kubeletstub",),
)
MIG_PARTED = UpstreamRelease(
    "mig-parted", "github.com/NVIDIA/mig-parted", ("nvidia-mig-parted", "nvidia-mig-manager")
)
RELEASES = (DEVICE_PLUGIN, MIG_PARTED)


def missing() -> str | None:
    """Why the programs cannot be built here, or None."""
    for program, what in (("go", "Go 1.21 or newer"), ("cc", "a C compiler, for cgo")):
        if shutil.which(program) is None:
            return f"NVIDIA's programs need {what}: there is no `{program}` on PATH"
    return None


def ensure(release: UpstreamRelease) -> Path:
    """The folder with the programs of this release, built first if it is not there.

    Raises:
        GoBuildError: Go or a C compiler is missing, or the build failed.
    """
    directory = release.directory()
    if directory.is_dir():
        return directory
    if why := missing():
        raise GoBuildError(why)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            _build(release, directory)
    return directory


def program(name: str) -> Path:
    """The path of one program, by its name."""
    for release in RELEASES:
        if name in (*release.programs, *release.ours):
            return ensure(release) / name
    raise GoBuildError(
        f"no program {name!r}: choose from {[p for r in RELEASES for p in (*r.programs, *r.ours)]}"
    )


def _build(release: UpstreamRelease, directory: Path) -> None:
    _say(f"building NVIDIA's {release.folder} {release.version} once, about 2 min on 2 cores ...")
    begin = time.monotonic()
    environ = {key: value for key, value in os.environ.items() if key not in ("GOOS", "GOARCH", "GOFLAGS")}
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{release.folder}-build-") as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        done = subprocess.run(
            release.command(f"{out}/"),
            cwd=release.source,
            env={**environ, "GOWORK": "off", "CGO_ENABLED": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
            tail = "\n".join(f"  {line}" for line in lines[-12:])
            raise GoBuildError(
                f"NVIDIA's {release.folder} {release.version} could not be built:\n{tail}\n"
                "A first build fetches Go modules: check the network and `go env GOPROXY`, then try again:\n"
                "  python -m hack.nvidia.build"
            )
        out.rename(directory)
    _say(f"built {release.folder} {release.version} in {time.monotonic() - begin:.0f} s: {directory}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Build everything and print one folder per line."""
    try:
        for release in RELEASES:
            print(ensure(release), flush=True)
    except GoBuildError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
