"""`python -m hack.demo` shows the product on a simulated or a real cluster, which it calls its stage. The exit status
is 0 only if everything that it showed is true."""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from hack.cache import UnavailableError
from hack.cluster.process import ComponentError
from hack.demo.screen import DemoFailed, Screen
from hack.launch import LaunchError

TRY_NEXT = {
    "embedded": (
        "make demo DRIVER=cluster    the same story on a real API server, scheduler and controllers",
        'eval "$(make -s cluster)"   a control plane with simulated GPU nodes for your own kubectl',
        "make run                    then, in another shell: kubectl apply -f examples/pool-b.yaml",
        "make test                   the tests that need nothing but Python",
    ),
    "cluster": (
        'eval "$(make -s cluster)"   a control plane that stays, for your own kubectl',
        "make run                    the operator on it; then: kubectl apply -f examples/pool-b.yaml",
        "kubectl explain gsp.spec    every field, with an example",
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hack.demo", description=__doc__)
    parser.add_argument(
        "--driver",
        default=os.environ.get("DRIVER") or "embedded",
        help=f"one of {', '.join(TRY_NEXT)}; default $DRIVER or embedded",
    )
    parser.add_argument("--quiet", action="store_true", help="print only headings and checks")
    parser.add_argument("--no-color", action="store_true", help="print without colors; $NO_COLOR does the same")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write the data from which the README's pictures are drawn"
    )
    options = parser.parse_args()
    if options.driver not in TRY_NEXT:
        parser.error(f"DRIVER must be one of {', '.join(TRY_NEXT)}, not {options.driver!r}")
    return options


async def run(options: argparse.Namespace, screen: Screen) -> None:
    """Play the story on a real control plane if the driver is `cluster`, and otherwise in this process."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # Imported here, so that the first lines are on the screen before the slow imports.
    from hack.demo.demo import Demo
    from hack.demo.stage import LOG, ROOT, Stage
    from hack.demo.story import play

    stages: AbstractAsyncContextManager[Stage]
    if options.driver == "cluster":
        from hack.demo.cluster import cluster_stage

        stages = cluster_stage(screen)
    else:
        from hack.demo.embedded import embedded_stage

        stages = embedded_stage()
    async with stages as stage:
        screen.banner(stage.simulated)
        screen.say(f"The operator's log: {LOG.relative_to(ROOT)}")
        await play(Demo(stage, screen, options.record))


def main() -> int:
    """Play the demo. The exit status is 1 after a failed check, 2 without a stage, and 130 if interrupted."""
    options = arguments()
    color = not (options.no_color or os.environ.get("NO_COLOR"))
    screen = Screen(color=color, quiet=options.quiet)
    screen.banner("gpu-sharing-operator changes GPU pools safely between Full, MIG and time-slicing. SIMULATED GPUs.")
    try:
        asyncio.run(run(options, screen))
    except DemoFailed as failure:
        print(f"\nDEMO FAILED: {failure}", file=sys.stderr)
        return 1
    except (UnavailableError, ComponentError, LaunchError) as error:
        print(f"\nmake demo DRIVER={options.driver}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ninterrupted", file=sys.stderr)
        return 130
    screen.heading(f"All {screen.checks} checks passed. What to try next:")
    for line in TRY_NEXT[options.driver]:
        print(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
