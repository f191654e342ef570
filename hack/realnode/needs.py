"""What the tests with real kubelets (rung 4) need from a machine, and which of these needs are not met."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.apt import install
from hack.cache import UnavailableError
from hack.cluster.toolchain import containerd_recipe, kubelet_recipe
from hack.compiler import INSTALL, find_compiler, find_go
from hack.required import left_out

PROGRAMS = {
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "dbus-daemon": "dbus-daemon",
}
"""The Debian package of each program that rung 4 runs, by the name of the program."""
CNI_PACKAGE = "containernetworking-plugins"
CNI_PLUGINS = ("bridge", "host-local", "loopback")
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--fork", "mount", "-t", "proc", "proc", "/proc")


def cni_folder() -> Path | None:
    """Return the first of CNI_FOLDERS that has all CNI plugins, or None if no folder has all of them."""
    for folder in CNI_FOLDERS:
        if all((folder / plugin).exists() for plugin in CNI_PLUGINS):
            return folder
    return None


def why_not() -> str | None:
    """Return why no real kubelet can run here and what to do about it, or None if one can run."""
    if sys.platform != "linux":
        return "a real kubelet runs on Linux only"
    if os.geteuid() != 0:
        return "a real kubelet needs root: its node gets namespaces and cgroups of its own (use sudo)"
    if missing := missing_packages():
        return f"a real kubelet needs {', '.join(missing)}: apt-get install --yes {' '.join(missing)}"
    if not (kubelet_recipe().built() and containerd_recipe().built()):
        try:
            find_go("a real kubelet")
        except UnavailableError as error:
            return str(error)
    if find_compiler() is None:
        return f"the images of a real node need a C compiler: {INSTALL}"
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        return "containerd's snapshots need overlayfs, which this kernel does not have"
    probe = subprocess.run(NAMESPACES, capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"this machine refuses mount, PID and network namespaces: {probe.stderr.strip()}"
    return None


def missing_packages() -> list[str]:
    """Return the Debian packages of the programs and CNI plugins that are missing."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if cni_folder() is None:
        packages.append(CNI_PACKAGE)
    return list(dict.fromkeys(packages))


def main(arguments: Sequence[str]) -> int:
    """Return 0 if a real kubelet can run here; otherwise print why not to stderr and return 1."""
    try:
        if "rung4" in left_out():
            print("Rung 4 is left out on purpose by LEAVE_OUT=rung4.", file=sys.stderr)
            return 0
        if "--install" in arguments:
            install(*missing_packages())
        why = why_not()
    except UnavailableError as error:
        why = str(error)
    if why:
        print(f"Rung 4 cannot run: {why}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
