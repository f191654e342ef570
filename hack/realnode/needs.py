"""What rung 4 needs from a machine, and what of that is missing here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hack.cluster.toolchain import kubelet_recipe
from hack.images import debian, wheels
from hack.nvmlsim.build import compiler

PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "dbus-daemon": "dbus-daemon",
}
"""What we run, and Debian's package that has it."""
CNI_PACKAGE = "containernetworking-plugins"
CNI_PLUGINS = ("bridge", "host-local", "loopback")
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--fork", "mount", "-t", "proc", "proc", "/proc")


def cni_folder() -> Path | None:
    """Where the CNI plugins are; None where one is missing."""
    for folder in CNI_FOLDERS:
        if all((folder / plugin).exists() for plugin in CNI_PLUGINS):
            return folder
    return None


def why_not() -> str | None:
    """Why no real kubelet can run here, with what to do; None where it can."""
    if sys.platform != "linux":
        return "a real kubelet runs on Linux only"
    if os.geteuid() != 0:
        return "a real kubelet needs root: its node gets namespaces and cgroups of its own (use sudo)"
    if missing := missing_packages():
        return f"a real kubelet needs {', '.join(missing)}: apt-get install --yes {' '.join(missing)}"
    if shutil.which("go") is None and not kubelet_recipe().built():
        return "a real kubelet must be built, and there is no `go` on PATH: see https://go.dev/dl"
    if compiler() is None:
        return "the images of a real node need a C compiler: apt-get install --yes gcc libc6-dev"
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        return "containerd's snapshots need overlayfs, which this kernel does not have"
    probe = subprocess.run(NAMESPACES, capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"this machine refuses mount, PID and network namespaces: {probe.stderr.strip()}"
    return None


def why_not_in_ci() -> str | None:
    """As `why_not`, when all that can be fetched has been: nobody reads there what to install."""
    try:
        install_packages()
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)} ended with status {error.returncode}"
    if why := why_not():
        return why
    try:
        debian.fetch(*debian.locked(wheels.native()))
    except debian.FetchError as error:
        return f"our image cannot be built: {str(error).splitlines()[0]}"
    return None


def install_packages() -> None:
    """Install what is missing from Debian's packages.

    Raises:
        subprocess.CalledProcessError: apt-get failed.
    """
    missing = missing_packages()
    if missing and shutil.which("apt-get") and os.geteuid() == 0:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(
                ["apt-get", "--quiet", "--option", "Acquire::Retries=3", *command],
                env=environ,
                stdout=sys.stderr,
                check=True,
            )


def missing_packages() -> list[str]:
    """Debian's packages that have what is not on PATH."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if cni_folder() is None:
        packages.append(CNI_PACKAGE)
    return list(dict.fromkeys(packages))


def main() -> None:
    """For CI, which must tell "cannot run here" from "failed": print why not, and nothing where it can."""
    if why := why_not_in_ci():
        print(why)


if __name__ == "__main__":
    main()
