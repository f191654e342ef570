"""The real kubelet plugin of NVIDIA's DRA driver on one simulated machine, and its DaemonSet.

No kubelet answers its registration, which it does not need in order to publish ResourceSlices.
"""

import shutil
from pathlib import Path

from hack.cluster.api import Object
from hack.nvidia.sandbox import Sandbox
from hack.nvidia.tasks import SandboxTask
from hack.sim.manifests import dra_daemon_set
from hack.sim.settings import SimSettings


def kubelet_plugin(sandbox: Sandbox, node: str, kubeconfig: Path) -> SandboxTask:
    folder = sandbox.folder / "dra"
    root = folder / "root"
    libraries, programs = root / "usr" / "lib64", root / "usr" / "bin"
    for path in (libraries, programs, folder / "plugins" / "gpu.nvidia.com", folder / "registry", folder / "cdi"):
        path.mkdir(parents=True, exist_ok=True)
    library = Path(sandbox.simulator.environment()["LD_LIBRARY_PATH"]) / "libnvidia-ml.so.1"
    shutil.copy(library.resolve(), libraries / library.name)
    shutil.copy(sandbox.folder / "bin" / "nvidia-smi", programs)
    options = {
        "node-name": node,
        "kubeconfig": str(kubeconfig),
        "cdi-root": str(folder / "cdi"),
        "container-driver-root": str(root),
        "nvidia-driver-root": str(root),
        "kubelet-plugins-directory-path": str(folder / "plugins"),
        "kubelet-registrar-directory-path": str(folder / "registry"),
        "nvidia-cdi-hook-path": "/bin/true",
        "image-name": "none",
    }
    arguments = [word for key, setting in options.items() for word in (f"--{key}", setting)]
    return SandboxTask(sandbox, "gpu-kubelet-plugin", *arguments, log=sandbox.folder / "gpu-kubelet-plugin.log")


def daemon_set(annotations: dict[str, str]) -> Object:
    body: Object = dra_daemon_set(SimSettings())
    body["spec"]["template"]["metadata"]["annotations"] = annotations
    return body
