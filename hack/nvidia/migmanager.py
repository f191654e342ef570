"""The real nvidia-mig-manager of one simulated node, connected to a real API server."""

import signal
import subprocess
import time
from pathlib import Path

from hack.cluster.process import end_group
from hack.nvidia.sandbox import Sandbox, SandboxError

SECONDS = 60.0
# Before anything else mig-manager asks systemd about host services over D-Bus. A bus without systemd is enough.
# Receiving must be allowed too, or mig-manager hangs without a message.
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow receive_sender="*" eavesdrop="true"/>
    <allow own="*"/><allow user="*"/>
  </policy>
</busconfig>
"""


class MigManagerProgram:
    """NVIDIA's mig-manager with a D-Bus of its own. `chroot … reboot` finds nothing in its empty host root."""

    def __init__(self, sandbox: Sandbox, node: str, kubeconfig: Path, config_file: Path) -> None:
        self.sandbox, self.node, self.kubeconfig, self.config_file = sandbox, node, kubeconfig, config_file
        self.host_root = sandbox.folder / "host"
        self.log = sandbox.folder / "mig-manager.log"
        self.with_reboot = False
        self.clients_namespace = "gpu-operator"
        self._bus: subprocess.Popen[bytes] | None = None
        self._manager: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start mig-manager, which must not be running, with its output appended to `log`."""
        if self._bus is None:
            self._start_bus()
        extra = {
            "NODE_NAME": self.node,
            "KUBECONFIG": str(self.kubeconfig),
            "CONFIG_FILE": str(self.config_file),
            "HOST_ROOT_MOUNT": str(self.host_root),
            "DEFAULT_GPU_CLIENTS_NAMESPACE": self.clients_namespace,
            "WITH_REBOOT": str(self.with_reboot).lower(),
        }
        with self.log.open("a") as log:
            self._manager = self.sandbox.start("nvidia-mig-manager", log=log, extra=extra)

    def restart(self) -> None:
        """Stop mig-manager with SIGTERM, if it runs, but not the bus, and start it again, as deleting its pod does."""
        self._end_manager(signal.SIGTERM)
        self.start()

    def kill(self) -> None:
        """Kill mig-manager with SIGKILL, even in the middle of a run, and wait for its end; the D-Bus keeps running."""
        self._end_manager(signal.SIGKILL)

    def stop(self) -> None:
        """Stop mig-manager and then its D-Bus with SIGTERM, and wait for the end of each."""
        self._end_manager(signal.SIGTERM)
        if self._bus is not None:
            self._bus.terminate()
            self._bus.wait(SECONDS)
            self._bus = None

    def alive(self) -> bool:
        return self._manager is not None and self._manager.poll() is None

    def _end_manager(self, sign: signal.Signals) -> None:
        if self._manager is not None:
            end_group(self._manager, sign)
            self._manager.wait(SECONDS)
        self._manager = None

    def _start_bus(self) -> None:
        socket = self.host_root / "run" / "dbus" / "system_bus_socket"
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        if len(str(socket)) > 100:
            raise SandboxError(f"the path of the D-Bus socket is too long for a Unix socket: {socket}")
        config = self.sandbox.folder / "bus.conf"
        config.write_text(BUS.format(socket=socket))
        with (self.sandbox.folder / "bus.log").open("w") as log:
            command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]
            self._bus = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + SECONDS
        while not socket.exists():
            if self._bus.poll() is not None or time.monotonic() > deadline:
                raise SandboxError(f"dbus-daemon did not start: {(self.sandbox.folder / 'bus.log').read_text()}")
            time.sleep(0.02)
