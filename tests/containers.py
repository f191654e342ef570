"""Commands around a program that give it the rights of a container: fewer capabilities, a PID namespace of its own."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hack.required import require

WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all")
"""User 0 and `capabilities: {drop: [ALL]}`."""
_SYS_ADMIN = 21


def is_admin() -> bool:
    effective = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    return effective is not None and bool(int(effective[1], 16) >> _SYS_ADMIN & 1)


def require_admin() -> None:
    """Fail the calling test where we do not have CAP_SYS_ADMIN."""
    require("root", None if is_admin() else "only CAP_SYS_ADMIN can show what it allows: run this test as root")


def require_wrapper(command: Sequence[str]) -> None:
    """Fail the calling test where this command cannot wrap a program."""
    why = refusal(command)
    require("root", f"no program can run inside `{' '.join(command)}` here: {why}" if why else None)


def refusal(command: Sequence[str]) -> str:
    """Return why this command cannot wrap a program here, or an empty text when it can or is empty itself."""
    if not command:
        return ""
    if shutil.which(command[0]) is None:
        return f"{command[0]} (util-linux) is not on PATH"
    done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() or "it failed" if done.returncode else ""


def without_capabilities() -> tuple[str, ...]:
    """The command; none for somebody who has no capability to lose."""
    return () if refusal(WITHOUT_CAPABILITIES) and not is_admin() else WITHOUT_CAPABILITIES


def own_pid_namespace() -> tuple[str, ...]:
    """The command that gives a program a PID namespace of its own; fails the calling test where that is not allowed."""
    plain = ("unshare", "--pid", "--fork")
    mapped = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    command = mapped if refusal(plain) else plain
    require_wrapper(command)
    return command
