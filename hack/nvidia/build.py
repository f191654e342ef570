"""NVIDIA's own programs, built once from their pinned Go modules into the user's cache.

`python -m hack.nvidia.build` builds what is missing and prints the folders. The programs are unmodified; each
release is a module of its own, so that it is linked with exactly the versions its release names.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hack.cache import UnavailableError, cache_root, say
from hack.cluster.toolchain import ToolRecipe, build_environment, build_once
from hack.compiler import failure, find_go, need_compiler

HERE = Path(__file__).resolve().parent
WHAT = "NVIDIA's programs"


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
            raise UnavailableError(f"{self.source / 'go.mod'} does not require {self.module}")
        return found[1]

    def recipe(self) -> ToolRecipe:
        """How it is built. `-z lazy` leaves the symbols of NVML open until they are called: a program looks them up."""
        version, files = self.version, sorted(path for path in self.source.rglob("*") if path.is_file())
        flags = f"-s -w -X {self.module}/internal/info.version={version} -extldflags=-Wl,-z,lazy"
        packages = [f"{self.module}/cmd/{name}" for name in self.programs] + [
            f"./{name}" for name in self.ours
        ]
        return ToolRecipe(
            name=self.folder,
            version=version,
            inputs=tuple(path.read_text() for path in files),
            command=("go", "build", "-trimpath", f"-ldflags={flags}", "-o", "{out}/", *packages),
            programs=(*self.programs, *self.ours),
            cwd=self.source,
            cgo=True,
            builder="hack.nvidia.build",
        )


DEVICE_PLUGIN = UpstreamRelease(
    "device-plugin",
    "github.com/NVIDIA/k8s-device-plugin",
    ("nvidia-device-plugin", "gpu-feature-discovery", "config-manager", "mps-control-daemon"),
    ("kubeletstub", "pluginfilereader"),
)
MIG_PARTED = UpstreamRelease(
    "mig-parted",
    "github.com/NVIDIA/mig-parted",
    ("nvidia-mig-parted", "nvidia-mig-manager"),
    ("migfilereader",),
)
RELEASES = (DEVICE_PLUGIN, MIG_PARTED)


def missing() -> str | None:
    """Why the programs cannot be built here, or None."""
    try:
        find_go(WHAT)
        need_compiler(WHAT)
    except UnavailableError as error:
        return str(error)
    return None


def ensure(release: UpstreamRelease) -> Path:
    """The folder with the programs of this release, built first if it is not there.

    Raises:
        UnavailableError: Go or a C compiler is missing, the build failed, or the cache cannot be used.
    """
    return build_once(release.recipe(), cache_root())


def program(name: str) -> Path:
    """The path of one program, by its name."""
    for release in RELEASES:
        if name in (*release.programs, *release.ours):
            return ensure(release) / name
    raise UnavailableError(
        f"no program {name!r}: choose from {[p for r in RELEASES for p in (*r.programs, *r.ours)]}"
    )


def module_folder(release: UpstreamRelease, module: str) -> Path:
    """The folder with the source of a module that this release is linked with, wherever Go keeps it.

    Raises:
        UnavailableError: Go is missing, or it cannot fetch the module.
    """
    asked = subprocess.run(
        [find_go(WHAT), "mod", "download", "-json", module],
        cwd=release.source,
        env=build_environment(release.recipe()),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        again = f"cd {release.source} && go mod download {module}"
        raise failure(f"the source of {module} cannot be read", asked.stdout + asked.stderr, again)
    return Path(json.loads(asked.stdout)["Dir"])


def main() -> int:
    """Build everything and print one folder per line."""
    try:
        for release in RELEASES:
            print(ensure(release), flush=True)
    except UnavailableError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
