"""An image of NVIDIA's own programs, unmodified, as hack/nvidia builds them, with the C library that they need.

`enter` is ours: it mounts a SIMULATED /proc/modules with the driver's name, for which mig-parted looks. SIMULATED
because closed: `nvidia-cuda-mps-control -d` listens in its pipe folder, and starts no nvidia-cuda-mps-server;
`nvidia-smi` sets compute modes through the library that it finds, with the rights of its user.
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
"""The folder on the node with pipes, logs and shared memory of MPS, as the GPU Operator has it."""
IN_CONTAINERS = "/mps"


NVIDIA_IMAGE = "localhost/nvidia-programs:1"
DRIVER = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
"""The variables of NVIDIA's image that ask the container runtime for the driver and all GPUs."""
PROC_DEVICES = "/usr/share/nvidia/proc-devices"
"""The file in the image from which the DRA driver learns the major number of MIG's device files (SIMULATED)."""
TOOLS = ("mount", "umount", "tail")
"""Programs of this machine that mps-control-daemon runs."""


def nvidia_image() -> OneLayerImage:
    """Return an image with NVIDIA's programs in /usr/bin, and what they run."""
    tools = {name: _tool(name) for name in TOOLS}
    built = {name: build.program(name) for release in (*build.RELEASES, build.DRA_DRIVER) for name in release.programs}
    driver = {
        "nvidia-cuda-mps-control": c_program("nvidia-cuda-mps-control"),
        "nvidia-smi": c_program("nvidia-smi", LOADING),
    }
    programs = {**tools, **driver, **built}
    files = {f"usr/bin/{name}": ImageFile(path.read_bytes()) for name, path in programs.items()}
    files["usr/bin/enter"] = ImageFile(c_program("enter").read_bytes())
    for library in sorted({used for path in programs.values() for used in _libraries(path)}):
        files[_place(library)] = ImageFile(library.resolve().read_bytes())
    files["lib"] = ImageFile(link="usr/lib")
    files[PROC_DEVICES.lstrip("/")] = ImageFile(b"Character devices:\n237 nvidia-caps\n\nBlock devices:\n")
    environment = {"PATH": "/usr/bin", **DRIVER}
    return OneLayerImage(NVIDIA_IMAGE, files, ["/usr/bin/enter"], environment, folders=("run", "proc", "sys", "etc"))


def _tool(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise UnavailableError(f"there is no `{name}` on PATH, which mps-control-daemon runs")
    return Path(path)


def _libraries(program: Path) -> list[Path]:
    """Return the libraries that a program links; none if it is static, although ldd then fails."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and "not a dynamic executable" not in done.stdout + done.stderr:
        raise UnavailableError(f"ldd {program}: {done.stderr.strip()}")
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", done.stdout)]


def _place(library: Path) -> str:
    """Return where the loader looks for a library; the loader keeps its path, which programs name."""
    if library.name.startswith("ld-linux"):
        return str(library).lstrip("/")
    return f"usr/lib/{platform.machine()}-linux-gnu/{library.name}"
