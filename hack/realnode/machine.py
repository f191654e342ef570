"""One node on this computer: mount, PID and network namespaces that end at once with their first process, or with ours.

Inside, /run is empty, /var/log and /var/lib/kubelet are the node's (their paths are fixed in the kubelet, the device
plugins and containerd), and kernel settings that a kubelet would change are stand-ins.
"""

import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from hack.cluster import process
from hack.cluster.process import Component, wait_until
from hack.realnode import cgroups
from hack.realnode.network import Bridge

READY_SECONDS = 120.0
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""The values that a kubelet requires. If it finds others, it changes them for the whole computer."""
BOOT_ID = "kernel/random/boot_id"
"""The setting by which a kubelet recognizes a reboot, because its value differs after each start."""

# $1 is the folder of the node, the rest are names of kernel settings. Folders that the computer lacks are created in
# an overlay.
_INIT = """
set -e
here=$1; shift
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$here/log" /var/log
mount -t overlay -o "lowerdir=/var/lib,upperdir=$here/lib/upper,workdir=$here/lib/work" overlay /var/lib
mkdir -p /var/lib/kubelet
mount --bind "$here/kubelet" /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
for setting in "$@"; do mount --bind "$here/sys/$setting" "/proc/sys/$setting"; done
echo 1 > /proc/sys/net/ipv4/ip_forward
trap '' CHLD
touch "$here/entered"
exec sleep infinity
"""
_FOLDERS = ("log", "lib/upper", "lib/work", "kubelet")


class Machine:
    def __init__(self, name: str, folder: Path, bridge: Bridge, number: int) -> None:
        self.name, self.folder, self.number = name, folder.resolve(), number
        self.bridge = bridge
        self.cgroup = ""
        self._keeper: Component | None = None
        self._first = 0

    @property
    def address(self) -> str:
        return self.bridge.node_address(self.number)

    @property
    def pid(self) -> int:
        """The pid, as seen from outside, of the first process in the machine's PID namespace."""
        if not self._first:
            raise RuntimeError(f"machine {self.name} is not started")
        return self._first

    def start(self) -> None:
        """Create the cgroup and the namespaces, and attach the machine to the bridge."""
        for folder in _FOLDERS:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        stand_ins = {**KERNEL_SETTINGS, BOOT_ID: str(uuid.uuid4())}
        for setting, value in stand_ins.items():
            (self.folder / "sys" / setting).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "sys" / setting).write_text(f"{value}\n")
        entered = self.folder / "entered"
        entered.unlink(missing_ok=True)
        self.cgroup = cgroups.make(self.name)
        settings = [setting for setting in stand_ins if Path("/proc/sys", setting).exists()]
        unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--net", "--fork", "--kill-child"]
        init = ["sh", "-c", _INIT, "machine", str(self.folder), *settings]
        command = ["setpriv", "--pdeathsig", "KILL", *unshare, *init]
        self._keeper = process.start(f"machine {self.name}", command, self.folder / "machine.log")
        self._first = wait_entered(self._keeper, entered)
        self.bridge.attach(self._first, self.number)

    def stop(self) -> None:
        """Kill every process in the machine, like a power cut, and remove its cgroup."""
        if self._keeper is not None:
            if self._first:
                self._kill_first()
            self._keeper.stop(kill=True)
            self._keeper, self._first = None, 0
        if self.cgroup:
            cgroups.remove(self.cgroup)
            self.cgroup = ""

    def run(self, *command: str, seconds: float = 300.0) -> str:
        """Run a program in the machine, wait for its end, and return its standard output."""
        done = subprocess.run(self.inside(command), capture_output=True, text=True, check=False, timeout=seconds)
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def spawn(self, name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Component:
        return process.start(name, self.inside(command), self.folder / f"{name}.log", environ)

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the command line with which this computer runs `command` inside the machine."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--", *command]

    def path(self, inside: str) -> Path:
        """Return the path at which this computer sees the absolute path `inside` of the machine."""
        return Path(f"/proc/{self.pid}/root", inside.lstrip("/"))

    def namespace(self, kind: str) -> int:
        """Return the inode number of the machine's namespace of this kind, such as `pid`."""
        return os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino

    def _kill_first(self) -> None:
        assert self._keeper is not None, "called while it is started"
        if self._first not in _children(self._keeper):
            return  # it has ended, and its pid may be that of another process
        os.kill(self._first, signal.SIGKILL)
        wait_until(lambda: not process.pid_exists(self._first), READY_SECONDS, f"machine {self.name} to end")


def wait_entered(keeper: Component, entered: Path) -> int:
    """Wait until the machine's first process has created `entered`, and return its pid."""
    children: list[int] = []

    def is_up() -> bool:
        children[:] = _children(keeper) if entered.exists() else []
        return bool(children)

    wait_until(is_up, READY_SECONDS, keeper.name, keeper.check)
    return children[0]


def _children(keeper: Component) -> list[int]:
    try:
        text = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(pid) for pid in text.split()]
