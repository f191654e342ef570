"""What NVIDIA's container toolkit gives a container of MIG: capability files, as a stand-in.

The form is that of /proc/driver/nvidia/capabilities (MIG user guide, "Device Nodes and Capabilities"): whoever can open
a file has the capability.
"""

from pathlib import Path

from hack.nvmlsim.simulator import Simulator

MONITOR, CONFIG = "mig/monitor", "mig/config"


def of_device(gpu: int, gpu_instance: int, compute_instance: int) -> tuple[str, str]:
    """The two files of one MIG device; `gpu` by its minor number."""
    instance = f"gpu{gpu}/mig/gi{gpu_instance}"
    return f"{instance}/access", f"{instance}/ci{compute_instance}/access"


def give(simulator: Simulator, folder: Path, *names: str) -> None:
    """Let programs without CAP_SYS_ADMIN have these capabilities, beside those that `folder` has already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SIMULATED\n")
    simulator.set_machine(capabilities=str(folder))
