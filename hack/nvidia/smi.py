"""SIMULATED `nvidia-smi`: resets simulated GPUs, as `nvidia-smi -r [-i <indexes or bus ids>]` resets real ones."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.nvmlsim.simulator import Simulator, SimulatorError


def main(arguments: Sequence[str]) -> int:
    """Reset, and say it in the words of the real program."""
    parser = argparse.ArgumentParser(prog="nvidia-smi", description="SIMULATED: only -r")
    parser.add_argument("-r", "--gpu-reset", action="store_true", required=True)
    parser.add_argument("-i", "--id", default="", help="indexes or bus ids, separated by commas")
    given = parser.parse_args(arguments)
    simulator = Simulator(Path(os.environ["NVMLSIM_STATE"]))
    try:
        gpus = simulator.find_gpus(given.id.split(","))
        simulator.reset(gpus or None)
    except SimulatorError as error:
        print(f"Unable to reset GPU: {error}")
        return 255
    print("GPU was successfully reset.\nAll done.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
