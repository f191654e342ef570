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
    """With `-r`, reset the GPUs that `-i` names, or all GPUs without `-i`. With `-c`, set the compute mode of the GPUs
    that `-i` names; without `-i`, no mode is set. The environment variable NVMLSIM_STATE names the state file of the
    machine. Returns the exit status: 0, or 255 after printing to stdout why the simulated machine refuses; a reset has
    then changed no GPU. Raises SystemExit for any other arguments, and KeyError if NVMLSIM_STATE is not set."""
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
