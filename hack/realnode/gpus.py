"""The SIMULATED GPUs of a node, and the runtime that brings them into containers."""

from collections.abc import Sequence
from pathlib import Path

from hack.nvidia import sysfs
from hack.nvidia.sandbox import mig_minors
from hack.nvmlsim.simulator import Simulator
from hack.realnode import runtime
from hack.realnode.machine import Machine


class NodeGpus:
    """A simulated machine whose own namespaces are those of a node. `folder` is its alone."""

    def __init__(self, folder: Path, node: str, models: Sequence[str]) -> None:
        """Nothing of it depends on the machine being started.

        Raises:
            UnavailableError: there is no C compiler.
            UnknownModelError: a model that is not simulated.
        """
        self.simulator = Simulator.create(runtime.state_file(folder), models, seed=node)
        self.simulator.path.chmod(0o666)  # whoever may call the library keeps his account in it
        gpus = self.simulator.show()["gpus"]
        sysfs.write_devices(folder / "shown" / "pci", gpus)
        minors = folder / "shown" / "driver" / "nvidia-caps" / "mig-minors"
        minors.parent.mkdir(parents=True)
        minors.write_text(mig_minors(len(gpus)))
        self.runtime = runtime.write_runtime(folder)

    def enter(self, machine: Machine) -> None:
        """Rights are read against the namespaces of this machine, which must be started."""
        self.simulator.set_machine(
            pid_namespace=machine.namespace("pid"), capabilities=runtime.CAPABILITIES, devices=runtime.DEV
        )
