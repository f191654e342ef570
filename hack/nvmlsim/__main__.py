"""`python -m hack.nvmlsim`: the control tool of the NVML simulator. See README.md beside this file."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hack.cache import UnavailableError
from hack.nvmlsim import build
from hack.nvmlsim.models import UnknownModelError, simulated_cards
from hack.nvmlsim.simulator import (
    ANY_PROCESS,
    DRIVER,
    EVENT_TYPES,
    RESULTS,
    ProcessFields,
    Simulator,
    SimulatorError,
)

_FOLDERS = ("capabilities", "devices")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nvmlsim", description="A SIMULATED machine with NVIDIA GPUs.")
    parser.add_argument("--state", type=Path, help="the state file; default: $NVMLSIM_STATE")
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="create a machine, or make an existing one new")
    create.add_argument("--model", action="append", required=True, help="repeat it for a machine with several models")
    create.add_argument("--gpus", type=int, default=1, help="how many of each model")
    create.add_argument("--driver", default=DRIVER)
    create.add_argument("--seed", help="the seed of the UUIDs; default: the path of the state file")
    verbs.add_parser("models", help="list the models")
    verbs.add_parser("build", help="build the library and print its folder")
    verbs.add_parser("env", help="print the environment variables that a program needs to see this machine")
    show = verbs.add_parser("show", help="print the machine")
    show.add_argument("--json", action="store_true")
    change = verbs.add_parser("set", help="set fields: lost=1, busy=1, driver_version=470.57.02, 1g.10gb:id=99")
    change.add_argument("--gpu", type=int, help="one GPU; default: all")
    change.add_argument("fields", nargs="+", metavar="field=value")
    reset = verbs.add_parser("reset", help="reset GPUs as nvidia-smi -r does")
    reset.add_argument("gpus", nargs="*", help="indexes or PCI bus ids; default: all")
    verbs.add_parser("reboot", help="change the GPUs as a reboot does")
    verbs.add_parser("reload", help="take NVML from running programs, as systemctl daemon-reload does in containers")
    _add_injections(verbs.add_parser("inject", help="faults, processes, events"))
    return parser


def _add_injections(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True)
    fault = kinds.add_parser("fault", help=f"hang, {', '.join(RESULTS)}")
    fault.add_argument("function")
    fault.add_argument("fault")
    fault.add_argument("--gpu", type=int, default=-1)
    fault.add_argument("--skip", type=int, default=0, help="number of calls that still succeed first")
    fault.add_argument("--count", type=int, default=-1, help="number of calls that fail then; default: all")
    kinds.add_parser("clear", help="clear all faults")
    process = kinds.add_parser("process", help="a process that computes")
    process.add_argument("pid", type=int)
    process.add_argument("--gpu", type=int, default=0)
    process.add_argument("--name", default="")
    process.add_argument("--instance", dest="gpu_instance", type=int, default=-1, help="GPU instance id")
    process.add_argument("--compute-instance", type=int, default=-1)
    process.add_argument("--memory-mib", type=int, default=512)
    process.add_argument("--sm-percent", type=int, default=0, help="share of SM time; default: 0, idle")
    process.add_argument("--mps", action="store_true")
    process.add_argument("--graphics", action="store_true")
    process.add_argument("--pid-namespace", type=int, default=0, help="inode; default: the machine's own")
    process.add_argument("--end", action="store_true", help="end the process instead of starting it")
    event = kinds.add_parser("event", help=", ".join(EVENT_TYPES))
    event.add_argument("type", choices=EVENT_TYPES)
    event.add_argument("data", type=int, nargs="?", default=0, help="the XID number, for xid")
    event.add_argument("--gpu", type=int, default=0)


def _set(simulator: Simulator, gpu: int | None, fields: Sequence[str]) -> None:
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise SimulatorError(f"{field!r} is not of the form field=value")
        profile, colon, key = name.rpartition(":")
        if colon:
            simulator.set_profile(gpu, profile, **{key: value})
        elif name in (
            "driver_version",
            "nvml_version",
            "cuda_version",
            "driver_loaded",
            "clients_block",
            *_FOLDERS,
        ):
            simulator.set_machine(**{name: value})
        else:
            simulator.set_gpu(gpu, **{name: value})


def _inject(simulator: Simulator, options: argparse.Namespace) -> None:
    if options.kind == "fault":
        simulator.inject(options.function, options.fault, gpu=options.gpu, skip=options.skip, count=options.count)
    elif options.kind == "clear":
        simulator.clear_faults()
    elif options.kind == "event":
        simulator.post_event(options.gpu, EVENT_TYPES[options.type], options.data)
    elif options.end:
        simulator.remove_process(options.pid)
    else:
        fields = ProcessFields(**{name: getattr(options, name) for name in ANY_PROCESS})  # type: ignore[typeddict-item]  # the parser has each
        simulator.add_process(options.gpu, options.pid, options.name, **fields)


def _print_machine(machine: dict[str, Any]) -> None:
    print(f"SIMULATED machine, driver {machine['driver']}, {len(machine['gpus'])} GPUs")
    for gpu in machine["gpus"]:
        mode = "no MIG" if gpu["mig"] is None else f"MIG {'on' if gpu['mig']['current'] else 'off'}"
        if gpu["mig"] and gpu["mig"]["current"] != gpu["mig"]["pending"]:
            mode += f" (pending: {'on' if gpu['mig']['pending'] else 'off'})"
        lost = "  LOST" if gpu["lost"] else ""
        print(f"{gpu['index']:3}  {gpu['bus_id']}  {gpu['name']}  {mode}{lost}  {gpu['uuid']}")
        for instance in gpu["instances"]:
            place = f"{instance['start']}:{instance['size']}"
            uuids = " ".join(compute["uuid"] for compute in instance["compute"]) or "no compute instance"
            print(f"       {instance['profile']:16} id {instance['id']:<3} at {place:5} {uuids}")
    for process in machine["processes"]:
        where = f"GPU {process['gpu']} instance {process['gpu_instance']}/{process['compute_instance']}"
        print(f"process {process['pid']} {process['name'] or '(no name)'} on {where}")
    for fault in machine["faults"]:
        print(f"fault {fault['function']}: {fault['fault']}, struck {fault['hits']} times")


def _show(simulator: Simulator, options: argparse.Namespace) -> None:
    machine = simulator.show()
    print(json.dumps(machine, indent=2)) if options.json else _print_machine(machine)


def _print_environment(simulator: Simulator, _: argparse.Namespace) -> None:
    for name, value in simulator.environment().items():
        print(f"export {name}={shlex.quote(value)}")


def _reset(simulator: Simulator, options: argparse.Namespace) -> None:
    names = [name for text in options.gpus for name in text.split(",")]
    simulator.reset(simulator.find_gpus(names) or None)


VERBS: Mapping[str, Callable[[Simulator, argparse.Namespace], None]] = {
    "create": lambda simulator, _: _print_machine(simulator.show()),
    "show": _show,
    "env": _print_environment,
    "set": lambda simulator, options: _set(simulator, options.gpu, options.fields),
    "reset": _reset,
    "reboot": lambda simulator, _: simulator.reboot(),
    "reload": lambda simulator, _: simulator.take_devices_away(),
    "inject": _inject,
}
"""The functions of the verbs that need a machine. For `create` the machine has been created before."""


def _run(options: argparse.Namespace) -> None:
    if options.verb == "models":
        print("\n".join(f"{card.key:36}{card.products[0]}" for card in simulated_cards()))
        return
    if options.verb == "build":
        print(build.library_directory())
        return
    state = options.state or os.environ.get("NVMLSIM_STATE")
    if not state:
        raise SimulatorError("no state file: give --state FILE, or export NVMLSIM_STATE=FILE")
    if options.verb == "create":
        models = [model for model in options.model for _ in range(options.gpus)]
        Simulator.create(Path(state), models, driver=options.driver, seed=options.seed)
    VERBS[options.verb](Simulator(Path(state)), options)


def main(arguments: Sequence[str]) -> int:
    """Run the tool with these arguments."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (SimulatorError, UnknownModelError, UnavailableError, FileNotFoundError) as error:
        print(f"nvmlsim: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
