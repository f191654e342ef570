"""Questions to a person at the terminal."""

import signal
import sys
from typing import TextIO


def ask_line(question: str, answers: TextIO) -> str:
    """What was typed; the question goes to standard error, so that it is not mixed with data. Ctrl-C raises
    KeyboardInterrupt.

    asyncio would only note a first Ctrl-C and keep waiting for the line to end. So it no longer gets the signal from
    the moment the question can be read.
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
