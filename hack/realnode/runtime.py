"""A stand-in for NVIDIA's container runtime, which adds the SIMULATED driver to the container and leaves the rest to runc.

At `create` it edits the OCI configuration: library, state, capability files, and device nodes, which are those of
/dev/null. A hook mounts what runc refuses to mount. The library checks the program's rights in the container itself.
"""

import contextlib
import json
import os
import platform
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.cluster.api import Object
from hack.nvmlsim.build import LIBRARY, library_directory
from hack.nvmlsim.simulator import Simulator, machine_devices
from hack.realnode.grants import Grant, GrantRefused, find_grant, find_injected

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = "/run/nvmlsim/capabilities"
"""The folder in the container that stands in for /proc/driver/nvidia/capabilities."""
STATE = "/run/nvmlsim/state"
"""The folder in the container with the simulated machine's state, which every user may read."""
DEV = "/dev"
NULL_DEVICE = (1, 3)
"""The major and minor of a character device that every container may open."""
MEMORY_MIB = 512
POD_ANNOTATION = "io.kubernetes.cri.sandbox-name"
BEGAN, MOUNT = ("createRuntime", "began"), ("createContainer", "mount")
"""The hooks: the stage at which runc calls each, and its verb."""
COMPUTES_ON = "computes-on.json"
"""In the bundle: the devices that the container names, and whether it uses them through MPS."""
EXCLUSIVE_PROCESS = 3
"""The compute mode in which a GPU accepts one process, or the MPS server with its clients."""
FOLLOWED = "followed"
"""What a follower prints once its process is registered."""
_RUNTIME = """#!/bin/sh
# SIMULATED: stands in for nvidia-container-runtime.
export PYTHONPATH={root}:{root}/operator GPUSHARING_CACHE={cache}
case " $* " in *" create "*) {python} -m hack.realnode.runtime prepare {folder} "$@" || exit 1 ;; esac
exec runc "$@"
"""
_HOOK = """#!/bin/sh
export PYTHONPATH={root}:{root}/operator GPUSHARING_CACHE={cache} PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec {python} -m hack.realnode.runtime "$1" {folder}
"""


def write_runtime(folder: Path) -> Path:
    """Write the programs that containerd and runc call into `folder`, which also contains the simulated machine."""
    library = library_directory()
    words = {"root": ROOT, "python": sys.executable, "folder": folder, "cache": library.parent.parent}
    runtime = folder / "nvidia-container-runtime"
    for path, text in ((runtime, _RUNTIME), (folder / "hook", _HOOK)):
        path.write_text(text.format(**words))
        path.chmod(0o755)
    return runtime


def state_file(folder: Path) -> Path:
    return folder / "state" / "nvml.state"


def edit(spec: Object, grant: Grant, folder: Path, bundle: Path) -> None:
    """Add to an OCI configuration what `grant` gives, with the hooks that follow the container."""
    state = state_file(folder)
    mounts = [(state.parent, STATE, "rw"), (bundle / "nvmlsim", CAPABILITIES, "ro")]
    if grant.library:
        mounts.append((library_directory() / LIBRARY, f"{_loader_folder(spec, bundle)}/{LIBRARY}", "ro"))
    spec["mounts"] += [
        {"source": str(source), "destination": target, "type": "bind", "options": ["rbind", mode]}
        for source, target, mode in mounts
    ]
    spec["process"].setdefault("env", []).append(f"NVMLSIM_STATE={STATE}/{state.name}")
    nodes = [f"{DEV}/nvidia{minor}" for minor in grant.minors] + [f"{DEV}/nvidiactl"]
    major, minor = NULL_DEVICE
    spec["linux"].setdefault("devices", []).extend(
        {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}
        for path in nodes
    )
    add_hooks(spec, folder, BEGAN, MOUNT)


def add_hooks(spec: Object, folder: Path, *hooks: tuple[str, str]) -> None:
    for stage, verb in hooks:
        stages = spec.setdefault("hooks", {})
        stages.setdefault(stage, []).append({"path": str(folder / "hook"), "args": ["hook", verb]})


def _loader_folder(spec: Object, bundle: Path) -> str:
    """Return the folder in the container in which the dynamic loader looks by default."""
    root = bundle / spec["root"]["path"]
    multiarch = f"usr/lib/{platform.machine()}-linux-gnu"
    return next((f"/{name}" for name in (multiarch, "usr/lib64") if (root / name).is_dir()), f"/{multiarch}")


def _prepare(folder: Path, arguments: Sequence[str]) -> int:
    """Give a container its grant. Without one, a container with devices by CDI is only followed."""
    bundle = Path(_option(arguments, "--bundle"))
    spec = json.loads((bundle / "config.json").read_text())
    devices = machine_devices(Simulator(state_file(folder)).show())
    try:
        grant = find_grant(spec, devices)
    except GrantRefused as error:
        # containerd shows what runc logged there.
        line = {"level": "error", "msg": f"nvidia-container-runtime (SIMULATED): {error}"}
        Path(_option(arguments, "--log")).write_text(json.dumps(line) + "\n")
        return 1
    uses = grant.computes_on if grant else find_injected(spec, devices)
    if grant:
        (bundle / "nvmlsim").mkdir(exist_ok=True)
        for name in grant.capabilities:
            file = bundle / "nvmlsim" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("SIMULATED\n")
            file.chmod(0o400)
        edit(spec, grant, folder, bundle)
    elif uses:
        add_hooks(spec, folder, BEGAN)
    else:
        return 0
    on = [(device.gpu, device.instance) for device in uses]
    (bundle / COMPUTES_ON).write_text(json.dumps({"on": on, "mps": bool(grant and grant.mps)}))
    (bundle / "config.json").write_text(json.dumps(spec))
    return 0


def _option(arguments: Sequence[str], name: str) -> str:
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    raise SystemExit(f"nvidia-container-runtime (SIMULATED): called without a value of {name}")


def _began(folder: Path, state: Object) -> None:
    """Start a follower that registers the container's first process on the devices in COMPUTES_ON until it ends."""
    if not json.loads((Path(state["bundle"]) / COMPUTES_ON).read_text())["on"]:
        return
    pod = (state.get("annotations") or {}).get(POD_ANNOTATION, "workload")
    # A driver frees what a process used however it ended. A hook at the end would not suffice: runc calls none for a
    # container that was killed while it was created.
    process = os.pidfd_open(state["pid"])
    what = (folder, state["bundle"], f"SIMULATED-{pod}", state["pid"], process)
    follower = subprocess.Popen(
        [sys.executable, "-m", "hack.realnode.runtime", "follow", *map(str, what)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        pass_fds=[process],
        start_new_session=True,
    )
    assert follower.stdout is not None, "it was opened above"
    if (answer := follower.stdout.readline().strip()) != FOLLOWED:
        raise RuntimeError(f"the process {state['pid']} has no follower: {answer}")


def follow(folder: Path, bundle: Path, name: str, pid: int, process: int) -> None:
    """Register the process on its devices until it ends, but on no exclusive GPU that is taken."""
    simulator = Simulator(state_file(folder))
    ended = select.poll()
    ended.register(process, select.POLLIN)
    try:
        uses = json.loads((bundle / COMPUTES_ON).read_text())
        for gpu, instance in uses["on"]:
            if not uses["mps"] and _is_taken(simulator.show(), gpu):
                continue
            where = {} if instance is None else {"gpu_instance": instance[0], "compute_instance": instance[1]}
            simulator.add_process(gpu, pid, name, memory_mib=MEMORY_MIB, mps=uses["mps"], **where)
        with contextlib.suppress(BrokenPipeError):  # the hook was killed; the process may live on
            print(FOLLOWED, flush=True)
        ended.poll()
    finally:
        simulator.remove_process(pid)


def _is_taken(shown: Object, gpu: int) -> bool:
    exclusive = shown["gpus"][gpu]["compute_mode"] == EXCLUSIVE_PROCESS
    return exclusive and any(row["gpu"] == gpu for row in shown["processes"])


def _mount(folder: Path, state: Object) -> None:
    """Mount what the driver would add to /proc and sysfs, where runc itself refuses mounts."""
    root = Path(state["bundle"]) / "rootfs"
    shown = folder / "shown"
    for source, target in ((shown / "driver", root / "proc/driver"), (shown / "pci", root / "sys/bus/pci/devices")):
        if target.is_dir():
            subprocess.run(["mount", "--bind", str(source), str(target)], check=True)


def main(arguments: Sequence[str]) -> int:
    """Run `prepare FOLDER <runc's arguments>`, or a hook with the state on standard input."""
    verb, folder, *rest = arguments
    if verb == "prepare":
        return _prepare(Path(folder), rest)
    if verb == "follow":
        bundle, name, pid, process = rest
        follow(Path(folder), Path(bundle), name, int(pid), int(process))
        return 0
    state = json.loads(sys.stdin.read())
    {"began": _began, "mount": _mount}[verb](Path(folder), state)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
