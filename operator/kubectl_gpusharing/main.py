"""`kubectl gpusharing`: answer questions about GPU pools in a terminal, and steer rollouts.

Only the module of the verb that was typed is imported, so that `--help` loads neither the client nor the planner
(docs/adr/0038).
"""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from kubectl_gpusharing.shell.arguments import VERBS, parse
from kubectl_gpusharing.shell.troubles import FAILED, INTERRUPTED, PIPE_CLOSED, Trouble


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line, without the name of the program, and return its exit status."""
    try:
        try:
            typed = parse(arguments)
        finally:
            sys.stdout.flush()  # if the reader of --help is gone, raise BrokenPipeError here and not on exit
        # A command ends before garbage matters, and collecting it takes as long as reading a thousand nodes.
        gc.disable()
        from kubectl_gpusharing.shell.running import carry_out

        status = carry_out(import_module(f"kubectl_gpusharing.{VERBS[typed.verb].module}"), typed)
        sys.stdout.flush()
        return status
    except Trouble as trouble:
        sys.stdout.flush()
        print(f"error: {trouble}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Otherwise Python would report on exit that it cannot flush standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
