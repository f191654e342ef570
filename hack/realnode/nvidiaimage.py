"""An image of NVIDIA's own programs, unmodified, as hack/nvidia builds them, with the C library that they need.

`enter` is ours: mig-parted looks for the driver's name in /proc/modules, which some kernels do not even have. It lays a
/proc of links over the real one, with a SIMULATED file of that name, and becomes the program.

Two programs of the driver that NVIDIA's mps-control-daemon runs are SIMULATED: they are closed, and need a real GPU.
`nvidia-cuda-mps-control -d` is a daemon that listens in its pipe folder, and is gone when its container is: who asks it
then is told so, as by the real one. It starts no nvidia-cuda-mps-server. `nvidia-smi` sets compute modes by the library
that it finds, with the rights of whoever runs it.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

from hack.cache import UnavailableError
from hack.nvidia import build
from hack.realnode.images import LOADING, ImageFile, OneLayerImage, c_program

MPS_ROOT = "/run/nvidia/mps"
"""On the node, as the GPU Operator has it: pipes, logs and shared memory of MPS."""
IN_CONTAINERS = "/mps"


NVIDIA_IMAGE = "localhost/nvidia-programs:1"
TOOLS = ("mount", "umount", "tail")
"""The machine's own, which mps-control-daemon runs."""


def nvidia_image() -> OneLayerImage:
    """Device plugin, GFD, config-manager, MPS daemon, mig-parted and mig-manager below /usr/bin, with what they run.

    Raises:
        UnavailableError: a program cannot be built here.
    """
    tools = {name: _tool(name) for name in TOOLS}
    built = {name: build.program(name) for release in build.RELEASES for name in release.programs}
    driver = {
        "nvidia-cuda-mps-control": c_program("nvidia-cuda-mps-control"),
        "nvidia-smi": c_program("nvidia-smi", LOADING),
    }
    programs = {**tools, **driver, **built}
    files = {f"usr/bin/{name}": ImageFile(path.read_bytes()) for name, path in programs.items()}
    files["usr/bin/enter"] = ImageFile(c_program("enter").read_bytes())
    for library in sorted({one for path in programs.values() for one in _libraries(path)}):
        files[_place(library)] = ImageFile(library.resolve().read_bytes())
    files["lib"] = ImageFile(link="usr/lib")
    return OneLayerImage(
        NVIDIA_IMAGE, files, ["/usr/bin/enter"], {"PATH": "/usr/bin"}, folders=("run", "proc", "sys", "etc")
    )


def _tool(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(f"there is no `{name}` on PATH, which mps-control-daemon runs")
    return Path(found)


def _libraries(program: Path) -> list[Path]:
    """None of one that is static, which makes ldd fail."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and "not a dynamic executable" not in done.stdout + done.stderr:
        raise UnavailableError(f"ldd {program}: {done.stderr.strip()}")
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)]


def _place(library: Path) -> str:
    """Where the loader looks in the image: the loader itself where programs name it."""
    if library.name.startswith("ld-linux"):
        return str(library).lstrip("/")
    return f"usr/lib/{platform.machine()}-linux-gnu/{library.name}"
