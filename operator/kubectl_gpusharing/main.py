"""`kubectl gpusharing`: answer questions about GPU pools in a terminal, and steer rollouts.

Only the module of the verb that was typed is imported, so that `--help` loads neither the client nor the planner
(docs/adr/0038).
"""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from kubectl_gpusharing.shell.arguments import parse
from kubectl_gpusharing.shell.troubles import FAILED, INTERRUPTED, PIPE_CLOSED, Trouble


def main() -> None:
    """Run the command line of this process (`run`) and exit with its status, by raising SystemExit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line, given as the words after the name of the program, and return its exit status. Once
    the words are parsed, garbage collection is turned off, which a verb that stays open for long turns on again, and
    the module of the verb is imported. A `Trouble` is printed on standard error as one sentence, and the status is
    FAILED. After Ctrl-C, and when the reader of standard output is gone, the status is what a shell would report; in
    the second case standard output is redirected to the null device. If the reader is found to be gone only when a
    Trouble is about to be printed, BrokenPipeError is raised. The SystemExit of --help (0) and of invalid flags
    (FAILED) passes through, and so does any other exception."""
    try:
        try:
            typed = parse(arguments)
        finally:
            sys.stdout.flush()  # if the reader of --help is gone, raise BrokenPipeError here and not on exit
        # A command ends before garbage matters, and collecting it takes as long as reading a thousand nodes.
        gc.disable()
        from kubectl_gpusharing.shell.running import carry_out

        status = carry_out(import_module(f"kubectl_gpusharing.{typed.module}"), typed)
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
