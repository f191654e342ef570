"""SIMULATED `nvidia-smi`: the two calls that NVIDIA's programs make.

`-r [-i <GPUs>]` resets simulated GPUs (mig-parted), `-i <GPU> -c <mode>` sets the compute mode (MPS control daemon).
GPUs are named by index, PCI bus id or UUID.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.nvmlsim.simulator import Simulator, SimulatorError

COMPUTE_MODES = {"DEFAULT": 0, "PROHIBITED": 2, "EXCLUSIVE_PROCESS": 3}


def main(arguments: Sequence[str]) -> int:
    """Act as `nvidia-smi -r` and `-c` on the SIMULATED machine in $NVMLSIM_STATE, and return the exit status."""
    parser = argparse.ArgumentParser(prog="nvidia-smi", description="SIMULATED: only -r and -c")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-r", "--gpu-reset", action="store_true")
    what.add_argument("-c", "--compute-mode", choices=COMPUTE_MODES)
    parser.add_argument("-i", "--id", default="", help="indexes, bus ids or UUIDs, separated by commas")
    options = parser.parse_args(arguments)
    simulator = Simulator(Path(os.environ["NVMLSIM_STATE"]))
    try:
        gpus = simulator.find_gpus(options.id.split(","))
        if options.gpu_reset:
            simulator.reset(gpus or None)
        for gpu in gpus if options.compute_mode else []:
            simulator.set_gpu(gpu, compute_mode=COMPUTE_MODES[options.compute_mode])
    except SimulatorError as error:
        print(f"Unable to change the GPU: {error}")
        return 255
    print("All done.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
