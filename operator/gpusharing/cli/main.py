"""`kubectl gpusharing`: questions about GPU pools that people ask at three in the morning.

The verb is looked up first and imported then: `--help` needs neither the client nor the planner (docs/adr/0038).
"""

import gc
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module

from gpusharing.cli.shell.arguments import parse
from gpusharing.cli.shell.troubles import FAILED, INTERRUPTED, PIPE_CLOSED, Trouble


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status. Whatever happens, a person reads a sentence."""
    try:
        status = _carry_out(_parsed(arguments))
        sys.stdout.flush()
        return status
    except Trouble as trouble:
        sys.stdout.flush()
        print(f"error: {trouble}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain at its end about what it cannot write any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _parsed(arguments: Sequence[str]) -> Namespace:
    try:
        return parse(arguments)
    except SystemExit:
        sys.stdout.flush()  # whoever read --help may have gone away, and Python's own flush would complain
        raise


def _carry_out(typed: Namespace) -> int:
    # A command ends before its garbage matters, and looking for it takes as long as reading a thousand nodes.
    gc.disable()
    from gpusharing.cli.shell.running import carry_out

    return carry_out(import_module(f"gpusharing.{typed.module}"), typed)
