"""The program on a terminal of its own, and what can be read there."""

import os
import pty
import select
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.desk import PROGRAM, SECONDS, Desk

WIDTH, HEIGHT = 80, 24
END = "no such word"
"""`read_until` reads to the end of the program."""


@contextmanager
def terminal(desk: Desk, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The program on a terminal of 80 columns, and where to read what is on it."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (HEIGHT, WIDTH))
    told = desk.environment(TERM="xterm-256color", **environment)
    with subprocess.Popen([*PROGRAM, *arguments], env=told, stdout=its, stderr=its, stdin=its) as process:
        os.close(its)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(screen: int, word: str) -> str:
    """What was written until this word came, or until the program ended; a program that falls silent is an error."""
    seen = b""
    while word.encode() not in seen:
        ready, _, _ = select.select([screen], [], [], SECONDS)
        assert ready, f"nothing more for {SECONDS} s after {seen.decode()[-500:]!r}"
        try:
            piece = os.read(screen, 65536)
        except OSError:  # EIO: the other side is closed
            piece = b""
        if not piece:
            break
        seen += piece
    return seen.decode(errors="ignore")  # the last piece may end within a character


def answer(screen: int, text: str) -> None:
    os.write(screen, f"{text}\n".encode())
