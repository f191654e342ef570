"""NVIDIA's own programs, unmodified, built once from their pinned Go modules into the user's cache.

Each release is linked with exactly the versions that it names. $MIG_PARTED selects one of MIG_PARTED_PINS.
"""

import json
import os
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
    """One version of a repository of NVIDIA's, and the programs that we build from it."""

    folder: str
    module: str
    programs: tuple[str, ...]
    ours: tuple[str, ...] = ()
    """Our own programs in the same Go module, because they share its protocol definitions."""
    pins: str = "go.mod"
    """Name of the file in our folder that pins this release and the modules it is linked with."""

    @property
    def source(self) -> Path:
        return HERE / self.folder

    @property
    def version(self) -> str:
        """The first version that our file requires of the module, such as `v0.19.3`."""
        match = re.search(rf"{re.escape(self.module)} (v\S+)", (self.source / self.pins).read_text())
        if match is None:
            raise UnavailableError(f"{self.source / self.pins} does not require {self.module}")
        return match[1]

    def inputs(self) -> list[Path]:
        """Return the files that decide what is built: of .mod and .sum only this release's own."""
        own = {self.pins, str(Path(self.pins).with_suffix(".sum"))}
        files = sorted(path for path in self.source.rglob("*") if path.is_file())
        return [path for path in files if path.suffix not in (".mod", ".sum") or path.name in own]

    def recipe(self) -> ToolRecipe:
        """Return the recipe of the release. `-z lazy` leaves NVML's symbols unresolved until they are called, because
        the programs look them up at run time."""
        version = self.version
        flags = f"-s -w -X {self.module}/internal/info.version={version} -extldflags=-Wl,-z,lazy"
        packages = [f"{self.module}/cmd/{name}" for name in self.programs] + [f"./{name}" for name in self.ours]
        return ToolRecipe(
            name=self.folder,
            version=version,
            inputs=tuple(path.read_text() for path in self.inputs()),
            command=(
                "go",
                "build",
                f"-modfile={self.pins}",
                "-trimpath",
                f"-ldflags={flags}",
                "-o",
                "{out}/",
                *packages,
            ),
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
MIG_PARTED_PINS = {"v0.15.1": "go.mod", "v0.13.1": "go-v0.13.1.mod"}
"""The releases of mig-parted that can be built, the newest first, and the file that pins each."""


def mig_parted(version: str) -> UpstreamRelease:
    """Return the release of mig-parted with this version, such as `v0.15.1`; nothing is built."""
    if version not in MIG_PARTED_PINS:
        raise UnavailableError(f"MIG_PARTED={version} is not pinned: choose from {', '.join(MIG_PARTED_PINS)}")
    return UpstreamRelease(
        "mig-parted",
        "github.com/NVIDIA/mig-parted",
        ("nvidia-mig-parted", "nvidia-mig-manager"),
        ("migfilereader",),
        MIG_PARTED_PINS[version],
    )


MIG_PARTED = mig_parted(os.environ.get("MIG_PARTED") or next(iter(MIG_PARTED_PINS)))
RELEASES = (DEVICE_PLUGIN, MIG_PARTED)
"""What every test of rung 3 may need; all are built before the first."""
DRA_DRIVER = UpstreamRelease("dra-driver", "sigs.k8s.io/dra-driver-nvidia-gpu", ("gpu-kubelet-plugin",))
"""NVIDIA's DRA driver, linked with a stub of go-nvfm. Built when a test asks for it."""


def missing() -> str | None:
    """Return what this machine lacks to build the programs, with a remedy, or None."""
    try:
        find_go(WHAT)
        need_compiler(WHAT)
    except UnavailableError as error:
        return str(error)
    return None


def ensure(release: UpstreamRelease) -> Path:
    return build_once(release.recipe(), cache_root())


def program(name: str) -> Path:
    """Return the path of one of NVIDIA's programs, or of ours that are built beside them."""
    for release in (*RELEASES, DRA_DRIVER):
        if name in (*release.programs, *release.ours):
            return ensure(release) / name
    known = [known for release in (*RELEASES, DRA_DRIVER) for known in (*release.programs, *release.ours)]
    raise UnavailableError(f"there is no program {name!r}: choose from {', '.join(known)}")


def module_folder(release: UpstreamRelease, module: str) -> Path:
    """Return the folder where Go keeps the source of a module that this release is linked with."""
    result = subprocess.run(
        [find_go(WHAT), "mod", "download", f"-modfile={release.pins}", "-json", module],
        cwd=release.source,
        env=build_environment(release.recipe()),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        again = f"cd {release.source} && go mod download {module}"
        raise failure(f"the source of {module} cannot be read", result.stdout + result.stderr, again)
    return Path(json.loads(result.stdout)["Dir"])


def main() -> int:
    """Build the device plugin and the selected mig-parted, and print the folder of each."""
    try:
        for release in RELEASES:
            print(ensure(release), flush=True)
    except UnavailableError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
