"""Run NVIDIA's unmodified programs on a simulated machine, each in a mount namespace of its own, which needs root.

There they see simulated GPUs in /proc, /sys/bus/pci/devices and /usr/share/misc/pci.ids, the simulator as
`libnvidia-ml.so.1`, and SIMULATED `nvidia-smi` and `nvidia-cuda-mps-control`. Nothing outside changes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hack.nvidia import build
from hack.nvmlsim.simulator import Simulator, cap_minors

REPOSITORY = Path(__file__).resolve().parents[2]
WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
"""Runs a program as root without SYS_ADMIN: to NVML it is then no administrator."""
SUBSYSTEM = 0x16C1
"""The PCI subsystem id of every simulated GPU, which is that of an H100 in NVIDIA/k8s-test-infra."""
KUBELET_PLUGINS = Path("/var/lib/kubelet/device-plugins")

# $1 is the folder of this sandbox, $2 the folder to mount at /proc, $3 the folders to add to the root, $4 bind mounts
# as lines of "source target"; the program follows. /proc becomes a folder of links to the real entries, which are below
# real-proc, with the shown processes only. A folder that the machine's root lacks is never created in it: the program
# gets a root of its own, in which all the old folders are mounted.
_ENTER = """
set -e
box=$1; proc=$2; added=$3; binds=$4; shift 4
root=
mount --rbind /proc "$box/real-proc"
if test -n "$added"; then
    root=$box/root
    mount -t tmpfs tmpfs "$root"
    for entry in /*; do
        if test -L "$entry"; then
            cp -P "$entry" "$root$entry"
        elif test -d "$entry"; then
            mkdir "$root$entry"
            mount --rbind "$entry" "$root$entry"
        fi
    done
    for folder in $added; do
        mkdir "$root$folder"
        mount --bind "$box/added$folder" "$root$folder"
    done
fi
printf '%s\\n' "$binds" | while read -r source target; do
    test -n "$source" || continue
    if ! test -d "$root$target"; then
        mount -t tmpfs tmpfs "$root$(dirname "$(dirname "$target")")"
        mkdir -p "$root$target"
    fi
    mount --bind "$source" "$root$target"
done
mount --bind "$box/pci" "$root/sys/bus/pci/devices"
test ! -d "$root/usr/share/misc" || mount --bind "$box/misc" "$root/usr/share/misc"
mount --bind "$proc" "$root/proc"
test -z "$root" || exec chroot "$root" "$@"
exec "$@"
"""
_SMI = """#!/bin/sh
# SIMULATED: only the calls that NVIDIA's programs make: -r -i <bus ids>, -i <UUID> -c <compute mode>.
cd {repository} && exec {python} -m hack.nvidia.smi "$@"
"""
# With -d the real program is the daemon; without it, it sends the commands on its standard input to the daemon.
_MPS_CONTROL = """#!/bin/sh
# SIMULATED: records whether the daemon runs, and the commands that it got.
here=${CUDA_MPS_PIPE_DIRECTORY:-/tmp}
if test "$1" = -d; then : > "$here/control"; : > "$CUDA_MPS_LOG_DIRECTORY/control.log"; exit 0; fi
command=$(/bin/cat)
test -e "$here/control" || { echo "Cannot find MPS control daemon process"; exit 1; }
echo "$command" >> "$here/control"
case $command in quit*) /bin/mv "$here/control" "$here/quit";; get_*) echo 100.0;; esac
"""


class SandboxError(Exception):
    """NVIDIA's programs cannot run here; the message says why."""


def why_not() -> str | None:
    """Return why NVIDIA's programs cannot run on this machine, or None if they can."""
    if sys.platform != "linux":
        return "NVIDIA's programs run on Linux only"
    if os.geteuid() != 0:
        return "NVIDIA's programs need root here: each gets a mount namespace of its own (run the tests with sudo)"
    if not all(map(shutil.which, ("unshare", "mount", "setpriv"))):
        return "NVIDIA's programs need `unshare`, `mount` and `setpriv` (util-linux) on PATH"
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"this machine refuses a mount namespace: {probe.stderr.strip()}"
    return build.missing()


class Sandbox:
    def __init__(self, simulator: Simulator, folder: Path) -> None:
        self.simulator = simulator
        self.folder = folder.resolve()
        self.plugins = self.folder / "device-plugins"
        for name in ("real-proc", "pci", "misc", "bin", "device-plugins", "root", "added"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.proc = self.process_view("proc")
        self._write_pci()
        self._write_stubs()

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        path = os.pathsep.join((str(self.folder / "bin"), os.environ.get("PATH", os.defpath)))
        return {**os.environ, **self.simulator.environment(), "PATH": path, **(extra or {})}

    def command(
        self,
        program: str,
        *arguments: str,
        binds: Mapping[Path, Path] | None = None,
        added: Sequence[str] = (),
        limits: Sequence[str] = (),
        proc: "ProcessView | None" = None,
    ) -> list[str]:
        """Return the command line of a program in the sandbox. `proc` holds the processes that it sees, `limits` takes
        rights away inside, `binds` holds sources by target, and `added` names folders that this machine may lack."""
        for name in added:
            (self.folder / "added" / name).mkdir(exist_ok=True)
        roots = " ".join(f"/{name}" for name in added)
        lines = "\n".join(f"{source} {target}" for target, source in (binds or {}).items())
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sandbox"]
        box = [str(self.folder), str((proc or self.proc).folder), roots, lines]
        return [*enter, *box, *limits, str(build.program(program)), *arguments]

    def run(
        self,
        program: str,
        *arguments: str,
        extra: Mapping[str, str] | None = None,
        seconds: float = 60,
        limits: Sequence[str] = (),
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program in the sandbox and wait for its end, whatever its exit status is."""
        _check_host_root(program, arguments, extra or {})
        return subprocess.run(
            self.command(program, *arguments, limits=limits),
            env=self.environment(extra),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def start(
        self,
        program: str,
        *arguments: str,
        log: IO[Any],
        extra: Mapping[str, str] | None = None,
        binds: Mapping[Path, Path] | None = None,
        added: Sequence[str] = (),
        limits: Sequence[str] = (),
        proc: "ProcessView | None" = None,
    ) -> "subprocess.Popen[str]":
        """Start a program in the sandbox; the process has the program's pid, because it replaces the shell."""
        _check_host_root(program, arguments, extra or {})
        return subprocess.Popen(
            self.command(program, *arguments, binds=binds, added=added, limits=limits, proc=proc),
            env=self.environment(extra),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def process_view(self, name: str) -> "ProcessView":
        """Return a view of processes, without any yet, that the programs of one pod see as /proc."""
        return ProcessView(self.folder / name, self.folder / "real-proc", len(self.simulator.show()["gpus"]))

    def _write_pci(self) -> None:
        shown = self.simulator.show()["gpus"]
        write_devices(self.folder / "pci", shown)
        (self.folder / "misc" / "pci.ids").write_text(pci_ids(shown))

    def _write_stubs(self) -> None:
        smi = _SMI.format(repository=REPOSITORY, python=sys.executable)
        for name, text in (("nvidia-smi", smi), ("nvidia-cuda-mps-control", _MPS_CONTROL)):
            stub = self.folder / "bin" / name
            stub.write_text(text)
            stub.chmod(0o755)
        for name in build.MIG_PARTED.programs:
            _link(self.folder / "bin" / name, build.program(name))


class ProcessView:
    """A folder to mount at /proc: links to the real entries, those of a driver, and the processes shown."""

    def __init__(self, folder: Path, real: Path, gpus: int) -> None:
        self.folder, self._real = folder, real
        caps = folder / "driver" / "nvidia-caps"
        caps.mkdir(parents=True, exist_ok=True)
        (caps / "mig-minors").write_text(mig_minors(gpus))
        (folder / "modules").write_text("nvidia 1000000 0 - Live 0x0000000000000000 (SIMULATED)\n")
        for entry in os.listdir("/proc"):
            if not entry.isdigit() and entry not in ("modules", "driver"):
                _link(folder / entry, real / entry)

    def show(self, pid: int) -> None:
        """Show a process that has started, by its pid in the real /proc, to the programs that share this view."""
        _link(self.folder / str(pid), self._real / str(pid))

    def hide(self, pid: int) -> None:
        (self.folder / str(pid)).unlink(missing_ok=True)


def mig_minors(gpus: int) -> str:
    """Return the content of `/proc/driver/nvidia-caps/mig-minors` on a machine with this many GPUs."""
    return "".join(f"{name.replace('mig/', '')} {minor}\n" for name, minor in cap_minors(gpus).items())


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _check_host_root(program: str, arguments: Sequence[str], extra: Mapping[str, str]) -> None:
    """Refuse mig-manager with arguments or with the real root: it runs `chroot $HOST_ROOT_MOUNT reboot`."""
    if program != "nvidia-mig-manager":
        return
    host_root = extra.get("HOST_ROOT_MOUNT")
    if not host_root or arguments:
        raise SandboxError("nvidia-mig-manager needs HOST_ROOT_MOUNT, a stand-in for the host's root, and no arguments")
    if Path(host_root).resolve() == Path("/") or os.path.samefile(host_root, "/"):
        raise SandboxError("HOST_ROOT_MOUNT is the real root: nvidia-mig-manager could reboot this machine")


def write_devices(folder: Path, gpus: Sequence[dict[str, Any]]) -> None:
    """Write the GPUs as sysfs shows them. There is no `vfio-dev`, because a GPU that is bound to the nvidia driver has
    none; from mig-parted v0.15 on go-nvlib warns about that, here as on a real node."""
    for gpu in gpus:
        device = folder / gpu["bus_id"]
        device.mkdir(parents=True, exist_ok=True)
        vendor, device_id = _ids(gpu)
        (device / "vendor").write_text(f"0x{vendor:04x}\n")
        (device / "device").write_text(f"0x{device_id:04x}\n")
        (device / "subsystem_vendor").write_text(f"0x{vendor:04x}\n")
        (device / "subsystem_device").write_text(f"0x{SUBSYSTEM:04x}\n")
        (device / "class").write_text("0x030200\n")  # 3D controller
        (device / "numa_node").write_text("-1\n")
        (device / "resource").write_text("0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200\n")
        (device / "config").write_bytes(vendor.to_bytes(2, "little") + device_id.to_bytes(2, "little") + bytes(252))


def pci_ids(gpus: Sequence[dict[str, Any]]) -> str:
    """Return a pci.ids with these GPUs only: NVIDIA's programs read the whole file (1.5 MB) for each query."""
    names = {f"{_ids(gpu)[1]:04x}": gpu["name"] for gpu in gpus}
    lines = [f"\t{code}  {name}" for code, name in sorted(names.items())]
    return "\n".join(["10de  NVIDIA Corporation", *lines, "C 03  Display controller", "\t02  3D controller", ""])


def _ids(gpu: dict[str, Any]) -> tuple[int, int]:
    code = int(gpu["pci_device_id"], 16)
    return code & 0xFFFF, code >> 16
