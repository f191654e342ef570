"""What a person at the terminal is asked."""

import signal
import sys
from typing import TextIO


def ask_line(question: str, answers: TextIO) -> str:
    """What was typed; the question goes to standard error, where it stands in no data. Ctrl-C raises KeyboardInterrupt.

    asyncio would take a first Ctrl-C down only, and go on waiting for a line to be ended. So it is not told any more
    from the moment in which the question can be read.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{question} ", end="", file=sys.stderr, flush=True)
        return answers.readline().strip()
    finally:
        signal.signal(signal.SIGINT, before)


def agrees(question: str, answers: TextIO) -> bool:
    """Only a yes is a yes."""
    return ask_line(f"{question} [y/N]", answers).lower() in ("y", "yes")
