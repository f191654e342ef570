"""An image of NVIDIA's own programs, unmodified, as hack/nvidia builds them, with the C library that they need.

`enter` is ours: mig-parted looks for the driver's name in /proc/modules, which some kernels do not even have. It lays a
/proc of links over the real one, with a SIMULATED file of that name, and becomes the program.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

from hack.cache import UnavailableError
from hack.nvidia import build
from hack.realnode import mps
from hack.realnode.images import ImageFile, OneLayerImage, static_program

NVIDIA_IMAGE = "localhost/nvidia-programs:1"
TOOLS = ("mount", "umount", "tail")
"""The machine's own, which mps-control-daemon runs."""
_ENTER_SOURCE = r"""
/* SIMULATED: /proc/modules that names the driver. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void fail(const char *what) { perror(what); _exit(111); }

int main(int count, char **arguments)
{
    char from[512], to[512];
    if (count < 2) return 112;
    mkdir("/run/real-proc", 0755);
    mkdir("/run/proc", 0755);
    if (mount("/proc", "/run/real-proc", NULL, MS_BIND | MS_REC, NULL)) fail("bind /proc");
    if (mount("tmpfs", "/run/proc", "tmpfs", 0, "mode=755")) fail("tmpfs");
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        if (isdigit(entry->d_name[0]) || entry->d_name[0] == '.' || !strcmp(entry->d_name, "modules")) continue;
        snprintf(from, sizeof from, "/run/real-proc/%s", entry->d_name);
        snprintf(to, sizeof to, "/run/proc/%s", entry->d_name);
        if (symlink(from, to)) fail(to);
    }
    FILE *modules = fopen("/run/proc/modules", "w");
    if (!modules) fail("/run/proc/modules");
    fputs("nvidia 1000000 0 - Live 0x0000000000000000 (SIMULATED)\n", modules);
    fclose(modules);
    if (mount("/run/proc", "/proc", NULL, MS_BIND, NULL)) fail("bind over /proc");
    execv(arguments[1], arguments + 1);
    fail(arguments[1]);
}
"""


def nvidia_image() -> OneLayerImage:
    """Device plugin, GFD, config-manager, MPS daemon, mig-parted and mig-manager below /usr/bin, with what they run.

    Raises:
        UnavailableError: a program cannot be built here.
    """
    tools = {name: _tool(name) for name in TOOLS}
    built = {name: build.program(name) for release in build.RELEASES for name in release.programs}
    programs = {**tools, **mps.programs(), **built}
    files = {f"usr/bin/{name}": ImageFile(path.read_bytes()) for name, path in programs.items()}
    files["usr/bin/enter"] = ImageFile(static_program("enter", _ENTER_SOURCE).read_bytes())
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
