"""One node's own environment on this computer: mount, PID and network namespaces that end, with all in them, at once.

The kernel is the one that cleans up: when the first process of the PID namespace ends, every process in it is killed,
and its mounts, interfaces, routes and iptables rules go with the namespaces. That process dies with us, too.
Inside, /run is empty, /var/log and /var/lib/kubelet are folders of the node's own (their paths are fixed in the
kubelet, the device plugins and containerd), and kernel settings that the kubelet would change are stand-ins.
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
"""What a kubelet wants; it would write what differs, for the whole computer."""
BOOT_ID = "kernel/random/boot_id"
"""Another one after each start, by which a kubelet knows that its node has been started anew."""

# $1 the folder of the node, the rest names of kernel settings. A folder that the computer lacks is made in an overlay.
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
    """Namespaces and cgroup of one node. `folder` is the node's alone, with a path that the overlay can take."""

    def __init__(self, name: str, folder: Path, bridge: Bridge, number: int) -> None:
        """`number`: from 0, another for each node on the bridge."""
        self.name, self.folder, self.number = name, folder.resolve(), number
        self.bridge = bridge
        self.cgroup = ""
        self._keeper: Component | None = None
        self._first = 0

    @property
    def address(self) -> str:
        """On the bridge."""
        return self.bridge.node_address(self.number)

    @property
    def pid(self) -> int:
        """The first process of its PID namespace, as seen from here."""
        if not self._first:
            raise RuntimeError(f"machine {self.name} is not started")
        return self._first

    def start(self) -> None:
        """Make cgroup and namespaces.

        Raises:
            ComponentError: this computer refuses one of the mounts.
            NetworkError: it refuses the interface.
        """
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
        unshare = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--net",
            "--fork",
            "--kill-child",
        ]
        init = ["sh", "-c", _INIT, "machine", str(self.folder), *settings]
        command = ["setpriv", "--pdeathsig", "KILL", *unshare, *init]
        self._keeper = process.start(f"machine {self.name}", command, self.folder / "machine.log")
        wait_until(entered.exists, READY_SECONDS, f"machine {self.name}", self._keeper.check)
        self._first = self._children()[0]
        self.bridge.attach(self._first, self.number)

    def stop(self) -> None:
        """Kill everything in it, as a power cut does, and remove its cgroup. Harmless when stopped."""
        if self._keeper is not None:
            if self._first:
                self._kill_first()
            self._keeper.stop(kill=True)
            self._keeper, self._first = None, 0
        if self.cgroup:
            cgroups.remove(self.cgroup)
            self.cgroup = ""

    def run(self, *command: str, seconds: float = 300.0) -> str:
        """Run a program in it to its end; what it printed.

        Raises:
            subprocess.CalledProcessError: it failed; `.stderr` says why.
        """
        done = subprocess.run(
            self.inside(command), capture_output=True, text=True, check=False, timeout=seconds
        )
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def spawn(self, name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Component:
        """Start a program in it, with its output in `NAME.log`."""
        return process.start(name, self.inside(command), self.folder / f"{name}.log", environ)

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in it."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--", *command]

    def namespace(self, kind: str) -> int:
        """The inode of one of its namespaces, `pid` for instance."""
        return os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino

    def _children(self) -> list[int]:
        """Of the keeper; none when it has ended."""
        assert self._keeper is not None, "called while it is started"
        try:
            text = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(pid) for pid in text.split()]

    def _kill_first(self) -> None:
        if self._first not in self._children():
            return  # it has ended: its pid may be somebody else's
        os.kill(self._first, signal.SIGKILL)
        wait_until(lambda: not process.pid_exists(self._first), READY_SECONDS, f"machine {self.name} to end")
